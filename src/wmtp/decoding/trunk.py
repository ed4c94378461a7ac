"""The trunk and head 1 over new tokens only: what came before is in the caches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import RLock
from typing import Any
from weakref import WeakSet

import torch
import torch._dynamo.config
import torch.fx.experimental._config
from torch import Tensor, nn
from transformers.cache_utils import Cache

from wmtp.decoding.attention import grouped
from wmtp.decoding.slots import Place, SlotCache, SlotLayer, Slots, select_rows
from wmtp.errors import ModelError, first_line
from wmtp.heads import Branch, TrunkOutput
from wmtp.model import MTPModel
from wmtp.probing import evaluating

_CHECKED: WeakSet[nn.Module] = WeakSet()
"""Models that gave the same with caches as without."""

COMPILED: WeakSet[nn.Module] = WeakSet()
"""Models whose layers were compiled for decoding."""

_ONE_AT_A_TIME = RLock()
"""Held while a thread decodes: a module has one mode, a config one name of its attention, a model one place where the
last layer's arguments are handed over, and a process one stance of the compiler. Calls share them."""


class CachedTrunk:
    """A model's trunk with the caches of a batch.

    Args:
        rows: of the batch.
        limit: positions a row may reach.
        keep_output: keep what heads 2..K read `[B, limit, D]`, and the tokens, so that heads can be run later.
    """

    def __init__(self, model: MTPModel, rows: int, limit: int, *, keep_output: bool) -> None:
        weight = model.unembedding().projection_VD
        self.model = model
        self.slots = Slots(model.base.config.get_text_config(), rows, limit, weight.device, weight.dtype)
        self.cache = self.slots.cache(model.num_layers)
        self.caches = [self.cache]
        self._output_BTD: Tensor | None = None
        self._keep_output = keep_output
        self.tokens_BT = torch.zeros(rows, self.slots.capacity, dtype=torch.long, device=weight.device)
        """The token of every slot that was written last; kept with the output."""
        self._last: tuple[Place, TrunkOutput] | None = None
        self._bypassed: tuple[nn.Module, Branch] | None = None

    def run(self, tokens_BQ: Tensor, start: Sequence[int]) -> Tensor:
        """Head 1's final hidden states `[B, Q, D]` of tokens that follow the first `start[b]` of each row."""
        self.slots.place = self.slots.at(start, tokens_BQ.shape[1])
        output = self._call(self.model.decoder, self.model.branch, tokens_BQ)
        first_BQD = self.model.first(output)
        if self._keep_output:
            read = self.model.beside_first(output, first_BQD)
            self._store(read.hidden_BTD)
            self._last = self.slots.place, read
            self.tokens_BT[self.slots.row_B1, self.slots.place.slot_BQ] = tokens_BQ
        return first_BQD

    def _call(self, decoder: nn.Module, branch: Branch, tokens_BQ: Tensor) -> TrunkOutput:
        decoder(
            input_ids=tokens_BQ,
            position_ids=self.slots.position_BQ(),
            attention_mask=self.slots.mask(),
            past_key_values=self.cache,
            use_cache=True,
        )
        return branch.take()

    def _store(self, hidden_BQD: Tensor) -> None:
        if self._output_BTD is None:
            rows, _, width = hidden_BQD.shape
            self._output_BTD = hidden_BQD.new_zeros(rows, self.slots.capacity, width)
        self._output_BTD[self.slots.row_B1, self.slots.place.slot_BQ] = hidden_BQD

    def kept(self, position_B: Tensor) -> Tensor:
        """What heads 2..K read `[B, D]` at one position of each row."""
        assert self._output_BTD is not None, "the trunk has not run"
        return self._output_BTD[self.slots.row_B1[:, 0], position_B]

    def cache_beside(self) -> SlotCache:
        """A cache for one more head: its own last layer, beside the trunk's."""
        cache = SlotCache(layers=[*self.cache.layers[:-1], SlotLayer(self.slots)])
        self.caches.append(cache)
        return cache

    def output(self, start: Sequence[int], end: Sequence[int], cache: Cache) -> TrunkOutput:
        """What a head gets to see of the positions from `start[b]` to `end[b]`, with its cache (of `cache_beside`).

        Shorter rows are filled up with positions that do not matter: what a head writes there is written over later.
        """
        if self._last is not None and self._last[0].start == tuple(start):
            self.slots.place, trunk = self._last
        else:
            trunk = self._output_again(start, max(e - s for s, e in zip(start, end, strict=True)))
        return with_cache(trunk, self.cache, cache)

    def _output_again(self, start: Sequence[int], width: int) -> TrunkOutput:
        """The kept output of earlier forwards, with the arguments that the model prepares for those positions."""
        assert self._output_BTD is not None, "the trunk has not run"
        self.slots.place = self.slots.at(start, width)
        hidden_BQD = self._output_BTD[self.slots.row_B1, self.slots.place.slot_BQ]
        if self._bypassed is None:
            self._bypassed = _bypassed(self.model)
        trunk = self._call(*self._bypassed, torch.zeros_like(self.slots.place.slot_BQ))
        return replace(trunk, hidden_BTD=hidden_BQD)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order; a row may be named more than once."""
        self.slots.select(rows, self.caches)
        if self._output_BTD is not None:
            self._output_BTD = select_rows(self._output_BTD, rows)
            self.tokens_BT = select_rows(self.tokens_BT, rows)
        self._last = None


def _bypassed(model: MTPModel) -> tuple[nn.Module, Branch]:
    """The decoder with every layer passed over, and its last branch: all it does is prepare the layers' arguments."""
    last = Branch(model.branch.layer)

    def passed_over(module: nn.Module | None) -> nn.Module | None:
        if module is model.final_norm:
            return nn.Identity()
        if not isinstance(module, nn.ModuleList) or module[-1] is not model.branch:
            return module
        return nn.ModuleList([*(Branch(layer) for layer in module[:-1]), last])

    decoder = copy.copy(model.decoder)
    decoder._modules = {name: passed_over(module) for name, module in model.decoder._modules.items()}
    return decoder, last


