"""Small statistics are SciPy's, and what their definitions say, by counting."""

from __future__ import annotations

from itertools import chain, combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.errors import DataError
from wmtp.statistics import RESAMPLES, bootstrap, holm, rank_biserial, signed_rank

DIFFERENCES = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=9)
"""With ties and zeros."""
DISTINCT = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30, unique=True).flatmap(
    lambda sizes: st.tuples(*[st.sampled_from((size, -size)) for size in sizes])
)
"""Without."""
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def scipy_stats() -> Any:
    """SciPy, which the product does not need."""
    return pytest.importorskip("scipy.stats", reason="scipy is not installed (it comes with the extra dev)")


@settings(max_examples=50)
@given(given=DISTINCT)
def test_the_test_is_scipys(given: tuple[float, ...], scipy_stats: Any) -> None:
    found = signed_rank(given)
    expected = scipy_stats.wilcoxon(given, method="exact")
    assert min(found.plus, found.minus) == expected.statistic
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


@settings(max_examples=30)
@given(given=DIFFERENCES.filter(lambda given: len(given) - given.count(0) > 1))
def test_with_ties_and_zeros_too_it_is_scipys(given: list[float], scipy_stats: Any) -> None:
    found = signed_rank(given)
    every_sign = scipy_stats.PermutationMethod(n_resamples=2**10)
    expected = scipy_stats.wilcoxon([d for d in given if d], method=every_sign)
    assert min(found.plus, found.minus) == expected.statistic
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


@given(DIFFERENCES)
def test_p_is_the_share_of_signs_that_are_as_extreme(given: list[float]) -> None:
    sizes = [abs(d) for d in given if d]
    ranks = [sum(o < s for o in sizes) + (sum(o == s for o in sizes) + 1) / 2 for s in sizes]
    sums = [sum(r for r, up in zip(ranks, signs, strict=True) if up) for signs in product((0, 1), repeat=len(ranks))]
    seen = sum(r for r, d in zip(ranks, filter(None, given), strict=True) if d > 0)
    centre = sum(ranks) / 2
    share = sum(abs(s - centre) >= abs(seen - centre) for s in sums) / len(sums)
    found = signed_rank(given)
    assert found.p == pytest.approx(share)
    assert (found.plus, found.minus) == (seen, sum(ranks) - seen)
    assert found.smallest_p <= found.p


def test_five_seeds_cannot_show_less_than_one_in_sixteen() -> None:
    assert signed_rank([0.1, 0.2, 0.3, 0.4, 0.5]).p == signed_rank([1, -2, 3, 4, 5]).smallest_p == 0.0625


def test_equal_values_show_nothing() -> None:
    assert signed_rank([0.0, 0.0]) == (0.0, 0.0, 1.0, 1.0)
    assert rank_biserial([0.0, 0.0]) == 0.0


@given(DIFFERENCES)
def test_the_effect_is_between_minus_one_and_one_and_turns_with_the_sign(given: list[float]) -> None:
    effect = rank_biserial(given)
    assert -1.0 <= effect <= 1.0
    assert rank_biserial([-d for d in given]) == -effect
    assert (effect == 1.0) == (min(given) >= 0 and any(given))


@given(P_VALUES)
def test_holm_is_the_closed_bonferroni_test(p_values: list[float]) -> None:
    """A hypothesis is as likely as the likeliest of all families it is in, each corrected by Bonferroni."""
    places = range(len(p_values))
    families = list(chain.from_iterable(combinations(places, size) for size in range(1, len(p_values) + 1)))
    for i, corrected in enumerate(holm(p_values)):
        worst = max(min(1.0, len(f) * min(p_values[j] for j in f)) for f in families if i in f)
        assert corrected == pytest.approx(worst)


@settings(max_examples=20)
@given(given=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_the_interval_is_scipys_from_the_same_draws(given: list[float], scipy_stats: Any) -> None:
    low, high = scipy_stats.bootstrap(
        (given,),
        lambda x, axis: np.mean(x, axis=axis),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = bootstrap(given)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_difference_that_is_no_number_is_an_error(bad: float) -> None:
    with pytest.raises(DataError, match="must be finite"):
        signed_rank([1.0, bad])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    found = bootstrap(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-12 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= max(values) + 1e-12
    assert found.count == len(values)
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


def test_an_interval_over_five_seeds_is_too_narrow_and_the_docs_say_how_much() -> None:
    """docs/studies.md: 84 in 100."""
    draws = np.random.default_rng(0)
    found = [bootstrap(draws.standard_normal(5)) for _ in range(200)]
    assert 0.78 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.90


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 9)), min_size=1, max_size=20))
def test_with_counts_it_is_the_mean_over_things(pairs: list[tuple[float, int]]) -> None:
    sums, counts = zip(*pairs, strict=True)
    assert bootstrap(sums, counts).mean == pytest.approx(sum(sums) / sum(counts))


def test_no_values_is_an_error() -> None:
    with pytest.raises(DataError, match="no value"):
        bootstrap([])
