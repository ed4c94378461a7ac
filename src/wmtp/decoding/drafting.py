"""What a head family has to say to draft tokens. Another family is another class here and a line in `drafter_of`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from wmtp.decoding.trunk import CachedTrunk
from wmtp.errors import ModelError
from wmtp.model import MTPModel

Choose = Callable[[Tensor], Tensor]
"""Logits `[B, J, V]` of the next J drafts -> their tokens `[B, J]`. A family that reads drafts asks for one each."""


class Drafter(Protocol):
    """The heads after the first, with what they remember of a batch."""

    def fill(self, length: Sequence[int]) -> None:
        """See the first `length[b]` tokens of each row, of which the last is looked at again by the next `draft`."""
        ...

    def draft(self, length: Sequence[int], count: int, choose: Choose) -> Tensor:
        """Drafts `[B, count]` for the places after the next, from the first `length[b]` tokens of each row.

        Heads that are not asked remember nothing new; what they missed they see when they are asked.
        """
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once. The trunk's have been selected."""
        ...


class ParallelDrafter:
    """`parallel` heads: each is one layer on the trunk's output, with a cache of its own (docs/math.md (3))."""

    def __init__(self, trunk: CachedTrunk, rows: int) -> None:
        self.trunk = trunk
        self.heads = list(trunk.model.extra_heads)
        self.caches = [trunk.cache_beside() for _ in self.heads]
        self.seen = [[0] * rows for _ in self.heads]

    def fill(self, length: Sequence[int]) -> None:
        """See `Drafter`."""
        for k in range(len(self.heads)):
            self._run(k, length)
            self.seen[k] = [n - 1 for n in length]

    def draft(self, length: Sequence[int], count: int, choose: Choose) -> Tensor:
        """See `Drafter`."""
        last_BJD = torch.stack([self._run(k, length) for k in range(count)], 1)
        return choose(self.trunk.model.project(last_BJD))

    def _run(self, k: int, length: Sequence[int]) -> Tensor:
        """Run head k on what it has not seen; its final hidden state `[B, D]` at the last token."""
        seen = self.seen[k]
        output = self.trunk.output(seen, length, self.caches[k])
        hidden_BQD = self.trunk.model.head(self.heads[k], output)
        last_B = torch.tensor([max(n - s - 1, 0) for n, s in zip(length, seen, strict=True)], device=hidden_BQD.device)
        self.seen[k] = list(length)
        return hidden_BQD[self.trunk.slots.row_B1[:, 0], last_B]

    def select(self, rows: Sequence[int]) -> None:
        """See `Drafter`."""
        self.seen = [[seen[row] for row in rows] for seen in self.seen]


def drafter_of(model: MTPModel, trunk: CachedTrunk, rows: int) -> Drafter:
    """The drafter of the model's head family.

    Raises:
        ModelError: a family that cannot draft.
    """
    if model.family != "parallel":
        raise ModelError(f"heads of family {model.family!r} cannot draft; use mode 'plain'")
    return ParallelDrafter(trunk, rows)
