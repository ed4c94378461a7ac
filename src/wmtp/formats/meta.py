"""Meta's native checkpoints of multi-token prediction models (Gloeckle et al. 2024), in and out.

    params.json                              the model's shape
    consolidated.pth or *.safetensors        its tensors, under Meta's names
    tokenizer.model                          SentencePiece

`n_layers` counts all layers: those of the trunk, head 1's (the last of `layers`) and one for each of `extra_heads`.
Rotary embeddings turn neighbouring pairs (2i, 2i+1) of a query's numbers, transformers' Llama turns (i, i + d/2), so
the rows of wq and wk change places on the way in and back on the way out. Nothing else changes: a model that comes in
and goes out is the same to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from wmtp.errors import ModelError, first_line
from wmtp.formats.hf import folder_of, loading_errors, without_parameters
from wmtp.formats.remote import opened, spooled
from wmtp.formats.scan import check_finite, check_safetensors, check_tensor, check_torch_file
from wmtp.formats.sums import check_sum
from wmtp.model import MTPModel
from wmtp.storage import ObjectPath, Place, copy, matches, place

PARAMS, WEIGHTS, TOKENIZER = "params.json", "consolidated.pth", "tokenizer.model"

Positive = Annotated[int, Field(ge=1, le=2**24)]

OF_LAYER = {
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
BESIDE = {"model.embed_tokens.weight": "tok_embeddings.weight", "model.norm.weight": "norm.weight"} | {
    "lm_head.weight": "output.weight"
}


class Params(BaseModel):
    """`params.json`; what it leaves out has Llama's defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    dim: Positive
    n_layers: Annotated[int, Field(ge=1, le=4096)]
    """Of trunk and heads together."""
    n_heads: Positive
    n_kv_heads: Positive | None = None
    vocab_size: Annotated[int, Field(ge=-1, le=2**24)] = -1
    """-1: what the embedding has."""
    multiple_of: Positive = 256
    ffn_dim_multiplier: Annotated[float, Field(gt=0, le=2**16)] | None = None
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10000.0
    n_future_tokens: Annotated[int, Field(ge=1, le=64)] = 1
    max_batch_size: int | None = None
    max_seq_len: Positive | None = None

    @model_validator(mode="after")
    def _fits(self) -> Params:
        if self.n_layers <= self.n_future_tokens - 1:
            raise ValueError(f"n_layers = {self.n_layers} leaves none beside {self.n_future_tokens - 1} extra heads")
        if self.dim % self.n_heads or self.dim // self.n_heads % 2:
            raise ValueError(f"dim = {self.dim} over n_heads = {self.n_heads} is no even whole number")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads = {self.n_heads} is no multiple of n_kv_heads = {self.kv_heads}")
        return self

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def layers(self) -> int:
        """Layers of the base model: the trunk's, and head 1's."""
        return self.n_layers - self.n_future_tokens + 1

    @property
    def ffn(self) -> int:
        """Width of the feed-forward network."""
        return ffn_width(self.dim, self.multiple_of, self.ffn_dim_multiplier)


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """`multiple_of * ceil(int([multiplier *] int(2/3 * 4 dim)) / multiple_of)`."""
    width = int(2 * 4 * dim / 3)
    width = width if multiplier is None else int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def holds(source: str) -> bool:
    """Whether a folder is one of Meta's checkpoints, by its content: a `params.json`, and no `config.json`."""
    folder = folder_of(source)
    return (folder / PARAMS).is_file() and not (folder / "config.json").exists()


def read_params(source: str) -> Params:
    """The `params.json` of a folder.

    Raises:
        ModelError: it does not describe such a model, or has a key that is not known.
    """
    path = folder_of(source) / PARAMS
    try:
        return Params.model_validate(json.loads(path.read_bytes()))
    except ValidationError as problem:
        raise ModelError(f"{path}: {first_line(problem)}; expected a file as Meta publishes it") from problem
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelError(f"{path} cannot be read: {first_line(problem)}; expected a JSON object") from problem


# In


