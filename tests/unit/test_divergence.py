"""The divergence from a reference is the k3 estimator, with its own gradient, whatever computes the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.divergence import divergence
from wmtp.loss import plain_nll
from wmtp.model import MTPModel, batch_targets
from wmtp.objective import MTPObjective
from wmtp.scoring import reference_nll
from wmtp.step import evaluate, train_step
from wmtp.targets import IGNORE
from wmtp.testing import random_batch, tiny_model
from wmtp.weighting import Uniform

K = 3
BATCHES = [random_batch(rows=3, length=12, seed=seed) for seed in (1, 2)]


def policy() -> MTPModel:
    return tiny_model("llama", K, dtype=torch.float64, noise=0.1)


def reference() -> MTPModel:
    return tiny_model("llama", 1, seed=5, dtype=torch.float64)


def k3(model: MTPModel, batch: Batch) -> Tensor:
    """By autograd, from its definition: `[N]` over head 1's pairs."""
    target_BT1 = batch_targets(batch, 1)
    ours, _ = plain_nll([model(batch.tokens_BT)[0]], model.unembedding(), target_BT1)
    with torch.no_grad():
        theirs = reference_nll(reference(), batch, 1, kind="plain")
    log_ratio = (ours - theirs)[target_BT1 != IGNORE]  # log reference - log policy
    return log_ratio.exp() - log_ratio - 1


@pytest.mark.parametrize(("kind", "chunk"), [("plain", None), ("fused", 5)])
def test_value_and_gradient_are_those_of_the_definition(kind: str, chunk: int | None) -> None:
    model, batch = policy(), BATCHES[0]
    wanted = k3(model, batch).sum()
    expected = torch.autograd.grad(wanted, list(model.base.parameters()), allow_unused=True)
    theirs_BT = reference_nll(reference(), batch, 1, kind="plain")[:, :, 0]
    hidden_BTD = model(batch.tokens_BT)[0]
    target_BT = batch_targets(batch, 1)[:, :, 0]
    found = divergence(
        hidden_BTD, model.unembedding(), target_BT, theirs_BT, kind=kind, chunk=None if kind == "plain" else 5
    )
    got = torch.autograd.grad(found.pull, list(model.base.parameters()), allow_unused=True)
    torch.testing.assert_close(found.total, wanted.detach(), rtol=1e-12, atol=0.0)
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_a_policy_that_is_its_reference_is_not_pulled() -> None:
    model, batch = policy(), BATCHES[0]
    own_BT = reference_nll(model, batch, 1)[:, :, 0]
    found = divergence(model(batch.tokens_BT)[0], model.unembedding(), batch_targets(batch, 1)[:, :, 0], own_BT)
    assert float(found.total) == 0.0
    assert not any(g.any() for g in torch.autograd.grad(found.pull, list(model.base.parameters())) if g is not None)


@settings(max_examples=25)
@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=6), st.lists(st.floats(0.05, 1.0), min_size=6, max_size=6))
def test_its_mean_over_the_policys_samples_is_the_divergence_and_no_term_is_negative(
    policy_weights: list[float], reference_weights: list[float]
) -> None:
    p = torch.tensor(policy_weights, dtype=torch.float64)
    q = torch.tensor(reference_weights[: len(p)], dtype=torch.float64)
    p, q = p / p.sum(), q / q.sum()
    log_ratio = q.log() - p.log()
    each = torch.expm1(log_ratio) - log_ratio
    assert bool((each >= 0).all())
    torch.testing.assert_close((p * each).sum(), (p * (p.log() - q.log())).sum(), rtol=1e-9, atol=1e-12)


def objective(kl: float, kind: str = "plain") -> MTPObjective:
    theirs = reference()

    def score(batch: Batch) -> dict[str, Tensor]:
        return {"reference_nll_BTK": reference_nll(theirs, batch, K, kind="plain")}

    return MTPObjective(Uniform(), score=score, denominator="tokens", kind=kind, kl=kl)


@pytest.mark.parametrize("heads", ["parallel", "chain"])
def test_the_step_adds_its_mean_over_head_1_to_the_loss(heads: str) -> None:
    """Over two micro-batches, head by head or with all heads together."""
    model = tiny_model("llama", K, dtype=torch.float64, noise=0.1, heads=heads)
    nll = [plain_nll(model(b.tokens_BT), model.unembedding(), batch_targets(b, K))[0] for b in BATCHES]
    pairs = sum(int((batch_targets(b, K) != IGNORE).sum()) for b in BATCHES)
    far = torch.cat([k3(model, b) for b in BATCHES])
    (sum(part.sum() for part in nll) / pairs + 0.3 * far.mean()).backward()  # type: ignore[union-attr]
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    result = train_step(model, torch.optim.SGD(model.parameters(), lr=1e-9), objective(0.3), BATCHES, clip_norm=None)
    assert result.metrics["loss/kl"] == pytest.approx(float(far.detach().mean()), rel=1e-9)
    assert expected
    for name, p in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-6, atol=1e-7)


def test_held_out_rows_have_no_divergence_since_they_are_no_samples_of_the_policy() -> None:
    assert "loss/kl" not in evaluate(policy(), objective(0.3), [BATCHES])


def test_it_is_not_rescaled_with_the_weights() -> None:
    with pytest.raises(ValueError, match="kl needs the denominator 'tokens'"):
        MTPObjective(Uniform(), kl=0.1)
