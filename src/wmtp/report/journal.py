"""`metrics.jsonl` as columns: what a page draws, thinned where a run is long.

Reading is lenient, as a page must show a run that is still being written or that crashed: a line that is no log point
is left out and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from wmtp.storage import Place
from wmtp.wording import counted

MAX_FIGURES = 6_000
"""Of one split in a page: the more columns a run has, the fewer of its log points are kept. A chart shows no more than
some hundreds, and ten runs must fit into a page."""

SPLITS = ("train", "validation")
WARNING = "warning"
"""The `split` of a line that tells of something that was warned of."""

NOT_DRAWN = "time/unix_s"
"""When a line was written: six digits of it say nothing."""


@dataclass
class Columns:
    """The log points of one split: `values[name][i]` is what was logged at `values["step"][i]`, None where nothing."""

    logged: int = 0
    values: dict[str, list[float | None]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What goes into the page."""
        return {"logged": self.logged, "values": self.values}


def read_columns(path: Place) -> tuple[dict[str, Columns], list[str]]:
    """Columns per split, and notes: what was warned of, and lines that are no log points.

    The file is read in one piece: a run that goes on in a store replaces it whenever it has new lines, and what is read
    is then one version of it.

    Raises:
        OSError: the file cannot be read.
        StorageError: the store's.
    """
    points: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    damaged: list[int] = []
    notes: list[str] = []
    for number, line in enumerate(StringIO(path.read_text(encoding="utf-8", errors="replace")), 1):
        point = _point(line)
        if point is None:
            damaged.append(number)
        elif point["split"] == WARNING:
            notes.append(_warning(point))
        else:
            points[point["split"]].append(point)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        notes.append(f"{path.name}: {counted(len(damaged), 'line')} left out: no log point (line {shown})")
    return {split: _columns(points[split]) for split in SPLITS}, notes


def _warning(point: dict[str, Any]) -> str:
    figures = {name: value for name, value in point.items() if is_number(value) and name not in ("step", NOT_DRAWN)}
    return f"training warned at step {point['step']}: {', '.join(f'{name} = {figures[name]:g}' for name in figures)}"


def _point(line: str) -> dict[str, Any] | None:
    """The log point of a line; None if it is none."""
    try:
        point = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(point, dict) and is_number(point.get("step")) and point.get("split") in (*SPLITS, WARNING)
    return point if whole else None


def _columns(points: Sequence[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(
        name for point in points for name, value in point.items() if is_number(value) and name != NOT_DRAWN
    )
    kept = [points[i] for i in thinned(len(points), max(2, MAX_FIGURES // max(1, len(names))))]
    return Columns(len(points), {name: [rounded(point.get(name)) for point in kept] for name in names})


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of the places 0..count-1, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rounded(value: Any) -> float | None:
    """A figure to six significant digits, integers as they are; None where there is no finite number."""
    if not is_number(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