def load_meta(source: str, dtype: torch.dtype | None = torch.float32) -> MTPModel:
    """The model of a folder, with as many heads as it has future tokens.

    Tensors are mapped and copied one at a time, so that no second copy of the model is ever there.

    Args:
        dtype: None keeps the tensors' own.

    Raises:
        ModelError: a file that is damaged, dangerous or none of Meta's, or tensors that do not fit, named.
    """
    params = read_params(source)
    folder = folder_of(source, weights=True)
    stored = _stored(folder)
    vocabulary = params.vocab_size
    if vocabulary < 0 and "tok_embeddings.weight" in stored and stored["tok_embeddings.weight"].ndim == 2:
        vocabulary = len(stored["tok_embeddings.weight"])
    _check_shapes(folder, params, stored, shapes(params, vocabulary))
    model = _empty(source, params, vocabulary)
    for name, meta_name in names(params):
        owner, _, leaf = name.rpartition(".")
        tensor = stored.pop(meta_name)
        check_finite(folder, [(meta_name, tensor)])
        turned = _turned(meta_name, tensor, params, to_halves)
        owned = turned.to(dtype or tensor.dtype, copy=True).contiguous()
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(owned))
    return model


def names(params: Params) -> Iterator[tuple[str, str]]:
    """Our name and Meta's of every tensor."""
    last = params.layers - 1
    yield from ((f"base.{ours}", theirs) for ours, theirs in BESIDE.items())
    for ours, theirs in OF_LAYER.items():
        yield from ((f"base.model.layers.{i}.{ours}", f"layers.{i}.{theirs}") for i in range(last))
        yield f"base.model.layers.{last}.layer.{ours}", f"layers.{last}.{theirs}"
        yield from ((f"extra_heads.{j}.{ours}", f"extra_heads.{j}.{theirs}") for j in range(params.n_future_tokens - 1))


def shapes(params: Params, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by Meta's name."""
    dim, ffn, kv = params.dim, params.ffn, params.dim // params.n_heads * params.kv_heads
    matrices = {"wq": (dim, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, dim)}
    matrices |= {"w1": (ffn, dim), "w2": (dim, ffn), "w3": (ffn, dim)}
    matrices |= {"tok_embeddings": (vocabulary, dim), "output": (vocabulary, dim)}
    return {name: matrices.get(name.split(".")[-2], (dim,)) for _, name in names(params)}


def _check_shapes(
    folder: Place, params: Params, stored: dict[str, Tensor], expected: dict[str, tuple[int, ...]]
) -> None:
    heads = f"{PARAMS} says {params.layers} layers and {params.n_future_tokens - 1} extra heads"
    for what, found in (("missing", expected.keys() - stored.keys()), ("unexpected", stored.keys() - expected.keys())):
        if found:
            raise ModelError(
                f"{folder}: {what} in its weights: {', '.join(sorted(found)[:3])} ({heads}); use both files as they "
                "were published"
            )
    for name, shape in expected.items():
        if tuple(stored[name].shape) != shape:
            raise ModelError(
                f"{folder}: {name} is {tuple(stored[name].shape)}, {PARAMS} says {shape}; use both files as they were "
                "published"
            )


def _stored(folder: Place) -> dict[str, Tensor]:
    """All tensors of a folder by Meta's names, mapped."""
    if (folder / WEIGHTS).is_file():
        weights = folder / WEIGHTS
        if not isinstance(weights, ObjectPath):
            return _of_torch(weights)
        with spooled(weights) as local:  # what is mapped stays after the file's name is gone
            return _of_torch(local)
    files = matches(folder, "*.safetensors")
    if not files:
        raise ModelError(f"{folder} has a {PARAMS}, and neither {WEIGHTS} nor *.safetensors; copy the weights too")
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= _of_safetensors(path)
    return tensors


def _of_torch(path: Path) -> dict[str, Tensor]:
    held = check_torch_file(path)
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as problem:  # a hostile pickle may raise anything; torch's advice would be to run it
        raise ModelError(
            f"{path} holds something else than tensors, or is cut off; nothing in it was run: copy it again"
        ) from problem
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ModelError(f"{path} holds something else; tensors by name were expected")
    tensors = {name: check_tensor(path, name, value) for name, value in found.items()}
    needed = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors.values()}
    if sum(needed.values()) > held:  # what is mapped goes on into whatever follows in the file
        raise ModelError(f"{path}: its tensors need {sum(needed.values()):,} bytes, it has {held:,}: download it again")
    return tensors


