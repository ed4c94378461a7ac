"""Which rows an epoch has: pure functions of what is known of the rows, a seed and the epoch's number.

Nothing here knows a rank: ranks take their shares of the batches that are made of what is selected. Selections of all
epochs have the same size, so that the number of batches is known from the start. Random numbers come from counters
(Philox), so every epoch can be asked for by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import DataError

Integers = NDArray[np.int64]
Kind = Literal["rows", "cycled", "unique", "length"]
UNKNOWN = -1
"""Of `correct_R`: nobody ran the response."""
RATIO = 1.25
"""Responses share a length bin if they lie between the same two neighbouring powers of this."""
ORDER, PRIORITY, QUOTA, DECK = range(4)
"""Streams of random numbers, one for each use of a seed; decks have DECK and those after it."""


def generator(stream: int, seed: int, number: int) -> np.random.Generator:
    """Random numbers of one use: the same whenever they are asked for."""
    return np.random.Generator(np.random.Philox(key=[seed + (stream << 32), number]))


@dataclass(frozen=True)
class RowFacts:
    """What sampling knows of rows, one entry each."""

    problem_R: NDArray[np.int32]
    """Numbers from 0; rows of one problem share theirs."""
    correct_R: NDArray[np.int8]
    """1, 0 or UNKNOWN."""
    difficulty_R: NDArray[np.int32]
    """0: unknown."""
    length_R: NDArray[np.int32]
    """Of prompt and response, in tokens or in characters."""
    response_R: NDArray[np.int32]
    """Of the response alone, in the same unit."""

    def __len__(self) -> int:
        return len(self.problem_R)

    def take(self, rows: Integers) -> RowFacts:
        """The facts of some rows; problems are numbered anew, in the order in which they first appear."""
        problem_R, *others = (column[rows] for column in vars(self).values())
        first_P = np.full(int(problem_R.max(initial=-1)) + 1, len(rows))
        first_P[problem_R[::-1]] = np.arange(len(rows))[::-1]  # where several are written, the last one stays
        number_P = np.empty(len(first_P), np.int32)
        number_P[np.argsort(first_P, kind="stable")] = np.arange(len(first_P))
        return RowFacts(number_P[problem_R], *others)

    def levels(self) -> NDArray[np.int32]:
        """The difficulty of each row's problem: the largest that any of its rows has."""
        level_P = np.zeros(int(self.problem_R.max(initial=-1)) + 1, np.int32)
        np.maximum.at(level_P, self.problem_R, self.difficulty_R)
        return level_P[self.problem_R]


@dataclass(frozen=True)
class Selection:
    """The items of an epoch: rows that stay together in a batch, as places in the facts.

    Args:
        kind: `rows` takes every row by itself. The others take (correct, incorrect) rows of one problem: `cycled`
            every labelled row at least once, the shorter side repeated; `unique` every row at most once, matched at
            random anew in every epoch; `length` the same, among responses of one length bin.
        max_per_problem: at most so many items of a problem, drawn anew in every epoch.

    """

    facts: RowFacts
    kind: Kind = "rows"
    max_per_problem: int | None = None
    seed: int = 0

    def items(self, epoch: int) -> Integers:
        """`[N, 1]` rows or `[N, 2]` pairs; N is the same in every epoch. What a batch is made of, `orders` decides.

        Raises:
            DataError: there is no such pair.
        """
        if self.kind == "rows":
            items = np.arange(len(self.facts))[:, None]
        elif self.kind == "cycled":
            items = cycled_pairs(self.facts)
        else:
            items = unique_pairs(self.facts, self._groups, self._priority(epoch))
        if not len(items):
            raise DataError(self._reason())
        if self.max_per_problem is None:
            return items
        priority_N = _ranked(self._priority(epoch)[items])
        problem_N = self.facts.problem_R[items[:, 0]].astype(np.int64)
        order, place = within_groups(problem_N, priority_N)
        return items[np.sort(order[place < self.max_per_problem])]

    def _priority(self, epoch: int) -> Integers:
        """The rows in a random order: each one's place in it."""
        return generator(PRIORITY, self.seed, epoch).permutation(len(self.facts))

    @cached_property
    def _groups(self) -> Integers:
        """Rows with the same number may form a pair."""
        facts = self.facts
        if self.kind == "unique":
            return facts.problem_R.astype(np.int64)
        bins = np.floor(np.log(np.maximum(facts.response_R, 1)) / np.log(RATIO)).astype(np.int64)
        return np.unique(facts.problem_R * np.int64(1000) + bins, return_inverse=True)[1]

    def _reason(self) -> str:
        problems = len(np.unique(self.facts.problem_R))
        pair = "a response with is_correct true and one with false"
        close = f", whose lengths lie in the same bin of ratio {RATIO}" if self.kind == "length" else ""
        cycled = "set data.sampling.pairs=cycled, or " if self.kind == "length" else ""
        way = f"{cycled}label your rows by their tests (`wmtp data label`) or make wrong ones (`wmtp data mutate`)"
        return f"no pairs: none of {problems:,} problems has {pair}{close}; {way}"


