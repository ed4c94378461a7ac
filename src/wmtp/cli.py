"""The command line. Each command is one call; errors are one message on stderr and an exit code.

Exit codes: 0 done; 1 failed; 2 wrong usage, config or input; 130 / 143 interrupted with state saved.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from wmtp import __version__, faults, outcome
from wmtp.bench import BENCHMARKS
from wmtp.errors import UsageError, WmtpError, not_on_mps, out_of_memory

if TYPE_CHECKING:
    from wmtp.config import Config
    from wmtp.data.token_lengths import Measure
    from wmtp.estimate import Estimate
    from wmtp.run_tracking import Tracked
    from wmtp.sandbox import Requirement
    from wmtp.storage import Place
    from wmtp.supervisor import Options
    from wmtp.trainer import RunResult

app = typer.Typer(
    help="Weighted multi-token prediction: models that predict several tokens, each loss with its own weight.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes would cost most of the half second that --help may take
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides, e.g. optim.lr=1e-4")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wmtp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Nothing happens before a command."""


@app.command()
def quickstart(
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Folder for the four runs; must be empty or new.")] = "wmtp-quickstart",
    as_json: AsJson = False,
) -> None:
    """Train all four arms on embedded problems. No network.

    Compares them in two tables and writes report.html.

    Example: wmtp quickstart --out runs/first-look
    """
    from wmtp.quickstart import quickstart as work
    from wmtp.storage import resolve
    from wmtp.terminal import quickstart_table, reporter

    _quiet_libraries()
    folder = resolve(out)
    results = work(folder, overrides or [], lambda arm: reporter(arm, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(_finite([asdict(result) for result in results])))
    else:
        quickstart_table(results, folder)


@app.command()
def train(
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", help="Where: device, folders.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="What: model, data, objective.")] = None,
    run_name: Annotated[str | None, typer.Option("--run-name", help="Name of the run folder.")] = None,
    tags: Annotated[str | None, typer.Option("--tags", help="Comma-separated tags.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="The run folder; default RUNS/RUN_NAME.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="auto, a run folder, or one of its checkpoints.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what it needs; train nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also print the resolved config.")] = False,
    as_json: AsJson = False,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Train with so many processes on this host (runs torchrun).")
    ] = None,
    restarts: Annotated[
        int | None,
        typer.Option(min=0, help="If it fails, go on from the last checkpoint; so often in a row without progress."),
    ] = None,
    stop_timeout: Annotated[
        float, typer.Option(min=0.0, help="With --ranks or --restarts: seconds to save and end after a signal.")
    ] = 120.0,
) -> None:
    """Train one arm, or the critic.

    Example: wmtp train --recipe recipes/baseline_embedded_cpu.yaml train.epochs=1 --out runs/first
    """
    from wmtp.config import dump

    faults.check()
    supervised = ranks is not None or restarts is not None
    if supervised and "WORLD_SIZE" in os.environ:
        raise UsageError(
            "--ranks and --restarts start processes of their own, but this is already a rank of a job: WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']}, as torchrun sets it. Leave them out, or run the command without torchrun"
        )
    settings = _settings(config, recipe, overrides or [], run_name, tags, resume)
    if verbose:
        typer.echo(dump(settings), err=True)
    if supervised and not dry_run:
        from wmtp.supervisor import Options

        folder = _run_folder(settings, out, resume)
        files = {"--config": config, "--recipe": recipe, "--run-name": run_name, "--tags": tags, "--out": str(folder)}
        again = [part for name, value in files.items() if value is not None for part in (name, value)]
        again += ["--json"] if as_json else []
        patience = Options(ranks=ranks or 1, restarts=restarts or 0, stop_timeout_s=stop_timeout)
        _supervise([*again, "--", *(overrides or [])], folder, resume, patience)
    _quiet_libraries()
    if dry_run:
        _dry_run(settings, out, resume, as_json, ranks or 1)
        return
    from wmtp.terminal import reporter, result_table
    from wmtp.trainer import run

    result = run(settings, out=out, resume=resume, reporter=reporter(settings.name, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(_plain(result)))
    else:
        result_table(result)
        early = ", stopped early" if result.stopped_early else ""
        typer.echo(f"done: {result.steps:,} steps{early} in {result.folder}")
        if result.tracked is not None:
            _say_tracked(result.tracked)


@app.command()
def doctor(
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", help="Where: device, folders.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="What: model, data, objective.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="The run folder; default RUNS/RUN_NAME.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this machine can do, and whether a run fits on it.

    With --recipe: whether that run can work here. Exit code 1 if something failed.

    Example: wmtp doctor --recipe recipes/baseline_embedded_cpu.yaml
    """
    settings = _settings(config, recipe, overrides or [], None, None, None) if config or recipe else None
    if settings is None and overrides:
        raise UsageError(f"there is nothing to override ({overrides[0]}): give --recipe FILE or --config FILE too")
    _quiet_libraries()
    from wmtp.doctor import examine
    from wmtp.terminal import doctor_table

    findings = examine(settings, out)
    failed = [finding for finding in findings if finding.state == "failed"]
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}))
    else:
        doctor_table(findings)
    if failed:
        raise typer.Exit(1)


def _supervise(arguments: list[str], folder: Place, resume: str | None, options: Options) -> None:
    """Run `wmtp train` with these arguments as a job of its own, again and again if need be; ends with its code."""
    from wmtp.supervisor import newest_step, supervise

    later = "auto" if resume in (None, "auto") else str(folder)

    def command(attempt: int) -> list[str]:
        start = resume if attempt == 0 else later
        resumed = ["--resume", start] if start is not None else []
        return [sys.executable, "-P", "-m", "wmtp", "train", *resumed, *arguments]

    raise typer.Exit(supervise(command, progress=lambda: newest_step(folder), options=options))


def _run_folder(settings: Config, out: str | None, resume: str | None) -> Place:
    """Where the run will live, without the checks (and torch) of `wmtp.runfolder`."""
    from wmtp.storage import place

    if out is not None:
        return place(out)
    return place(settings.runs) / settings.name if resume in (None, "auto") else _run_of(place(str(resume)))


def _settings(
    config: str | None,
    recipe: str | None,
    overrides: list[str],
    run_name: str | None,
    tags: str | None,
    resume: str | None,
) -> Config:
    from wmtp.config import load
    from wmtp.storage import place

    files = [place(file) for file in (config, recipe) if file is not None]
    if not files and resume not in (None, "auto"):
        files = [_run_of(place(resume)) / "config.yaml"]
    if not files:
        raise UsageError("nothing to train: give --recipe FILE (and --config FILE), or --resume RUN")
    named = [f"run_name={json.dumps(run_name)}"] if run_name is not None else []
    tagged = [f"tags={json.dumps([tag.strip() for tag in tags.split(',') if tag.strip()])}"] if tags is not None else []
    return load(files, [*overrides, *named, *tagged])


def _run_of(path: Place) -> Place:
    """The run folder that a path of it, or of one of its checkpoints, means."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def _dry_run(settings: Config, out: str | None, resume: str | None, as_json: bool, ranks: int) -> None:
    from wmtp.terminal import estimate_table
    from wmtp.trainer import dry_run

    def tell(estimate: Estimate, notes: list[str]) -> None:
        if as_json:
            figures = {**asdict(estimate), "bytes": estimate.bytes, "total_bytes": estimate.total}
            typer.echo(json.dumps({**figures, "notes": notes}))
        else:
            estimate_table(settings, estimate, notes)

    dry_run(settings, tell, out=out, resume=resume, ranks=ranks)


@app.command()
def score(
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", help="Where: device, folders.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="What: data, and frozen models to ask.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the scores; default the recipe's objective.weighting.scores.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, or float16: half the size, to 3 digits.")] = "float32",
    batch_tokens: Annotated[int, typer.Option(min=1, help="Positions of a scoring batch, padding included.")] = 8192,
    as_json: AsJson = False,
) -> None:
    """Ask a recipe's critic, reference or reward model once, and store that.

    Training then reads the scores instead (docs/scores.md). Run it again after an interruption and it goes on; under
    torchrun the ranks share the work.

    Example: wmtp score --recipe recipes/verifiable_embedded_cpu.yaml objective.weighting.scores=scores/critic
    """
    from wmtp.prescoring import score as work
    from wmtp.progress import Latest

    if config is None and recipe is None:
        raise UsageError("nothing to score: give --recipe FILE (and --config FILE)")
    settings = _settings(config, recipe, overrides or [], None, None, None)
    _quiet_libraries()
    with Latest(quiet=as_json) as report:
        folder, card = work(settings, out=out, dtype=dtype, batch_tokens=batch_tokens, report=report)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "bytes": size, **card.model_dump()}))
    else:
        scored = "row" if any(column.of == "row" for column in card.columns.values()) else "token"
        typer.echo(f"{folder}: {card.tokens:,} scored {scored}s, {size / card.tokens:.2f} bytes a {scored}")