def _of_safetensors(path: Place) -> dict[str, Tensor]:
    check_safetensors(path)
    try:
        with ExitStack() as held:
            file = opened(path, held)
            tensors = {name: check_tensor(path, name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except loading_errors() as problem:
        if isinstance(problem, ModelError):
            raise
        raise ModelError(f"{path} is no whole safetensors file: {first_line(problem)}; copy it again") from problem
    check_sum(path)
    return tensors


def _empty(source: str, params: Params, vocabulary: int) -> MTPModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        config = LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=vocabulary,
            hidden_size=params.dim,
            intermediate_size=params.ffn,
            num_hidden_layers=params.layers,
            num_attention_heads=params.n_heads,
            num_key_value_heads=params.kv_heads,
            max_position_embeddings=params.max_seq_len or 4096,
            rms_norm_eps=params.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": params.rope_theta},
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
        with without_parameters():
            base = LlamaForCausalLM(config)
    except loading_errors() as problem:
        raise ModelError(
            f"{source}: no Llama can be built from its {PARAMS}: {first_line(problem)}; use the published file"
        ) from problem
    return MTPModel(base, params.n_future_tokens)


# Rotary embeddings


def to_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows (2i, 2i+1) of each head become rows (i, i + d/2): from Meta's order to transformers'."""
    rows, dim = weight.shape
    return weight.view(heads, rows // heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim)


def to_pairs(weight: Tensor, heads: int) -> Tensor:
    """`to_halves`, undone."""
    rows, dim = weight.shape
    return weight.view(heads, 2, rows // heads // 2, dim).transpose(1, 2).reshape(rows, dim)


def _turned(name: str, tensor: Tensor, params: Params, turn: Callable[[Tensor, int], Tensor]) -> Tensor:
    heads = {"wq": params.n_heads, "wk": params.kv_heads}.get(name.split(".")[-2])
    return tensor if heads is None else turn(tensor, heads)


# Out


def params_of(model: MTPModel) -> Params:
    """What `params.json` says of a model.

    Raises:
        ModelError: not a Llama with parallel heads that Meta's code could run; said why.
    """
    config: Any = model.base.config
    rope = getattr(config, "rope_parameters", None) or {}
    wrong = {
        f"its heads are {model.family}": model.family != "parallel" and model.num_heads > 1,
        f"its model_type is {config.model_type!r}": config.model_type != "llama",
        "its attention has biases": getattr(config, "attention_bias", False),
        "its feed-forward network has biases": getattr(config, "mlp_bias", False),
        f"its activation is {getattr(config, 'hidden_act', None)!r}": getattr(config, "hidden_act", None) != "silu",
        f"its rope_type is {rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
    }
    found = next((what for what, is_so in wrong.items() if is_so), None)
    heads = config.num_attention_heads if found is None else 1
    if found is None and getattr(config, "head_dim", None) not in (None, config.hidden_size // heads):
        found = f"its head_dim is {config.head_dim}, not hidden_size / num_attention_heads"
    if found is not None:
        raise ModelError(f"Meta's format holds Llama models with parallel heads; {found}: take --to wmtp or --to hf")
    dim, width = config.hidden_size, config.intermediate_size
    rounding: dict[str, Any] = {}
    if ffn_width(dim, 256, None) != width:
        rounding = {"multiple_of": 1, "ffn_dim_multiplier": (width + 0.5) / int(2 * 4 * dim / 3)}
    return Params(
        dim=dim,
        n_layers=config.num_hidden_layers + model.num_heads - 1,
        n_heads=heads,
        n_kv_heads=None if config.num_key_value_heads == heads else config.num_key_value_heads,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        n_future_tokens=model.num_heads,
        max_seq_len=config.max_position_embeddings,
        **rounding,
    )


def write_meta(model: MTPModel, folder: Path, tokenizer: Any = None) -> None:
    """Write `params.json`, `consolidated.pth` and a tokenizer into a folder.

    The tokenizer is written as transformers writes it; a `tokenizer.model` that it was read from is copied beside it.

    Raises:
        ModelError: see `params_of`.
    """
    params = params_of(model)
    state = model.state_dict()
    tensors = {
        theirs: _turned(theirs, state[ours].detach(), params, to_pairs).contiguous().clone()
        for ours, theirs in names(params)
    }
    (folder / PARAMS).write_text(params.model_dump_json(indent=2, exclude_none=True) + "\n")
    torch.save(tensors, folder / WEIGHTS)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        known = tokenizer.name_or_path  # empty for one that was made in memory
        if known and (place(known) / TOKENIZER).is_file():
            copy(place(known) / TOKENIZER, folder / TOKENIZER)
