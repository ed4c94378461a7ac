"""The exact quantile equals sorting, and Rho-1's selection follows from it."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.ranks import alone
from wmtp.weighting import Rho1, SchemeInput, kth_largest

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("inf"), float("-inf")])
ANY = st.floats(width=32, allow_nan=False)


class Case(NamedTuple):
    values: list[Tensor]
    masks: list[Tensor]
    heads: int


@st.composite
def cases(draw: st.DrawFn, numbers: st.SearchStrategy[float] | None = None) -> Case:
    """Micro-batches of any size, many ties or none, any mask."""
    heads = draw(st.integers(1, 3))
    element = draw(st.sampled_from([FEW, ANY])) if numbers is None else numbers
    values, masks = [], []
    for _ in range(draw(st.integers(1, 3))):
        shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), heads)
        size = shape[0] * shape[1] * shape[2]
        values.append(torch.tensor(draw(st.lists(element, min_size=size, max_size=size))).view(shape))
        masks.append(torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(shape))
    return Case(values, masks, heads)


def masked(case: Case, head: int) -> list[float]:
    """All masked numbers of a head, largest first."""
    pairs = zip(case.values, case.masks, strict=True)
    return sorted((x for v, m in pairs for x in v[..., head][m[..., head]].tolist()), reverse=True)


def inputs(case: Case) -> list[SchemeInput]:
    """The case as micro-batches whose excess is its values."""
    return [
        SchemeInput(
            target_BTK=torch.where(m, 5, -100),
            response_BT=m.any(-1),
            reward_B=torch.ones(len(v)),
            reference_nll_BTK=torch.zeros_like(v),
            nll_BTK=v,
        )
        for v, m in zip(case.values, case.masks, strict=True)
    ]


@given(cases(), st.data())
@settings(max_examples=60)
def test_kth_largest_is_the_kth_of_the_sorted_numbers(case: Case, data: st.DataObject) -> None:
    sizes = [len(masked(case, k)) for k in range(case.heads)]
    keep = [data.draw(st.integers(0, size)) for size in sizes]
    got = kth_largest(case.values, case.masks, torch.tensor(keep), alone).tolist()
    expected = [masked(case, k)[n - 1] if n else float("inf") for k, n in enumerate(keep)]
    assert got == expected


@given(cases(), st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.9]), st.sampled_from(["select", "skip"]))
@settings(max_examples=60)
def test_the_share_that_stays_is_rounded_up_and_ties_at_the_threshold_all_stay(
    case: Case, ratio: float, mode: str
) -> None:
    weights = Rho1(mode, ratio).weights(inputs(case), alone, True)
    share = Fraction(str(ratio)) if mode == "select" else 1 - Fraction(str(ratio))
    for k in range(case.heads):
        ordered = masked(case, k)
        if not ordered:
            continue
        threshold = ordered[ceil(len(ordered) * share) - 1]
        for value, mask, weight in zip(case.values, case.masks, weights, strict=True):
            assert weight is not None
            stays = (value[..., k] >= threshold)[mask[..., k]]
            assert torch.equal(weight[..., k][mask[..., k]], stays.float())


@given(cases(ANY), st.randoms(use_true_random=False), st.sampled_from(["select", "skip", "soft"]))
@settings(max_examples=40)
def test_the_order_and_the_split_of_the_rows_never_decide(case: Case, random: Any, mode: str) -> None:
    step = [
        SchemeInput(b.target_BTK[i : i + 1], b.response_BT[i : i + 1], b.reward_B[i : i + 1], **losses(b, i))
        for b in inputs(case)
        for i in range(len(b.reward_B))
    ]
    together = Rho1(mode).weights(inputs(case), alone, True)
    apart = Rho1(mode).weights(step, alone, True)
    rows = [row for w in together if w is not None for row in w]
    assert all(torch.equal(row, w[0]) for row, w in zip(rows, apart, strict=True) if w is not None)
    order = random.sample(range(len(step)), len(step))
    moved = Rho1(mode).weights([step[i] for i in order], alone, True)
    assert all(torch.equal(w[0], rows[i]) for w, i in zip(moved, order, strict=True) if w is not None)


def losses(batch: SchemeInput, row: int) -> dict[str, Tensor]:
    assert batch.nll_BTK is not None
    assert batch.reference_nll_BTK is not None
    return {
        "nll_BTK": batch.nll_BTK[row : row + 1],
        "reference_nll_BTK": batch.reference_nll_BTK[row : row + 1],
    }


@given(cases(), st.floats(0, 30), st.sampled_from(["select", "skip"]))
@settings(max_examples=40)
def test_a_pair_that_stays_still_stays_when_its_loss_grows(case: Case, more: float, mode: str) -> None:
    before = Rho1(mode).weights(inputs(case), alone, True)[0]
    assert before is not None
    for k in range(case.heads):
        for b, t in ((before[..., k] > 0) & case.masks[0][..., k]).nonzero().tolist()[:2]:
            grown = case.values[0].clone()
            grown[b, t, k] += more
            after = Rho1(mode).weights(inputs(Case([grown, *case.values[1:]], case.masks, case.heads)), alone, True)[0]
            assert after is not None
            assert float(after[b, t, k]) == 1
