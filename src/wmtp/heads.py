"""The place where prediction heads attach to a decoder.

No model code is copied. `Branch` takes the last layer's place in the model's own layer list, keeps what the
layers before it hand over, and lets the heads (`wmtp.families`) be run on it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from wmtp.errors import ModelError


@dataclass(frozen=True)
class TrunkOutput:
    """What heads read: a hidden state, and the arguments that the model's own forward prepared for its last layer."""

    hidden_BTD: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    token_BTD: Tensor | None = None
    """The tokens' embeddings, for heads that read them."""

    def detached(self) -> TrunkOutput | None:
        """The same, with the hidden state as a leaf that collects the heads' gradients.

        None if another argument carries a gradient too (some models hand every layer inputs of its own): then the
        heads cannot be cut from the trunk there.
        """
        others = (*self.arguments, *self.keywords.values())
        if any(isinstance(value, Tensor) and value.requires_grad for value in others):
            return None
        return replace(self, hidden_BTD=self.hidden_BTD.detach().requires_grad_(self.hidden_BTD.requires_grad))

    def through(self, layer: nn.Module) -> Tensor:
        """`layer`'s output `[B, T, D]` on this trunk output."""
        out = layer(self.hidden_BTD, *self.arguments, **self.keywords)
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden


class Branch(nn.Module):
    """Stands where the last decoder layer stood: passes the hidden state on and remembers the call.

    It owns that layer (as `layer`), so that parameters keep their order, and answers for its attributes, because
    some models ask a layer for its attention type before calling it.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._output: TrunkOutput | None = None

    def forward(self, hidden_BTD: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        self._output = TrunkOutput(hidden_BTD, arguments, keywords)
        return hidden_BTD

    def take(self) -> TrunkOutput:
        """What the last forward handed over; can be taken once, so that no activation outlives its step."""
        output, self._output = self._output, None
        if output is None:
            raise RuntimeError("the trunk has not run since its output was last taken")
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def layer_list(decoder: nn.Module, num_layers: int | None) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder's layers: its one `ModuleList` of length `num_layers`.

    Raises:
        ModelError: there is none, or more than one.
    """
    lists = [(n, m) for n, m in decoder.named_children() if isinstance(m, nn.ModuleList)]
    found = [(n, m) for n, m in lists if len(m) == num_layers and num_layers]
    if len(found) != 1:
        raise ModelError(
            f"{type(decoder).__name__} has {len(found)} module lists of {num_layers} layers among its children, "
            "expected exactly one: this architecture's layers cannot be told apart; use another model"
        )
    return found[0]


def final_norm(decoder: nn.Module, layers_name: str) -> str:
    """Name of the decoder's final norm: its one direct child whose class name ends in 'Norm'.

    Raises:
        ModelError: there is none, or more than one.
    """
    norms = [n for n, m in decoder.named_children() if n != layers_name and type(m).__name__.endswith("Norm")]
    if len(norms) != 1:
        raise ModelError(
            f"{type(decoder).__name__} has {len(norms)} norms beside its layers, expected exactly one final norm; use "
            "another model"
        )
    return norms[0]
