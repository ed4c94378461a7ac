"""What a forward with drafts costs, to one without: counted from the sizes of a model's matrices. docs/math.md (6.4).

One unit for all parts of a model: a weight times a position. A matrix of W weights over P positions costs
`W (F + P)`. Reading it takes as long as the arithmetic of F positions, however many there are, and is what counts where
they are few; the arithmetic counts where they are many. Neither is assumed, and no clock is read.

Left out is attention over the cache: reading a cache costs the same with drafts and without. Where the caches of a
batch are as large as the weights, drafts are cheaper than is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from wmtp.model import MTPModel

FLAT = {"cpu": 32.0}
FLAT_ELSEWHERE = 128.0
"""Positions whose arithmetic takes as long as what a matrix costs however many there are, by device type."""


@dataclass(frozen=True)
class Weights:
    """Numbers in a model's matrices. What is looked up (embeddings) and what is no matrix (norms) is left out."""

    trunk: int
    """In the trunk and head 1 without the unembedding; of a mixture, in all experts."""
    head: int
    """In each head after the first, without the unembedding."""
    unembedding: int


class Pass(NamedTuple):
    """One use of matrices of so many weights, at so many positions of each row."""

    weights: int
    positions: int


Drafting = Callable[[Weights, int], list[Pass]]
"""What a head family uses to draft so many tokens, at least one, for each row."""


@dataclass(frozen=True)
class Cost:
    """The cost of a forward by the length of its drafts, from 0 on.

    Args:
        flat: F, see `FLAT`.
        read: weights that are read.
        multiplied: weights times positions of a row.
    """

    flat: float
    read: tuple[int, ...]
    multiplied: tuple[int, ...]

    def of(self, length: int, rows: int) -> float:
        """A forward of so many rows over so many drafts in each, and making them, to one without drafts."""
        return self._total(length, rows) / self._total(0, rows)

    def _total(self, length: int, rows: int) -> float:
        return self.flat * self.read[length] + rows * self.multiplied[length]


def drafting_cost(weights: Weights, drafting: Drafting, longest: int, flat: float) -> Cost:
    """The cost of drafting up to `longest` tokens: equation (6.4).

    Args:
        flat: F, see `FLAT`.
    """
    verifying = weights.trunk + weights.unembedding
    forwards = [[Pass(verifying, 1 + d), *(drafting(weights, d) if d else ())] for d in range(longest + 1)]
    return Cost(
        flat,
        tuple(sum(each.weights for each in passes) for passes in forwards),
        tuple(sum(each.weights * each.positions for each in passes) for passes in forwards),
    )


def weights_of(model: MTPModel) -> Weights:
    """Those of a model that drafts."""
    return Weights(
        _matrices({*model.trunk_layers(), model.branch.layer}),
        _matrices(model.extra_heads[:1]),
        model.unembedding().projection_VD.numel(),
    )


def _matrices(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters() if parameter.dim() > 1)
