"""Heads 2..K: what each family is made of, and how it starts. docs/math.md (3).

    parallel    a decoder layer on the trunk's output                       Gloeckle et al. 2024, arXiv 2404.19737
    linear      one linear map beside head 1's final hidden state           Cai et al. 2024 (Medusa), arXiv 2401.10774
    chain       a decoder layer on the state of the head before it and      DeepSeek-AI 2024 (V3), arXiv 2412.19437
                the embedding of the token that that head predicts

All share the model's unembedding, and all but chain heads its final norm. Head 1 is always the model itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmtp.errors import ModelError

FAMILIES = ("parallel", "linear", "chain")
INITS = ("copy", "fresh", "zero")

OUTPUTS = ("o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h")
"""What architectures call the last map of a decoder layer's attention and of its feed-forward network."""
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Config lists with one entry for each layer."""


class LinearHead(nn.Module):
    """`z + SiLU(A z)`: Medusa's block, without a bias. With A = 0 it is head 1."""

    def __init__(self, width: int, like: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False, device=like.device, dtype=like.dtype)

    def forward(self, final_BTD: Tensor) -> Tensor:
        """The final hidden state `[B, T, D]` of this head from that of head 1."""
        return final_BTD + F.silu(self.linear(final_BTD))


class ChainHead(nn.Module):
    """`norm(layer(P [norm(h); norm(Emb(x))]))`, DeepSeek-V3's equations (21) and (22), and a final norm of its own."""

    def __init__(self, layer: nn.Module, norms: Sequence[nn.Module], width: int, like: Tensor) -> None:
        super().__init__()
        self.hidden_norm, self.token_norm, self.final_norm = norms
        self.projection = nn.Linear(2 * width, width, bias=False, device=like.device, dtype=like.dtype)
        self.layer = layer

    def forward(self, before_BTD: Tensor, token_BTD: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """The final hidden state `[B, T, D]` of this head.

        Args:
            before_BTD: final hidden state of the head before this one.
            token_BTD: embedding of the token that that head predicts.
            arguments, keywords: as the model's own forward prepares them for a layer.
        """
        joined_BT2D = torch.cat([self.hidden_norm(before_BTD), self.token_norm(token_BTD)], -1)
        out = self.layer(self.projection(joined_BT2D), *arguments, **keywords)
        hidden: Tensor = self.final_norm(out[0] if isinstance(out, tuple) else out)
        return hidden


@dataclass(frozen=True)
class Origin:
    """What heads are made from: parts of the model they are added to."""

    layer: nn.Module
    """The last layer."""
    norm: nn.Module
    """The final norm."""
    embedding: Tensor
    """Weight `[V, D]` of the input embedding."""
    initialise: Callable[[nn.Module], None]
    """The model's own initialisation of one module (`PreTrainedModel._init_weights`)."""


def more_heads(family: str, count: int, init: str, origin: Origin) -> nn.ModuleList:
    """`count` heads after the first.

    Args:
        init: `copy`: layers are copies of the last, a chain's projection passes the hidden state on, A = 0.
            `fresh`: all by the model's own initialisation. `zero`: as `copy`, but the layers add nothing to what they
            read. Norms begin as the model's own begin, a chain's final norms as the model's is.

    Raises:
        ModelError: a family or an initialisation that does not exist, or that this architecture does not allow.
    """
    if family not in FAMILIES:
        raise ModelError(f"head family must be one of {', '.join(FAMILIES)}; got {family!r}")
    if init not in INITS:
        raise ModelError(f"init must be one of {', '.join(INITS)}; got {init!r}")
    made = {"parallel": _layer, "linear": _linear, "chain": _chain}[family]
    return nn.ModuleList(made(init, origin) for _ in range(count))


def _layer(init: str, origin: Origin) -> nn.Module:
    layer = copy.deepcopy(origin.layer)
    if init == "fresh":
        _initialise(layer, origin)
    elif init == "zero":
        _silence(layer)
    return layer


def _linear(init: str, origin: Origin) -> nn.Module:
    head = LinearHead(origin.embedding.shape[1], origin.embedding)
    if init == "fresh":
        origin.initialise(head.linear)
    else:
        nn.init.zeros_(head.linear.weight)
    return head


def _chain(init: str, origin: Origin) -> nn.Module:
    norms = [copy.deepcopy(origin.norm) for _ in range(2)]
    for norm in norms:
        _initialise(norm, origin)
    norms.append(copy.deepcopy(origin.norm))
    head = ChainHead(_layer(init, origin), norms, origin.embedding.shape[1], origin.embedding)
    if init == "fresh":
        origin.initialise(head.projection)
    else:
        with torch.no_grad():
            head.projection.weight.zero_().diagonal().fill_(1.0)
    return head


def _initialise(module: nn.Module, origin: Origin) -> None:
    """As transformers does it: children first, since a parent may rescale what its child drew."""
    for part in (*module.parameters(), *module.modules()):
        part.__dict__.pop("_is_hf_initialized", None)
    module.apply(origin.initialise)


def _silence(layer: nn.Module) -> None:
    """Make a decoder layer the identity: both its branches end in a map that gives 0."""
    last = [module for name, module in layer.named_modules() if name.rpartition(".")[2] in OUTPUTS]
    if len(last) != 2:
        raise ModelError(
            f"init 'zero' knows layers with one output map for attention and one for the feed-forward network "
            f"({', '.join(OUTPUTS)}); {type(layer).__name__} has {len(last)}: take init 'copy' or 'fresh'"
        )
    for module in last:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def take_layers(layers: nn.ModuleList, configs: Sequence[Any], count: int) -> list[nn.Module]:
    """Take a model's last `count` layers away, so that heads can be made of them (Gloeckle et al. 2024, section 3).

    Args:
        configs: of the model, and of its decoder; what they say of the layers is put right.

    Raises:
        ModelError: not even one layer would be left for the trunk, beside that of head 1.
    """
    if len(layers) < count + 2:
        raise ModelError(
            f"{count + 1} heads cannot be made of the model's own {len(layers)} layers: one has to be left for the "
            "trunk; ask for fewer heads, or for added ones"
        )
    taken = list(layers[-count:]) if count else []
    kept = len(layers) - count
    del layers[kept:]
    for config in {id(config): config for config in configs}.values():
        for name in PER_LAYER:
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name)[:kept])
        config.num_hidden_layers = kept
    return taken
