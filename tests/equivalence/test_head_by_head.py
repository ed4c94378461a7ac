"""Heads run one after another give what heads run together give, and hold one head's activations at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wmtp.data.batches import Batch
from wmtp.heads import TrunkOutput
from wmtp.objective import MTPObjective
from wmtp.optim import build_adamw
from wmtp.step import StepResult, train_step
from wmtp.testing import random_batch, tiny_model
from wmtp.weighting import Critic, Gradient, Hybrid, Rho1, Scheme, Uniform, inverted, random_matched, shuffled

SCHEMES = {
    "uniform": Uniform,
    "critic": Critic,
    "select": lambda: Rho1("select", scope="micro"),
    "soft": lambda: Rho1("soft"),
    "global": lambda: Rho1("skip", scope="global"),
    "running": lambda: Rho1("select", scope="running"),
    "gradient": Gradient,
    "hybrid": lambda: Hybrid([Critic(), Rho1("soft"), Gradient()]),
    "shuffled": lambda: shuffled(Rho1("soft")),
    "random_matched": lambda: random_matched(Critic()),
    "inverted": lambda: inverted(Gradient()),
}


def scores(batch: Batch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch.tokens_BT.numel())
    shape = batch.tokens_BT.shape
    return {
        "values_BT": torch.randn(shape, generator=generator),
        "reference_nll_BTK": torch.rand(*shape, 3, generator=generator) * 8,
    }


def step(scheme: Scheme, kind: str, heads: str = "parallel") -> tuple[StepResult, list[Tensor]]:
    model = tiny_model("llama", num_heads=3, seed=0, heads=heads, noise=0.1).double()
    optimizer = build_adamw(model, lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    coefficients = torch.tensor([1.0, 0.5, 2.0])
    objective = MTPObjective(scheme, score=scores, coefficient_K=coefficients, kind=kind)
    result = train_step(model, optimizer, objective, [random_batch(seed=1), random_batch(seed=2)], clip_norm=None)
    return result, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["plain", "fused"])
@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_one_after_another_is_together(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one, gradients = step(SCHEMES[name](), kind)
    monkeypatch.setattr(TrunkOutput, "detached", lambda self: None)
    together, expected = step(SCHEMES[name](), kind)
    assert len(gradients) == len(expected)
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    for metric, value in together.metrics.items():
        assert math.isclose(one_by_one.metrics[metric], value, rel_tol=1e-5, abs_tol=1e-7), metric


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_linear_heads_one_after_another_are_linear_heads_together(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gradients = step(Rho1("soft"), kind, "linear")
    monkeypatch.setattr(TrunkOutput, "detached", lambda self: None)
    _, expected = step(Rho1("soft"), kind, "linear")
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_chain_heads_run_together_whatever_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head's loss pulls at the heads before it, so they are never cut apart."""

    def never(self: TrunkOutput) -> None:
        raise AssertionError("a chain was cut")

    monkeypatch.setattr(TrunkOutput, "detached", never)
    _, gradients = step(Uniform(), "fused", "chain")
    assert all(bool(g.abs().max() > 0) for g in gradients)


class Live:
    """Bytes that autograd holds right now, and the most it held."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() in self.own:
            return tensor
        return Kept(self, tensor)

    def unpack(self, kept: Any) -> Tensor:
        tensor: Tensor = kept.tensor if isinstance(kept, Kept) else kept
        return tensor


class Kept:
    """A saved tensor that counts while it lives."""

    def __init__(self, live: Live, tensor: Tensor) -> None:
        self.live, self.size = live, tensor.numel() * tensor.element_size()
        self.tensor = tensor.detach()  # an output that keeps itself alive through its own node would never go
        live.now += self.size
        live.peak = max(live.peak, live.now)

    def __del__(self) -> None:
        self.live.now -= self.size


def peak(num_heads: int, heads: str = "parallel") -> int:
    model = tiny_model("llama", num_heads=num_heads, heads=heads)
    optimizer = build_adamw(model, lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    live = Live(model)
    with torch.autograd.graph.saved_tensors_hooks(live.pack, live.unpack):
        train_step(model, optimizer, MTPObjective(Uniform()), [random_batch(seed=1)])
    assert live.now == 0
    return live.peak


def test_four_heads_keep_no_more_activations_than_one() -> None:
    assert peak(4) <= 1.02 * peak(1)


def test_linear_heads_keep_their_input_and_what_the_gate_needs_one_head_at_a_time() -> None:
    assert peak(4, "linear") - peak(2, "linear") <= 0.01 * peak(1)


def test_every_chain_head_keeps_its_activations_until_the_backward_pass() -> None:
    one, two, four = (peak(count, "chain") for count in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.05)
