"""What can be said from few values: intervals, a paired test, an effect size. Small, exact where that is possible.

docs/math.md (7) and (8). Numbers in, numbers out; SciPy's results on the same numbers are the test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import DataError

Vector = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int
    """Values that the mean is of."""


def bootstrap(
    values: Sequence[float] | Vector, counts: Sequence[float] | Vector | None = None, *, seed: int = 0
) -> Interval:
    """Mean, and its 95 % percentile interval when the values (problems, rows, seeds) are drawn again and again.

    Efron 1979. With one value the interval is that value: it says nothing, and `count` tells so. With few values it
    is too narrow (docs/studies.md has figures). Deterministic in the seed.

    Args:
        values: what was drawn independently. Problems, not samples, are what a benchmark has few of.
        counts: the values are sums over so many things each, and the mean is over the things; None means 1.

    Raises:
        DataError: there is no value.
    """
    if not len(values):
        raise DataError("there is no value, so there is nothing to take a mean of; at least one is needed")
    value_N = np.asarray(values, dtype=np.float64)
    count_N = np.ones_like(value_N) if counts is None else np.asarray(counts, dtype=np.float64)
    draws = np.random.default_rng(seed)
    means = np.concatenate(
        [value_N[drawn].sum(1) / count_N[drawn].sum(1) for drawn in _drawn(draws, len(value_N), RESAMPLES)]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value_N.sum() / count_N.sum()), float(low), float(high), len(value_N))


def _drawn(draws: np.random.Generator, count: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Indices `[r, N]` of all resamples, in pieces of at most a million numbers."""
    piece = max(1, 2**20 // count)
    for start in range(0, resamples, piece):
        yield draws.integers(0, count, size=(min(piece, resamples - start), count))


class SignedRank(NamedTuple):
    """Wilcoxon's signed-rank test of paired differences."""

    plus: float
    """Sum of the ranks of positive differences."""
    minus: float
    p: float
    """Two-sided and exact. 1 where no difference is left."""
    smallest_p: float
    """The p if all differences had the same sign: what so many pairs can show at best."""


def signed_rank(differences: Sequence[float] | Vector) -> SignedRank:
    """Wilcoxon 1945: are the differences of pairs symmetric about 0?

    Zeros are left out (Wilcoxon's own way), ties share the mean of their ranks. The distribution of the rank sum over
    all 2^n signs is counted, not approximated, also with ties; that takes n^3 additions.

    Raises:
        DataError: a difference is not finite.
    """
    given = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(given).all():
        raise DataError(f"all differences must be finite, got {given.tolist()}")
    kept = given[given != 0]
    doubled = _doubled_ranks(np.abs(kept))
    plus, minus = int(doubled[kept > 0].sum()), int(doubled[kept < 0].sum())
    ways = _ways(doubled)
    smaller = sum(ways[: min(plus, minus) + 1])
    signs: int = 2 ** len(kept)
    return SignedRank(plus / 2, minus / 2, min(1.0, 2 * smaller / signs), min(1.0, 2 / signs))


def _doubled_ranks(size_N: Vector) -> NDArray[np.int64]:
    """Twice the ranks, counted from 1: integers also where ties share a mean rank."""
    below = (size_N[:, None] > size_N[None, :]).sum(1)
    same = (size_N[:, None] == size_N[None, :]).sum(1)
    ranks: NDArray[np.int64] = 2 * below + same + 1
    return ranks


def _ways(doubled_N: NDArray[np.int64]) -> list[int]:
    """How many choices of signs give each (doubled) sum of positive ranks."""
    ways = [1] + [0] * int(doubled_N.sum())
    for rank in map(int, doubled_N):
        ways = [way + (ways[total - rank] if total >= rank else 0) for total, way in enumerate(ways)]
    return ways


def rank_biserial(differences: Sequence[float] | Vector) -> float:
    """Effect size of paired differences, -1 to 1: (plus - minus) / (plus + minus) of the signed ranks.

    Kerby 2014, *The simple difference formula*. 1 where every difference is positive, 0 where there is none.
    """
    test = signed_rank(differences)
    total = test.plus + test.minus
    return (test.plus - test.minus) / total if total else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: p-values of a family of tests, corrected so that any false rejection is as rare as the level says."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, worst = [0.0] * len(p_values), 0.0
    for done, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - done) * p_values[i]))
        corrected[i] = worst
    return corrected