def _ranked(priority_NS: Integers) -> Integers:
    """One priority for each item from those of its rows: no two are equal."""
    keys = priority_NS[:, 0]
    for column in priority_NS.T[1:]:
        keys = keys * (int(priority_NS.max()) + 1) + column
    ranked = np.empty(len(keys), np.int64)
    ranked[np.argsort(keys)] = np.arange(len(keys))
    return ranked


def within_groups(groups: Integers, priority: Integers) -> tuple[Integers, Integers]:
    """Entries sorted by (group, priority), and the place of each of these in its group, from 0.

    No two priorities are equal: then every way to sort gives the same order.
    """
    order = np.argsort(groups * (int(priority.max(initial=0)) + 1) + priority)
    ordered = groups[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(order)])
    return order, np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))


def unique_pairs(facts: RowFacts, group_R: Integers, priority_R: Integers) -> Integers:
    """(correct, incorrect) rows of the same group, each row in at most one pair, matched in the order of priorities.

    Args:
        priority_R: a permutation.
    """
    key_R = (group_R << len(priority_R).bit_length()) | priority_R  # no two are equal
    size = int(group_R.max(initial=-1)) + 1
    sides = []
    for label in (1, 0):
        rows = np.flatnonzero(facts.correct_R == label)
        rows = rows[np.argsort(key_R[rows], kind="stable")]  # quickest where the rows of a group are neighbours
        group_N = group_R[rows]
        sides.append((rows, group_N, np.bincount(group_N, minlength=size)))
    both_G = np.minimum(sides[0][2], sides[1][2])
    pairs_N2 = np.empty((int(both_G.sum()), 2), np.int64)
    for side, (rows, group_N, count_G) in enumerate(sides):
        end_G = np.cumsum(count_G) - count_G + both_G
        pairs_N2[:, side] = rows[np.arange(len(rows)) < end_G[group_N]]
    return pairs_N2


def cycled_pairs(facts: RowFacts) -> Integers:
    """What `wmtp.data.batches.pair_items` says: per problem, the longer side once and the shorter one repeated.

    Problems come by number, which is the order in which they first appear.
    """
    size = int(facts.problem_R.max(initial=-1)) + 1
    good, bad = (np.flatnonzero(facts.correct_R == label) for label in (1, 0))
    sides = [rows[np.argsort(facts.problem_R[rows], kind="stable")] for rows in (good, bad)]
    counts = [np.bincount(facts.problem_R[rows], minlength=size) for rows in sides]
    pairs_P = np.where((counts[0] > 0) & (counts[1] > 0), np.maximum(*counts), 0)
    problem_N = np.repeat(np.arange(size), pairs_P)
    place_N = np.arange(len(problem_N)) - np.repeat(np.cumsum(pairs_P) - pairs_P, pairs_P)
    chosen = [
        rows[(np.cumsum(count) - count)[problem_N] + place_N % np.maximum(count, 1)[problem_N]]
        for rows, count in zip(sides, counts, strict=True)
    ]
    return np.stack(chosen, axis=1)


def in_turn(facts: RowFacts) -> Integers:
    """All rows, problem by problem: the first with each label, then the second with each, and so on."""
    group_R = facts.problem_R * np.int64(3) + facts.correct_R + 1
    order, place_N = within_groups(group_R, np.arange(len(facts)))
    place_R = np.empty(len(facts), np.int64)
    place_R[order] = place_N
    return np.lexsort((-facts.correct_R, place_R, facts.problem_R))
