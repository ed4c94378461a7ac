"""Four micro-batches *are* one batch: same gradients, same metrics, whatever scheme looks at the whole step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.model import MTPModel, batch_targets, mtp_loss
from wmtp.objective import MTPObjective
from wmtp.ranks import alone
from wmtp.scoring import model_nll
from wmtp.step import train_step
from wmtp.targets import IGNORE
from wmtp.testing import random_batch, tiny_model
from wmtp.weighting import GRPO, Critic, Gradient, Hybrid, Rho1, Scheme, Uniform, inverted, random_matched, shuffled

K = 3
Scores = dict[str, Tensor]


def rows_of(batch: Batch, chosen: list[int]) -> Batch:
    """Some rows of a batch, trimmed to the longest of them, as `collate` would have made them."""
    longest = int((batch.trainable_BT[chosen] * torch.arange(1, batch.tokens_BT.shape[1] + 1)).max())
    tokens_BT, trainable_BT = batch.tokens_BT[chosen, :longest], batch.trainable_BT[chosen, :longest]
    real = int((trainable_BT * torch.arange(1, longest + 1)).amax(1).sum())
    group_B2 = None if batch.group_B2 is None else batch.group_B2[chosen]
    rows = tuple(batch.row_B[i] for i in chosen)
    return Batch(tokens_BT, trainable_BT, batch.reward_B[chosen], rows, real, group_B2=group_B2)


def fake_scores(batch: Batch, seed: int = 5, closing: bool = False) -> Callable[[Batch], Scores]:
    """Random critic values and reference losses of each row of `batch`, found again by the row's number.

    Args:
        closing: values in quarters, and the last one of a row equal to the one before its response: then the
            advantages of lambda 0 add up to exactly 0 in every row, and fp32 makes no rounding error.
    """
    random = torch.Generator().manual_seed(seed)
    values_BT = torch.randn(batch.tokens_BT.shape, generator=random)
    if closing:
        values_BT = (4 * values_BT).round() / 4
        for b, trainable_T in enumerate(batch.trainable_BT):
            response = trainable_T.nonzero().flatten().tolist()
            values_BT[b, response[-1]] = values_BT[b, response[0] - 1]
    reference_BTK = 4 + torch.randn(*batch.tokens_BT.shape, K, generator=random)

    def score(part: Batch) -> Scores:
        place, length = list(part.row_B), part.tokens_BT.shape[1]
        return {"values_BT": values_BT[place, :length], "reference_nll_BTK": reference_BTK[place, :length]}

    return score


def gradients(
    batches: list[Batch], scheme: Scheme, score: Callable[[Batch], Scores], **options: Any
) -> tuple[list[Tensor], dict[str, float]]:
    """Gradients and metrics of one step in float64 on fresh copies of the same model."""
    model = tiny_model("llama", K, dtype=torch.float64, noise=0.1)
    no_step = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train_step(model, no_step, MTPObjective(scheme, score=score, **options), batches, clip_norm=None)
    return [p.grad for p in model.parameters() if p.grad is not None], result.metrics


def assert_same_step(
    batch: Batch,
    parts: list[list[int]],
    scheme: Callable[[], Scheme],
    score: Callable[[Batch], Scores],
    tolerance: float = 1e-12,
    **options: Any,
) -> None:
    expected, metrics = gradients([batch], scheme(), score, **options)
    got, split_metrics = gradients([rows_of(batch, part) for part in parts], scheme(), score, **options)
    size = max(float(g.abs().max()) for g in expected)
    assert size > 1e-3
    for one, four in zip(expected, got, strict=True):
        torch.testing.assert_close(four, one, rtol=tolerance, atol=tolerance * size)
    assert split_metrics == pytest.approx(metrics, rel=max(1e-6, tolerance), nan_ok=True)


SCHEMES: dict[str, Callable[[], Scheme]] = {
    "uniform": Uniform,
    "critic, whitened over the step": lambda: Critic(lam=0.0),
    "rho1 select, global": lambda: Rho1("select", scope="global"),
    "rho1 skip, global": lambda: Rho1("skip", scope="global"),
    "rho1 soft": lambda: Rho1("soft"),
    "grpo": GRPO,
    "shuffled": lambda: shuffled(Rho1("select", scope="global")),
    "random_matched": lambda: random_matched(Rho1("skip", scope="global")),
    "inverted": lambda: inverted(Rho1("select", scope="global")),
}


def test_a_forward_pass_of_its_own_tells_the_losses_and_nothing_of_the_logits_that_dropout_draws_anew() -> None:
    model, batches = tiny_model("gpt2", K), [random_batch(seed=seed) for seed in (1, 2)]

    def score(batch: Batch) -> Scores:
        return {"reference_nll_BTK": torch.full((*batch.tokens_BT.shape, K), 4.0)}

    objective = MTPObjective(Rho1("select", scope="global"), score=score)
    seen = [plan.seen for plan in objective.plan(model, batches, alone, True)]
    assert all(each is not None and each.softmax_2BTK is None for each in seen)


def one_at_a_time(scheme: str, coefficients: list[float] | None, denominator: str) -> bool:
    """Whether the case differs from the default in one thing alone: with one scheme always, with all on demand."""
    return scheme != "uniform" and (coefficients is None) != (denominator == "weights")


@pytest.mark.parametrize(
    ("scheme", "kind", "coefficients", "denominator"),
    [
        pytest.param(*case, marks=pytest.mark.exhaustive if one_at_a_time(case[0], *case[2:]) else [])
        for case in product(SCHEMES, ("fused", "plain"), (None, [1.0, 0.5, 0.25]), ("weights", "tokens"))
    ],
)
def test_four_micro_batches_are_one_batch(
    scheme: str, kind: str, coefficients: list[float] | None, denominator: str
) -> None:
    batch = random_batch(rows=8, length=14, seed=3)
    coefficient_K = None if coefficients is None else torch.tensor(coefficients)
    options: dict[str, Any] = {"kind": kind, "coefficient_K": coefficient_K, "denominator": denominator}
    parts = [[0, 1], [2], [3, 4, 5], [6, 7]]
    assert_same_step(batch, parts, SCHEMES[scheme], fake_scores(batch, closing=True), **options)


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.permutations(range(6)), st.sets(st.integers(1, 5)), st.sampled_from(list(SCHEMES)))
def test_rows_in_any_order_and_split_anywhere_are_one_batch(
    seed: int, order: list[int], cuts: set[int], scheme: str
) -> None:
    batch = random_batch(rows=6, length=10, seed=seed)
    edges = [0, *sorted(cuts), 6]
    parts = [order[a:b] for a, b in pairwise(edges)]
    assert_same_step(batch, parts, SCHEMES[scheme], fake_scores(batch, seed, closing=True))


@pytest.mark.parametrize(
    "scheme",
    [lambda: Hybrid([Critic(lam=0.0), Rho1("soft")]), lambda: Hybrid([Rho1(), Gradient()], "mixture", [0.25, 0.75])],
    ids=["product", "mixture"],
)
def test_means_in_fp32_split_to_fp32_precision(scheme: Callable[[], Scheme]) -> None:
    batch = random_batch(rows=8, length=14, seed=3)
    assert_same_step(batch, [[0, 1], [2], [3, 4, 5], [6, 7]], scheme, fake_scores(batch), tolerance=1e-5)


@pytest.mark.parametrize("terminal", ["value", "reward"])
@pytest.mark.parametrize("whiten", ["step", "ema"])
def test_a_critic_whitened_in_fp32_splits_to_fp32_precision(terminal: str, whiten: str) -> None:
    # Statistics are sums in fp32: their order shows in the seventh digit, nowhere else.
    batch = random_batch(rows=8, length=14, seed=3)
    parts = [[0, 1], [2], [3, 4, 5], [6, 7]]
    score = fake_scores(batch)
    assert_same_step(batch, parts, lambda: Critic(terminal=terminal, whiten=whiten), score, tolerance=1e-5)


def test_a_micro_batch_whose_rows_have_no_target_for_a_head_changes_nothing() -> None:
    batch = random_batch(rows=4, length=14, seed=3)
    batch.trainable_BT[1] = torch.arange(14) == 1  # one target, for head 1 alone
    parts = [[0], [1], [2, 3]]
    for scheme in SCHEMES.values():
        assert_same_step(batch, parts, scheme, fake_scores(batch, closing=True))


def test_a_micro_batch_without_any_target_changes_nothing() -> None:
    batch, empty = random_batch(rows=4, seed=3), random_batch(rows=2, seed=4)
    empty.trainable_BT[:] = False
    expected, metrics = gradients([batch], Uniform(), fake_scores(batch))
    got, same = gradients([batch, empty], Uniform(), fake_scores(batch))
    for one, two in zip(expected, got, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)
    assert same == pytest.approx(metrics)


# The definition, written out


def by_hand(model: MTPModel, batch: Batch, weight_BTK: Tensor, coefficients: list[float], denominator: str) -> Tensor:
    """L of docs/math.md (2), a sum over every (row, position, head)."""
    total, divisor = torch.zeros((), dtype=torch.float64), 0.0
    for k, hidden in enumerate(model(batch.tokens_BT)):
        log_probability = model.project(hidden).log_softmax(-1)
        for b in range(batch.tokens_BT.shape[0]):
            for t in range(batch.tokens_BT.shape[1] - k - 1):
                if not batch.trainable_BT[b, t + k + 1]:
                    continue
                nll = -log_probability[b, t, batch.tokens_BT[b, t + k + 1]]
                w = float(weight_BTK[b, t, k])
                total = total + coefficients[k] * w * nll
                divisor += coefficients[k] * (w if denominator == "weights" else 1.0)
    return total / divisor


@pytest.mark.parametrize("denominator", ["weights", "tokens"])
@pytest.mark.parametrize("coefficients", [[1.0, 1.0, 1.0], [1.0, 0.5, 0.25], [0.0, 2.0, 1.0]])
def test_the_gradient_of_a_step_is_that_of_the_definition(coefficients: list[float], denominator: str) -> None:
    batch = random_batch(rows=4, length=9, seed=3)
    score = fake_scores(batch)
    model = tiny_model("llama", K, dtype=torch.float64, noise=0.1)
    target_BTK = batch_targets(batch, K)
    excess = model_nll(model, batch) - score(batch)["reference_nll_BTK"]
    weight_BTK = excess.exp().clamp(0.1, 3.0)
    loss = by_hand(model, batch, weight_BTK, coefficients, denominator)
    loss.backward()
    expected = [p.grad for p in model.parameters()]
    got, metrics = gradients(
        [rows_of(batch, [0]), rows_of(batch, [1, 2, 3])],
        Rho1("soft"),
        score,
        coefficient_K=torch.tensor(coefficients),
        denominator=denominator,
    )
    assert metrics["loss/weighted"] == pytest.approx(float(loss.detach()), rel=1e-6)
    for mine, truth in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-5, atol=1e-6)  # weights are fp32
    assert int((target_BTK != IGNORE).sum()) > 20


def test_mtp_loss_divides_to_the_definition_for_given_weights() -> None:
    batch = random_batch(rows=4, length=9, seed=3)
    model = tiny_model("gpt2", K, dtype=torch.float64, noise=0.1)
    weight_BTK = torch.rand(4, 9, K)
    for denominator in ("weights", "tokens"):
        for kind in ("fused", "plain"):
            sums = mtp_loss(
                model,
                batch,
                weight_BTK,
                coefficient_K=torch.tensor([1.0, 0.5, 0.25]),
                denominator=denominator,
                kind=kind,
                chunk=3,
            )
            expected = by_hand(model, batch, weight_BTK, [1.0, 0.5, 0.25], denominator)
            torch.testing.assert_close(sums.weighted_sum / sums.weight_total, expected, rtol=1e-12, atol=0.0)
    with pytest.raises(ValueError, match="denominator must be"):
        mtp_loss(model, batch, denominator="rows")
    with pytest.raises(ValueError, match="loss kind must be"):
        mtp_loss(model, batch, kind="fast")


def test_the_logged_nll_is_unweighted_and_per_head() -> None:
    batch = random_batch(rows=4, length=9, seed=3)
    score = fake_scores(batch)
    model = tiny_model("llama", K, dtype=torch.float64, noise=0.1)
    nll_BTK, valid = model_nll(model, batch), batch_targets(batch, K) != IGNORE
    _, metrics = gradients([batch], Rho1("select"), score)
    for k in range(K):
        mean = float(nll_BTK[:, :, k].sum() / valid[:, :, k].sum())
        assert metrics[f"loss/nll_head_{k + 1}"] == pytest.approx(mean, rel=1e-6)
    assert metrics["loss/nll"] == pytest.approx(float(nll_BTK.sum() / valid.sum()), rel=1e-6)
    assert not math.isclose(metrics["loss/weighted"], metrics["loss/nll"], rel_tol=1e-3)
