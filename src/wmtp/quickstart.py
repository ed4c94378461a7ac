"""The embedded default: all four arms on the problems that ship with the package, two tables and a page.

The arms share seed, initial weights, rows and order. The critic is trained first, then `baseline`; `verifiable` reads
the critic's advantages and `rho1` takes the finished baseline as its reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wmtp import __version__, devices
from wmtp.config import Config, load
from wmtp.errors import Interrupted, UsageError
from wmtp.inspection import inspect_run
from wmtp.report import write_page
from wmtp.runfolder import check_writable
from wmtp.storage import resolve, write_atomic
from wmtp.trainer import Reporter, RunResult, run

RECIPE = "embedded://recipes/quickstart.yaml"

PAGE, TABLE = "report.html", "quickstart.json"

PROBLEMS_SHOWN = 3
"""Held-out problems that are looked at token by token."""


@dataclass(frozen=True)
class ArmResult:
    """One row of the table."""

    arm: str
    folder: str
    validation: dict[str, float]
    weights: dict[str, float]
    """Weight statistics on the validation rows."""
    tokens_per_s: float
    peak_bytes: int
    steps: int


def arm_overrides(out: Path) -> dict[str, list[str]]:
    """What distinguishes each arm from the recipe, in the order they are trained."""
    critic, baseline = (json.dumps(str(out / name / "final")) for name in ("critic", "baseline"))
    return {
        "critic": ["objective={kind: value, loss: pairwise, head: linear}", "optim.lr=1e-3"],
        "baseline": [],
        "verifiable": [f"objective={{weighting: {{scheme: critic, critic: {critic}}}}}"],
        "rho1": [f"objective={{weighting: {{scheme: rho1, mode: select, reference: {baseline}}}}}"],
    }


def configs(out: Path, overrides: list[str]) -> dict[str, Config]:
    """One config per arm."""
    recipe = resolve(RECIPE)
    return {arm: load([recipe], [*extra, *overrides]) for arm, extra in arm_overrides(out).items()}


def quickstart(out: Path, overrides: list[str], reporter_of: Callable[[str], Reporter]) -> list[ArmResult]:
    """Train, evaluate and compare; writes `quickstart.json` and `report.html` beside the four run folders. One that was
    interrupted goes on where it was.

    Raises:
        UsageError: `out` holds something else, or arms of other overrides.
    """
    settings = configs(out.absolute(), overrides)
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or there - {*settings, PAGE, TABLE}:
        raise UsageError(f"{out} is neither new, empty, nor a quickstart's folder; name another one with --out")
    check_writable(out)
    for config in settings.values():
        if config.data.validation is None or not config.checkpoint.save_final:
            raise UsageError("the quickstart compares held-out figures and trains from final models: keep both on")
    results = []
    for arm, config in settings.items():
        devices.reset_peak_memory(devices.pick(config.device))
        try:
            resume = "auto" if (out / arm).exists() else None
            result = run(config, out=out / arm, resume=resume, reporter=reporter_of(arm))
        except Interrupted as stopped:
            raise Interrupted(
                f"{stopped}. Or run the same quickstart again: it goes on", stopped.exit_code - 128
            ) from stopped
        results.append(_summary(arm, result))
    write_atomic(out / TABLE, json.dumps([asdict(result) for result in results], indent=2) + "\n")
    for arm in settings:
        inspect_run(out / arm, PROBLEMS_SHOWN)
    write_page([out / arm for arm in settings], out / PAGE, __version__)
    return results


def _summary(arm: str, result: RunResult) -> ArmResult:
    metrics: dict[str, Any] = result.validation or {}
    return ArmResult(
        arm=arm,
        folder=str(result.folder),
        validation={k: v for k, v in metrics.items() if not k.startswith(("weight/", "time/"))},
        weights={k: v for k, v in metrics.items() if k.startswith("weight/")},
        tokens_per_s=result.tokens_per_s,
        peak_bytes=result.train["mem/peak_bytes"],
        steps=result.steps,
    )
