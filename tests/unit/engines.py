"""What serving engines make of the files that they are given, written out plainly from their sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from wmtp.formats.mimo import Engine


def medusa_logits(folder: Path, first_BTD: Tensor) -> list[Tensor]:
    """Logits of each Medusa head from head 1's final hidden state: `x = x + silu(layers.0(x))` per block, then the one
    `lm_head` (vllm/model_executor/models/medusa.py)."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert (config["num_hidden_layers"], config["medusa_fc_bias"]) == (1, False)
    assert tensors["lm_head.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert len(tensors) == config["num_heads"] + 1
    blocks = [tensors[f"blocks.{j}.layers.0.weight"] for j in range(config["num_heads"])]
    hidden = [first_BTD + F.silu(F.linear(first_BTD, block)) for block in blocks]
    return [config["logit_scale"] * F.linear(x_BTD, tensors["lm_head.weight"]) for x_BTD in hidden]


def norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * hidden / (hidden.square().mean(-1, keepdim=True) + eps).sqrt()


def qwen2_layer(config: dict[str, Any], hidden: Tensor, weights: dict[str, Tensor], begin: str, first: int) -> Tensor:
    """Qwen2DecoderLayer, of tokens at positions from `first` on."""
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
    angles = torch.outer(torch.arange(first, first + length).float(), rates).repeat(1, 2)

    def turned(states: Tensor) -> Tensor:
        left, right = states.chunk(2, -1)
        return states * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    key, value = (states.repeat_interleave(heads // groups, 1) for states in (turned(key), value))
    mixed = F.scaled_dot_product_attention(turned(query), key, value, is_causal=True)
    hidden = hidden + linear("self_attn.o_proj", mixed.transpose(1, 2).reshape(1, length, -1))
    normed = norm(hidden, weights[f"{begin}post_attention_layernorm.weight"], eps)
    gated = F.silu(linear("mlp.gate_proj", normed)) * linear("mlp.up_proj", normed)
    return hidden + linear("mlp.down_proj", gated)


class Mimo:
    """MiMo's target model and draft layer, in vLLM (mimo.py, mimo_mtp.py) or SGLang (mimo_mtp.py).

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
        return qwen2_layer(self.config, hidden, weights, begin, self.first)

    def states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of the target model, before its final norm and behind it."""
        hidden = self.target["model.embed_tokens.weight"][tokens]
        for number in range(self.config["num_hidden_layers"]):
            hidden = self.layer(hidden, self.target, f"model.layers.{number}.")
        return hidden, norm(hidden, self.target["model.norm.weight"], self.config["rms_norm_eps"])

    def logits(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of the target model, and of the draft layer that reads the token after each."""
        eps, table = self.config["rms_norm_eps"], self.target["model.embed_tokens.weight"]
        before, normed = self.states(tokens)
        token = table[F.pad(tokens[:, 1:], (0, 1))].clone()
        token[:, torch.arange(self.first, self.first + tokens.shape[1]) == 0] = 0
        joined = [norm(before if self.engine == "vllm" else normed, self.draft["hidden_layernorm.weight"], eps)]
        joined.append(norm(token, self.draft["token_layernorm.weight"], eps))
        out = self.layer(F.linear(torch.cat(joined, -1), self.draft["input_proj.weight"]), self.draft, "mtp_block.")
        drafted = norm(out, self.draft["final_layernorm.weight"], eps)
        return F.linear(normed, self.target["lm_head.weight"]), F.linear(drafted, self.target["lm_head.weight"])
