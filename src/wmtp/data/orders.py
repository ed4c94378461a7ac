"""Which items form which batch: a pure function of (seed, batch number).

Nothing is consumed, so a run that resumes at step n asks for batch n and gets the one it would have got, and several
threads may ask at once. Items of similar length share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wmtp.data.sampling import DECK, ORDER, QUOTA, Integers, generator
from wmtp.errors import DataError
from wmtp.schedule import Scheduled, value_at

POOL = 32
"""Batches that are sorted by length together: enough to even out lengths, few enough to keep the order random."""

ItemsOf = Callable[[int], Integers]
"""The items of an epoch, `[N, S]` rows: S rows stay together. N and S are the same in every epoch."""


class Order(Protocol):
    """An endless, addressable sequence of batches."""

    per_batch: int
    """Items of a batch; the last one of an epoch may have fewer."""
    count: int
    """Items of an epoch."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def items(self, number: int) -> Integers:
        """The items of batch `number`, counted from 0 over all epochs."""


class Sequential:
    """The items as they come, in every epoch."""

    def __init__(self, items: Integers, per_batch: int) -> None:
        self._items, self.per_batch, self.count = items, per_batch, len(items)

    def __len__(self) -> int:
        return -(-self.count // self.per_batch)

    def items(self, number: int) -> Integers:
        start = number % len(self) * self.per_batch
        return self._items[start : start + self.per_batch]


class Repeated:
    """The batches of an order, with every item's rows so many times beside one another."""

    def __init__(self, of: Order, times: int) -> None:
        self._of, self._times = of, times
        self.per_batch, self.count = of.per_batch, of.count

    def __len__(self) -> int:
        return len(self._of)

    def items(self, number: int) -> Integers:
        return np.repeat(self._of.items(number), self._times, axis=1)


class Shuffled:
    """Every epoch all its items, in an order of its own.

    Args:
        length_R: of each row; an item is as long as the longest of its rows.
    """

    def __init__(self, items_of: ItemsOf, length_R: NDArray[np.int32], per_batch: int, seed: int) -> None:
        self._items_of, self._length_R = lru_cache(maxsize=1)(items_of), length_R
        self.per_batch, self._seed = per_batch, seed
        self.count = len(self._items_of(0))
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return -(-self.count // self.per_batch)

    def items(self, number: int) -> Integers:
        epoch, place = divmod(number, len(self))
        return self._epoch(epoch)[place]

    def _shuffled(self, epoch: int) -> list[Integers]:
        """Shuffled, sorted by length within pools, batches shuffled again."""
        random, items = generator(ORDER, self._seed, epoch), self._items_of(epoch)
        items = items[random.permutation(len(items))]
        pool = POOL * self.per_batch
        pools = [by_length(items[i : i + pool], self._length_R) for i in range(0, len(items), pool)]
        batches = [p[i : i + self.per_batch] for p in pools for i in range(0, len(p), self.per_batch)]
        return [batches[i] for i in random.permutation(len(batches))]


@dataclass(frozen=True)
class DifficultyBin:
    """Problems whose difficulty lies in a range, and how much of a batch they get."""

    lowest: int
    highest: int
    """Belongs to the bin."""
    weight: Scheduled
    """Beside the other bins' weights: only the proportions matter. With a schedule it is a curriculum."""

    def __str__(self) -> str:
        return f"[{self.lowest}, {self.highest}]"


class Mixed:
    """Batches with a share for every difficulty, which may change over the steps.

    Every bin is a deck that is shuffled anew whenever it runs out. The `POOL` batches that follow one another are dealt
    from the decks together, each deck giving its share, then sorted by length and shuffled. Shares are rounded
    by one random number per pool, so that every bin gets what is due to it on average.

    Args:
        level_R: the difficulty of each row's problem.

    Raises:
        DataError: a bin that has a weight, but no items.
    """

    def __init__(
        self,
        items_of: ItemsOf,
        length_R: NDArray[np.int32],
        level_R: NDArray[np.int32],
        bins: Sequence[DifficultyBin],
        per_batch: int,
        seed: int,
    ) -> None:
        self._items_of, self._length_R, self._level_R, self._bins = items_of, length_R, level_R, bins
        self.per_batch, self._seed = per_batch, seed
        self._sizes = [len(self._members(items_of(0), b)) for b in range(len(bins))]
        for b, size in zip(bins, self._sizes, strict=True):
            if not size:
                raise DataError(f"data.sampling.difficulty: no rows to train on have a difficulty in {b}; leave it out")
        self.count = sum(self._sizes)
        self._dealt: Integers = np.zeros((1, len(bins)), np.int64)
        """Items that each deck has given before each pool."""
        self._deck = lru_cache(maxsize=2 * len(bins))(self._shuffled_deck)
        self._batches = lru_cache(maxsize=2)(self._pool)

    def __len__(self) -> int:
        return -(-self.count // self.per_batch)

    def items(self, number: int) -> Integers:
        pool, place = divmod(number, POOL)
        return self._batches(pool)[place]

    def shares(self, step: int) -> NDArray[np.float64]:
        """Of a batch's items, by bin; steps count from 1."""
        weights = np.array([value_at(b.weight, step) for b in self._bins], np.float64)
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares

    def _quota(self, pool: int) -> Integers:
        """Items of each bin in a pool: its share of each of the batches, rounded so that the pool is full."""
        due = np.sum([self.shares(pool * POOL + i + 1) for i in range(POOL)], axis=0) * self.per_batch
        edges = np.concatenate([[0.0], np.cumsum(due)])
        edges[edges == edges[-1]] = POOL * self.per_batch  # whatever the sum of shares lost in its last digit
        return np.diff(np.floor(edges + generator(QUOTA, self._seed, pool).random())).astype(np.int64)

    def _given_before(self, pool: int) -> Integers:
        """Items that each deck gave to the pools before this one."""
        dealt = self._dealt
        if len(dealt) <= pool:
            rows = [self._quota(p) for p in range(len(dealt) - 1, pool)]
            self._dealt = dealt = np.vstack([dealt, dealt[-1] + np.cumsum(rows, axis=0)])
        given: Integers = dealt[pool]
        return given

    def _pool(self, pool: int) -> list[Integers]:
        random = generator(ORDER, self._seed, pool)
        starts, counts = self._given_before(pool), self._quota(pool)
        items = np.concatenate([self._cards(b, int(starts[b]), int(counts[b])) for b in range(len(self._bins))])
        items = by_length(items[random.permutation(len(items))], self._length_R)
        return [items[i * self.per_batch : (i + 1) * self.per_batch] for i in random.permutation(POOL)]

    def _cards(self, b: int, start: int, count: int) -> Integers:
        """The items that a deck gives from place `start` on, over all its passes."""
        size, cards = self._sizes[b], []
        for deck in range(start // size, -(-(start + count) // size)):
            first = max(0, start - deck * size)
            cards.append(self._deck(b, deck)[first : start + count - deck * size])
        return np.concatenate([*cards, self._deck(b, 0)[:0]])

    def _shuffled_deck(self, b: int, deck: int) -> Integers:
        members = self._members(self._items_of(deck), b)
        return members[generator(DECK + b, self._seed, deck).permutation(len(members))]

    def _members(self, items: Integers, b: int) -> Integers:
        level_N, chosen = self._level_R[items[:, 0]], self._bins[b]
        return items[(level_N >= chosen.lowest) & (level_N <= chosen.highest)]


def by_length(items: Integers, length_R: NDArray[np.int32]) -> Integers:
    """Items from short to long; equal ones stay as they came."""
    return items[np.argsort(length_R[items].max(axis=1), kind="stable")]
