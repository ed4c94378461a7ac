"""Early stopping: three criteria, any or all of them, counted the same after a resume."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.early_stopping import EarlyStopping

STEADY, WILD = [1.0, 1.1, 0.9], [0.01, 9.0, 0.01]


def judge(stopping: EarlyStopping, loss: float, std: float = 0.2, norms: list[float] = STEADY) -> str | None:
    """One evaluation after a few steps."""
    for norm in norms:
        stopping.stepped(norm)
    return stopping.evaluated({"loss/weighted": loss, "value/std": std})


def made(**options: Any) -> EarlyStopping:
    return EarlyStopping(**{"metric": "loss/weighted", "patience": 2, **options})


def test_a_metric_that_no_longer_falls_stops_after_patience_evaluations_and_is_named() -> None:
    stopping = made(min_delta=0.1)
    assert [judge(stopping, loss) is None for loss in (1.0, 0.8, 0.75, 0.9)] == [True, True, True, False]
    again = made()
    judge(again, 1.0)
    judge(again, 1.0)
    assert judge(again, 2.0) == "loss/weighted has not fallen below 1.0000 in 2 evaluations"


def test_a_better_evaluation_starts_the_count_again() -> None:
    stopping = made()
    assert [judge(stopping, loss) for loss in (1.0, 1.0, 0.9, 0.95, 0.8, 0.9)] == [None] * 6


def test_gradient_norms_that_spread_stop_a_run_whose_loss_still_falls() -> None:
    stopping = made(gradient_spread=0.5)
    assert judge(stopping, 1.0, norms=WILD) is None
    reason = judge(stopping, 0.9, norms=WILD)
    assert reason is not None
    assert reason.startswith("gradient norms spread by 1.41 of their mean")
    assert judge(made(gradient_spread=0.5), 1.0) is None


def test_norms_are_those_since_the_last_evaluation_and_finite_ones_only() -> None:
    stopping = made(gradient_spread=0.5, patience=1)
    assert judge(stopping, 3.0, norms=[*STEADY, math.nan, math.inf]) is None
    assert judge(stopping, 2.0, norms=[100.0, 100.0]) is None
    assert judge(stopping, 1.0, norms=[5.0]) is None


@pytest.mark.parametrize("std", [0.0, 7.0, math.nan])
def test_values_that_collapse_or_explode_stop_a_run_whose_loss_still_falls(std: float) -> None:
    stopping = made(value_std=(0.01, 5.0))
    assert judge(stopping, 1.0, std) is None
    reason = judge(stopping, 0.9, std)
    assert reason is not None
    assert "outside [0.01, 5]" in reason
    fine = made(value_std=(0.01, 5.0))
    assert [judge(fine, loss) for loss in (1.0, 0.9, 0.8)] == [None] * 3


def test_what_is_not_watched_never_stops() -> None:
    stopping = made()
    assert [judge(stopping, loss, 0.0, WILD) for loss in (3.0, 2.0, 1.0)] == [None] * 3


def test_any_takes_one_criterion_and_all_takes_each() -> None:
    options = {"gradient_spread": 0.5, "value_std": (0.01, 5.0)}
    anyone, everyone = made(**options, mode="any"), made(**options, mode="all")
    seen = [(judge(anyone, 1.0, std, norms), judge(everyone, 1.0, std, norms)) for std, norms in [
        (0.2, STEADY), (0.2, STEADY), (0.2, STEADY), (0.0, WILD), (0.0, WILD)
    ]]  # fmt: skip
    assert [first is not None for first, _ in seen] == [False, False, True, True, True]
    assert [second is not None for _, second in seen] == [False, False, False, False, True]
    assert (seen[-1][1] or "").count(" in ") == 3


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'any' or 'all'"):
        made(mode="most")


@given(
    st.lists(st.tuples(st.floats(0, 2), st.sampled_from([0.0, 0.2]), st.sampled_from([STEADY, WILD])), min_size=2),
    st.integers(1, 8),
    st.sampled_from(["any", "all"]),
)
def test_restored_in_the_middle_it_says_what_it_would_have_said(
    evaluations: list[tuple[float, float, list[float]]], cut: int, mode: str
) -> None:
    options = {"gradient_spread": 0.5, "value_std": (0.01, 5.0), "mode": mode}
    whole, broken = made(**options), made(**options)
    for place, (loss, std, norms) in enumerate(evaluations):
        if place == cut:
            broken.stepped(7.0)
            whole.stepped(7.0)
            state = json.loads(json.dumps(broken.state_dict()))
            broken = made(**options)
            broken.load_state_dict(state)
        assert judge(whole, loss, std, norms) == judge(broken, loss, std, norms)
