"""Every parallel head is a plain model of the same depth, in every architecture that the tests know."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wmtp.errors import ModelError
from wmtp.heads import Branch, final_norm, layer_list
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.step import train_step
from wmtp.testing import FAMILIES, random_batch, tiny_base, tiny_model
from wmtp.weighting import Uniform

every_family = pytest.mark.parametrize("family", FAMILIES)
TOKENS = random_batch(3, 14, seed=7).tokens_BT
"""Longer than the sliding windows of mistral and gemma."""


def plain_logits(base: Any, tokens_BT: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        logits: Tensor = base(input_ids=tokens_BT, use_cache=False).logits
    return logits


def head_logits(model: MTPModel) -> list[Tensor]:
    with torch.no_grad():
        return [model.project(hidden) for hidden in model(TOKENS)]


def as_plain(model: MTPModel, k: int, base: Any) -> Any:
    """A copy of the plain `base` whose last layer holds the weights of head k (counted from 1)."""
    state = {model.hf_key(key): value for key, value in model.state_dict().items() if key.startswith("base.")}
    last = model.last_layer
    state |= {last + name: value for name, value in list(model.heads())[k - 1].state_dict().items()}
    plain = copy.deepcopy(base)
    plain.load_state_dict(state, strict=True)
    return plain


@every_family
@pytest.mark.parametrize("num_heads", [1, 3])
def test_every_copied_head_is_the_base_to_the_last_bit(family: str, num_heads: int) -> None:
    expected = plain_logits(tiny_base(family))
    logits = head_logits(tiny_model(family, num_heads))
    assert len(logits) == num_heads
    for got in logits:
        assert torch.equal(got, expected)


@every_family
def test_each_head_is_a_plain_model_whose_last_layer_is_that_head(family: str) -> None:
    model = tiny_model(family, 3, noise=0.1)
    logits = head_logits(model)
    for k, got in enumerate(logits, 1):
        torch.testing.assert_close(got, plain_logits(as_plain(model, k, tiny_base(family))), rtol=1e-6, atol=1e-6)
    assert (logits[0] - logits[1]).abs().max() > 0.01
    assert (logits[1] - logits[2]).abs().max() > 0.01


@every_family
def test_the_gradient_of_each_head_is_that_of_the_plain_model(family: str) -> None:
    model = tiny_model(family, 3, noise=0.1, dtype=torch.float64)
    for k, layer in enumerate(model.heads(), 1):
        plain = as_plain(model, k, tiny_base(family, dtype=torch.float64))
        plain(input_ids=TOKENS, use_cache=False).logits.square().sum().backward()
        model.zero_grad()
        model.project(model(TOKENS)[k - 1]).square().sum().backward()
        expected = {name: p.grad for name, p in plain.named_parameters()}
        for name, p in layer.named_parameters():
            torch.testing.assert_close(p.grad, expected[model.last_layer + name], rtol=1e-5, atol=1e-5)
        for name, p in model.base.named_parameters():
            theirs = model.hf_key(f"base.{name}")
            if not theirs.startswith(model.last_layer):
                torch.testing.assert_close(p.grad, expected[theirs], rtol=1e-5, atol=1e-5)


@every_family
def test_the_state_dict_holds_every_name_of_the_base(family: str) -> None:
    base = tiny_base(family)
    expected = {name: value.clone() for name, value in base.state_dict().items()}
    model = MTPModel(base, 1)
    got = {model.hf_key(key): value for key, value in model.state_dict().items()}
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    names = [model.hf_key(f"base.{name}") for name, _ in model.base.named_parameters()]
    assert names == [name for name, _ in tiny_base(family).named_parameters()]


@every_family
def test_parameters_start_with_those_of_the_base_in_its_order(family: str) -> None:
    expected = list(tiny_base(family).parameters())
    model = tiny_model(family, 3)
    parameters = list(model.parameters())
    assert len(parameters) == len(expected) + sum(1 for _ in model.extra_heads.parameters())
    for got, want in zip(parameters, expected, strict=False):
        assert torch.equal(got, want)


@every_family
def test_dropping_all_heads_but_the_first_gives_the_base_back(family: str) -> None:
    model = tiny_model(family, 3, noise=0.1)
    model.keep_heads(2)
    assert (model.num_heads, len(head_logits(model))) == (2, 2)
    model.keep_heads(1)
    (got,) = head_logits(model)
    assert torch.equal(got, plain_logits(tiny_base(family)))
    assert not any(key.startswith("extra_heads") for key in model.state_dict())


@pytest.mark.parametrize("count", [0, 4])
def test_heads_that_are_not_there_cannot_be_kept(count: int) -> None:
    with pytest.raises(ModelError, match=f"has 3 heads, {count} cannot be kept"):
        tiny_model(num_heads=3).keep_heads(count)


@every_family
def test_fresh_heads_are_drawn_as_the_base_was(family: str) -> None:
    model = tiny_model(family, 3, init="fresh")
    last, *fresh = model.heads()
    for head in fresh:
        for (name, got), original in zip(head.named_parameters(), last.parameters(), strict=True):
            assert got.isfinite().all()
            if original.std() == 0 or original.numel() == 1:
                assert torch.equal(got, original), name  # norms and biases
            else:
                assert not torch.equal(got, original), name
                assert float(got.detach().std() / original.detach().std()) == pytest.approx(1, abs=0.15), name
    assert (head_logits(model)[1] - head_logits(model)[2]).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("init", ["copy", "fresh"])
def test_the_loss_of_every_head_falls_when_a_batch_is_learnt(family: str, init: str) -> None:
    model, batch = tiny_model(family, 3, init=init), random_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = [train_step(model, optimizer, MTPObjective(Uniform()), [batch]).metrics for _ in range(15)]
    for k in (1, 2, 3):
        assert history[-1][f"loss/nll_head_{k}"] < 0.5 * history[0][f"loss/nll_head_{k}"]


@every_family
def test_padding_on_the_right_moves_no_real_token(family: str) -> None:
    model = tiny_model(family, 2, noise=0.1)
    padded = TOKENS.clone()
    padded[:, 9:] = 0
    with torch.no_grad():
        for got, want in zip(model(padded), model(TOKENS), strict=True):
            torch.testing.assert_close(got[:, :9], want[:, :9], rtol=1e-5, atol=1e-5)


def test_building_a_model_keeps_the_modes_of_its_modules() -> None:
    base = tiny_base()
    base.train()
    base.model.norm.eval()
    model = MTPModel(base, 2)
    assert model.base.training
    assert not model.base.model.norm.training


# Branch


def test_the_output_of_the_trunk_can_be_taken_once() -> None:
    branch = Branch(nn.Linear(2, 2))
    hidden = torch.ones(1, 1, 2)
    assert branch(hidden) is hidden
    assert branch.take().hidden_BTD is hidden
    with pytest.raises(RuntimeError, match="has not run"):
        branch.take()


def test_after_a_forward_no_activation_is_kept() -> None:
    model = tiny_model()
    model(TOKENS)
    with pytest.raises(RuntimeError, match="has not run"):
        model.branch.take()


def test_a_branch_answers_for_its_layer_and_for_nothing_else() -> None:
    layer = nn.Linear(2, 2)
    layer.attention_type = "sliding"  # type: ignore[assignment]
    assert Branch(layer).attention_type == "sliding"
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = Branch(layer).no_such_thing


# What is not supported


class Decoder(nn.Module):
    """Two lists of the same length, and no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList([nn.Linear(1, 1)])
        self.right = nn.ModuleList([nn.Linear(1, 1)])


