"""The command line. Each command is one call; errors are one message on stderr and an exit code.

Exit codes: 0 done; 1 failed; 2 wrong usage, config or input; 130 / 143 interrupted with state saved.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from wmtp import __version__, outcome
from wmtp.cli import benchmarks, critics, models, records, runs, tracks, training
from wmtp.errors import WmtpError, not_on_mps, out_of_memory

__all__ = ["app", "main", "run_command"]

app = typer.Typer(
    help="Weighted multi-token prediction: models that predict several tokens, each loss with its own weight.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes would cost most of the half second that --help may take
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": training.quickstart,
    "train": training.train,
    "doctor": training.doctor,
    "score": training.score,
    "export": models.export,
    "generate": models.generate,
    "eval": models.evaluate,
    "study": runs.study,
    "report": runs.report,
    "inspect": runs.inspect,
    "migrate": runs.migrate,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(records.app, name="data")
app.add_typer(critics.app, name="critic")
app.add_typer(tracks.app, name="track")
app.add_typer(benchmarks.app, name="bench")


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
    """One rank of several ends at once, see `wmtp.distributed.leave`, and so does a process that left a thread alone;
    another single process goes on."""
    if outcome.leaves_work():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
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
