"""`wmtp data`: records made, judged, mutated and indexed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from wmtp.cli.shared import AsJson, RemoteCode, quiet_libraries
from wmtp.errors import UsageError

if TYPE_CHECKING:
    from wmtp.data.token_lengths import Measure
    from wmtp.sandbox import Requirement

app = typer.Typer(
    help="Records: prepare, label, mutate, index.",
    no_args_is_help=True,
)
Source = Annotated[str, typer.Option("--data", help="Records, or the file of a known data set.")]
Out = Annotated[str, typer.Option(help="The file to write; must not be there. FILE.report.json comes with it.")]
Split = Annotated[str | None, typer.Option(help="Only this official split; default: all rows.")]
Require = Annotated[str, typer.Option(help="Isolation of programs: strong, best or none.")]
CpuSeconds = Annotated[float, typer.Option("--cpu-s", help="CPU seconds of one program.")]


@app.command()
def prepare(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Data files; what they are, their rows say.")
    ],
    out: Out,
    field: Annotated[
        list[str] | None, typer.Option(help="OURS=THEIRS: a record's field and the sources'; may be given again.")
    ] = None,
    split: Split = None,
    problems: Annotated[str | None, typer.Option(help="A file with statements and tests, by problem_id.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Leave out what shows this benchmark's problems; may be given again.")
    ] = None,
    near: Annotated[
        float | None, typer.Option(help="Leave out near duplicates, from this similarity on (0.7 to 1).")
    ] = None,
    max_solutions: Annotated[
        int | None, typer.Option(help="At most so many responses to a problem of each verdict.")
    ] = None,
    max_cases: Annotated[int | None, typer.Option(help="At most so many inputs and outputs of a record.")] = None,
    on_bad_row: Annotated[str, typer.Option(help="error stops at the first, skip counts them.")] = "error",
    as_json: AsJson = False,
) -> None:
    """One file of records from data sets, or your own.

    MBPP, HumanEval, CodeContests, instruction or chat data, anything with --field (docs/data.md). Run it again after an
    interruption and it goes on.

    Example: wmtp data prepare mine.parquet --out records.jsonl
    """
    from wmtp.curation.prepare import Plan
    from wmtp.curation.prepare import prepare as work
    from wmtp.curation.tables import prepared_table
    from wmtp.data.records import field_map
    from wmtp.progress import Latest
    from wmtp.storage import place, resolve

    plan = Plan(
        fields=field_map(field or []),
        split=split,
        problems=place(problems) if problems is not None else None,
        against=[place(path) for path in against or []],
        near=near,
        max_solutions=max_solutions,
        max_cases=max_cases,
        on_bad_row=on_bad_row,
    )
    with Latest(quiet=as_json) as report:
        found = work([place(path) for path in sources], resolve(out), plan, report)
    typer.echo(json.dumps(found)) if as_json else prepared_table(found, out)


@app.command()
def label(
    source: Source,
    out: Out,
    split: Split = None,
    require: Require = "best",
    cpu_s: CpuSeconds = 5.0,
    as_json: AsJson = False,
) -> None:
    """Run every response against its tests.

    The same records, with is_correct and the reason. Run it again after an interruption and it goes on.

    Example: wmtp data label --data mine.jsonl --out labelled.jsonl
    """
    from wmtp.curation.label import label as work
    from wmtp.curation.tables import curation_table
    from wmtp.progress import Latest
    from wmtp.sandbox import Limits
    from wmtp.storage import place, resolve

    with Latest(quiet=as_json) as report:
        found = work(
            place(source),
            resolve(out),
            split=split,
            limits=Limits(cpu_s=cpu_s),
            require=_required(require),
            report=report,
        )
    typer.echo(json.dumps(found)) if as_json else curation_table(found, out)


@app.command()
def mutate(
    source: Source,
    out: Out,
    variants: Annotated[int, typer.Option(help="Wrong variants of each correct response, at most.")] = 5,
    seed: Annotated[int, typer.Option(help="Which of the possible ones are tried first.")] = 0,
    split: Split = None,
    require: Require = "best",
    cpu_s: CpuSeconds = 5.0,
    as_json: AsJson = False,
) -> None:
    """Make wrong but plausible variants of correct responses.

    Those that really fail are kept. Run it again after an interruption and it goes on.

    Example: wmtp data mutate --data mbpp.jsonl --out pairs.jsonl
    """
    from wmtp.curation.mutate import mutate as work
    from wmtp.curation.tables import curation_table
    from wmtp.progress import Latest
    from wmtp.sandbox import Limits
    from wmtp.storage import place, resolve

    with Latest(quiet=as_json) as report:
        found = work(
            place(source), resolve(out), variants=variants, seed=seed, split=split, limits=Limits(cpu_s=cpu_s),
            require=_required(require), report=report,
        )  # fmt: skip
    typer.echo(json.dumps(found)) if as_json else curation_table(found, out)


@app.command(name="index")
def index_records(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Records, as JSON Lines that are not compressed.")],
    out: Annotated[
        str | None, typer.Option(help="Folder to write; default FILE.index, beside it. One that is there is made anew.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A model folder or hub id: lengths in its tokens too, for training with it.")
    ] = None,
    template: Annotated[str, typer.Option(help="With --tokenizer: data.template of the training.")] = "{prompt}\n",
    workers: Annotated[int, typer.Option(min=0, max=64, help="With --tokenizer: processes that tokenise.")] = 0,
    ids: Annotated[
        bool, typer.Option("--ids", help="With --tokenizer: keep the ids, so that training tokenises nothing.")
    ] = False,
    remote_code: RemoteCode = None,
    as_json: AsJson = False,
) -> None:
    """An index of rows, so that training reads only its own.

    Where every row is and what sampling needs of it (data.index).

    Example: wmtp data index records.jsonl
    """
    from wmtp.data.index import Index, build_index, default_folder, describe
    from wmtp.storage import place

    if ids and tokenizer is None:
        raise UsageError("--ids keeps what a tokenizer makes of the rows: give --tokenizer MODEL too")
    path = place(file)
    folder = place(out) if out is not None else default_folder(path)
    measure = None if tokenizer is None else _measure(tokenizer, template, workers, ids, remote_code or [])
    replaced = folder.exists()
    counts = build_index(path, folder, measure)
    if replaced:
        typer.echo(f"{folder} was there: the index in it is made anew", err=True)
    with Index(path, folder) as index:
        found = {"folder": str(folder), **counts, **describe(index)}
    typer.echo(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))


def _measure(tokenizer: str, template: str, workers: int, ids: bool, remote_code: list[str]) -> Measure:
    from wmtp.data.token_lengths import Measure
    from wmtp.formats import code
    from wmtp.formats.hf import backend_fingerprint, load_tokenizer

    quiet_libraries()
    with code.remote_code(*remote_code):
        loaded = load_tokenizer(tokenizer)
    return Measure(loaded, backend_fingerprint(loaded), template, workers, ids)


def _required(require: str) -> Requirement:
    from wmtp.sandbox import Requirement

    if require not in get_args(Requirement):
        raise UsageError(f"--require must be one of {', '.join(get_args(Requirement))}, got {require!r}")
    return cast(Requirement, require)
