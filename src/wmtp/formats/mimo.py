"""One chain head in the files that vLLM and SGLang serve XiaomiMiMo's MiMo-7B from.

    config.json          Qwen2's, with architectures [MiMoForCausalLM] and num_nextn_predict_layers 1
    model.safetensors    Qwen2's tensors; model.mtp_layers.0.*: the head's (`formats.nextn` has the names)

Both engines choose their code by `architectures`; `model_type` stays qwen2, so that no folder's code is needed. Llama
and Mistral models go out with biases of 0. What the engines compute, from their sources:

    SGLang    (sglang/srt/models/mimo_mtp.py)    the head as it is here
    vLLM      (vllm/model_executor/models/mimo.py, mimo_mtp.py)    its hidden_layernorm reads the state before the
              final norm
    both      at position 0 the token's embedding is 0

A norm of the state behind the final norm is, up to a factor for each position, a norm of the state before it with the
weight n g / rms(g), n and g being both norms' own: that is what vLLM's files hold. Verified tokens do not depend on it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wmtp.errors import ModelError, WmtpError
from wmtp.formats.hf import follows_its_file
from wmtp.formats.kind import CONFIG, read_json
from wmtp.formats.nextn import MIMO, mimo_name
from wmtp.formats.remote import tensors_of
from wmtp.formats.scan import check_folder, stored_shapes
from wmtp.model import MTPModel
from wmtp.storage import Place, matches

Engine = Literal["vllm", "sglang"]
WITH_BIAS = ("q_proj", "k_proj", "v_proj")
TOKENIZER = "tokenizer"
"""Folder of a tokenizer that must be named to the engines."""


def mimo_config(model: MTPModel, engine: Engine) -> dict[str, Any]:
    """`config.json`.

    Raises:
        ModelError: heads, or a model, that the engines' code for MiMo does not compute; said why.
    """
    from transformers import Qwen2Config

    config: Any = model.base.config
    rope = getattr(config, "rope_parameters", None) or {}
    unembedding = model.unembedding()
    wrong = {
        f"its heads are {model.family}": model.family != "chain",
        f"it has {model.num_heads} heads (wmtp.load_model(path, num_heads=2) keeps two)": model.num_heads != 2,
        f"its model_type is {config.model_type!r}": config.model_type not in ("qwen2", "llama", "mistral"),
        "its attention has biases that Qwen2's has not": getattr(config, "attention_bias", False),
        "its feed-forward network has biases": getattr(config, "mlp_bias", False),
        "it has a sliding window": _slides(config),
        f"its activation is {getattr(config, 'hidden_act', None)!r}": getattr(config, "hidden_act", None) != "silu",
        f"its rope_type is {rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
        "its unembedding has a bias, a soft cap or a factor": (
            unembedding.bias_V is not None or unembedding.softcap is not None or unembedding.scale != 1.0
        ),
    }
    found = next((what for what, is_so in wrong.items() if is_so), None)
    width = 0 if found else config.hidden_size // config.num_attention_heads
    if found is None and getattr(config, "head_dim", None) not in (None, width):
        found = f"its head_dim is {config.head_dim}, not hidden_size / num_attention_heads"
    if found is not None:
        raise ModelError(
            f"MiMo's format holds Qwen2, Llama and Mistral models with one chain head; {found}: take --to wmtp"
        )
    theta = float(rope.get("rope_theta", 10000.0))
    made = Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=False,
        use_sliding_window=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        dtype=str(unembedding.projection_VD.dtype).removeprefix("torch."),
    )
    own = {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1, "attention_bias": True}
    plain: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
    return plain | own | {"head_dim": width, "rope_theta": theta, "wmtp_engine": engine}


def _slides(config: Any) -> bool:
    if config.model_type == "qwen2":
        return bool(getattr(config, "use_sliding_window", False))
    return getattr(config, "sliding_window", None) is not None


def mimo_tensors(model: MTPModel, engine: Engine) -> dict[str, Tensor]:
    """All tensors, the unembedding by itself even where the model shares it with the embedding."""
    state = model.state_dict()
    tensors = {model.hf_key(name): value for name, value in state.items() if name.startswith("base.")}
    tensors["lm_head.weight"] = model.unembedding().projection_VD.clone()
    tensors |= {f"{MIMO}0.{mimo_name(name)}": value for name, value in model.extra_heads[0].state_dict().items()}
    for name, value in list(tensors.items()):
        layer, _, leaf = name.rpartition(".")
        if layer.endswith(WITH_BIAS) and leaf == "weight":
            tensors.setdefault(f"{layer}.bias", value.new_zeros(len(value)))
    if engine == "vllm":
        gain = model.final_norm.get_parameter("weight").float()
        own = f"{MIMO}0.hidden_layernorm.weight"
        tensors[own] = (tensors[own].float() * gain / gain.square().mean().sqrt()).to(tensors[own].dtype)
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def write_mimo(model: MTPModel, folder: Path, engine: Engine, tokenizer: Any = None) -> None:
    """Write config, tensors and a tokenizer into a folder.

    Raises:
        ModelError: see `mimo_config`.
    """
    from huggingface_hub import save_torch_state_dict

    config = mimo_config(model, engine)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_torch_state_dict(mimo_tensors(model, engine), folder, metadata={"format": "pt"})
    if tokenizer is not None:
        _write_tokenizer(tokenizer, folder)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Where the engines look for it; in `TOKENIZER`, if transformers would make another one of it in a folder of
    Qwen2's. Then they must be told where it is; there is none where they look otherwise."""
    from transformers import AutoTokenizer

    apart = folder / TOKENIZER
    tokenizer.save_pretrained(apart)
    shutil.copy(folder / CONFIG, apart)
    is_read = follows_its_file(AutoTokenizer.from_pretrained(apart, trust_remote_code=False), apart)
    (apart / CONFIG).unlink()
    if is_read:
        for file in list(apart.iterdir()):
            file.rename(folder / file.name)
        apart.rmdir()


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the engines expect from a `config.json`."""
    width, vocabulary, ffn = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    queries, keys = (config["head_dim"] * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    layer |= {"mlp.gate_proj.weight": (ffn, width), "mlp.up_proj.weight": (ffn, width)}
    layer |= {"mlp.down_proj.weight": (width, ffn), "self_attn.o_proj.weight": (width, queries)}
    for name, rows in zip(WITH_BIAS, (queries, keys, keys), strict=True):
        layer |= {f"self_attn.{name}.weight": (rows, width), f"self_attn.{name}.bias": (rows,)}
    more: dict[str, tuple[int, ...]] = {f"{name}_layernorm.weight": (width,) for name in ("token", "hidden", "final")}
    more["input_proj.weight"] = (width, 2 * width)
    all_layers = [f"model.layers.{i}." for i in range(config["num_hidden_layers"])]
    found = {begin + name: shape for begin in (*all_layers, f"{MIMO}0.") for name, shape in layer.items()}
    found |= {f"{MIMO}0.{name}": shape for name, shape in more.items()}
    table = (vocabulary, width)
    return found | {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": (width,)}


def check_mimo(model: MTPModel, folder: Place, engine: Engine) -> None:
    """Raise `WmtpError` unless the config describes the tensors, and both are the model's."""
    check_folder(folder)
    config = read_json(folder / CONFIG)
    said, found = shapes(config), stored_shapes(folder)
    different = sorted(name for name in said.keys() | found.keys() if said.get(name) != found.get(name))
    if different:
        raise WmtpError(f"{folder}: config.json and the tensors do not agree: {', '.join(different[:3])}")
    expected = mimo_tensors(model, engine)
    files = map(tensors_of, matches(folder, "*.safetensors"))
    same = all(torch.equal(tensor, expected[name]) for tensors in files for name, tensor in tensors.items())
    if not same or config != mimo_config(model, engine):
        raise WmtpError(f"{folder} does not read back as it was written")
