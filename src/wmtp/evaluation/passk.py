"""pass@k without bias, and how far it can be trusted.

Chen et al. 2021 (arXiv 2107.03374), section 2.1; docs/math.md (7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import DataError, UsageError

Vector = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that at least one of k samples passes, from n samples of which c passed.

    The mean over all ways to choose k of the n: `1 - C(n-c, k) / C(n, k)`, as a product that does not overflow.
    The plug-in estimate `1 - (1 - c/n)**k` is biased downwards.

    Raises:
        UsageError: k is not from 1 to n, or c not from 0 to n. With fewer than k samples there is no estimate.
    """
    if not 0 <= c <= n:
        raise UsageError(f"{c} of {n} samples cannot have passed")
    if not 1 <= k <= n:
        raise UsageError(f"pass@{k} needs at least {k} samples of each problem (and k >= 1), there are {n}")
    if n - c < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(n - c + 1, n + 1))


@dataclass(frozen=True)
class Interval:
    """A mean over problems with its bootstrap interval."""

    mean: float
    low: float
    high: float
    problems: int
    level: float = LEVEL


def bootstrap(
    values: Sequence[float] | Vector, counts: Sequence[float] | Vector | None = None, *, seed: int = 0
) -> Interval:
    """Mean of one value per problem, and its percentile interval when the problems are drawn again and again.

    Problems, not samples, are what a benchmark has few of. With one problem the interval is that one value: it says
    nothing, and `problems` tells so. Deterministic in the seed.

    Args:
        counts: the values are sums over so many things each, and the mean is over the things; None means 1.

    Raises:
        DataError: there is no value.
    """
    if not len(values):
        raise DataError("no problem has been scored; there is nothing to take a mean of")
    value_P = np.asarray(values, dtype=np.float64)
    count_P = np.ones_like(value_P) if counts is None else np.asarray(counts, dtype=np.float64)
    draws = np.random.default_rng(seed)
    means = np.concatenate(
        [value_P[drawn].sum(1) / count_P[drawn].sum(1) for drawn in _drawn(draws, len(value_P), RESAMPLES)]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value_P.sum() / count_P.sum()), float(low), float(high), len(value_P))


def _drawn(draws: np.random.Generator, problems: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Indices `[r, P]` of all resamples, in pieces of at most a million numbers."""
    piece = max(1, 2**20 // problems)
    for start in range(0, resamples, piece):
        yield draws.integers(0, problems, size=(min(piece, resamples - start), problems))
