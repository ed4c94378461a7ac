"""A chain head in MiMo's files: what the engines' loaders and equations make of them is what the head gives here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmtp.errors import ModelError, WmtpError
from wmtp.export import export
from wmtp.formats.hf import load_causal_lm
from wmtp.formats.mimo import Engine, check_mimo, write_mimo
from wmtp.formats.native import load_model, save_model
from wmtp.model import MTPModel
from wmtp.testing import tiny_model, tiny_tokenizer

TOKENS = torch.randint(3, 60, (1, 9), generator=torch.Generator().manual_seed(0))
FAMILIES: dict[str, dict[str, Any]] = {"qwen2": {}, "llama": {}, "mistral": {"sliding_window": None}}


def made(family: str, *, num_heads: int = 2, gain: float = 0.3, **options: Any) -> MTPModel:
    """A model whose norms are not all ones and whose biases are not all zeros."""
    model = tiny_model(family, num_heads, heads="chain", noise=0.1, **FAMILIES.get(family, {}), **options)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(gain * torch.randn_like(parameter) if "norm" in name else torch.randn_like(parameter))
    return model.eval()


def norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * hidden / (hidden.square().mean(-1, keepdim=True) + eps).sqrt()


class Consumer:
    """The engines' target model and draft layer, written out plainly from their sources.

    Args:
        first: the first token's position; the engines count from 0.
    """

    def __init__(self, folder: Path, engine: Engine, first: int = 0) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.engine, self.first = engine, first
        assert self.config["architectures"] == ["MiMoForCausalLM"]
        self.draft: dict[str, Tensor] = {}
        self.target: dict[str, Tensor] = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            found = re.match(r"model\.mtp_layers\.(\d+)\.(.*)", name)
            if found is None:
                self.target[name] = tensor
                continue
            assert int(found[1]) < self.config["num_nextn_predict_layers"]
            outside = ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm")
            block = "" if any(part in found[2] for part in outside) else "mtp_block."
            self.draft[block + found[2]] = tensor

    def layer(self, hidden: Tensor, weights: dict[str, Tensor], begin: str) -> Tensor:
        """Qwen2DecoderLayer."""
        config = self.config
        eps, heads, groups = (config[n] for n in ("rms_norm_eps", "num_attention_heads", "num_key_value_heads"))
        width, length = config["hidden_size"] // heads, hidden.shape[1]

        def linear(name: str, value: Tensor, bias: bool = False) -> Tensor:
            return F.linear(value, weights[f"{begin}{name}.weight"], weights[f"{begin}{name}.bias"] if bias else None)

        normed = norm(hidden, weights[f"{begin}input_layernorm.weight"], eps)
        query, key, value = (
            linear(f"self_attn.{name}_proj", normed, bias=True).view(1, length, count, width).transpose(1, 2)
            for name, count in (("q", heads), ("k", groups), ("v", groups))
        )
        rates = config["rope_theta"] ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(self.first, self.first + length).float(), rates).repeat(1, 2)

        def turned(states: Tensor) -> Tensor:
            left, right = states.chunk(2, -1)
            return states * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

        key, value = (states.repeat_interleave(heads // groups, 1) for states in (turned(key), value))
        mixed = F.scaled_dot_product_attention(turned(query), key, value, is_causal=True)
        hidden = hidden + linear("self_attn.o_proj", mixed.transpose(1, 2).reshape(1, length, -1))
        normed = norm(hidden, weights[f"{begin}post_attention_layernorm.weight"], eps)
        gated = F.silu(linear("mlp.gate_proj", normed)) * linear("mlp.up_proj", normed)
        return hidden + linear("mlp.down_proj", gated)

    def logits(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of the target model, and of the draft layer that reads the token after each."""
        eps, table = self.config["rms_norm_eps"], self.target["model.embed_tokens.weight"]
        hidden = table[tokens]
        for number in range(self.config["num_hidden_layers"]):
            hidden = self.layer(hidden, self.target, f"model.layers.{number}.")
        normed = norm(hidden, self.target["model.norm.weight"], eps)
        before = hidden if self.engine == "vllm" else normed
        token = table[F.pad(tokens[:, 1:], (0, 1))].clone()
        token[:, torch.arange(self.first, self.first + tokens.shape[1]) == 0] = 0
        joined = [norm(before, self.draft["hidden_layernorm.weight"], eps)]
        joined.append(norm(token, self.draft["token_layernorm.weight"], eps))
        out = self.layer(F.linear(torch.cat(joined, -1), self.draft["input_proj.weight"]), self.draft, "mtp_block.")
        drafted = norm(out, self.draft["final_layernorm.weight"], eps)
        return F.linear(normed, self.target["lm_head.weight"]), F.linear(drafted, self.target["lm_head.weight"])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sglangs_equations_on_the_files_are_the_model_and_its_head(family: str, tmp_path: Path) -> None:
    """At positions from 1 on; at position 0 both engines put 0 for the embedding, which moves later ones."""
    model = made(family)
    write_mimo(model, tmp_path, "sglang")
    got = Consumer(tmp_path, "sglang", first=1).logits(TOKENS)
    for logits, hidden in zip(got, model(TOKENS), strict=True):
        torch.testing.assert_close(logits[:, :-1], model.project(hidden)[:, :-1], rtol=1e-4, atol=1e-4)
    target, drafted = Consumer(tmp_path, "sglang").logits(TOKENS)
    torch.testing.assert_close(target, got[0], rtol=1e-4, atol=1e-4)
    assert (drafted - got[1]).abs().max() > 1e-3


