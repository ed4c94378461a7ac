"""Layers for multi-token prediction that a checkpoint carries are chain heads that compute what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmtp.decoding import generate
from wmtp.errors import ModelError
from wmtp.formats.hf import load_causal_lm
from wmtp.formats.native import load_model, read_card, save_model

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "n_routed_experts": 4, "n_group": 1,
    "num_experts_per_tok": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
    "initializer_range": 0.1, "rms_norm_eps": 1e-6,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "head_dim": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
TYPES = {"glm4_moe": SHAPE, "deepseek_v3": SHAPE | LATENT}
TOKENS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
LAYERS, MORE = 2, 2


def checkpoint(model_type: str, folder: Path) -> Any:
    """Write a checkpoint of two layers with two more beside them; a plain model of all four."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, num_hidden_layers=LAYERS + MORE, **TYPES[model_type])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = AutoModelForCausalLM.from_config(config)
        whole.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        for layer in range(LAYERS, LAYERS + MORE):
            name = f"model.layers.{layer}."
            tensors |= {f"{name}{norm}.weight": torch.rand(32) + 0.5 for norm in ("enorm", "hnorm", "shared_head.norm")}
            tensors[f"{name}eh_proj.weight"] = 0.2 * torch.randn(32, 64)
            tensors[f"{name}shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
    written.pop("num_mtp_layers", None)
    (folder / "config.json").write_text(json.dumps(written | {"num_nextn_predict_layers": MORE}))
    return whole.eval()


def norm(hidden: Tensor, weight: Tensor) -> Tensor:
    return weight * hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("model_type", ["glm4_moe", pytest.param("deepseek_v3", marks=pytest.mark.exhaustive)])
@torch.no_grad()
def test_the_layers_are_read_as_chain_heads_and_come_back_to_the_last_bit(model_type: str, tmp_path: Path) -> None:
    """h_k = norm(layer(eh_proj [enorm(Emb(x_{t+k-1})); hnorm(h_{k-1})])), with the layer of a plain model of all."""
    whole = checkpoint(model_type, tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    card = read_card(str(tmp_path / "m"))
    assert card is not None
    assert (card.model_dump()["heads"], card.model_dump()["num_heads"]) == ("chain", 1 + MORE)
    model = load_model(str(tmp_path / "m")).eval()
    got = model(TOKENS)
    position_BT = torch.arange(TOKENS.shape[1])[None]
    turned = whole.model.rotary_emb(got[0], position_BT)
    mask = torch.full((1, 1, 9, 9), torch.finfo(torch.float32).min).triu(1)
    for k in range(1, 1 + MORE):
        name = f"model.layers.{LAYERS + k - 1}."
        token_BTD = F.pad(whole.model.embed_tokens(TOKENS[:, k:]), (0, 0, 0, k))
        normed = (norm(token_BTD, stored[f"{name}enorm.weight"]), norm(got[k - 1], stored[f"{name}hnorm.weight"]))
        joined = torch.cat(normed, -1) @ stored[f"{name}eh_proj.weight"].T
        out = whole.model.layers[LAYERS + k - 1](joined, position_embeddings=turned, attention_mask=mask)
        expected = norm(out, stored[f"{name}shared_head.norm.weight"])
        torch.testing.assert_close(got[k][:, :-k], expected[:, :-k], rtol=1e-4, atol=1e-4)
    save_model(model, tmp_path / "again")
    again = load_model(str(tmp_path / "again")).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())
    plain = load_causal_lm(str(tmp_path / "m")).eval()
    torch.testing.assert_close(plain(TOKENS).logits, model.project(got[0]), rtol=1e-5, atol=1e-5)


def test_they_draft_and_greedy_decoding_stays_plain_decoding(tmp_path: Path) -> None:
    checkpoint("glm4_moe", tmp_path / "m")
    model = load_model(str(tmp_path / "m")).eval()
    drafted, plain = (generate(model, TOKENS, 12, mode=mode, eos=()) for mode in ("speculative", "plain"))
    assert drafted.tokens == plain.tokens


Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("model.layers.3.eh_proj.weight"), "eh_proj"),
        (lambda t: t.update({"model.layers.2.more.weight": torch.ones(3)}), "more"),
        (lambda t: t.update({"model.layers.2.enorm.weight": torch.ones(5)}), "enorm"),
        (lambda t: t["model.layers.2.hnorm.weight"].fill_(float("nan")), "not finite"),
        (lambda t: t["model.layers.3.shared_head.head.weight"].add_(1), "must be the model's own"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("model.layers.3.")], "its weights hold 0"),
    ],
)
def test_layers_that_do_not_fit_are_refused_and_the_tensor_named(change: Change, told: str, tmp_path: Path) -> None:
    checkpoint("glm4_moe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=told):
        load_model(str(tmp_path))


def test_a_config_that_speaks_of_layers_which_the_weights_do_not_have_is_a_plain_model(tmp_path: Path) -> None:
    checkpoint("glm4_moe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith(("model.layers.2", "model.layers.3"))}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert read_card(str(tmp_path)) is None
    assert load_model(str(tmp_path), num_heads=2).family == "parallel"