@app.command()
def export(
    model: Annotated[str, typer.Option(help="A checkpoint, a run folder (its newest checkpoint), or a model folder.")],
    out: Annotated[str, typer.Option(help="Folder to write; a model that is there is replaced.")],
    to: Annotated[
        str,
        typer.Option(help="wmtp, hf (heads dropped), head:K, meta, vllm-medusa, vllm-mimo, sglang-mimo or adapter."),
    ] = "wmtp",
    as_json: AsJson = False,
) -> None:
    """One model folder from a checkpoint, for us or for others.

    Of any number of ranks; read back and compared after writing.

    Example: wmtp export --model runs/first/checkpoints/step_00000100 --to hf --out models/first
    """
    _quiet_libraries()
    from wmtp.export import export as write

    folder = write(model, out, to, lambda text: typer.echo(text, err=True))
    typer.echo(json.dumps({"folder": str(folder)}) if as_json else f"wrote {folder}")


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="A model folder, RUN/final for one, or a hub id.")],
    prompt: Annotated[str | None, typer.Option(help="The text to continue; - reads it from stdin.")] = None,
    data: Annotated[str | None, typer.Option(help='JSON Lines with a "prompt" each, instead of --prompt.')] = None,
    mode: Annotated[
        str, typer.Option(help="speculative: heads draft, head 1 verifies; plain: head 1.")
    ] = "speculative",
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens after each prompt.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this probability.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the likeliest tokens.")] = None,
    min_p: Annotated[float, typer.Option(help="Draw from tokens of this share of the likeliest one's.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    template: Annotated[str, typer.Option(help="Around each prompt: data.template of the training.")] = "{prompt}\n",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Continue prompts.

    Text on stdout, figures of the drafts on stderr.

    Example: wmtp generate --model runs/first/final --prompt "Write a function that adds two numbers."
    """
    from wmtp.completion import as_document, complete, read_prompts, sampling_of
    from wmtp.decoding import Continuation, Generation
    from wmtp.storage import place
    from wmtp.terminal import decoding_figures

    if (prompt is None) == (data is None):
        raise UsageError("give exactly one of --prompt TEXT (or - for stdin) and --data FILE")
    _quiet_libraries()
    given = sys.stdin.read() if prompt == "-" else prompt
    completions = complete(
        model,
        read_prompts(place(str(data))) if given is None else [given],
        max_new_tokens=max_new_tokens,
        mode=mode,
        sampling=sampling_of(temperature, top_p, top_k, min_p),
        seed=seed,
        stop=stop or [],
        template=template,
        device=device,
    )
    if as_json:
        typer.echo(json.dumps(_finite(as_document(list(completions)))))
        return
    rows: list[Continuation] = []
    for completion in completions:
        typer.echo(completion.text)
        rows += completion.generation.rows
    typer.echo(decoding_figures(Generation(tuple(rows))), err=True)


@app.command(name="eval")
def evaluate(
    model: Annotated[str | None, typer.Option(help="A model folder or hub id.")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="What --data must be: humaneval, humaneval_plus, mbpp, mbpp_plus, codecontests, records; or "
            "embedded, which needs no --data."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="The benchmark's file, as its authors publish it.")] = None,
    samples: Annotated[
        str | None, typer.Option("--from", help="Score this samples.jsonl, whoever made it, instead of a model.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="heads, perplexity or speed, on the records of --data, instead of a benchmark.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the results; default RUN/eval for RUN/final.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Samples per problem; default the largest k.")] = None,
    k: Annotated[str, typer.Option("--k", help="Of pass@k, comma-separated.")] = "1",
    temperature: Annotated[
        str | None, typer.Option(help="Comma-separated; default 0 (greedy) for one sample, 0.8 for several.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this probability.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    mode: Annotated[str, typer.Option(help="speculative or plain: the same distribution.")] = "speculative",
    prompt: Annotated[
        str,
        typer.Option(help="benchmark: the paper's; run: that of the model's run; auto: run if there is one."),
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="Of MBPP: test (default), validation, train, prompt, all.")] = None,
    require: Annotated[str, typer.Option(help="Isolation of programs: strong, best or none.")] = "best",
    partial: Annotated[bool, typer.Option("--partial", help="Score only problems that have samples.")] = False,
    batches: Annotated[str, typer.Option(help="Of --suite speed, comma-separated.")] = "1,4",
    lengths: Annotated[str, typer.Option(help="Prompt tokens of --suite speed, comma-separated.")] = "32,128",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """pass@k by running what a model writes, in a sandbox.

    Or, with --suite, what its heads know and how fast it decodes.

    Example: wmtp eval --model wmtp-quickstart/baseline/final --benchmark embedded
    """
    from wmtp.evaluation import command
    from wmtp.evaluation.tables import evaluation_table
    from wmtp.progress import Latest

    _quiet_libraries()
    options = command.Options(
        model=model, benchmark=benchmark, data=data, samples=samples, suite=suite, out=out, n=n, k=k,
        temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed, mode=mode, prompt=prompt,
        split=split, require=require, partial=partial, batches=batches, lengths=lengths, device=device,
    )  # fmt: skip
    with Latest(quiet=as_json) as report:
        result, path = command.run(options, report)
    if as_json:
        typer.echo(json.dumps(_finite(result)))
    else:
        evaluation_table(suite, result, path)


data = typer.Typer(
    help="Records: prepare, label, mutate, index.",
    no_args_is_help=True,
)
app.add_typer(data, name="data")

Source = Annotated[str, typer.Option("--data", help="Records, or the file of a known data set.")]
Out = Annotated[str, typer.Option(help="The file to write; must not be there. FILE.report.json comes with it.")]
Split = Annotated[str | None, typer.Option(help="Only this official split; default: all rows.")]
Require = Annotated[str, typer.Option(help="Isolation of programs: strong, best or none.")]
CpuSeconds = Annotated[float, typer.Option("--cpu-s", help="CPU seconds of one program.")]


@data.command()
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


@data.command()
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


@data.command()
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


@data.command(name="index")
def index_records(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Records, as JSON Lines that are not compressed.")],
    out: Annotated[str | None, typer.Option(help="Folder to write; default FILE.index, beside it.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A model folder or hub id: lengths in its tokens too, for training with it.")
    ] = None,
    template: Annotated[str, typer.Option(help="With --tokenizer: data.template of the training.")] = "{prompt}\n",
    workers: Annotated[int, typer.Option(min=0, max=64, help="With --tokenizer: processes that tokenise.")] = 0,
    ids: Annotated[
        bool, typer.Option("--ids", help="With --tokenizer: keep the ids, so that training tokenises nothing.")
    ] = False,
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
    counts = build_index(path, folder, _measure(tokenizer, template, workers, ids) if tokenizer is not None else None)
    with Index(path, folder) as index:
        found = {"folder": str(folder), **counts, **describe(index)}
    typer.echo(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))


def _measure(tokenizer: str, template: str, workers: int, ids: bool) -> Measure:
    from wmtp.data.token_lengths import Measure
    from wmtp.formats.hf import backend_fingerprint, load_tokenizer

    _quiet_libraries()
    loaded = load_tokenizer(tokenizer)
    return Measure(loaded, backend_fingerprint(loaded), template, workers, ids)


def _required(require: str) -> Requirement:
    from wmtp.sandbox import Requirement

    if require not in get_args(Requirement):
        raise UsageError(f"--require must be one of {', '.join(get_args(Requirement))}, got {require!r}")
    return cast(Requirement, require)


@app.command()
def study(
    file: Annotated[str, typer.Option("--study", help="YAML: arms, seeds, budget, metric (docs/studies.md).")],
    out: Annotated[str | None, typer.Option(help="The study's folder; default runs/NAME.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes of each run, on this host.")] = 1,
    restarts: Annotated[int, typer.Option(min=0, help="Of each run, in a row without progress.")] = 0,
    only: Annotated[int | None, typer.Option(help="Do this run of the list alone, for a job array.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print one command a run, and run nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and say what it means.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; the table of the results there are.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The table as Markdown, for a log.")] = False,
    as_json: AsJson = False,
) -> None:
    """Arms x seeds from one file, and what may be said.

    Run it again and it goes on.

    Example: wmtp study --study recipes/study_embedded_cpu.yaml --out runs/study
    """
    from wmtp.storage import place
    from wmtp.study import command
    from wmtp.study.settings import read_study
    from wmtp.study.tables import markdown, plan_table, study_table
    from wmtp.supervisor import Options

    _quiet_libraries()
    found = read_study(place(file), out)

    def say(text: str) -> None:
        typer.echo(text, err=True)

    if listed or dry_run:
        command.check(found)
        if as_json:
            typer.echo(json.dumps(command.plan(found)))
        elif dry_run:
            plan_table(found)
        else:
            for number, runs in enumerate(command.waves(found), 1):
                say(f"wave {number}, after the ones before: {','.join(map(str, runs))}")
            typer.echo("\n".join(command.commands(found, file)))
        return
    options = Options(ranks=ranks, restarts=restarts)
    if only is not None:
        result = command.run_only(found, only, options, say)
        typer.echo(json.dumps(_finite(asdict(result))) if as_json else f"done: {result.arm}, seed {result.seed}")
        return
    figures = command.table_of(found) if table else command.run_all(found, options, say)
    if as_json:
        typer.echo(json.dumps(figures))
    elif as_markdown:
        typer.echo(markdown(figures))
    else:
        study_table(figures, found.folder / "study.json")
    if any(run["state"] != "done" for run in figures["runs"]):
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or folders of studies.")],
    out: Annotated[
        str | None,
        typer.Option(help="The file to write; default report.html in the run folder, or beside the runs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One self-contained HTML page of one or several runs.

    Example: wmtp report wmtp-quickstart/baseline wmtp-quickstart/verifiable --out page.html
    """
    from wmtp.report import default_place, saved_by, write_page
    from wmtp.storage import place, resolve

    folders = [place(run) for run in runs]
    page = resolve(out) if out is not None else default_place(folders)
    notes = write_page(folders, page, __version__)
    saved = {str(folder): found for folder in folders if (found := saved_by(folder)) is not None}
    if as_json:
        bytes_of = {folder: {**asdict(one), "bytes": one.bytes} for folder, one in saved.items()}
        typer.echo(json.dumps({"page": str(page), "runs": len(folders), "notes": notes, "saved": bytes_of}))
        return
    for folder, one in saved.items():
        typer.echo(f"{folder}: {one}")
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"wrote {page}")


@app.command()
def inspect(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run folder.")],
    rows: Annotated[
        int, typer.Option(min=1, help="Problems to show, each with a correct and an incorrect solution.")
    ] = 4,
    as_json: AsJson = False,
) -> None:
    """Held-out solutions token by token.

    Weights, losses, what the critic thinks. Writes RUN/eval/tokens.json.

    Example: wmtp inspect wmtp-quickstart/verifiable --rows 2
    """
    _quiet_libraries()
    from wmtp.inspection import inspect_run
    from wmtp.storage import place

    result, path = inspect_run(place(run), rows)
    if as_json:
        typer.echo(json.dumps(result))
        return
    from wmtp.terminal_tokens import token_view

    token_view(result)
    typer.echo(f"wrote {path}")


track = typer.Typer(help="Runs in MLflow: send what a run could not send (docs/tracking.md).", no_args_is_help=True)
app.add_typer(track, name="track")

TrackedRun = Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")]


@track.command()
def sync(run: TrackedRun, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Send every log point of a run that its store has not yet, once.

    Example: wmtp track sync runs/first tracking.uri=http://127.0.0.1:5000
    """
    from wmtp.delivery import sync as work
    from wmtp.storage import place

    tracked, lines = work(place(run), overrides or [])
    if as_json:
        typer.echo(json.dumps({**asdict(tracked), "lines": lines}))
    else:
        typer.echo(f"sent {lines:,} lines of metrics.jsonl to run {tracked.run_id} in {tracked.uri}")


@track.command()
def register(run: TrackedRun, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Register the final model of a run, unless it is registered.

    Example: wmtp track register runs/first
    """
    from wmtp.delivery import register_later
    from wmtp.storage import place

    tracked = register_later(place(run), overrides or [])
    if as_json:
        typer.echo(json.dumps(asdict(tracked)))
    else:
        _say_tracked(tracked)


@app.command()
def migrate(
    config: Annotated[str, typer.Argument(metavar="OLD_CONFIG", help="The earlier system's config.yaml.")],
    recipe: Annotated[str, typer.Argument(metavar="OLD_RECIPE", help="And its recipe.yaml.")],
    out: Annotated[str, typer.Option(help="Folder of the converted files.")],
    as_json: AsJson = False,
) -> None:
    """The earlier system's two files as ours, and a list of what has no counterpart (docs/migrate.md).

    Example: wmtp migrate old/config.yaml old/recipe.yaml --out migrated
    """
    from wmtp.migration import migrate as work
    from wmtp.storage import resolve

    found = work(resolve(config), resolve(recipe), resolve(out))
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"files": [str(path) for path in found.files]}))
        return
    for title, lines in (
        ("converted", [f"{old} -> {new}" for old, new in found.converted.items()]),
        ("without a counterpart", [f"{old}: {why}" for old, why in found.without.items()]),
        ("unknown, not converted", found.unknown),
        ("for you to do or look at", found.todo),
    ):
        typer.echo("\n  ".join([f"{title}:", *lines]) if lines else f"{title}: nothing")
    for path in found.files:
        typer.echo(f"wrote {path}")


