"""What a head family has to say to draft tokens. Another family is another class here and a line in `drafter_of`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from wmtp.decoding.cost import Pass, Weights
from wmtp.decoding.trunk import CachedTrunk, with_cache
from wmtp.heads import TrunkOutput
from wmtp.model import MTPModel

Choose = Callable[[Tensor], Tensor]
"""Logits `[B, J, V]` of the next J drafts -> their tokens `[B, J]`. A family that reads drafts asks for one each."""


class Drafter(Protocol):
    """The heads after the first, with what they remember of a batch."""

    @staticmethod
    def passes(weights: Weights, length: int) -> list[Pass]:
        """What the heads use to draft so many tokens for each row, at least one: a `Drafting`."""
        ...

    def fill(self, length: Sequence[int]) -> None:
        """See the first `length[b]` tokens of each row, of which the last is looked at again by the next `draft`."""
        ...

    def draft(self, length: Sequence[int], certain_B: Tensor, count: int, choose: Choose) -> Tensor:
        """Drafts `[B, count]` for the places after the next.

        Heads that are not asked remember nothing new; what they missed they see when they are asked.

        Args:
            length: tokens of each row that the trunk has seen and that stay.
            certain_B: the token after these, which the trunk has yet to see.
        """
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once. The trunk's have been selected."""
        ...


class ParallelDrafter:
    """`parallel` heads: each is one layer on the trunk's output, with a cache of its own (docs/math.md (3))."""

    def __init__(self, trunk: CachedTrunk, rows: int) -> None:
        self.trunk = trunk
        heads = trunk.model.num_heads - 1
        self.caches = [trunk.cache_beside() for _ in range(heads)]
        self.seen = [[0] * rows for _ in range(heads)]

    @staticmethod
    def passes(weights: Weights, length: int) -> list[Pass]:
        """Each head sees what the trunk saw in its last forward; one product makes the logits of all."""
        return [Pass(weights.head, 1 + length)] * length + [Pass(weights.unembedding, length)]

    def fill(self, length: Sequence[int]) -> None:
        """See `Drafter`."""
        for j in range(len(self.caches)):
            self._run(j, length)
            self.seen[j] = [n - 1 for n in length]

    def draft(self, length: Sequence[int], certain_B: Tensor, count: int, choose: Choose) -> Tensor:
        """See `Drafter`."""
        last_BJD = torch.stack([self._run(j, length) for j in range(count)], 1)
        return choose(self.trunk.model.project(last_BJD))

    def _run(self, j: int, length: Sequence[int]) -> Tensor:
        """Run head j + 2 on what it has not seen; its final hidden state `[B, D]` at the last token."""
        seen = self.seen[j]
        hidden_BQD = self.trunk.model.beside(j + 1, self.trunk.output(seen, length, self.caches[j]))
        last_B = torch.tensor([max(n - s - 1, 0) for n, s in zip(length, seen, strict=True)], device=hidden_BQD.device)
        self.seen[j] = list(length)
        return hidden_BQD[self.trunk.slots.row_B1[:, 0], last_B]

    def select(self, rows: Sequence[int]) -> None:
        """See `Drafter`."""
        self.seen = [[seen[row] for row in rows] for seen in self.seen]


class LinearDrafter:
    """`linear` heads: they read one position and remember nothing."""

    def __init__(self, trunk: CachedTrunk) -> None:
        self.trunk = trunk

    @staticmethod
    def passes(weights: Weights, length: int) -> list[Pass]:
        """Each head sees one position; one product makes the logits of all."""
        return [Pass(weights.head, 1)] * length + [Pass(weights.unembedding, length)]

    def fill(self, length: Sequence[int]) -> None:
        """Nothing to see."""

    def draft(self, length: Sequence[int], certain_B: Tensor, count: int, choose: Choose) -> Tensor:
        """See `Drafter`."""
        last_B = torch.tensor(length, device=certain_B.device) - 1
        read = TrunkOutput(self.trunk.kept(last_B)[:, None], (), {})
        last_BJD = torch.cat([self.trunk.model.beside(k, read) for k in range(1, count + 1)], 1)
        return choose(self.trunk.model.project(last_BJD))

    def select(self, rows: Sequence[int]) -> None:
        """Nothing is kept."""


