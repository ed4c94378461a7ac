"""What a finished run left, as figures: `results/RUN.json` of a study. A run that has it is not repeated."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from wmtp.errors import WmtpError, first_line
from wmtp.storage import Place, write_atomic
from wmtp.tracking import read_journal


@dataclass
class Result:
    """One run's figures."""

    arm: str
    seed: int
    steps: int
    tokens: int
    seconds: float
    """Of all steps: their number times the median of the logged ones."""
    data: str
    """Fingerprint of the rows."""
    metrics: dict[str, float | None]
    """Of the last evaluation, and of the study's `evaluate`."""
    curve: list[dict[str, float | None]]
    """Every evaluation's metrics, with step and tokens."""
    flops: int | None = None
    """Counted from shapes, see `wmtp.flops`; None for runs that are not compared, or sampled what they trained on."""
    evaluated: list[dict[str, Any]] = field(default_factory=list)
    """What of the study's `evaluate` is in the metrics, each with the `sha256` of its data."""

    def has(self, asked: dict[str, Any]) -> bool:
        """Whether an evaluation is in the metrics: of the same data by content, by path where it is not known of both.

        Args:
            asked: as one of `evaluated`; `sha256` is None where there is no file.
        """
        return any(_same(asked, before) for before in self.evaluated)


def _same(asked: dict[str, Any], before: dict[str, Any]) -> bool:
    aside = {"data"} if asked["sha256"] and before.get("sha256") else {"sha256"}
    return {n: v for n, v in asked.items() if n not in aside} == {n: v for n, v in before.items() if n not in aside}


def of_run(folder: Place, arm: str, seed: int) -> Result:
    """The figures of a run folder whose training has ended.

    Raises:
        WmtpError: its journal or provenance is missing or damaged.
    """
    lines = read_journal(folder / "metrics.jsonl")
    times = [line["time/step_s"] for line in lines if line["split"] == "train"]
    curve = [{k: v for k, v in line.items() if k != "split"} for line in lines if line["split"] == "validation"]
    if not times:
        raise WmtpError(f"{folder} logged no training step; remove it, and the study trains that run again")
    try:
        data = json.loads((folder / "provenance.json").read_text())["starts"][-1]["data"]
    except (OSError, ValueError, LookupError, TypeError) as problem:
        raise WmtpError(
            f"{folder / 'provenance.json'} cannot be read: {first_line(problem)}; remove {folder}, and the study "
            "trains that run again"
        ) from problem
    last = [line for line in lines if line["split"] in ("train", "validation")][-1]
    metrics = {name: value for name, value in (curve[-1] if curve else {}).items() if "/" in name}
    seconds = last["step"] * statistics.median(times)
    return Result(arm, seed, last["step"], last["tokens"], seconds, data, metrics, curve)


def benchmark_metrics(file: Place) -> dict[str, float | None]:
    """`BENCHMARK/SUITE/pass_at_K` of what `wmtp eval` wrote.

    Raises:
        WmtpError: it cannot be read.
    """
    try:
        found = json.loads(file.read_text())
        return {
            f"{found['benchmark']}/{row['suite']}/pass_at_{k}": value["mean"]
            for row in found["results"]
            for k, value in row["pass_at_k"].items()
        }
    except (OSError, ValueError, LookupError, TypeError) as problem:
        raise WmtpError(
            f"{file} cannot be read: {first_line(problem)}; remove it, and the study judges the run again"
        ) from problem


def write_result(file: Place, result: Result) -> None:
    """Store it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(asdict(result), indent=2) + "\n")


def read_result(file: Place) -> Result | None:
    """The stored result; None if there is none.

    Raises:
        WmtpError: it is damaged.
    """
    try:
        return Result(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as problem:
        raise WmtpError(f"{file} is damaged: {problem}; remove it, and the study reads the run again") from problem
