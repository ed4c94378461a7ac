"""Adapters that peft saved (LoRA), in and out: `scale * B A` is added to the weights they belong to.

    adapter_config.json          whose adapter it is, rank, scale
    adapter_model.safetensors    base_model.model.<layer>.lora_A.weight, ... .lora_B.weight

Read strictly: a tensor that belongs to no layer of the base model is an error that names it, and so is a setting under
which the sum above would not be what peft computes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from wmtp.adapters import DOWN, UP, adapted_layers, product
from wmtp.errors import ModelError, first_line
from wmtp.formats.kind import ADAPTER, read_json
from wmtp.formats.remote import tensors_of
from wmtp.formats.scan import check_finite, check_floating, check_safetensors
from wmtp.formats.sums import check_sum
from wmtp.storage import Place

WEIGHTS = "adapter_model.safetensors"
_OF_LAYER, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version",
    "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern",
    "ephemeral_gpu_offload", "qalora_group_size", "runtime_config", "megatron_core",
    "ensure_weight_tying",
}  # fmt: skip
"""Settings that say how the adapter was made, or which layers have one, which the tensors' names say too."""


class AdapterCard(BaseModel):
    """What `adapter_config.json` says of how the tensors are to be added."""

    model_config = ConfigDict(extra="allow", frozen=True)
    peft_type: Literal["LORA"]
    base_model_name_or_path: Annotated[str, Field(min_length=1)]
    r: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)]
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: bool | Literal["gaussian"] | None = True
    """Others (PiSSA, OLoRA, CorDA, LoftQ) change the weights that the adapter is added to."""

    @property
    def scale(self) -> float:
        """Of the product: alpha / r, or alpha / sqrt(r)."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def read_adapter(folder: Place) -> AdapterCard:
    """The `adapter_config.json` of a folder.

    Raises:
        ModelError: it is no LoRA adapter, or one that is more than a product added to weights.
    """
    path = folder / ADAPTER
    content = read_json(path)
    try:
        card = AdapterCard.model_validate(content)
    except ValidationError as problem:
        raise ModelError(f"{path}: {first_line(problem)}; plain LoRA was expected") from problem
    further = {name: value for name, value in (card.model_extra or {}).items() if name not in HARMLESS and value}
    if further:
        name, value = next(iter(further.items()))
        raise ModelError(f"{path}: {name} = {value!r} is not understood; plain LoRA was expected")
    return card


@torch.no_grad()
def add_stored(base: Any, folder: Place, card: AdapterCard) -> None:
    """Add a stored adapter to the weights of a causal language model, in place.

    Raises:
        ModelError: a tensor that is missing, of another shape, not finite, or of a layer that the model does not have.
    """
    path = folder / WEIGHTS
    check_safetensors(path)
    stored = tensors_of(path)
    check_floating(path, stored)
    check_finite(path, stored.items())
    layers = {name.removesuffix(end) for name in stored for end in (_DOWN, _UP) if name.endswith(end)}
    if not layers:
        raise ModelError(f"{path} holds no LoRA tensors; expected those that peft saves")
    for layer in sorted(layers):
        weight, transposed = _weight_of(base, path, layer)
        pair = [stored.pop(layer + end, None) for end in (_DOWN, _UP)]
        columns, rows = weight.shape if transposed else weight.shape[::-1]
        for tensor, end, shape in zip(pair, (_DOWN, _UP), ((card.r, columns), (rows, card.r)), strict=True):
            if tensor is None or tuple(tensor.shape) != shape:
                found = "missing" if tensor is None else f"{tuple(tensor.shape)}"
                raise ModelError(f"{path}: {layer}{end} is {found}; {card.base_model_name_or_path} needs {shape}")
        down, up = (tensor for tensor in pair if tensor is not None)
        weight += product(down, up, card.scale, transposed=transposed).to(weight.dtype)
    if stored:
        raise ModelError(
            f"{path}: {min(stored)} matches nothing in {card.base_model_name_or_path}; base_model_name_or_path must be "
            "the adapter's own model"
        )
    check_sum(path)


def _weight_of(base: Any, path: Place, layer: str) -> tuple[Tensor, bool]:
    """The weight that an adapter belongs to, and whether it is stored `[in, out]`."""
    name = layer.removeprefix(_OF_LAYER)
    try:
        module: nn.Module = base.get_submodule(name)
    except AttributeError:
        module = nn.Identity()
    weight = getattr(module, "weight", None)
    if not layer.startswith(_OF_LAYER) or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ModelError(
            f"{path}: {layer} matches no layer of the model: it is an adapter of another one; base_model_name_or_path "
            "must name that"
        )
    if module in (base.get_input_embeddings(), base.get_output_embeddings()):
        raise ModelError(f"{path}: {layer} is an embedding; only adapters of other layers can be read")
    return weight, type(module).__name__ == "Conv1D"


# Out


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """`adapter_model.safetensors` of the adapters on the base model of an `MTPModel`.

    Raises:
        ModelError: it has none.
    """
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, _ in adapted_layers(model):
        if name.startswith("base."):
            layer = _OF_LAYER + model.hf_key(name + ".").removesuffix(".")
            tensors |= {layer + _DOWN: state[name + DOWN], layer + _UP: state[name + UP]}
    if not tensors:
        raise ModelError("the model has no adapters on its base model: train it with model.lora, on trunk or both")
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def write_adapter(model: Any, folder: Path, base: str, *, rank: int, alpha: float) -> None:
    """Write the adapters on the base model, as peft reads them.

    Args:
        base: where the model that they belong to can be had.

    Raises:
        ModelError: see `adapter_tensors`.
    """
    from safetensors.torch import save_file

    tensors = adapter_tensors(model)
    layers = sorted({name.removeprefix(_OF_LAYER).rsplit(".lora_", 1)[0] for name in tensors})
    transposed = any(getattr(layer, "fan_in_fan_out", False) for _, layer in adapted_layers(model))
    card = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": layers,
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }
    (folder / ADAPTER).write_text(json.dumps(card, indent=2) + "\n")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
