"""Figures of a critic's values against their definitions, row by row, and where they do not exist."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.ranks import alone
from wmtp.value_stats import BINS, value_meter, value_metrics

PAIRS = {name: torch.tensor(0.0) for name in ("pair_correct", "pair_margin", "pair_count")}


def rows_of(seed: int, count: int = 6, length: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, one run of response tokens a row, and rewards of which one is unknown."""
    random = torch.Generator().manual_seed(seed)
    values = torch.rand(count, length, generator=random)
    mask = torch.zeros(count, length, dtype=torch.bool)
    for b in range(count):
        start = int(torch.randint(0, length - 1, (), generator=random))
        mask[b, start : int(torch.randint(start + 1, length + 1, (), generator=random))] = True
    rewards = torch.randint(0, 2, (count,), generator=random).float()
    rewards[0] = math.nan
    return values, mask, rewards


def figures(values: torch.Tensor, mask: torch.Tensor, rewards: torch.Tensor, calibrated: bool = True) -> dict[str, Any]:
    meter = value_meter(values, mask, rewards, rewards)
    return value_metrics({**meter.reduced(alone), **PAIRS}, calibrated=calibrated)


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_every_figure_is_its_definition(seed: int) -> None:
    values, mask, rewards = rows_of(seed)
    got = figures(values, mask, rewards)
    own = [v[m].double().numpy() for v, m in zip(values, mask, strict=True)]
    assert got["value/mean"] == pytest.approx(np.concatenate(own).mean())
    assert got["value/std"] == pytest.approx(np.concatenate(own).std(), abs=1e-7)
    assert got["value/token_variance"] == pytest.approx(mean([row.var() for row in own]), abs=1e-9)
    changes = [np.abs(np.diff(row)) for row in own if len(row) > 1]
    if changes:
        assert got["value/spikiness"] == pytest.approx(mean([c.max() / c.mean() for c in changes]))
        by_place = [np.corrcoef(row, np.arange(len(row)))[0, 1] for row in own if len(row) > 1]
        assert got["value/position_correlation"] == pytest.approx(mean(by_place), abs=1e-6)
    lengths = [len(row) for row in own]
    if len(set(lengths)) > 1:
        across = np.corrcoef([row.mean() for row in own], lengths)[0, 1]
        assert got["value/length_correlation"] == pytest.approx(across, abs=1e-6)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_the_reliability_curve_is_the_share_of_correct_tokens_in_each_tenth(seed: int) -> None:
    values, mask, rewards = rows_of(seed)
    got = figures(values, mask, rewards)
    tokens = [(float(v), float(r)) for b, r in enumerate(rewards) if not r.isnan() for v in values[b][mask[b]]]
    error = 0.0
    for place in range(1, BINS + 1):
        inside = [(v, r) for v, r in tokens if (place - 1) / BINS <= v < place / BINS]
        assert (f"reliability/value_{place}" in got) == bool(inside)
        if inside:
            value, correct = mean([v for v, _ in inside]), mean([r for _, r in inside])
            assert got[f"reliability/value_{place}"] == pytest.approx(value)
            assert got[f"reliability/correct_{place}"] == pytest.approx(correct)
            assert got[f"reliability/tokens_{place}"] == len(inside)
            error += len(inside) / len(tokens) * abs(value - correct)
    assert got["value/calibration_error"] == pytest.approx(error)


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=20)
def test_two_parts_added_are_the_whole(seed: int, cut: int) -> None:
    values, mask, rewards = rows_of(seed)
    whole, first = (
        value_meter(values, mask, rewards, rewards),
        value_meter(values[:cut], mask[:cut], rewards[:cut], rewards[:cut]),
    )
    first.merge(value_meter(values[cut:], mask[cut:], rewards[cut:], rewards[cut:]))
    assert list(first.sums) == list(whole.sums)
    for name, total in whole.sums.items():
        torch.testing.assert_close(first.sums[name], total, msg=name)


def test_a_perfectly_calibrated_critic_has_an_error_of_0_and_a_liar_of_1() -> None:
    mask = torch.ones(4, 5, dtype=torch.bool)
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    truth = rewards.unsqueeze(1).expand(4, 5)
    assert figures(truth, mask, rewards)["value/calibration_error"] == 0
    assert figures(1 - truth, mask, rewards)["value/calibration_error"] == 1


def test_values_that_grow_with_the_position_are_told_whatever_their_size() -> None:
    mask = torch.ones(3, 6, dtype=torch.bool)
    growing = torch.arange(6.0).expand(3, 6) * torch.tensor([[1e-3], [1.0], [1e3]])
    got = figures(growing, mask, torch.ones(3))
    assert got["value/position_correlation"] == pytest.approx(1.0)
    assert got["value/spikiness"] == pytest.approx(1.0, rel=1e-3)


def test_a_constant_critic_has_no_correlation_and_no_spikes() -> None:
    got = figures(torch.full((3, 4), 0.25), torch.ones(3, 4, dtype=torch.bool), torch.ones(3))
    assert got["value/std"] == got["value/token_variance"] == 0
    for name in ("position_correlation", "spikiness", "length_correlation"):
        assert math.isnan(got[f"value/{name}"]), name


def test_single_tokens_and_no_rows_give_figures_that_do_not_exist_and_no_error() -> None:
    one = figures(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.ones(1))
    assert math.isnan(one["value/spikiness"])
    none = figures(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.bool), torch.zeros(0))
    assert all(math.isnan(value) for value in none.values()), none


def test_values_that_are_no_probabilities_have_no_calibration() -> None:
    values, mask, rewards = rows_of(1)
    assert not [
        name for name in figures(values, mask, rewards, calibrated=False) if "reliab" in name or "calib" in name
    ]
