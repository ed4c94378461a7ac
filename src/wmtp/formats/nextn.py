"""Layers for multi-token prediction that a Hugging Face checkpoint carries beside its model, read as `chain` heads.

    model.layers.{L + j}.*     DeepSeek-V3, GLM-4.5: enorm, hnorm, eh_proj, shared_head.norm, and a layer's own
    model.mtp_layers.{j}.*     MiMo: token_layernorm, hidden_layernorm, input_proj, final_layernorm, and a layer's own

L layers belong to the model, `num_nextn_predict_layers` more to this. transformers knows how the first kind is stored,
and what it computes (`MtpModel`, behind `generate(use_mtp=True)`): what is made of it here is compared with that. The
second kind is read as SGLang reads it (`sglang/srt/models/mimo_mtp.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmtp.errors import ModelError, first_line
from wmtp.formats.hf import base_of, folder_of, load_causal_lm, loading_errors, model_config, next_layer
from wmtp.formats.kind import CONFIG, read_json
from wmtp.formats.scan import check_finite, check_floating, check_safetensors, stored_shapes, weight_files
from wmtp.formats.sums import check_sum
from wmtp.model import MTPModel
from wmtp.probing import evaluating
from wmtp.storage import ObjectPath

MIMO = "model.mtp_layers."
MIMO_NAMES = {
    "hidden_norm.": "hidden_layernorm.",
    "token_norm.": "token_layernorm.",
    "projection.": "input_proj.",
    "final_norm.": "final_layernorm.",
    "layer.": "",
}
"""Beginning of a chain head's tensor name -> MiMo's."""
NORMS = ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")
SHARED = ("shared_head.head.weight", "embed_tokens.weight")
"""Copies of the model's own unembedding and embedding that a layer may have."""


def mimo_name(name: str) -> str:
    """MiMo's name of a chain head's tensor."""
    ours = next(begin for begin in MIMO_NAMES if name.startswith(begin))
    return MIMO_NAMES[ours] + name.removeprefix(ours)


def stored_layers(source: str) -> int:
    """How many such layers a local folder holds; 0 where its config speaks of some and its weights have none.

    Raises:
        ModelError: its weights hold other ones than its config says.
    """
    folder = folder_of(source)
    if not (folder / CONFIG).is_file() or not _speaks_of_some(read_json(folder / CONFIG)):
        return 0
    config = model_config(source)
    found = {
        number
        for name in stored_shapes(folder_of(source, weights=True))
        if (number := next_layer(name, config)) is not None
    }
    count = config.num_nextn_predict_layers
    if found and found != set(range(count)):
        raise ModelError(
            f"{source}: its config says {count} layers for multi-token prediction, its weights hold "
            f"{', '.join(map(str, sorted(found)))}; they must agree: copy the folder again"
        )
    return len(found)


def _speaks_of_some(config: dict[str, Any]) -> bool:
    return any(config.get(name) for name in ("num_nextn_predict_layers", "num_mtp_layers"))


def load_nextn(source: str, dtype: torch.dtype = torch.float32) -> MTPModel:
    """The model of a folder, with a chain head for each layer that `stored_layers` counts.

    Raises:
        ModelError: tensors that do not fit, named, or layers that compute something else than chain heads do.
    """
    folder = folder_of(base_of(source))
    if isinstance(folder, ObjectPath):
        raise ModelError(
            f"{source} has layers for multi-token prediction, which are read from a disk only: copy it to one"
        )
    base = load_causal_lm(source, dtype)
    if read_json(folder / CONFIG).get("wmtp_engine") == "vllm":
        raise ModelError(f"{source} was written for vLLM, whose MiMo layers read another state; give the model itself")
    count = stored_layers(base_of(source))
    as_mimo = any(name.startswith(MIMO) for name in stored_shapes(folder))
    theirs = None if as_mimo else _by_transformers(source, folder, base)  # before the model's last layer moves
    model = MTPModel(base, 1 + count, family="chain")
    _fill(source, model, _mimo_state(folder) if theirs is None else _state(theirs))
    if theirs is not None:
        _check_same(source, model, theirs)
    _check_files(folder, model.base.config)
    return model


def _check_files(folder: Path, config: Any) -> None:
    """Raise `ModelError` unless the layers are floats, and the files that hold them what their checksums say. Those of
    the model's own weights were compared with it."""
    compared = weight_files(folder)
    for path in sorted(folder.glob("*.safetensors")):
        layers = [name for name in check_safetensors(path) if next_layer(name, config) is not None]
        check_floating(path, layers)
        if layers and path not in compared:
            check_sum(path)


def _fill(source: str, model: MTPModel, state: dict[str, Tensor]) -> None:
    try:
        model.extra_heads.load_state_dict(state)
    except RuntimeError as problem:
        raise ModelError(
            f"the layers for multi-token prediction of {source} are no chain heads: {first_line(problem)}; only those "
            "can be read"
        ) from problem
    check_finite(source, model.extra_heads.named_parameters())


# MiMo's


