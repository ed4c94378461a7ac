"""`uniform`: every pair weighs 1. The baseline arm; plain multi-token prediction (Gloeckle et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wmtp.ranks import Reduce
from wmtp.weighting.base import SchemeInput, Stateless, When


class Uniform(Stateless):
    """Weights of 1, said without building them."""

    when = When.BEFORE_FORWARD
    per_head = True
    needs: frozenset[str] = frozenset()

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """None per micro-batch."""
        return [None] * len(step)
