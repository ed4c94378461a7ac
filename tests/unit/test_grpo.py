"""GRPO weights equal a hand computation, and groups are all labelled responses to a problem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wmtp.data.groups import GroupCounts, Groups, check_mixed, with_groups
from wmtp.data.records import Record
from wmtp.data.text import Row
from wmtp.errors import DataError
from wmtp.ranks import alone
from wmtp.targets import future_targets
from wmtp.weighting import GRPO, SchemeInput, When


def weights(scheme: GRPO, rewards: list[float], group: tuple[float, float]) -> list[float]:
    """One weight per response of one problem."""
    response_BT = torch.ones(len(rewards), 3, dtype=torch.bool)
    batch = SchemeInput(
        future_targets(torch.ones(len(rewards), 3), response_BT, None, 2),
        response_BT,
        torch.tensor(rewards),
        group_B2=torch.tensor([group] * len(rewards)),
    )
    (weight_BTK,) = scheme.weights([batch], alone, True)
    assert weight_BTK is not None
    for row_TK, valid_TK in zip(weight_BTK, batch.valid_BTK, strict=True):
        assert len(set(row_TK[valid_TK].tolist())) == 1, "one weight per response"
    return weight_BTK[:, 0, 0].tolist()


def reward_groups(given: list[Record]) -> Groups:
    """The groups of all of them."""
    counts = GroupCounts()
    for record in given:
        counts.add(record.problem_id, record.is_correct)
    return counts.groups()


def records(**verdicts: list[bool | None]) -> list[Record]:
    return [Record(problem, "p", "r", verdict) for problem, several in verdicts.items() for verdict in several]


def test_by_hand() -> None:
    # rewards 1 0 0 0: mean 1/4, deviation sqrt(3)/4, advantages sqrt(3) and -1/sqrt(3)
    group = reward_groups(records(a=[True, False, False, False]))["a"]
    assert group == pytest.approx((0.25, math.sqrt(3) / 4))
    high, low = math.sqrt(3), -1 / math.sqrt(3)
    assert weights(GRPO(clip=(0.1, 10.0)), [1, 0, 0, 0], group) == pytest.approx(
        [math.exp(high)] + [math.exp(low)] * 3, rel=1e-5
    )
    assert weights(GRPO(beta=2.0), [1, 0], group) == pytest.approx([math.exp(high / 2), math.exp(low / 2)], rel=1e-5)
    assert weights(GRPO(), [1, 0], group) == pytest.approx([3.0, math.exp(low)], rel=1e-5)
    assert weights(GRPO("positive"), [1, 0, 0, 0], group) == pytest.approx([high, 0, 0, 0], rel=1e-5)


@pytest.mark.parametrize("mode", ["exp", "positive"])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_group_of_equal_rewards_is_neutral(mode: str, reward: float) -> None:
    group = reward_groups(records(a=[bool(reward)] * 3))["a"]
    assert group == (reward, 0.0)
    assert weights(GRPO(mode), [reward] * 3, group) == [1, 1, 1]
    assert weights(GRPO(mode, neutral=0.0), [reward] * 3, group) == [0, 0, 0]


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_a_group_is_the_mean_and_the_population_deviation_of_its_rewards(verdicts: list[bool]) -> None:
    mean, deviation = reward_groups(records(a=list(verdicts)))["a"]
    assert mean == pytest.approx(np.mean(verdicts))
    assert deviation == pytest.approx(np.std(verdicts), abs=1e-12)


def test_responses_that_are_not_trained_on_count_and_unlabelled_ones_do_not() -> None:
    groups = reward_groups(records(a=[True, False, None], b=[None]))
    assert groups["a"] == (0.5, 0.5)
    trained = [row("a", 1.0), row("b", math.nan)]
    first, second = with_groups(trained, groups)
    assert first.group == (0.5, 0.5)
    assert all(math.isnan(x) for x in second.group)


def row(problem: str, reward: float) -> Row:
    return Row(np.array([1, 2, 3]), 1, 0, reward, 0, problem)


def test_data_without_a_mixed_group_is_refused() -> None:
    groups = reward_groups(records(a=[True, True], b=[False]))
    with pytest.raises(DataError, match="every row would weigh 1"):
        check_mixed(with_groups([row("a", 1.0), row("b", 0.0)], groups))


def test_rows_that_all_weigh_the_same_are_told() -> None:
    groups = reward_groups(records(a=[True, False], b=[True, False], c=[True, True, False]))
    (told,) = check_mixed(with_groups([row("a", 1.0), row("b", 1.0)], groups))
    assert "all weigh the same" in told
    assert check_mixed(with_groups([row("a", 1.0), row("c", 1.0)], groups)) == []
    assert check_mixed(with_groups([row("a", 1.0), row("a", 0.0)], groups)) == []


def test_a_row_without_a_label_is_an_error_not_a_weight() -> None:
    for reward, group in ((math.nan, (0.5, 0.5)), (1.0, (math.nan, math.nan))):
        with pytest.raises(ValueError, match="needs is_correct on every row"):
            weights(GRPO(), [reward], group)


def test_it_waits_for_no_forward_pass() -> None:
    scheme: Any = GRPO()
    assert scheme.when is When.BEFORE_FORWARD
    assert scheme.needs == frozenset()
