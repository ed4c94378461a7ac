"""Key-value caches in which slot s of row b holds position s of that row, whatever its batch mates do.

Rows start with prompts of different lengths and accept drafts at different paces, so a cache that all rows fill in step
would need padding, and copies to take a rejected draft back. Here every row writes at its own length. Taking back is
forgetting: the row's length stays behind, and the next forward writes over what was rejected. No slot is ever copied,
and memory is what was reserved at the start. What a query may see is decided by the mask alone: slots up to its own
position, within the sliding window where the layer has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from wmtp.decoding.attention import GROUPED
from wmtp.errors import ModelError


@dataclass(frozen=True)
class Place:
    """Where a forward over `width` tokens a row goes: row b's i-th token to slot `start[b] + i`."""

    start: tuple[int, ...]
    width: int
    slot_BQ: Tensor
    slot_S: Tensor
    """All slots up to the last that any row writes; two at least, since code compiled for one fits no other number."""

    @property
    def slice(self) -> slice | None:
        """The slots that are written, where they are the same in all rows."""
        start, end = self.start[0], len(self.slot_S)
        return slice(start, end) if min(self.start) == max(self.start) and start + self.width == end else None


class SlotCache(Cache):  # type: ignore[misc]
    """A cache whose layers are written outside compiled code, for which every place in it would be another program."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        """As transformers' cache: hand over to a layer's `update`."""
        states: tuple[Tensor, Tensor] = super().update(*arguments, **keywords)
        return states


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """The keys and values `[B, H, capacity, D]` of one layer."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Reserve all slots. They start as zeros: a masked slot must hold a finite number."""
        rows, heads = key_states.shape[:2]
        capacity = self.slots.capacity
        self.keys = key_states.new_zeros(rows, heads, capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(rows, heads, capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values `[B, H, Q, D]` to the slots of the running forward; all slots up to its end."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.slots.place
        written = place.slice
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            if written is not None:
                held[:, :, written] = new
            else:
                held[self.slots.row_B1, :, place.slot_BQ] = new.transpose(1, 2)
        end = place.slot_S.shape[0]
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        if self.is_initialized:
            self.keys, self.values = select_rows(self.keys, rows), select_rows(self.values, rows)

    def get_seq_length(self) -> int:
        """Slots that hold something before the running forward."""
        return max(self.slots.place.start)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what `update` will give back."""
        return len(self.slots.place.slot_S), 0

    def get_max_length(self) -> int:
        """Slots of a row."""
        return self.slots.capacity


class Slots:
    """The place of the running forward, which every layer of every cache reads, and the masks that go with it.

    Args:
        rows: of the batch.
        limit: positions a row may reach. One slot more takes what is written past a row's end, and is never read.

    Raises:
        ModelError: attention that these masks do not describe.
    """

    def __init__(self, config: Any, rows: int, limit: int, device: torch.device, dtype: torch.dtype) -> None:
        if config._attn_implementation not in ("eager", "sdpa", GROUPED):
            raise ModelError(
                f"decoding needs attention that takes a mask: load the model with attn_implementation 'sdpa' or "
                f"'eager', got {config._attn_implementation!r}"
            )
        self.window_of = attention_windows(config)
        self.limit, self.capacity = limit, limit + 1
        self.device, self.dtype = device, dtype
        self.row_B1 = torch.arange(rows, device=device)[:, None]
        self.place = self.at((0,) * rows, 0)

    def at(self, start: Sequence[int], width: int) -> Place:
        """The next `width` slots of rows that hold `start` tokens each."""
        start_B1 = torch.tensor(start, device=self.device)[:, None]
        slot_BQ = (start_B1 + torch.arange(width, device=self.device)).clamp_(max=self.limit)
        slot_S = torch.arange(min(max(max(start) + width, 2), self.capacity), device=self.device)
        return Place(tuple(start), width, slot_BQ, slot_S)

    def cache(self, num_layers: int) -> SlotCache:
        """A cache of so many layers."""
        return SlotCache(layers=[SlotLayer(self) for _ in range(num_layers)])

    def position_BQ(self) -> Tensor:
        """Position ids of the running forward."""
        return self.place.slot_BQ.clamp(max=self.limit - 1)

    def mask(self) -> Tensor | dict[str, Tensor]:
        """What is added to the attention scores `[B, 1, Q, slots]`, by layer type where the config names types."""
        if isinstance(self.window_of, dict):
            return {kind: self._mask(window) for kind, window in self.window_of.items()}
        return self._mask(self.window_of)

    def _mask(self, window: int | None) -> Tensor:
        slot_S, query_BQ1 = self.place.slot_S, self.place.slot_BQ[:, :, None]
        seen_BQS = slot_S <= query_BQ1
        if window is not None:
            seen_BQS &= slot_S > query_BQ1 - window
        hidden = torch.finfo(self.dtype).min
        return torch.zeros(seen_BQS.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen_BQS, hidden)[
            :, None
        ]

    def select(self, rows: Sequence[int], caches: Sequence[Cache]) -> None:
        """Keep these rows of the batch, in every cache."""
        for layer in {id(layer): layer for cache in caches for layer in cache.layers}.values():
            layer.select(rows)
        self.row_B1 = torch.arange(len(rows), device=self.device)[:, None]


def select_rows(held: Tensor, rows: Sequence[int]) -> Tensor:
    """`held[rows]`. Rows that only take the places of rows that leave are copied there, and the others stay."""
    moved = [(to, row) for to, row in enumerate(rows) if row != to]
    if len(rows) > len(held) or any(row < len(rows) for _, row in moved):
        return held[torch.tensor(rows, device=held.device)]
    for to, row in moved:
        held[to] = held[row]
    return held[: len(rows)]


def attention_windows(config: Any) -> dict[str, int | None] | int | None:
    """Width of the sliding window, None for full attention; by layer type where the config names layer types.

    Transformers' models take one mask, or one per type if their config has `layer_types`.

    Raises:
        ModelError: a type of layer that keeps something else than keys and values of single positions.
    """
    window = getattr(config, "sliding_window", None)
    if getattr(config, "attention_chunk_size", None) is not None:
        raise ModelError(f"decoding knows only full and sliding attention; {config.model_type} attends in chunks")
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return window
    known = {"full_attention": None, "sliding_attention": window}
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise ModelError(f"decoding knows only full and sliding attention; {config.model_type} has {unknown[0]} layers")
    return {kind: known[kind] for kind in sorted(set(kinds))}