class ChainDrafter:
    """`chain` heads: each is one layer on the state of the head before it and the token that that head drafted.

    Head k at position s reads token s + k - 1. Where that token is a draft, what the head says of s, and its keys and
    values there, are a guess: the head runs over s again when the token is known. So heads are a few positions behind
    the trunk, and all start where the one furthest behind does, since each reads the states of the one before.
    """

    def __init__(self, trunk: CachedTrunk, rows: int) -> None:
        self.trunk = trunk
        heads = trunk.model.num_heads - 1
        self.caches = [trunk.cache_beside() for _ in range(heads)]
        self.certain = [[0] * rows for _ in range(heads)]
        """Positions that each head has seen with tokens that stay."""

    @staticmethod
    def passes(weights: Weights, length: int) -> list[Pass]:
        """Each head sees `length` positions again and those of accepted drafts, at most `length`; each token needs its
        own logits."""
        return [Pass(weights.head, 2 * length), Pass(weights.unembedding, 1)] * length

    def fill(self, length: Sequence[int]) -> None:
        """See `Drafter`."""
        self._walk(length, len(self.caches), lambda j, state_BQD: None)
        self._note(length, len(self.caches), 0)

    def draft(self, length: Sequence[int], certain_B: Tensor, count: int, choose: Choose) -> Tensor:
        """See `Drafter`."""
        length_B = torch.tensor(length, device=certain_B.device)
        drafts: list[Tensor] = []
        self._write(length_B, certain_B)

        def next_draft(j: int, last_BD: Tensor) -> None:
            drafts.append(choose(self.trunk.model.project(last_BD)[:, None]))
            self._write(length_B + j + 1, drafts[-1][:, 0])

        self._walk(length, count, next_draft)
        self._note(length, count, 1)
        return torch.cat(drafts, 1)

    def _walk(self, length: Sequence[int], count: int, tell: Callable[[int, Tensor], None]) -> None:
        """Run the first heads, each on the one before, over all that is not certain yet.

        Args:
            tell: told the place of each draft and the head's state `[B, D]` at the last token, before the next head.
        """
        trunk, model = self.trunk, self.trunk.model
        start = [min(seen) for seen in zip(*self.certain[:count], strict=True)]
        output = trunk.output(start, length, trunk.cache)
        slot_BQ = trunk.slots.place.slot_BQ
        row_B1 = trunk.slots.row_B1
        last_B = torch.tensor([max(n - s - 1, 0) for n, s in zip(length, start, strict=True)], device=slot_BQ.device)
        state_BQD = output.hidden_BTD
        for j in range(count):
            next_BQ = trunk.tokens_BT[row_B1, (slot_BQ + j + 1).clamp(max=trunk.slots.limit)]
            read = with_cache(output, trunk.cache, self.caches[j])
            state_BQD = model.chained(j + 1, read, state_BQD, model.embed(next_BQ))
            tell(j, state_BQD[row_B1[:, 0], last_B])

    def _write(self, slot_B: Tensor, token_B: Tensor) -> None:
        slots = self.trunk.slots
        self.trunk.tokens_BT[slots.row_B1[:, 0], slot_B.clamp(max=slots.limit)] = token_B

    def _note(self, length: Sequence[int], count: int, known: int) -> None:
        """Head j + 2 has read up to `known` tokens beyond those of the trunk, and drafts after that."""
        for j in range(count):
            self.certain[j] = [max(n + known - j - 1, 0) for n in length]

    def select(self, rows: Sequence[int]) -> None:
        """See `Drafter`."""
        self.certain = [[seen[row] for row in rows] for seen in self.certain]


def drafter_of(model: MTPModel, trunk: CachedTrunk, rows: int) -> Drafter:
    """The drafter of the model's head family."""
    if model.family == "linear":
        return LinearDrafter(trunk)
    return ParallelDrafter(trunk, rows) if model.family == "parallel" else ChainDrafter(trunk, rows)
