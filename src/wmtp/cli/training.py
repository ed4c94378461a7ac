"""Commands that train, and what is asked before: quickstart, train, doctor, score."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp import faults
from wmtp.cli.shared import AsJson, Overrides, finite, leads, quiet_libraries, run_of, say_tracked, settings_of
from wmtp.errors import UsageError
from wmtp.wording import counted

if TYPE_CHECKING:
    from wmtp.config import Config
    from wmtp.estimate import Estimate
    from wmtp.storage import Place
    from wmtp.supervisor import Options
    from wmtp.trainer import RunResult


def quickstart(
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Folder for the four runs: new, empty, or to go on in.")] = "wmtp-quickstart",
    as_json: AsJson = False,
) -> None:
    """Train all four arms on embedded problems. No network.

    Compares them in two tables and writes report.html. Run it again and it goes on.

    Example: wmtp quickstart --out runs/first-look
    """
    from wmtp.quickstart import quickstart as work
    from wmtp.storage import resolve
    from wmtp.terminal import quickstart_table, reporter

    quiet_libraries()
    folder = resolve(out)
    results = work(folder, overrides or [], lambda arm: reporter(arm, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(finite([asdict(result) for result in results])))
    else:
        quickstart_table(results, folder)


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
    settings = settings_of(config, recipe, overrides or [], run_name, tags, resume)
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
    quiet_libraries()
    if dry_run:
        _dry_run(settings, out, resume, as_json, ranks or 1)
        return
    from wmtp.terminal import reporter, result_table
    from wmtp.trainer import run

    result = run(settings, out=out, resume=resume, reporter=reporter(settings.name, quiet=as_json))
    if not leads():
        return
    if as_json:
        typer.echo(json.dumps(_plain(result)))
    else:
        result_table(result)
        early = ", stopped early" if result.stopped_early else ""
        typer.echo(f"done: {counted(result.steps, 'step')}{early} in {result.folder}")
        if result.tracked is not None:
            say_tracked(result.tracked)


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
    return place(settings.runs) / settings.name if resume in (None, "auto") else run_of(place(str(resume)))


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


def _plain(result: RunResult) -> dict[str, Any]:
    figures = asdict(result) | {"folder": str(result.folder)}
    if result.validation is not None:  # its tokens are those trained on until then
        figures["validation"] = {name: figure for name, figure in result.validation.items() if name != "tokens"}
    return {name: finite(value) for name, value in figures.items()}


def doctor(
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", help="Where: device, folders.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="What: model, data, objective.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="The run folder; default RUNS/RUN_NAME.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this machine can do, and whether a run fits on it.

    With --recipe: whether that run can work here. With --config alone: whether its folder and its tracker can
    be used. Exit code 1 if something failed.

    Example: wmtp doctor --recipe recipes/baseline_embedded_cpu.yaml
    """
    from wmtp.config import load_where
    from wmtp.storage import place

    settings = load_where(place(config), overrides or []) if config and not recipe else None
    if settings is None and (config or recipe):
        settings = settings_of(config, recipe, overrides or [], None, None, None)
    if settings is None and overrides:
        raise UsageError(f"there is nothing to override ({overrides[0]}): give --recipe FILE or --config FILE too")
    quiet_libraries()
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
    settings = settings_of(config, recipe, overrides or [], None, None, None)
    quiet_libraries()
    with Latest(quiet=as_json) as report:
        folder, card = work(settings, out=out, dtype=dtype, batch_tokens=batch_tokens, report=report)
    if not leads():
        return
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "bytes": size, **card.model_dump()}))
    else:
        scored = "row" if any(column.of == "row" for column in card.columns.values()) else "token"
        typer.echo(f"{folder}: {card.tokens:,} scored {scored}s, {size / card.tokens:.2f} bytes a {scored}")
