"""pass@k without bias.

Chen et al. 2021 (arXiv 2107.03374), section 2.1; docs/math.md (7).
"""

from __future__ import annotations

from math import prod

from wmtp.errors import UsageError


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that at least one of k samples passes, from n samples of which c passed.

    The mean over all ways to choose k of the n: `1 - C(n-c, k) / C(n, k)`, as a product that does not overflow.
    The plug-in estimate `1 - (1 - c/n)**k` is biased downwards.

    Raises:
        UsageError: k is not from 1 to n, or c not from 0 to n. With fewer than k samples there is no estimate.
    """
    if not 0 <= c <= n:
        raise UsageError(f"the number that passed must be from 0 to {n}, that of the samples; got {c}")
    if not 1 <= k <= n:
        raise UsageError(f"pass@{k} needs at least {k} samples of each problem (and k >= 1), there are {n}")
    if n - c < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(n - c + 1, n + 1))