def _say_tracked(tracked: Tracked) -> None:
    model = f", model {tracked.model.name} version {tracked.model.version}" if tracked.model is not None else ""
    typer.echo(f"tracked: run {tracked.run_id}{model} in {tracked.uri}")
    if tracked.problem is not None:
        typer.echo(f"wmtp: tracking is not complete: {tracked.problem}", err=True)


bench = typer.Typer(help="Measure time and memory beside peers.", no_args_is_help=True)
app.add_typer(bench, name="bench")


def _add_benchmark(name: str, about: str) -> None:
    """`wmtp bench NAME`: every option, --help too, is the benchmark's own."""
    own_options = {"allow_extra_args": True, "ignore_unknown_options": True}

    @bench.command(name, help=about, add_help_option=False, context_settings=own_options)
    def command(context: typer.Context) -> None:
        from wmtp.bench import run

        raise typer.Exit(run(name, context.args))


for _name, _about in BENCHMARKS.items():
    _add_benchmark(_name, _about)


def _plain(result: RunResult) -> dict[str, Any]:
    return {name: _finite(value) for name, value in (asdict(result) | {"folder": str(result.folder)}).items()}


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _quiet_libraries() -> None:
    """Progress bars and advice of libraries stay off the terminal; their errors still come as exceptions."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `wmtp` and `python -m wmtp`."""
    outcome.begin()
    try:
        code = run_command(sys.argv[1:] if arguments is None else arguments)
    except Exception as problem:
        outcome.end(1, f"{type(problem).__name__}: {problem}", type(problem).__name__)
        _leave(1, problem)
        raise
    outcome.end(code)
    _leave(code)
    sys.exit(code)


def _leave(code: int, problem: Exception | None = None) -> None:
    """One rank of several ends at once, see `wmtp.distributed.leave`; a single process goes on."""
    if "wmtp.distributed" not in sys.modules:
        return
    from wmtp.distributed import launched, leave

    if launched() and problem is not None:
        traceback.print_exception(problem)
    leave(code)


def run_command(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    try:
        app(arguments, prog_name="wmtp")
    except WmtpError as problem:
        return _failed(problem)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except (MemoryError, RuntimeError, TypeError) as problem:
        failure = out_of_memory(problem) or not_on_mps(problem)
        if failure is None:
            raise
        return _failed(failure)
    return 0


def _failed(problem: WmtpError) -> int:
    """One message on stderr; the exit code."""
    outcome.end(problem.exit_code, str(problem), type(problem).__name__)
    typer.echo(f"wmtp: {problem}", err=True)
    return problem.exit_code
