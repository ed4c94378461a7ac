"""A number, or a number that changes over the steps of a run: a pure function of the step, so nothing to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPES = ("linear", "cosine")


def remaining(shape: str, progress: float) -> float:
    """How much of the way is left, from 1 at progress 0 to 0 at progress 1."""
    return 1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Schedule:
    """From `start` at step 1 to `end` at step `steps`; `end` from then on."""

    start: float
    end: float
    steps: int
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"a schedule's shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")

    def at(self, step: int) -> float:
        """The value at a step, counted from 1."""
        progress = min(1.0, (step - 1) / max(1, self.steps - 1))
        return self.end + (self.start - self.end) * remaining(self.shape, progress)


Scheduled = float | Schedule
"""A number, or a schedule of one."""


def value_at(value: Scheduled, step: int) -> float:
    """What a scheduled number is at a step, counted from 1."""
    return value.at(step) if isinstance(value, Schedule) else value
