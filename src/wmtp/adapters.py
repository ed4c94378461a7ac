"""Low-rank adapters on a frozen backbone (LoRA, Hu et al. 2021, arXiv 2106.09685), by peft: the one importer of it.

While they train they are parameters of the model like any others. A saved model has none: they are added to the
weights that they adapt, so its folder is one that needs no peft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wmtp.errors import ConfigError, UsageError

NAME = "wmtp"
_BASE, _DOWN, _UP = ".base_layer.", f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"


def add_adapters(base: Any, *, rank: int, alpha: float, dropout: float, targets: list[str] | None) -> None:
    """Put adapters around linear layers of a transformers model, in place; everything else is frozen.

    Args:
        alpha: the adapters' product is scaled by alpha / rank.
        targets: ends of module names; None: every linear layer but the unembedding.

    Raises:
        UsageError: peft is not installed.
        ConfigError: no module has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as problem:
        raise UsageError("objective.backbone = 'lora' needs peft: pip install 'wmtp[lora]'") from problem
    options = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets or "all-linear")
    base.requires_grad_(False)
    try:
        inject_adapter_in_model(options, base, NAME)
    except ValueError as problem:
        raise ConfigError(f"objective.lora.targets = {targets}: {str(problem).splitlines()[0]}") from problem


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state with adapters added to their weights, `W + scale * B A`, under the names of a model without any.

    Args:
        scale: alpha / rank.
    """
    out = {}
    for name, tensor in state.items():
        if is_adapter(name):
            continue
        layer, inside, rest = name.partition(_BASE)
        down, up = state.get(layer + _DOWN), state.get(layer + _UP)
        if inside and rest == "weight" and down is not None and up is not None:
            delta = scale * (up.float() @ down.float())
            tensor = tensor + (delta if delta.shape == tensor.shape else delta.T).to(tensor.dtype)
        out[name.replace(_BASE, ".")] = tensor
    return out
