"""pass@k is the mean over all ways to choose k samples, and its interval is that of drawing problems."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.errors import DataError, UsageError
from wmtp.evaluation.passk import bootstrap, pass_at_k


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_it_is_the_share_of_subsets_with_a_pass(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(float(Fraction(sum(map(any, subsets)), len(subsets))), abs=1e-12)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_it_is_the_published_formula(case: tuple[int, int, int]) -> None:
    """Chen et al. 2021, figure 3, in numpy as they print it."""
    n, c, k = case
    published = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(published, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_what_cannot_be_estimated_is_an_error(n: int, c: int, k: int) -> None:
    with pytest.raises(UsageError):
        pass_at_k(n, c, k)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    found = bootstrap(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-12 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= max(values) + 1e-12
    assert found.problems == len(values)
    assert bootstrap(values) == found


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """95 % of intervals over 60 problems hold the true pass rate; 2,000 draws would be between 93 and 97 %."""
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        values = draws.random(60) < 0.3
        found = bootstrap(values.astype(float))
        held += found.low <= 0.3 <= found.high
    assert 180 <= held <= 199


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 9)), min_size=1, max_size=20))
def test_with_counts_it_is_the_mean_over_things(pairs: list[tuple[float, int]]) -> None:
    sums, counts = zip(*pairs, strict=True)
    assert bootstrap(sums, counts).mean == pytest.approx(sum(sums) / sum(counts))


def test_no_values_is_an_error() -> None:
    with pytest.raises(DataError, match="no problem"):
        bootstrap([])
