"""How many tokens to draft, from how often drafts were accepted. docs/math.md (6).

It counts and never looks at a clock, so that the same seed gives the same tokens on every machine.
"""

from __future__ import annotations

from typing import Protocol

FIRST_PAUSE, LONGEST_PAUSE = 16, 256
WINDOW = 32
"""Tests that an estimate remembers."""
WIDER = 0.03
"""Share of a forward that one more token in it costs."""


class Pace(Protocol):
    """Draft length of one row."""

    def next(self, most: int) -> int:
        """How many tokens to draft now, at most `most`."""
        ...

    def learn(self, drafted: int, accepted: int) -> None:
        """What came of it."""
        ...


class Fixed:
    """Always the same length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def next(self, most: int) -> int:
        """See `Pace`."""
        return min(self.length, most)

    def learn(self, drafted: int, accepted: int) -> None:
        """Nothing to learn."""


class Adaptive:
    """The length d that makes (expected tokens) / (cost of the forward) largest; 0 is plain decoding.

    With a_j the chance that draft j is accepted if those before it are, a forward gives 1 + a_1 + a_1 a_2 + ... tokens
    and costs 1 + c d plain forwards. What is not drafted is not learnt about, so now and then one draft more is tried:
    after 16 forwards, and after twice as many each time that it is not accepted.

    Args:
        longest: K - 1.
        layers: depth of a plain forward; a draft costs one head, which is one layer, and a wider forward.
    """

    def __init__(self, longest: int, layers: int) -> None:
        self.cost = 1 / layers + WIDER
        self.accepted, self.tested = [1.0] * longest, [2.0] * longest
        self.pause, self.waited = FIRST_PAUSE, 0
        self._trial = False

    def _best(self) -> int:
        chance, tokens, best, fastest = 1.0, 1.0, 0, 1.0
        for length, (accepted, tested) in enumerate(zip(self.accepted, self.tested, strict=True), 1):
            chance *= accepted / tested
            tokens += chance
            if tokens / (1 + self.cost * length) > fastest:
                best, fastest = length, tokens / (1 + self.cost * length)
        return best

    def next(self, most: int) -> int:
        """See `Pace`."""
        best = self._best()
        self._trial = self.waited >= self.pause and best < min(most, len(self.tested))
        return min(best + self._trial, most)

    def learn(self, drafted: int, accepted: int) -> None:
        """See `Pace`."""
        for j in range(min(accepted + 1, drafted)):
            kept = min(1.0, (WINDOW - 1) / self.tested[j])
            self.accepted[j] = kept * self.accepted[j] + (j < accepted)
            self.tested[j] = kept * self.tested[j] + 1
        self.waited += 1
        if self._trial:
            self.waited = 0
            self.pause = FIRST_PAUSE if accepted == drafted else min(2 * self.pause, LONGEST_PAUSE)
