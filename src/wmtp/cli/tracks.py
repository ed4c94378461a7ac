"""`wmtp track`: what a run could not send to its store of runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from wmtp.cli.shared import AsJson, Overrides, say_tracked

app = typer.Typer(help="Runs in MLflow: send what a run could not send (docs/tracking.md).", no_args_is_help=True)
TrackedRun = Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
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


@app.command()
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
        say_tracked(tracked)
