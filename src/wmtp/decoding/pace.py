"""How many tokens to draft, from how often drafts were accepted. docs/math.md (6.4).

It counts and never looks at a clock, so that the same seed gives the same tokens on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wmtp.decoding.cost import Cost

FIRST_PAUSE, LONGEST_PAUSE = 16, 256
WINDOW = 32
"""Forwards whose tests an estimate remembers."""
ROWS_THAT_DRAW = 64
"""As many rows share a forward, for all that a row which draws its tokens may know. Decision 0044."""


class Pace(Protocol):
    """Draft length of rows that share one."""

    def next(self, most: int, rows: int) -> int:
        """How many tokens to draft now in each row, at most `most`.

        Args:
            rows: that the forward runs over.
        """
        ...

    def learn(self, outcomes: Sequence[tuple[int, int]]) -> None:
        """What came of it: for each row the drafts and how many of them were accepted."""
        ...


class Fixed:
    """Always the same length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def next(self, most: int, rows: int) -> int:
        """See `Pace`."""
        return min(self.length, most)

    def learn(self, outcomes: Sequence[tuple[int, int]]) -> None:
        """Nothing to learn."""


class Adaptive:
    """The length d that makes (expected tokens) / (cost of the forward) largest; 0 is plain decoding.

    With a_j the chance that draft j is accepted if those before it are, a forward gives 1 + a_1 + a_1 a_2 + ... tokens
    a row. What is not drafted is not learnt about, so now and then one draft more is tried: at every 16th forward,
    and half as often each time that fewer than half of the rows accept it. Rows that began together try together, even
    if they do not share a pace: a forward is as wide as its longest draft.

    Args:
        longest: K - 1.
        cost: of drafting.
    """

    def __init__(self, longest: int, cost: Cost) -> None:
        self.cost = cost
        self.accepted, self.tested = [1.0] * longest, [2.0] * longest
        self.pause, self.forwards = FIRST_PAUSE, 0
        self._trial = 0

    def _best(self, rows: int) -> int:
        chance, tokens, best, fastest = 1.0, 1.0, 0, 1.0
        for length, (accepted, tested) in enumerate(zip(self.accepted, self.tested, strict=True), 1):
            chance *= accepted / tested
            tokens += chance
            speed = tokens / self.cost.of(length, rows)
            if speed > fastest:
                best, fastest = length, speed
        return best

    def next(self, most: int, rows: int) -> int:
        """See `Pace`."""
        best = self._best(rows)
        due = self.forwards % self.pause == 0 and self.forwards > 0
        tried = due and best < min(most, len(self.tested))
        self._trial = best + 1 if tried else 0
        return min(best + tried, most)

    def learn(self, outcomes: Sequence[tuple[int, int]]) -> None:
        """See `Pace`."""
        for j in range(len(self.tested)):
            asked = [accepted > j for drafted, accepted in outcomes if drafted > j and accepted >= j]
            if asked:
                kept = min(1.0, (WINDOW * len(outcomes) - len(asked)) / self.tested[j])
                self.accepted[j] = kept * self.accepted[j] + sum(asked)
                self.tested[j] = kept * self.tested[j] + len(asked)
        self.forwards += 1
        if self._trial:
            tried = [accepted for drafted, accepted in outcomes if drafted == self._trial]
            right = sum(accepted == self._trial for accepted in tried)
            self.pause = FIRST_PAUSE if 2 * right >= len(tried) else min(2 * self.pause, LONGEST_PAUSE)
