"""`grpo`: weights from how a response did beside the other responses to its problem.

docs/math.md (4.5). Group-relative advantages: Shao et al. 2024, DeepSeekMath (arXiv 2402.03300), here of responses that
lie in the data set with their labels. The exponential of an advantage as a weight: Peng et al. 2019 (arXiv 1910.00177).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wmtp.ranks import Reduce
from wmtp.schedule import Scheduled, value_at
from wmtp.weighting.base import SchemeInput, Stateless, When, check_choice


class GRPO(Stateless):
    """One weight per response, from `A = (R - mean) / (std + eps)` over its problem's labelled responses.

    Args:
        mode: `exp` is `clip(exp(A / beta), lo, hi)`; `positive` is `max(A, 0)`.
        beta, clip: of `exp`; beta may be scheduled.
        neutral: weight of a group whose rewards are equal, which has nothing to tell.
    """

    when = When.BEFORE_FORWARD
    per_head = True
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        mode: str = "exp",
        beta: Scheduled = 1.0,
        clip: tuple[float, float] = (0.1, 3.0),
        neutral: float = 1.0,
    ) -> None:
        check_choice("mode", mode, ("exp", "positive"))
        self.mode, self.beta, self.clip, self.neutral = mode, beta, clip, neutral

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The clip of `exp`."""
        return self.clip if self.mode == "exp" else None

    @torch.no_grad()
    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """The row's weight on every pair of it."""
        return [batch.of_targets(self._of_rows(batch).unsqueeze(1).expand_as(batch.response_BT)) for batch in step]

    def _of_rows(self, batch: SchemeInput) -> Tensor:
        if batch.group_B2 is None or bool((batch.reward_B.isnan() | batch.group_B2.isnan().any(1)).any()):
            raise ValueError("the grpo scheme needs is_correct on every row, and the group of every row")
        mean_B, deviation_B = batch.group_B2.float().unbind(1)
        advantage_B = (batch.reward_B.float() - mean_B) / (deviation_B + 1e-8)
        if self.mode == "exp":
            weight_B = (advantage_B / value_at(self.beta, batch.step)).exp().clamp(*self.clip)
        else:
            weight_B = advantage_B.clamp(min=0.0)
        return torch.where(deviation_B > 0, weight_B, self.neutral)
