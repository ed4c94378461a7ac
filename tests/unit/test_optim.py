"""The learning rate at the places that matter, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wmtp.optim import build_adamw, learning_rate, set_learning_rate
from wmtp.testing import tiny_model

PEAK, TOTAL, WARMUP = 2.0, 110, 10
every_schedule = pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])


def rate(step: int, schedule: str, floor: float = 0.1, warmup: int = WARMUP) -> float:
    return learning_rate(step, peak=PEAK, total=TOTAL, warmup=warmup, schedule=schedule, floor=floor)


@every_schedule
def test_warm_up_is_a_straight_line_from_the_first_step_to_the_peak(schedule: str) -> None:
    assert [rate(step, schedule) for step in (1, 5, 10)] == pytest.approx([0.2, 1.0, 2.0])


@every_schedule
def test_without_warm_up_no_step_is_above_the_peak_and_the_first_is_almost_there(schedule: str) -> None:
    assert rate(1, schedule, warmup=0) == pytest.approx(PEAK, rel=0.01)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 2.0, 2.0), ("linear", 1.1, 0.2), ("cosine", 1.1, 0.2)]
)
def test_the_rate_half_way_and_at_the_last_step(schedule: str, middle: float, end: float) -> None:
    assert rate(60, schedule) == pytest.approx(middle)
    assert rate(TOTAL, schedule) == pytest.approx(end)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_past_the_end_the_rate_stays_at_the_floor(schedule: str) -> None:
    assert rate(TOTAL + 50, schedule) == pytest.approx(0.2)
    assert rate(TOTAL, schedule, floor=0.0) == pytest.approx(0.0, abs=1e-12)


def test_cosine_starts_slowly_where_linear_does_not() -> None:
    assert rate(35, "cosine") == pytest.approx(PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert rate(35, "linear") < rate(35, "cosine") < PEAK


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(0, 300),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 1),
)
def test_every_rate_is_between_zero_and_the_peak_and_falls_only_after_warm_up(
    step: int, total: int, warmup: int, schedule: str, floor: float
) -> None:
    now, following = (
        learning_rate(s, peak=PEAK, total=total, warmup=warmup, schedule=schedule, floor=floor)
        for s in (step, step + 1)
    )
    assert 0 <= now <= PEAK
    assert now <= following if step < warmup else now >= following
    if step >= warmup:
        assert now >= floor * PEAK * (1 - 1e-12)


@pytest.mark.parametrize("step", [1, WARMUP, WARMUP + 1, TOTAL])
def test_an_unknown_schedule_is_refused_at_any_step(step: int) -> None:
    with pytest.raises(ValueError, match="schedule must be 'constant', 'linear' or 'cosine', got 'step'"):
        rate(step, "step")


def optimizer_of(model: torch.nn.Module) -> torch.optim.AdamW:
    return build_adamw(model, lr=1e-3, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_matrices_decay_vectors_do_not_and_everything_is_there_once(family: str) -> None:
    model = tiny_model(family, 2)
    matrices, vectors = optimizer_of(model).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim < 2 for p in vectors["params"])
    held = [id(p) for p in matrices["params"] + vectors["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    for group in (matrices, vectors):
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (1e-3, (0.8, 0.9), 1e-7, True)


def test_frozen_parameters_are_not_in_the_optimiser() -> None:
    model = tiny_model("llama", 2)
    model.base.requires_grad_(False)
    held = {id(p) for group in optimizer_of(model).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.extra_heads.parameters()}


def test_an_empty_group_is_left_out() -> None:
    (group,) = optimizer_of(torch.nn.Linear(2, 2, bias=False)).param_groups
    assert group["weight_decay"] == 0.1


def test_every_group_gets_the_new_rate() -> None:
    optimizer = optimizer_of(tiny_model("llama", 2))
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
