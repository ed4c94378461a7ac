"""When a run should stop before its last step. Knows figures only: no model, no run.

Three things are watched, each over evaluations in a row:
  - a metric that no longer falls;
  - gradient norms, since the evaluation before, that spread by more than so many times their mean;
  - the standard deviation of a critic's values outside a range: collapsed, or exploded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wmtp.wording import counted

METRIC, GRADIENT, VALUES = "metric", "gradient", "values"


class EarlyStopping:
    """Counts evaluations in a row that speak against going on.

    Args:
        metric: one that should fall.
        patience: so many such evaluations in a row, by one criterion (`any`) or by each of them (`all`), stop the run.
        min_delta: by how much the metric must fall to count.
        gradient_spread: largest standard deviation of the gradient norm over its mean; None: not watched.
        value_std: lowest and highest `value/std`; None: not watched.
        mode: `any` or `all`.
    """

    def __init__(
        self,
        *,
        metric: str,
        patience: int = 3,
        min_delta: float = 0.0,
        gradient_spread: float | None = None,
        value_std: tuple[float, float] | None = None,
        mode: str = "any",
    ) -> None:
        if mode not in ("any", "all"):
            raise ValueError(f"mode must be 'any' or 'all', got {mode!r}")
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.gradient_spread, self.value_std, self.mode = gradient_spread, value_std, mode
        watched = {METRIC: True, GRADIENT: gradient_spread is not None, VALUES: value_std is not None}
        self.best = math.inf
        self.bad = {name: 0 for name, given in watched.items() if given}
        self.norms = [0.0, 0.0, 0.0]
        """Gradient norms since the last evaluation: number, sum, sum of squares."""

    def stepped(self, grad_norm: float) -> None:
        """A step was done; norms that are not finite are counted elsewhere."""
        if math.isfinite(grad_norm):
            self.norms = [a + b for a, b in zip(self.norms, (1.0, grad_norm, grad_norm**2), strict=True)]

    def evaluated(self, metrics: Mapping[str, float]) -> str | None:
        """Why the run should stop now; None if it should go on."""
        reasons = {METRIC: self._no_better(metrics), GRADIENT: self._unsteady(), VALUES: self._out_of_range(metrics)}
        self.bad = {name: self.bad[name] + 1 if reasons[name] else 0 for name in self.bad}
        self.norms = [0.0, 0.0, 0.0]
        over = [name for name in self.bad if self.bad[name] >= self.patience]
        if not over or (self.mode == "all" and len(over) < len(self.bad)):
            return None
        return "; ".join(f"{reasons[name]} in {counted(self.bad[name], 'evaluation')}" for name in over)

    def _no_better(self, metrics: Mapping[str, float]) -> str:
        if metrics[self.metric] < self.best - self.min_delta:
            self.best = metrics[self.metric]
            return ""
        return f"{self.metric} has not fallen below {self.best:.4f}"

    def _unsteady(self) -> str:
        count, total, squares = self.norms
        if self.gradient_spread is None or count < 2:
            return ""
        mean = total / count
        spread = math.sqrt(max(0.0, squares / count - mean * mean)) / mean if mean else 0.0
        return f"gradient norms spread by {spread:.2f} of their mean" if spread > self.gradient_spread else ""

    def _out_of_range(self, metrics: Mapping[str, float]) -> str:
        if self.value_std is None:
            return ""
        low, high = self.value_std
        found = metrics["value/std"]
        return "" if low <= found <= high else f"value/std is {found:.4g}, outside [{low:g}, {high:g}],"

    def state_dict(self) -> dict[str, Any]:
        """All counts, as JSON values."""
        return {"best": self.best, "bad": dict(self.bad), "norms": list(self.norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; a criterion that was not watched before starts at 0."""
        self.best, self.norms = state["best"], list(state["norms"])
        self.bad = {name: state["bad"].get(name, 0) for name in self.bad}
