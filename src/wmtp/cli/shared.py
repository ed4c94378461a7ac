"""What commands share: options, how a config is found, how figures become JSON."""

from __future__ import annotations

import json
import logging
import math
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from wmtp.config import Config
    from wmtp.run_tracking import Tracked
    from wmtp.storage import Place

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides, e.g. optim.lr=1e-4")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
RemoteCode = Annotated[
    list[str] | None,
    typer.Option(metavar="MODEL", help="Run the Python files of this model folder or hub id; may be given again."),
]


def settings_of(
    config: str | None,
    recipe: str | None,
    overrides: list[str],
    run_name: str | None,
    tags: str | None,
    resume: str | None,
) -> Config:
    """The config that files, overrides and options make; without files that of the run to go on with."""
    from wmtp.config import load
    from wmtp.config_files import top_keys
    from wmtp.storage import place

    for text in overrides:
        if "=" not in text and text.endswith((".yaml", ".yml")):
            raise UsageError(f"{text!r} is no KEY=VALUE; did you mean --recipe {text}?")
    files = [place(file) for file in (config, recipe) if file is not None]
    if not files and resume not in (None, "auto"):
        files = [run_of(place(resume)) / "config.yaml"]
    if not files:
        raise UsageError("nothing to train: give --recipe FILE (and --config FILE), or --resume RUN")
    named = [f"run_name={json.dumps(run_name)}"] if run_name is not None else []
    tagged = [f"tags={json.dumps([tag.strip() for tag in tags.split(',') if tag.strip()])}"] if tags is not None else []
    try:
        return load(files, [*overrides, *named, *tagged])
    except ConfigError:
        for file in files:
            if {"arms", "baseline"} <= top_keys(file):
                raise ConfigError(f"{file} is the file of a study: start it with wmtp study --study {file}") from None
        raise


def run_of(path: Place) -> Place:
    """The run folder that a path of it, or of one of its checkpoints, means."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def leads() -> bool:
    """Whether this process is the one that prints results: the only one, or the first of a job."""
    return int(os.environ.get("WORLD_SIZE", "1")) <= 1 or os.environ.get("RANK", "0") == "0"


def say_tracked(tracked: Tracked) -> None:
    """Where a run is tracked, and what its store has not."""
    model = f", model {tracked.model.name} version {tracked.model.version}" if tracked.model is not None else ""
    typer.echo(f"tracked: run {tracked.run_id}{model} in {tracked.uri}")
    if tracked.problem is not None:
        typer.echo(f"wmtp: tracking is not complete: {tracked.problem}", err=True)


def finite(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def quiet_libraries() -> None:
    """Progress bars and advice of libraries stay off the terminal; their errors still come as exceptions."""
    import transformers

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
