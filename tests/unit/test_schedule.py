"""A scheduled number is where it should be at every step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.optim import learning_rate
from wmtp.schedule import SHAPES, Schedule, value_at


def test_a_number_stays_what_it_is() -> None:
    assert [value_at(0.3, step) for step in (1, 50, 10**6)] == [0.3] * 3


def test_linear_and_cosine_by_hand() -> None:
    linear, cosine = Schedule(1.0, 0.0, 5), Schedule(1.0, 0.0, 5, "cosine")
    assert [linear.at(step) for step in range(1, 6)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [cosine.at(step) for step in range(1, 6)] == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2, 0.0]
    )


@given(st.floats(0, 10), st.floats(0, 10), st.integers(1, 50), st.sampled_from(SHAPES), st.integers(1, 100))
def test_it_starts_at_its_start_never_turns_and_stays_at_its_end(
    start: float, end: float, steps: int, shape: str, step: int
) -> None:
    schedule = Schedule(start, end, steps, shape)
    assert schedule.at(1) == pytest.approx(start)
    assert schedule.at(steps + step) == (end if steps > 1 or step >= 1 else start)
    way = [schedule.at(s) for s in range(1, steps + 2)]
    assert way == sorted(way, reverse=start > end)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of linear, cosine, got 'step'"):
        Schedule(0.0, 1.0, 5, "step")


def test_a_learning_rate_without_warm_up_and_floor_falls_as_a_schedule_does() -> None:
    for shape in SHAPES:
        rates = [learning_rate(s, peak=2.0, total=9, warmup=1, schedule=shape, floor=0.0) for s in range(1, 10)]
        assert rates == pytest.approx([Schedule(2.0, 0.0, 9, shape).at(s) for s in range(1, 10)])
