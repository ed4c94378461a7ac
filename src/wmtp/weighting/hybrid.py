"""`hybrid`: several schemes at once, as a product or as a convex mixture.

docs/math.md (4.6). Each part is first brought to mean 1, per head and over the whole step on all ranks: so no part
counts for more because its weights are larger, and c_k alone decides what a head counts for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wmtp.ranks import Reduce
from wmtp.weighting.base import Scheme, SchemeDefaults, SchemeInput, When, ask, check_choice


class Hybrid(SchemeDefaults):
    """`prod_i w_i / mean(w_i)`, or `sum_i share_i w_i / mean(w_i)`.

    Args:
        parts: the schemes, at least two.
        combine: `product` or `mixture`.
        shares: of the mixture, one per part, adding up to 1; default equal.

    Raises:
        ValueError: fewer than two parts.
    """

    def __init__(
        self, parts: Sequence[Scheme], combine: str = "product", shares: Sequence[float] | None = None
    ) -> None:
        check_choice("combine", combine, ("product", "mixture"))
        if len(parts) < 2:
            raise ValueError(f"a hybrid has at least two parts, got {len(parts)}")
        self.parts, self.combine = list(parts), combine
        self.shares = list(shares) if shares is not None else [1 / len(parts)] * len(parts)

    @property
    def when(self) -> When:
        """A mean over the whole step needs every part's weights of the whole step."""
        early = all(part.when is When.BEFORE_FORWARD for part in self.parts)
        return When.BEFORE_FORWARD if early else When.WHOLE_STEP

    @property
    def per_head(self) -> bool:
        """If every part is."""
        return all(part.per_head for part in self.parts)

    @property
    def needs(self) -> frozenset[str]:
        """What the parts need."""
        return frozenset().union(*(part.needs for part in self.parts))

    @torch.no_grad()
    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """Combined weights of all micro-batches of the step."""
        of_parts = [mean_one(ask(part, step, reduce, training), step, reduce) for part in self.parts]
        if self.combine == "product":
            return [torch.stack(several).prod(0) for several in zip(*of_parts, strict=True)]
        shared = [[share * w for w in of_part] for share, of_part in zip(self.shares, of_parts, strict=True)]
        return [torch.stack(several).sum(0) for several in zip(*shared, strict=True)]

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """Every part is told."""
        for part in self.parts:
            part.observe(totals)

    def state_dict(self) -> dict[str, Any]:
        """The parts' memories, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for part, memory in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(memory)


def mean_one(weights: Sequence[Tensor], step: Sequence[SchemeInput], reduce: Reduce) -> list[Tensor]:
    """The weights over their mean, per head, over all pairs of the step on all ranks; a head of zeros stays."""
    count_K = reduce(torch.stack([batch.valid_BTK.sum((0, 1)) for batch in step]).sum(0))
    total_K = reduce(torch.stack([weight.sum((0, 1)) for weight in weights]).sum(0))
    factor_K = torch.where(total_K > 0, count_K / total_K, 1.0)
    return [weight * factor_K for weight in weights]
