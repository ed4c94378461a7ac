"""Commands that start or read runs: study, report, inspect, migrate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from wmtp import __version__
from wmtp.cli.shared import AsJson, RemoteCode, finite, quiet_libraries


def study(
    file: Annotated[str, typer.Option("--study", help="YAML: arms, seeds, budget, metric (docs/studies.md).")],
    out: Annotated[str | None, typer.Option(help="The study's folder; default runs/NAME.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes of each run, on this host.")] = 1,
    restarts: Annotated[int, typer.Option(min=0, help="Of each run, in a row without progress.")] = 0,
    only: Annotated[int | None, typer.Option(help="Do this run of the list alone, for a job array.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print one command a run, and run nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and say what it means.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Run and write nothing; the table of what there is.")] = False,
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

    quiet_libraries()
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
        typer.echo(json.dumps(finite(asdict(result))) if as_json else f"done: {result.arm}, seed {result.seed}")
        return
    figures = command.table_of(found) if table else command.run_all(found, options, say)
    if as_json:
        typer.echo(json.dumps(figures))
    elif as_markdown:
        typer.echo(markdown(figures))
    else:
        study_table(figures, None if table else found.folder / "study.json")
    if any(run["state"] != "done" for run in figures["runs"]):
        raise typer.Exit(1)


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


def inspect(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run folder.")],
    rows: Annotated[
        int, typer.Option(min=1, help="Problems to show, each with a correct and an incorrect solution.")
    ] = 4,
    remote_code: RemoteCode = None,
    as_json: AsJson = False,
) -> None:
    """Held-out solutions token by token.

    Weights, losses, what the critic thinks. Writes RUN/eval/tokens.json.

    Example: wmtp inspect wmtp-quickstart/verifiable --rows 2
    """
    quiet_libraries()
    from wmtp.formats import code
    from wmtp.inspection import inspect_run
    from wmtp.storage import place

    with code.remote_code(*remote_code or ()):
        result, path = inspect_run(place(run), rows)
    if as_json:
        typer.echo(json.dumps(result))
        return
    from wmtp.terminal_tokens import token_view

    token_view(result)
    typer.echo(f"wrote {path}")


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
