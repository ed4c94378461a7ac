"""Which problems are held out for validation."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from wmtp.dataset import held_out

NAMES = st.lists(st.text(max_size=8), max_size=40)


@given(NAMES, st.floats(0.001, 0.999))
def test_the_share_is_kept_and_neither_side_of_several_problems_is_empty(names: list[str], fraction: float) -> None:
    problems = set(names)
    apart = held_out(names, fraction)
    assert apart <= problems
    if len(problems) > 1:
        assert 0 < len(apart) < len(problems)
        assert abs(len(apart) - fraction * len(problems)) <= 1


@given(NAMES, NAMES)
def test_order_and_rows_of_a_problem_change_nothing(names: list[str], more: list[str]) -> None:
    assert held_out([*names, *more], 0.3) == held_out([*reversed(more), *names, *names], 0.3)


@given(NAMES, st.floats(0.001, 0.998))
def test_a_larger_share_holds_out_those_of_a_smaller_one_too(names: list[str], fraction: float) -> None:
    assert held_out(names, fraction) <= held_out(names, min(0.999, 2 * fraction))