def with_cache(trunk: TrunkOutput, old: Cache, new: Cache) -> TrunkOutput:
    """The same arguments with another cache."""

    def other(value: Any) -> Any:
        return new if value is old else value

    keywords = {name: other(value) for name, value in trunk.keywords.items()}
    return replace(trunk, arguments=tuple(other(value) for value in trunk.arguments), keywords=keywords)


@contextmanager
def decoding(model: MTPModel, *, eager: bool = False) -> Iterator[None]:
    """Evaluation mode, no gradients, attention without copies, and compiled code only where `compile_layers` made it.

    Threads take turns: one that decodes waits until another's batch has ended.

    Layers that were compiled for training are one program per place in the cache: more than torch keeps, and each would
    be compiled while decoding waits.

    Args:
        eager: no compiled code at all.
    """
    config = model.base.config.get_text_config()
    with _ONE_AT_A_TIME, evaluating(model), torch.inference_mode(), grouped(config), ExitStack() as held:
        if eager or model not in COMPILED:
            held.enter_context(torch.compiler.set_stance("force_eager"))
        else:  # a layer's number and sizes that happen to be equal are not part of a program
            held.enter_context(torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True))
            held.enter_context(torch.fx.experimental._config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
        yield


def check_cached(model: MTPModel) -> None:
    """Raise `ModelError` unless two uneven rows, taken in two steps, give what they give in one forward without caches.

    Asked once per model. Of one without weights, only what its config says of its layers is looked at.
    """
    if model in _CHECKED:
        return
    weight = model.unembedding().projection_VD
    if weight.is_meta:
        Slots(model.base.config.get_text_config(), 1, 1, weight.device, weight.dtype)
        return
    tokens_BT = torch.arange(1, 11, device=weight.device).remainder(weight.shape[0]).view(2, 5)
    name = type(model.base).__name__
    trunk = CachedTrunk(model, 2, 5, keep_output=False)
    with decoding(model, eager=True):
        expected_BTD = model(tokens_BT)[0]
        try:
            trunk.run(tokens_BT[:, :3], (0, 0))
            got_BQD = trunk.run(torch.stack([tokens_BT[0, 3:], tokens_BT[1, 2:4]]), (3, 2))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, KeyError) as problem:
            raise ModelError(
                f"{name} does not run with a cache and a mask, as decoding needs: {first_line(problem)}"
            ) from problem
    if not all(layer.is_initialized for layer in trunk.cache.layers):
        raise ModelError(
            f"{name} has layers that leave the cache alone: decoding does not know what they remember; use another "
            "model"
        )
    expected_BQD = torch.stack([expected_BTD[0, 3:], expected_BTD[1, 2:4]])
    share = float((got_BQD - expected_BQD).abs().max() / expected_BQD.abs().max().clamp(min=1e-6))
    if share > (0.05 if expected_BQD.dtype.itemsize < 4 else 1e-3):
        raise ModelError(
            f"{name} with a cache is {share:.1%} away from itself without: it cannot be decoded; use another model"
        )
    _CHECKED.add(model)
