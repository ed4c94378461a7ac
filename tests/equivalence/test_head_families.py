"""Linear and chain heads are what docs/math.md (3) says, in every architecture; so are their beginnings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp.errors import ModelError
from wmtp.families import FAMILIES, OUTPUTS, ChainHead, LinearHead
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.optim import build_adamw
from wmtp.step import train_step
from wmtp.testing import FAMILIES as ARCHITECTURES
from wmtp.testing import random_batch, tiny_base, tiny_model
from wmtp.weighting import Uniform

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
some_architectures = pytest.mark.parametrize(
    "architecture",
    [
        name if name in ("llama", "gemma3", "gpt2") else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in ARCHITECTURES
    ],
)
"""Always three of different kinds; all of them in the exhaustive run."""
every_family = pytest.mark.parametrize("heads", FAMILIES)
TOKENS = random_batch(3, 14, seed=7).tokens_BT


@torch.no_grad()
def states(model: MTPModel, tokens_BT: Tensor = TOKENS) -> list[Tensor]:
    """Final hidden states of all heads."""
    return model(tokens_BT)


def one_layer(model: MTPModel, architecture: str, head: ChainHead) -> Any:
    """A plain model of a head's layer alone, with the head's final norm."""
    options: dict[str, Any] = {"num_hidden_layers": 1}
    if "gemma" in architecture:
        options["layer_types"] = ["full_attention"]
    plain = tiny_base(architecture, **options)
    name = model._layers_name
    getattr(plain.base_model, name)[0].load_state_dict(head.layer.state_dict())
    getattr(plain.base_model, model._norm_name).load_state_dict(head.final_norm.state_dict())
    return plain


def run_layer(plain: Any, architecture: str, hidden_BTD: Tensor) -> Tensor:
    """Layer and final norm on a given input, whatever the architecture does to embeddings before."""
    if architecture == "gpt2":
        hidden_BTD = hidden_BTD - plain.transformer.wpe.weight[: hidden_BTD.shape[1]]
    out: Tensor = plain.base_model(inputs_embeds=hidden_BTD, use_cache=False).last_hidden_state
    return out


# What they compute.


@some_architectures
def test_head_1_of_every_family_is_the_base_model(architecture: str) -> None:
    with torch.no_grad():
        expected = tiny_base(architecture)(input_ids=TOKENS, use_cache=False).logits
    for heads in FAMILIES:
        model = tiny_model(architecture, 3, heads=heads, noise=0.1)
        assert torch.equal(model.project(states(model)[0]), expected), heads


@every_architecture
def test_a_linear_head_adds_a_gated_linear_map_to_head_1s_final_state(architecture: str) -> None:
    model = tiny_model(architecture, 3, heads="linear", noise=0.1)
    first, *others = states(model)
    for head, got in zip(model.extra_heads, others, strict=True):
        mapped = first @ head.linear.weight.T
        torch.testing.assert_close(got, first + mapped * mapped.sigmoid(), rtol=1e-5, atol=1e-5)
        assert (got - first).abs().max() > 0.01


@every_architecture
@torch.no_grad()
def test_a_chain_head_is_a_layer_on_the_state_before_it_and_the_token_that_was_predicted(architecture: str) -> None:
    """h_k = N_k(layer_k(P_k [n(h_{k-1}); m(Emb(x_{t+k-1}))])), with layer and N_k of a plain model of one layer."""
    model = tiny_model(architecture, 4, heads="chain", noise=0.1)
    table = model.base.get_input_embeddings().weight
    scale = model.base.config.hidden_size**0.5 if "gemma" in architecture else 1.0
    got = states(model)
    for k, head in enumerate(model.extra_heads, 1):
        token_BTD = F.pad(scale * table[TOKENS[:, k:]], (0, 0, 0, k))
        joined = torch.cat([head.hidden_norm(got[k - 1]), head.token_norm(token_BTD)], -1)
        plain = one_layer(model, architecture, head)
        expected = run_layer(plain, architecture, joined @ head.projection.weight.T)
        torch.testing.assert_close(got[k], expected, rtol=1e-5, atol=1e-5)
        assert (got[k] - got[k - 1]).abs().max() > 0.01


@every_family
def test_head_k_sees_the_tokens_that_it_may_and_a_chain_the_drafts_too(heads: str) -> None:
    model, place = tiny_model("llama", 4, heads=heads, noise=0.1), 9
    other = TOKENS.clone()
    other[:, place] = (other[:, place] + 5) % 60
    for k, (got, expected) in enumerate(zip(states(model, other), states(model), strict=True)):
        first = place - (k if heads == "chain" else 0)
        assert torch.equal(got[:, :first], expected[:, :first])
        assert not torch.equal(got[:, first], expected[:, first])


@some_architectures
def test_padding_on_the_right_moves_no_position_that_has_a_target(architecture: str) -> None:
    padded = TOKENS.clone()
    padded[:, 9:] = 0
    for heads in ("linear", "chain"):
        model = tiny_model(architecture, 3, heads=heads, noise=0.1)
        for k, (got, expected) in enumerate(zip(states(model, padded), states(model), strict=True)):
            torch.testing.assert_close(got[:, : 9 - k], expected[:, : 9 - k], rtol=1e-5, atol=1e-5)


@every_family
def test_a_row_may_be_shorter_than_there_are_heads(heads: str) -> None:
    model = tiny_model("llama", 5, heads=heads, noise=0.1)
    for got, longer in zip(states(model, TOKENS[:, :2]), states(model), strict=True):
        assert got.shape == (3, 2, 32)
        assert heads == "chain" or torch.allclose(got, longer[:, :2], atol=1e-5)


def test_a_chain_head_by_itself_is_refused() -> None:
    model = tiny_model("llama", 3, heads="chain")
    with pytest.raises(ValueError, match="each_head"):
        model.head(1, model.trunk(TOKENS))


# How they begin.


@some_architectures
@pytest.mark.parametrize("init", ["copy", "zero"])
def test_a_linear_head_begins_as_head_1(architecture: str, init: str) -> None:
    first, *others = states(tiny_model(architecture, 3, heads="linear", init=init))
    assert all(torch.equal(other, first) for other in others)


@every_architecture
@torch.no_grad()
def test_a_silent_layer_adds_nothing_to_what_it_reads(architecture: str) -> None:
    model = tiny_model(architecture, 3, init="zero")
    trunk = model.trunk(TOKENS)
    for k in (1, 2):
        assert torch.equal(model.head(k, trunk), model.final_norm(trunk.hidden_BTD))
    chain = tiny_model(architecture, 3, heads="chain", init="zero")
    got = states(chain)
    for k, head in enumerate(chain.extra_heads, 1):
        torch.testing.assert_close(got[k], head.final_norm(head.hidden_norm(got[k - 1])), rtol=1e-5, atol=1e-5)


@some_architectures
def test_a_copied_chain_head_has_the_last_layer_and_passes_the_state_on(architecture: str) -> None:
    model = tiny_model(architecture, 2, heads="chain")
    (head,) = model.extra_heads
    assert isinstance(head, ChainHead)
    for name, value in model.branch.layer.state_dict().items():
        assert torch.equal(head.layer.state_dict()[name], value)
    width = model.base.config.hidden_size
    assert torch.equal(head.projection.weight, torch.eye(width, 2 * width))
    hidden = 4 + torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    expected = hidden - hidden.mean(-1, keepdim=True) if architecture.startswith("gpt") else hidden
    expected = expected / expected.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(head.hidden_norm(hidden), expected, rtol=1e-3, atol=1e-4)


@some_architectures
@pytest.mark.parametrize("heads", ["linear", "chain"])
def test_fresh_heads_are_drawn_by_the_models_own_initialisation(architecture: str, heads: str) -> None:
    model = tiny_model(architecture, 3, heads=heads, init="fresh")
    spread = 0.1  # initializer_range of the tests' configs
    matrices = [p for p in model.extra_heads.parameters() if p.ndim == 2]
    assert len(matrices) >= 2
    for matrix in matrices:
        assert float(matrix.detach().std()) == pytest.approx(spread, rel=0.65)  # gpt2 draws some narrower
    assert not torch.equal(matrices[0], matrices[len(matrices) // 2])


def test_what_does_not_exist_is_named() -> None:
    for options, message in (
        ({"heads": "tree"}, "must be one of parallel, linear, chain; got 'tree'"),
        ({"init": "ones"}, "must be one of copy, fresh, zero; got 'ones'"),
    ):
        with pytest.raises(ModelError, match=message):
            tiny_model("llama", 2, **options)
    with pytest.raises(ModelError, match="depth must be one of added, matched; got 'more'"):
        MTPModel(tiny_base(), 2, depth="more")


def test_a_layer_whose_output_maps_are_not_known_cannot_be_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmtp.families.OUTPUTS", OUTPUTS[:1])
    with pytest.raises(ModelError, match="LlamaDecoderLayer has 1: take init 'copy' or 'fresh'"):
        tiny_model("llama", 2, init="zero")


# What is trained.


@every_family
@pytest.mark.parametrize("trained", ["all", "heads", "heads+norm"])
def test_what_is_not_trained_stays_and_what_is_trained_moves(heads: str, trained: str) -> None:
    model, batch = tiny_model("llama", 3, heads=heads, init="fresh").train(), random_batch(seed=1)
    model.train_only(trained)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_adamw(model, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    train_step(model, optimizer, MTPObjective(Uniform()), [batch, random_batch(seed=2)])
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    extra = {name for name in before if name.startswith("extra_heads.")}
    expected = {"all": set(before), "heads": extra, "heads+norm": extra | {"base.model.norm.weight"}}[trained]
    assert moved == expected


@every_family
def test_the_loss_of_every_head_falls_when_a_batch_is_learnt(heads: str) -> None:
    model, batch = tiny_model("llama", 3, heads=heads), random_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = [train_step(model, optimizer, MTPObjective(Uniform()), [batch]).metrics for _ in range(20)]
    for k in (1, 2, 3):
        assert history[-1][f"loss/nll_head_{k}"] < 0.6 * history[0][f"loss/nll_head_{k}"]


def test_only_what_exists_can_be_trained() -> None:
    with pytest.raises(ModelError, match="got 'trunk'"):
        tiny_model().train_only("trunk")
    with pytest.raises(ModelError, match="with one head nothing is left to train"):
        tiny_model(num_heads=1).train_only("heads")


# Heads made of the model's own layers.


@every_architecture
def test_matched_heads_are_the_last_layers_and_the_model_keeps_its_size(architecture: str) -> None:
    base = deep(architecture)
    size = sum(p.numel() for p in base.parameters())
    layers = [layer.state_dict() for layer in getattr(base.base_model, _layers(base))]
    layers = [{name: value.clone() for name, value in layer.items()} for layer in layers]
    model = MTPModel(base, 3, depth="matched")
    assert sum(p.numel() for p in model.parameters()) == size
    assert (model.num_layers, len(model.trunk_layers()), base.config.num_hidden_layers) == (3, 2, 3)
    got = [layer.state_dict() for layer in (*model.trunk_layers(), *model.heads())]
    for ours, theirs in zip(got, layers, strict=True):
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def deep(architecture: str) -> Any:
    """A base model of five layers."""
    if "gemma" in architecture:
        return tiny_base(
            architecture,
            num_hidden_layers=5,
            layer_types=["full_attention", "sliding_attention"] * 2 + ["full_attention"],
        )
    if "qwen" in architecture:
        return tiny_base(architecture, num_hidden_layers=5, layer_types=["full_attention"] * 5)
    return tiny_base(architecture, num_hidden_layers=5)


def _layers(base: Any) -> str:
    return next(n for n, m in base.base_model.named_children() if isinstance(m, torch.nn.ModuleList))


def test_a_matched_head_is_the_plain_model_with_the_layers_between_left_out() -> None:
    base = tiny_base(num_hidden_layers=5)
    whole = base.state_dict()
    whole = {name: value.clone() for name, value in whole.items()}
    model = MTPModel(base, 3, depth="matched")
    for k, got in enumerate(states(model)):
        plain = tiny_base(num_hidden_layers=3)
        last = {n.replace(f"layers.{2 + k}.", "layers.2."): v for n, v in whole.items() if f"layers.{2 + k}." in n}
        plain.load_state_dict({n: v for n, v in whole.items() if n in plain.state_dict()} | last)
        with torch.no_grad():
            torch.testing.assert_close(model.project(got), plain(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_too_few_layers_for_matched_heads_and_another_family_are_refused() -> None:
    with pytest.raises(ModelError, match="3 heads cannot be made of the model's own 3 layers"):
        MTPModel(tiny_base(), 3, depth="matched")
    with pytest.raises(ModelError, match="family must be 'parallel', got 'chain'"):
        MTPModel(tiny_base(), 2, family="chain", depth="matched")


def test_a_linear_head_has_one_matrix() -> None:
    (head,) = tiny_model("llama", 2, heads="linear").extra_heads
    assert isinstance(head, LinearHead)
    assert [tuple(p.shape) for p in head.parameters()] == [(32, 32)]
