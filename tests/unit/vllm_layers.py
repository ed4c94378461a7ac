"""What vLLM's files of models need of vLLM beside its linear layers and its loader, in the plainest form."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from engine_code import STANDINS, RMSNorm, Table, empty
from torch import nn

OWN = tuple(
    f"vllm.model_executor.{name}"
    for name in ("layers.linear", "parameter", "models.llama", "models.qwen2", "models.utils")
)
"""Files that those of models import, and that are run too: the first has the loaders of fused tensors."""


class Layer(nn.Module):
    """vLLM's `PluggableLayer`."""

    @classmethod
    def register(cls, name: str) -> Callable[[type], type]:
        return lambda layer: layer


class Shared(Table):
    """An unembedding that may be the embedding."""

    def tie_weights(self, table: Table) -> Table:
        self.weight = table.weight
        return self


class LayerNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-5, **options: Any) -> None:
        super().__init__()
        self.weight, self.bias = empty(size), empty(size)


class Nothing(nn.Module):
    """A layer without weights."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()


def decorator(*classes: Any, **options: Any) -> Any:
    """Changes nothing, with options or without."""
    return classes[0] if classes else lambda made: made


def set_attributes(tensor: torch.Tensor, attributes: dict[str, Any] | None) -> None:
    for name, value in (attributes or {}).items():
        setattr(tensor, name, value)


PARTS: dict[str, Any] = STANDINS | {
    "PluggableLayer": Layer,
    "VocabParallelEmbedding": Table,
    "ParallelLMHead": Shared,
    "RMSNorm": RMSNorm,
    "GemmaRMSNorm": RMSNorm,
    "LayerNorm": LayerNorm,
    "Attention": Nothing,
    "EncoderOnlyAttention": Nothing,
    "SiluAndMul": Nothing,
    "GeluAndMul": Nothing,
    "get_act_fn": Nothing,
    "get_act_and_mul_fn": Nothing,
    "get_rope": Nothing,
    "LogitsProcessor": Nothing,
    "support_torch_compile": decorator,
    "set_weight_attrs": set_attributes,
    "set_default_rope_theta": lambda config, **options: None,
    "get_tensor_model_parallel_rank": lambda: 0,
    "get_tensor_model_parallel_world_size": lambda: 1,
    "get_current_vllm_config_or_none": lambda: None,
    "get_pp_indices": lambda layers, rank, size: (0, layers),
    "get_pp_group": lambda: SimpleNamespace(is_first_rank=True, is_last_rank=True, rank_in_group=0, world_size=1),
    "get_offloader": lambda: SimpleNamespace(wrap_modules=list),
    "current_platform": SimpleNamespace(use_sync_weight_loader=lambda: False),
    "divide": lambda whole, parts: whole // parts,
    "AttentionType": SimpleNamespace(DECODER="decoder", ENCODER_ONLY="encoder_only"),
}
"""By the names that the files import."""


class Options(SimpleNamespace):
    """vLLM's configuration: what is not said is not there."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
