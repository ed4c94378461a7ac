"""The command line. Each command is one call; errors are one message on stderr and an exit code.

Exit codes: 0 done; 1 failed; 2 wrong usage, config or input; 130 / 143 interrupted with state saved.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp import __version__
from wmtp.errors import UsageError, WmtpError

if TYPE_CHECKING:
    from wmtp.config import Config
    from wmtp.trainer import RunResult

app = typer.Typer(
    help="Weighted multi-token prediction: models that predict several tokens, each loss with its own weight.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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
    """Train all four arms on the problems that ship with wmtp and compare them. No network.

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
) -> None:
    """Train one arm, or the critic.

    Example: wmtp train --recipe recipes/baseline_embedded_cpu.yaml train.epochs=1 --out runs/first
    """
    from wmtp.config import dump

    settings = _settings(config, recipe, overrides or [], run_name, tags, resume)
    if verbose:
        typer.echo(dump(settings), err=True)
    _quiet_libraries()
    if dry_run:
        _dry_run(settings, out, resume, as_json)
        return
    from wmtp.terminal import reporter
    from wmtp.trainer import run

    result = run(settings, out=out, resume=resume, reporter=reporter(settings.name, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(_plain(result)))
    else:
        early = ", stopped early" if result.stopped_early else ""
        typer.echo(f"done: {result.steps:,} steps{early} in {result.folder}")


def _settings(
    config: str | None,
    recipe: str | None,
    overrides: list[str],
    run_name: str | None,
    tags: str | None,
    resume: str | None,
) -> Config:
    from wmtp.config import load
    from wmtp.storage import resolve

    files = [resolve(file) for file in (config, recipe) if file is not None]
    if not files and resume not in (None, "auto"):
        files = [_config_of(resolve(resume))]
    if not files:
        raise UsageError("nothing to train: give --recipe FILE (and --config FILE), or --resume RUN")
    named = [f"run_name={json.dumps(run_name)}"] if run_name is not None else []
    tagged = [f"tags={json.dumps([tag.strip() for tag in tags.split(',') if tag.strip()])}"] if tags is not None else []
    return load(files, [*overrides, *named, *tagged])


def _config_of(path: Path) -> Path:
    """The config that a run folder, or the run of a checkpoint, was made with."""
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    return folder / "config.yaml"


def _dry_run(settings: Config, out: str | None, resume: str | None, as_json: bool) -> None:
    from wmtp.terminal import estimate_table
    from wmtp.trainer import dry_run

    estimate, notes = dry_run(settings, out=out, resume=resume)
    if as_json:
        typer.echo(json.dumps({**asdict(estimate), "total_bytes": estimate.total, "notes": notes}))
    else:
        estimate_table(settings, estimate, notes)


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
    sys.exit(run_command(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    try:
        app(arguments, prog_name="wmtp")
    except WmtpError as problem:
        typer.echo(f"wmtp: {problem}", err=True)
        return problem.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0