@pytest.mark.parametrize("length", [1, 2, None])
def test_layers_that_cannot_be_told_apart_are_an_error(length: int | None) -> None:
    with pytest.raises(ModelError, match=f"has {2 if length == 1 else 0} module lists"):
        layer_list(Decoder(), length)


def test_a_decoder_without_a_final_norm_is_an_error() -> None:
    with pytest.raises(ModelError, match="has 0 norms"):
        final_norm(Decoder(), "left")


def other_family(model_type: str, **options: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64} | options
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **size, **ids))


def test_a_model_with_its_layers_elsewhere_is_an_error() -> None:
    base = other_family("opt", ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)
    with pytest.raises(ModelError, match="module lists"):
        MTPModel(base, 2)


@pytest.mark.parametrize("model_type", ["cohere", "granite"])
def test_a_model_that_scales_its_logits_gives_the_logits_it_gave(model_type: str) -> None:
    scale = {"logit_scale": 0.25} if model_type == "cohere" else {"logits_scaling": 4.0}
    base = other_family(model_type, intermediate_size=48, num_key_value_heads=4, **scale).eval()
    tokens = torch.arange(3, 12).view(1, 9)
    with torch.no_grad():
        expected = base(tokens).logits
        model = MTPModel(base, 2)
        torch.testing.assert_close(model.project(model(tokens)[0]), expected)


def test_a_model_that_does_something_else_to_its_logits_is_an_error_and_not_a_silently_wrong_loss() -> None:
    base = tiny_base("llama")
    plain = base.lm_head.forward
    base.lm_head.forward = lambda hidden: plain(hidden).square()
    with pytest.raises(ModelError, match="does more to its logits"):
        MTPModel(base, 2)


def test_no_heads_at_all_and_a_model_without_unembedding_are_errors() -> None:
    with pytest.raises(ModelError, match="at least 1, got 0"):
        MTPModel(tiny_base(), 0)
    with pytest.raises(ModelError, match="no unembedding"):
        MTPModel(SimpleNamespace(get_output_embeddings=lambda: None), 2)
