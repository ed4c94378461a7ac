"""Weights straight into a rank's share: no rank ever holds a whole model.

    1. build the model with parameters that have shapes only (meta device); buffers are real
    2. shard it
    3. each rank reads the rows of each tensor that it holds: the files are mapped, the rest of them is never read.
       Random weights, and those of new heads, are drawn again, one tensor at a time (`formats.drawn`)

Reading needs tensors that are stored under the names and shapes the model has. Where transformers renames or merges
tensors on loading, `missing` says so, and the ordinary way (every rank loads, then keeps its share) has to do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wmtp.distributed import rows_held
from wmtp.errors import ModelError, first_line
from wmtp.formats.drawn import Drawn
from wmtp.formats.hf import causal_lm_of, folder_of, loading_errors, model_config, without_parameters
from wmtp.formats.native import MTP_HEADS, VALUE_HEAD, MTPCard, ValueCard, read_card
from wmtp.formats.remote import opened
from wmtp.formats.scan import check_finite, check_safetensors
from wmtp.model import MTPModel
from wmtp.storage import matches
from wmtp.value import ValueModel


def empty_causal_lm(source: str, dtype: torch.dtype = torch.float32) -> Any:
    """The causal language model of a folder or hub id, without its weights.

    Raises:
        ModelError: no such model.
    """
    config = model_config(source)
    try:
        with without_parameters():
            return causal_lm_of(config, dtype)
    except loading_errors() as problem:
        raise ModelError(
            f"cannot build the model of {source}: {first_line(problem)}; expected files as transformers saves them"
        ) from problem


def empty_model(source: str, num_heads: int | None = None) -> MTPModel | ValueModel:
    """What `load_model` or `load_value_model` would load, without its weights; heads that are not stored are parallel
    ones, copies of the last layer.

    Raises:
        ModelError: no such model.
    """
    card = read_card(source)
    base = empty_causal_lm(source)
    if isinstance(card, ValueCard):
        with without_parameters():
            return ValueModel(base, card.head, "frozen", card.loss, rewards=card.rewards)
    if card is None:
        return MTPModel(base, num_heads or 1)
    model = MTPModel(base, card.num_heads, family=card.heads)
    if num_heads is not None:
        model.keep_heads(num_heads)
    return model


@dataclass(frozen=True)
class NewHeads:
    """Heads that a folder does not have."""

    first: int
    """Their first place among `extra_heads`."""
    drawn: Drawn
    """What they start with, where they do not start as copies."""

    def hold(self, name: str) -> bool:
        """Whether a parameter is one of theirs."""
        return name.startswith("extra_heads.") and int(name.split(".")[1]) >= self.first

    def draw(self, name: str) -> bool:
        """Whether it is, and no copy."""
        return self.hold(name) and self.drawn.touches(name)


def grown_model(source: str, num_heads: int, init: str, family: str) -> tuple[MTPModel, NewHeads]:
    """What `load_model` would make of a folder with fewer heads, without its weights.

    Raises:
        ModelError: no such model.
    """
    card, base, drawn = read_card(source), empty_causal_lm(source), Drawn()
    assert isinstance(card, MTPCard)
    with drawn:
        model = MTPModel(base, card.num_heads, family=card.heads)
        model.add_heads(num_heads - card.num_heads, init, family=family)
    drawn.name(model)
    return model, NewHeads(card.num_heads - 1, drawn)


Weights = Literal["now", "later", "never"]
"""When a model gets its weights. Later, once it is sharded, and never, are for those that can be built without."""

SKETCH = 20_000_000
"""Parameters that are made to ask an architecture its questions, where no weights are made otherwise."""


def asked(architecture: Any, weights: Weights) -> bool:
    """Whether an architecture passes the checks that need numbers, without its own."""
    return fits(architecture, SKETCH if weights == "never" else None)


def fits(architecture: Any, most: int | None = None) -> bool:
    """Whether an architecture passes the checks that need numbers (causal, plain logits): asked of a two-layer sketch
    of it with random weights, since a model without weights cannot answer.

    Args:
        architecture: a transformers config.
        most: parameters that may be made for the sake of asking; a wider model is not asked.
    """
    config = copy.deepcopy(architecture)
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    refusals: tuple[type[Exception], ...] = (ModelError, *loading_errors())
    try:
        if most is not None:
            with without_parameters():
                sketch = causal_lm_of(copy.deepcopy(config))
            if sum(parameter.numel() for parameter in sketch.parameters()) > most:
                return True
        with torch.random.fork_rng(devices=[]):
            MTPModel(causal_lm_of(config), 1)
    except refusals:
        return False  # the ordinary way will say what is wrong, if it is
    return True


class Stored:
    """The tensors of a model folder by name, read row by row."""

    def __init__(self, source: str, held: ExitStack) -> None:
        self._files: dict[str, Any] = {}
        for path in matches(folder_of(source, weights=True), "*.safetensors"):
            prefix = {MTP_HEADS: "extra_heads.", VALUE_HEAD: "value_head."}.get(path.name, "")
            check_safetensors(path)
            file = opened(path, held)
            self._files |= {prefix + name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor; None if there is none of that name."""
        found = self._files.get(name)
        return None if found is None else tuple(found.get_shape())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor."""
        rows: Tensor = self._files[name][start:stop]
        return rows


def stored_name(model: MTPModel | ValueModel, name: str, stored: Stored, new: NewHeads | None = None) -> str:
    """The name under which a parameter is stored; a head that is not stored starts as a copy."""
    if isinstance(model, MTPModel) and name.startswith("extra_heads."):
        plain = model.family == "parallel" and stored.shape(name) is None
        if plain or (new is not None and new.hold(name)):
            return model.hf_key(_copied_from(model, name))
    return model.hf_key(name)


def _copied_from(model: MTPModel, name: str) -> str:
    """The parameter of which a head's is a copy: one of the last layer; for a chain's norms, one of the final norm."""
    part = name.split(".", 2)[2]
    if model.family == "chain":
        module, _, part = part.partition(".")
        if module != "layer":
            norm = next(path for path, found in model.named_modules() if found is model.final_norm)
            return f"{norm}.{part}"
    return f"base.{model.last_layer}layer.{part}"


def missing(model: MTPModel | ValueModel, source: str, new: NewHeads | None = None) -> list[str]:
    """Parameters that cannot be read by rows: not stored under the model's own names and shapes; of new heads, those
    that start neither as a copy nor with values that can be drawn again."""

    def found(name: str, parameter: Tensor) -> bool:
        if new is not None and new.draw(name):
            return new.drawn.decides(name)
        return stored.shape(stored_name(model, name, stored, new)) == tuple(parameter.shape)

    with ExitStack() as held:
        stored = Stored(source, held)
        return [name for name, p in model.named_parameters() if p.is_meta and not found(name, p)]


def fill(model: MTPModel | ValueModel, source: str, device: torch.device, new: NewHeads | None = None) -> None:
    """Give every parameter memory on this rank, and its rows of the stored tensor.

    Args:
        new: heads that are not stored, of `grown_model`.

    Raises:
        ModelError: a file that cannot be read, or numbers in it that are not finite.
    """
    with ExitStack() as held:
        try:
            stored = Stored(source, held)

            def rows(name: str, start: int, stop: int) -> Tensor:
                if new is not None and new.draw(name):
                    return new.drawn.rows(name, start, stop)
                part = stored.rows(stored_name(model, name, stored, new), start, stop)
                check_finite(source, [(name, part)])
                return part

            fill_rows(model, rows, device)
        except ModelError:
            raise
        except loading_errors() as problem:
            raise ModelError(
                f"cannot read the weights of {source}: {first_line(problem)}; expected files as transformers saves them"
            ) from problem


def fill_rows(model: MTPModel | ValueModel, rows: Callable[[str, int, int], Tensor], device: torch.device) -> None:
    """Give every parameter memory on this rank, and its rows.

    Args:
        rows: of a parameter, by name: from the first to one before the last.
    """
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    real = {name: local_copy(p) for name, p in model.named_parameters() if not p.is_meta}
    tied = _tied(model)
    model.to_empty(device=device)
    for name, first in tied.items():  # `to_empty` gives each name memory of its own, unless the model is sharded
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))
    with torch.no_grad():
        for name, buffer in kept.items():
            model.get_buffer(name).copy_(buffer)
        for name, parameter in model.named_parameters():
            piece, start, stop = rows_held(parameter)
            if name in real:
                piece.copy_(real[name])
            elif stop > start:
                piece.copy_(rows(name, start, stop))


def _tied(model: nn.Module) -> dict[str, str]:
    """Further names of parameters that have several, with the first name of each."""
    first: dict[int, str] = {}
    names = ((name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False))
    return {name: known for name, known in names if name != known}


def local_copy(parameter: Tensor) -> Tensor:
    """This rank's piece of a parameter, by itself."""
    piece, _, _ = rows_held(parameter)
    return piece.detach().clone()