def _mimo_state(folder: Path) -> dict[str, Tensor]:
    """State of the heads, by their own names."""
    return {_our_name(name.removeprefix(MIMO)): tensor for name, tensor in _stored(folder, MIMO).items()}


def _our_name(name: str) -> str:
    number, _, rest = name.partition(".")
    ours = next((ours for ours, theirs in MIMO_NAMES.items() if theirs and rest.startswith(theirs)), "layer.")
    return f"{number}.{ours}{rest.removeprefix(MIMO_NAMES[ours])}"


def _stored(folder: Path, begin: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt", device="cpu") as opened:
                names = [name for name in opened.keys() if name.startswith(begin)]  # noqa: SIM118
                tensors |= {name: opened.get_tensor(name) for name in names}
        except loading_errors() as problem:
            raise ModelError(f"{path} is no whole safetensors file: {first_line(problem)}; copy it again") from problem
    return tensors


# transformers'


def _check_names(source: str, folder: Path, base: Any, layers: range) -> None:
    """Raise `ModelError` for a tensor that transformers would pass over: a layer has those of the model's last one too,
    and those of a chain head."""
    shapes = stored_shapes(folder)
    vocabulary, width = base.get_input_embeddings().weight.shape
    expected = _of_layer(shapes, layers.start - 1) | dict.fromkeys(SHARED, (vocabulary, width))
    expected |= {"eh_proj.weight": (width, 2 * width)} | dict.fromkeys(NORMS, (width,))
    for layer in layers:
        for name, shape in _of_layer(shapes, layer).items():
            if expected.get(name) != shape:
                raise ModelError(
                    f"{source}: model.layers.{layer}.{name} {shape} belongs to no chain head; expected "
                    f"{expected.get(name, 'no such tensor')}"
                )


def _of_layer(shapes: dict[str, tuple[int, ...]], layer: int) -> dict[str, tuple[int, ...]]:
    begin = f"model.layers.{layer}."
    return {name.removeprefix(begin): shape for name, shape in shapes.items() if name.startswith(begin)}


def _by_transformers(source: str, folder: Path, base: Any) -> Any:
    """The layers as transformers loads them."""
    from transformers.modeling_layers import MtpModel

    config = base.config
    layers = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
    _check_names(source, folder, base, layers)
    base._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{layer}\." for layer in layers]
    try:
        theirs = MtpModel.from_pretrained(base)
    except loading_errors() as problem:
        raise ModelError(
            f"cannot load the layers for multi-token prediction of {source}: {first_line(problem)}; expected files as "
            "transformers saves them"
        ) from problem
    for layer in layers:
        own = (base.get_output_embeddings().weight, base.get_input_embeddings().weight)
        for name, shared in zip(SHARED, own, strict=True):
            for stored, tensor in _stored(folder, f"model.layers.{layer}.{name}").items():
                if not tensor.to(shared.dtype).equal(shared):
                    raise ModelError(f"{source}: {stored} must be the model's own, which chain heads share")
    return theirs


def _state(theirs: Any) -> dict[str, Tensor]:
    """State of the heads, by their own names: the embedding's half of the projection comes second here."""
    state: dict[str, Tensor] = {}
    for number, layer in enumerate(theirs.layers):
        own = layer.state_dict()
        weight = own.pop("eh_proj.weight")
        if not getattr(theirs.config, "mtp_hidden_states_first", False):
            weight = torch.cat(weight.chunk(2, 1)[::-1], 1)
        state[f"{number}.projection.weight"] = weight
        renamed = {
            "hnorm.": "hidden_norm.",
            "enorm.": "token_norm.",
            "post_norm.": "final_norm.",
            "mtp_block.": "layer.",
        }
        for begin, ours in renamed.items():
            state |= {f"{number}.{ours}{n.removeprefix(begin)}": v for n, v in own.items() if n.startswith(begin)}
    return state


def _check_same(source: str, model: MTPModel, theirs: Any) -> None:
    """Raise `ModelError` unless both say the same of a few tokens.

    Their positions count from that of the token which a layer reads; rotary embeddings know differences only.
    """
    length = model.num_heads + 2
    vocabulary = model.unembedding().projection_VD.shape[0]
    tokens_BT = torch.arange(1, length + 1).remainder(vocabulary)[None]
    with evaluating(model), evaluating(theirs):
        state_BTD, *ours_K = model(tokens_BT)
        for number, ours_BTD in enumerate(ours_K):
            end = length - number - 1
            position_BT = torch.arange(number + 1, length)[None]
            state_BTD = theirs.forward_layer(
                number, state_BTD[:, :end], position_BT, None, input_ids=tokens_BT[:, number + 1 :]
            )
            away = float((ours_BTD[:, :end] - state_BTD).abs().max() / state_BTD.abs().max().clamp(min=1e-6))
            if away > (0.05 if state_BTD.dtype.itemsize < 4 else 1e-3):
                raise ModelError(
                    f"{source}: transformers' layer {number} for multi-token prediction is {away:.1%} away from a "
                    "chain head; only chain heads can be read"
                )
