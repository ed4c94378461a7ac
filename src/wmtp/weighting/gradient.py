"""`gradient`: weights from how hard a pair's loss pulls at the model.

docs/math.md (4.4). The importance of a pair is |d nll / d hidden|, the norm of its gradient in front of the
unembedding: the loss has it as a by-product. As a stand-in for the norm of the whole gradient: Katharopoulos and
Fleuret 2018 (arXiv 1803.00942). They sample by it and correct for that; here it is a weight, and nothing is corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wmtp.ranks import Reduce
from wmtp.schedule import Scheduled, value_at
from wmtp.weighting.base import SchemeInput, When


class Gradient:
    """`w = clip((norm / average)^alpha, lo, hi)`, the average running over steps, per head.

    Args:
        alpha: > 0 favours pairs that pull hard; may be scheduled.
        clip: lowest and highest weight.
        ema_decay: how much of the running average is kept each step.

    The average is that of the steps before this one, so weights are known in the one visit. The first step weighs 1.
    """

    when = When.ROW
    per_head = True
    needs = frozenset({"gradient_norm_BTK"})

    def __init__(self, alpha: Scheduled = 1.0, clip: tuple[float, float] = (0.1, 3.0), ema_decay: float = 0.99) -> None:
        self.alpha, self.clip, self.ema_decay = alpha, clip, ema_decay
        self._average_K: list[float] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The clip."""
        return self.clip

    @torch.no_grad()
    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """Weights of any pairs; None (1 everywhere) before there is an average."""
        return [self._weights(batch) for batch in step]

    def _weights(self, batch: SchemeInput) -> Tensor | None:
        if batch.gradient_norm_BTK is None:
            raise ValueError("the gradient scheme needs gradient_norm_BTK")
        if self._average_K is None:
            return None
        norm_BTK = batch.gradient_norm_BTK.float()
        average_K = norm_BTK.new_tensor(self._average_K)[batch.first_head :][: norm_BTK.shape[2]]
        relative_BTK = norm_BTK / average_K.clamp(min=torch.finfo(torch.float32).tiny)
        return batch.masked(relative_BTK.pow(value_at(self.alpha, batch.step)).clamp(*self.clip))

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """Move the averages towards this step's means; a step in which a head had no pair moves none."""
        count_K = totals["count_K"]
        if not bool((count_K > 0).all()):
            return
        mean_K: list[float] = (totals["gradient_norm_sum_K"] / count_K).tolist()
        keep = self.ema_decay
        if self._average_K is not None:
            mean_K = [keep * old + (1 - keep) * new for old, new in zip(self._average_K, mean_K, strict=True)]
        self._average_K = mean_K

    def state_dict(self) -> dict[str, Any]:
        """The running average per head."""
        return {"average_K": self._average_K}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._average_K = state["average_K"]
