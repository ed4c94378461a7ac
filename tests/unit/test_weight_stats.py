"""Figures of weights follow their definitions, per head, and two alarms tell of weights that are worth nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.metrics import Meter
from wmtp.testing import Ranks
from wmtp.weight_stats import COLLAPSED, PATIENCE, UNIFORM, streaks_after, weight_meter, weight_metrics

NAMES = {"mean", "std", "min", "max", "ess", "entropy"}


def figures(weight_BTK: Tensor | None, valid_BTK: Tensor, **options: Any) -> dict[str, float]:
    meter = weight_meter(weight_BTK, valid_BTK, **options)
    return weight_metrics(meter.sums, meter)


def column(*weights: float) -> tuple[Tensor, Tensor]:
    weight_BTK = torch.tensor(weights).view(1, -1, 1)
    return weight_BTK, torch.ones_like(weight_BTK, dtype=torch.bool)


def test_by_hand() -> None:
    # 1 1 2: mean 4/3, squares 6, (4^2) / (3 * 6) = 8/9; shares 1/4 1/4 1/2 have an entropy of 1.5 log 2
    got = figures(*column(1.0, 1.0, 2.0))
    assert got["weight/mean"] == pytest.approx(4 / 3)
    assert got["weight/std"] == pytest.approx(math.sqrt(2) / 3)
    assert got["weight/ess"] == pytest.approx(8 / 9)
    assert got["weight/entropy"] == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert (got["weight/min"], got["weight/max"]) == (1.0, 2.0)


def test_the_share_at_a_bound_counts_both_and_is_told_only_where_there_are_bounds() -> None:
    assert figures(*column(0.1, 0.5, 3.0, 1.0), bounds=(0.1, 3.0))["weight/clipped"] == 0.5
    assert "weight/clipped" not in figures(*column(0.1, 0.5))


def test_weights_where_there_is_no_target_and_a_micro_batch_without_any_count_for_nothing() -> None:
    weight_BTK, valid_BTK = column(1.0, 2.0, 1e9)
    valid_BTK[0, 2] = False
    plain = figures(*column(1.0, 2.0), bounds=(0.0, 5.0))
    assert figures(weight_BTK, valid_BTK, bounds=(0.0, 5.0)) == plain
    meter = weight_meter(weight_BTK, valid_BTK, (0.0, 5.0))
    meter.merge(weight_meter(weight_BTK, torch.zeros_like(valid_BTK), (0.0, 5.0)))
    assert weight_metrics(meter.sums, meter) == plain


def test_without_any_pair_there_are_no_figures() -> None:
    weight_BTK, valid_BTK = column(1.0)
    assert figures(weight_BTK, ~valid_BTK) == {}


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_a_heads_figures_are_those_of_its_weights_alone(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight_BTK, valid_BTK = torch.rand(3, 5, 2, generator=random), torch.rand(3, 5, 2, generator=random) < 0.7
    valid_BTK[0, 0] = True
    both = figures(weight_BTK, valid_BTK, bounds=(0.2, 0.8))
    for k in range(2):
        own = figures(weight_BTK[:, :, k : k + 1], valid_BTK[:, :, k : k + 1], bounds=(0.2, 0.8))
        for name in (NAMES | {"clipped"}) - {"min", "max"}:
            assert both[f"weight/{name}_head_{k + 1}"] == pytest.approx(own[f"weight/{name}"], rel=1e-5)


def test_heads_one_after_another_and_two_ranks_give_the_same_figures() -> None:
    random = torch.Generator().manual_seed(0)
    weight_BTK, valid_BTK = torch.rand(4, 5, 2, generator=random), torch.rand(4, 5, 2, generator=random) < 0.7
    together = figures(weight_BTK, valid_BTK)
    meter = Meter()
    for k in range(2):
        meter.merge_heads(weight_meter(weight_BTK[:, :, k : k + 1], valid_BTK[:, :, k : k + 1]))
    assert weight_metrics(meter.sums, meter) == pytest.approx(together)

    def of_rank(rank: int, reduce: Any) -> dict[str, float]:
        own = weight_meter(weight_BTK[2 * rank : 2 * rank + 2], valid_BTK[2 * rank : 2 * rank + 2])
        return weight_metrics(own.reduced(reduce), own)

    for got in Ranks(2).run(of_rank):
        assert got == pytest.approx(together)


# Alarms


def after(several: list[dict[str, float]]) -> dict[str, int]:
    streaks: dict[str, int] = {}
    for one in several:
        streaks = streaks_after(streaks, one)
    return streaks


HEALTHY = figures(*column(*[0.5, 1.5] * 20))
COLLAPSE = figures(*column(100.0, *[0.001] * 99))
EQUAL = figures(*column(*[2.0] * 40))


def test_the_conditions_hold_where_they_should() -> None:
    assert after([HEALTHY]) == {"collapsed": 0, "uniform": 0}
    assert after([COLLAPSE]) == {"collapsed": 1, "uniform": 0}
    assert after([EQUAL]) == {"collapsed": 0, "uniform": 1}
    assert COLLAPSE["weight/ess"] < COLLAPSED
    assert HEALTHY["weight/std"] > UNIFORM * HEALTHY["weight/mean"]


def test_weights_of_0_only_have_collapsed() -> None:
    assert after([figures(*column(0.0, 0.0))]) == {"collapsed": 1, "uniform": 0}


def test_only_steps_in_a_row_count_and_an_alarm_stays_told() -> None:
    almost = [EQUAL] * (PATIENCE - 1)
    assert after([*almost, HEALTHY])["uniform"] == 0
    assert after([*almost, HEALTHY, EQUAL])["uniform"] == 1
    assert after([*almost, EQUAL])["uniform"] == PATIENCE
    assert after([*almost, EQUAL, HEALTHY, EQUAL])["uniform"] == PATIENCE
