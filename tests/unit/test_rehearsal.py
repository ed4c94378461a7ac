"""What the rehearsal on the meta device counts is what real tensors take, to the byte."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wmtp import rehearsal
from wmtp.memory import Moment
from wmtp.parts import prepare_model
from wmtp.rehearsal import on_meta, rehearse, rehearse_scoring
from wmtp.testing import FAMILIES, tiny_base, tiny_model
from wmtp.value import ValueModel

SHAPE = (2, 33)


def no_loss(heads: int) -> dict[str, int]:
    return {}


def moments(model: Any, by_head: bool, checkpointing: bool) -> list[Moment]:
    prepare_model(model, checkpointing=checkpointing, compiled=False)
    return rehearse(model, SHAPE, no_loss, 0, head_by_head=by_head)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("family", "heads", "by_head"),
    [
        *((family, "parallel", by_head) for family in FAMILIES for by_head in (False, True)),
        ("llama", "linear", False),
        ("llama", "linear", True),
        ("gemma3", "linear", True),
        ("llama", "chain", True),
        ("gpt2", "chain", True),
    ],
)
def test_every_moment_is_as_large_as_with_real_tensors(
    family: str, heads: str, by_head: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, 3, heads=heads).train()
    if family == "llama":  # grouped queries take another kernel on a CPU
        model = tiny_model(family, 3, heads=heads, num_key_value_heads=4).train()
    without = moments(on_meta(model), by_head, checkpointing)
    monkeypatch.setattr(rehearsal, "_helped", lambda autocast: nullcontext(nullcontext()))
    real = moments(model, by_head, checkpointing)
    assert [(m.unit, m.passes) for m in without] == [(m.unit, m.passes) for m in real]
    ours, theirs = (max(m.activations + m.gradients for m in each) for each in (without, real))
    assert ours == pytest.approx(theirs, rel=0.02)
    assert without[-1].before == pytest.approx(real[-1].before, rel=0.1)


class Exact(nn.Module):
    """A module that some architecture keeps out of autocast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden_BTD: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return self.module(hidden_BTD)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_autocast_as_much_is_held_in_bf16_as_with_real_tensors(
    checkpointing: bool, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of parameters too, but for those of modules that autocast is switched off for."""

    def peak(model: Any, autocast: bool) -> int:
        prepare_model(model, checkpointing=checkpointing, compiled=False)
        found = rehearse(model, SHAPE, no_loss, 0, head_by_head=True, autocast=autocast)
        return max(moment.activations for moment in found)

    model = tiny_model("llama", 3, num_key_value_heads=4, hidden_size=64, intermediate_size=512).train()
    if exact:
        for layer in (*model.trunk_layers(), *model.heads()):
            layer.mlp = Exact(layer.mlp)  # type: ignore[assignment, arg-type]
    without = peak(on_meta(model), True)
    context = torch.autocast("cpu", dtype=torch.bfloat16)
    monkeypatch.setattr(rehearsal, "_helped", lambda autocast: nullcontext(context))
    assert without == pytest.approx(peak(model, False), rel=0.03)


def test_recomputing_and_one_head_after_another_hold_less() -> None:
    def peak(by_head: bool, checkpointing: bool) -> int:
        found = moments(on_meta(tiny_model("llama", 4).train()), by_head, checkpointing)
        return max(moment.activations for moment in found)

    assert peak(True, True) < peak(True, False) < peak(False, False)


def test_a_backward_pass_visits_the_units_from_the_last_to_the_first() -> None:
    found = moments(on_meta(tiny_model("llama", 2).train()), True, False)
    back = [moment.unit for moment in found if moment.passes == "backward"]
    assert back == [5, 3, 5, 4, 5, 2, 1, 0], "head 1, head 2, the trunk, the embedding; 5 is what is left"


def test_a_critic_and_frozen_scorers_are_rehearsed_too() -> None:
    critic = ValueModel(tiny_base()).train()
    found = moments(on_meta(critic), False, False)
    assert [m.unit for m in found if m.passes == "backward"] == [4, 3, 2, 1, 0, 4]
    asked = rehearse_scoring(on_meta(critic.eval()), SHAPE, no_loss)
    assert {moment.passes for moment in asked} == {"forward"}
    assert max(m.activations for m in asked) < max(m.activations for m in found)


def test_lower_precision_holds_less_fetched_or_under_autocast() -> None:
    model = tiny_model("llama", 2).train()

    def peak(dtype: torch.dtype, autocast: bool) -> int:
        found = rehearse(on_meta(model, dtype), SHAPE, no_loss, 0, head_by_head=True, autocast=autocast)
        return max(moment.activations for moment in found)

    exact = peak(torch.float32, False)
    assert peak(torch.bfloat16, False) < peak(torch.float32, True) < exact


def test_the_model_itself_is_left_as_it_was() -> None:
    model = tiny_model("llama", 2).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    moments(on_meta(model), True, True)
    assert all(p.equal(before[name]) and p.grad is None for name, p in model.named_parameters())
    assert torch.nn.functional.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"