@torch.no_grad()
def test_vllms_equations_are_the_head_where_the_final_norms_weight_is_uniform_and_near_it_where_it_is_not(
    tmp_path: Path,
) -> None:
    for gain in (0.0, 0.3):
        model = made("llama", gain=gain)
        if gain == 0.0:
            model.final_norm.get_parameter("weight").fill_(1.7)
        write_mimo(model, tmp_path, "vllm")
        target, drafted = Consumer(tmp_path, "vllm", first=1).logits(TOKENS)
        first, second = (model.project(hidden) for hidden in model(TOKENS))
        torch.testing.assert_close(target, first, rtol=1e-4, atol=1e-4)
        away = float((drafted - second)[:, :-1].abs().max() / second.abs().max())
        assert away < (1e-5 if gain == 0.0 else 0.1)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_the_folder_is_read_back_and_transformers_reads_the_base_model(tied: bool, tmp_path: Path) -> None:
    model = made("llama", tie_word_embeddings=tied)
    save_model(model, tmp_path / "m", tiny_tokenizer())
    folder = export(str(tmp_path / "m"), str(tmp_path / "out"), "sglang-mimo")
    again = load_model(str(folder)).eval()
    assert (again.family, again.num_heads) == ("chain", 2)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again(TOKENS), model(TOKENS), strict=True))
    assert torch.equal(load_causal_lm(str(folder)).eval()(TOKENS).logits, model.project(model(TOKENS)[0]))
    export(str(tmp_path / "m"), str(tmp_path / "other"), "vllm-mimo")
    with pytest.raises(ModelError, match="written for vLLM"):
        load_model(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("family", "options", "told"),
    [
        ("llama", {"num_heads": 3}, "it has 3 heads, chain"),
        ("qwen3", {}, "model_type is 'qwen3'"),
        ("mistral", {"sliding_window": 4}, "sliding window"),
        ("llama", {"head_dim": 6}, "head_dim is 6"),
        ("llama", {"attention_bias": True}, "biases that Qwen2's has not"),
    ],
)
def test_what_the_engines_do_not_compute_is_refused(
    family: str, options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    options = {**FAMILIES.get(family, {}), "num_heads": 2, **options}
    with pytest.raises(ModelError, match=told):
        write_mimo(tiny_model(family, heads="chain", **options), tmp_path, "sglang")


def test_config_and_tensors_that_do_not_agree_are_noticed(tmp_path: Path) -> None:
    model = made("llama")
    write_mimo(model, tmp_path, "sglang")
    check_mimo(model, tmp_path, "sglang")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(WmtpError, match="and the tensors do not agree: model"):
        check_mimo(model, tmp_path, "sglang")
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.mtp_layers.0.input_proj.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WmtpError, match="does not read back"):
        check_mimo(model, tmp_path, "sglang")
