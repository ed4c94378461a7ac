"""Low-rank adapters on frozen layers (LoRA, Hu et al. 2021, arXiv 2106.09685), by peft: the one importer of it.

While they train they are parameters of the model like any others. A saved model has none: they are added to the
weights that they adapt, so its folder is one that needs no peft.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wmtp.errors import ConfigError, UsageError, first_line

NAME = "wmtp"
_BASE, DOWN, UP = ".base_layer.", f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"


def add_adapters(
    module: Any, *, rank: int, alpha: float, dropout: float, targets: list[str] | None, option: str
) -> None:
    """Put adapters around linear layers, in place; everything else in the module is frozen.

    Args:
        module: a transformers model, or a part of one.
        alpha: the adapters' product is scaled by alpha / rank.
        targets: ends of module names; None: every linear layer but the unembedding.
        option: the config's name of these settings, for messages.

    Raises:
        UsageError: peft is not installed.
        ConfigError: no module has such a name, or it is an embedding, which is used by its weight alone.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as problem:
        raise UsageError(f"{option} needs peft: pip install 'wmtp[lora]'") from problem
    options = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets or "all-linear")
    module.requires_grad_(False)
    try:
        with warnings.catch_warnings():  # peft sees by itself which weights are stored [in, out], and says so
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
            inject_adapter_in_model(options, module, NAME)
    except ValueError as problem:
        raise ConfigError(
            f"{option}.targets = {targets}: {first_line(problem)}; give ends of names of linear layers, or leave it "
            "out for all of them"
        ) from problem
    for kind in ("input", "output"):
        embedding = getattr(module, f"get_{kind}_embeddings", lambda: None)()
        if hasattr(embedding, "base_layer"):
            raise ConfigError(
                f"{option}.targets = {targets} names the {kind} embedding, which takes no adapters; name linear layers"
            )


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every layer that `add_adapters` has put an adapter around."""
    for name, module in model.named_modules():
        if NAME in getattr(module, "lora_A", ()):
            yield name, module


def product(down: Tensor, up: Tensor, scale: float, *, transposed: bool) -> Tensor:
    """`scale * B A` in fp32, or fp64 where the adapter is, `[out, in]`.

    Args:
        down, up: A `[rank, in]` and B `[out, rank]`.
        transposed: for weights that are stored `[in, out]`, as GPT-2's are.
    """
    wide = torch.promote_types(down.dtype, torch.float32)
    delta = scale * (up.to(wide) @ down.to(wide))
    return delta.T if transposed else delta


def merged(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `model` with adapters added to their weights, under the names of a model without any.

    Args:
        state: whole tensors, where the model itself holds only a share of them.
    """
    out = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if not is_adapter(name)}
    for name, layer in adapted_layers(model):
        delta = product(
            state[name + DOWN],
            state[name + UP],
            layer.scaling[NAME],
            transposed=getattr(layer, "fan_in_fan_out", False),
        )
        weight = state[name + _BASE + "weight"]
        out[name + ".weight"] = weight + delta.to(weight.dtype)
    return out


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add adapters to the weights that they adapt, in place; the model is then one without any."""
    state = merged(model, model.state_dict())
    for name, layer in list(adapted_layers(model)):
        owner, _, leaf = name.rpartition(".")
        layer.base_layer.weight.copy_(state[name + ".weight"])
        setattr(model.get_submodule(owner), leaf, layer.base_layer)
