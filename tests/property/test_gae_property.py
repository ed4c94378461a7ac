"""Generalised advantages are the sum that the definition writes, for every mask, discount and terminal."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.weighting import gae


class Case(NamedTuple):
    values_BT: Tensor
    mask_BT: Tensor
    rewards_B: Tensor
    options: dict[str, Any]


UNIT = st.one_of(st.sampled_from([0.0, 1.0, 0.95]), st.floats(0, 1))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    numbers = st.lists(st.floats(-2, 2, width=32), min_size=rows * length, max_size=rows * length)
    values = torch.tensor(draw(numbers), dtype=torch.float32).view(rows, length)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for b in range(rows):
        start = draw(st.integers(1, length))
        mask[b, start : draw(st.integers(start, length))] = True
    rewards = torch.tensor(draw(st.lists(st.floats(0, 1, width=32), min_size=rows, max_size=rows)))
    options = {"gamma": draw(UNIT), "lam": draw(UNIT), "terminal": draw(st.sampled_from(["reward", "value"]))}
    return Case(values, mask, rewards, options)


def deltas(case: Case, b: int) -> dict[int, float]:
    """delta_t of one row's response tokens, in Python's own float64."""
    v = case.values_BT[b].tolist()
    tokens = [t for t in range(len(v)) if case.mask_BT[b, t]]
    out = {t: case.options["gamma"] * v[t] - v[t - 1] for t in tokens}
    if tokens:
        last = tokens[-1]
        end = float(case.rewards_B[b]) if case.options["terminal"] == "reward" else v[last]
        out[last] = end - v[last - 1]
    return out


def by_definition(case: Case) -> Tensor:
    """sum over l of (gamma*lam)^l * delta_{t+l}, term by term."""
    decay = case.options["gamma"] * case.options["lam"]
    out = torch.zeros_like(case.values_BT, dtype=torch.float64)
    for b in range(len(out)):
        delta = deltas(case, b)
        for t in delta:
            out[b, t] = sum(decay ** (later - t) * delta[later] for later in delta if later >= t)
    return out


@given(cases())
def test_it_is_the_sum_of_the_definition_to_1e_12_in_float64(case: Case) -> None:
    got = gae(case.values_BT.double(), case.mask_BT, case.rewards_B, **case.options)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, by_definition(case), atol=1e-12, rtol=0)


@given(cases())
def test_it_is_the_sum_of_the_definition_to_1e_6_in_fp32(case: Case) -> None:
    got = gae(case.values_BT, case.mask_BT, case.rewards_B, **case.options)
    assert got.dtype == torch.float32
    size = max(1.0, *(sum(map(abs, deltas(case, b).values())) for b in range(len(got))), 1.0)
    torch.testing.assert_close(got.double(), by_definition(case), atol=1e-6 * size, rtol=0)


@given(cases())
@settings(max_examples=50)
def test_bf16_values_give_what_the_same_numbers_give_in_fp32(case: Case) -> None:
    values = case.values_BT.bfloat16()
    got = gae(values, case.mask_BT, case.rewards_B, **case.options)
    assert got.dtype == torch.float32
    assert torch.equal(got, gae(values.float(), case.mask_BT, case.rewards_B, **case.options))


@given(cases())
@settings(max_examples=50)
def test_it_is_exactly_0_outside_the_mask_even_where_values_are_not_numbers(case: Case) -> None:
    before = torch.cat([case.mask_BT[:, 1:], torch.zeros(len(case.mask_BT), 1, dtype=torch.bool)], 1)
    read = case.mask_BT | before
    values = torch.where(read, case.values_BT, float("nan"))
    got = gae(values, case.mask_BT, case.rewards_B, **case.options)
    assert not got[~case.mask_BT].any()
    assert torch.equal(got, gae(case.values_BT, case.mask_BT, case.rewards_B, **case.options))


@given(cases(), st.sampled_from(["gamma", "lam"]))
@settings(max_examples=50)
def test_nothing_jumps_at_1(case: Case, which: str) -> None:
    at = [
        gae(case.values_BT.double(), case.mask_BT, case.rewards_B, **(case.options | {which: x}))
        for x in (1.0, 1.0 - 1e-9)
    ]
    # |d advantage / d gamma or lam| <= sum of l*|delta| + |v| < 9 * 9 * 4 + 9 * 2
    torch.testing.assert_close(at[0], at[1], atol=4e-7, rtol=0)


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_rows_do_not_see_each_other(case: Case, random: Any) -> None:
    order = list(range(len(case.values_BT)))
    random.shuffle(order)
    got = gae(case.values_BT, case.mask_BT, case.rewards_B, **case.options)
    shuffled = gae(case.values_BT[order], case.mask_BT[order], case.rewards_B[order], **case.options)
    assert torch.equal(shuffled, got[order])


@given(cases(), st.integers(0, 2**31))
@settings(max_examples=50)
def test_a_mask_with_a_hole_is_always_refused(case: Case, seed: int) -> None:
    mask = torch.zeros(len(case.mask_BT), case.mask_BT.shape[1] + 4, dtype=torch.bool)
    values = torch.zeros_like(mask, dtype=torch.float32)
    row = seed % len(mask)
    mask[row, 1] = mask[row, 3] = True
    with pytest.raises(ValueError, match="one run"):
        gae(values, mask, case.rewards_B, **case.options)
