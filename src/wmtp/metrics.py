"""Sums that become metrics: they add over micro-batches (and ranks), and are divided once, by their reader."""

from __future__ import annotations

import torch
from torch import Tensor

from wmtp.ranks import Reduce


class Meter:
    """Named additive tensors, and named extremes."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.lows: dict[str, Tensor] = {}
        self.highs: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add each value to its sum."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def extremes(self, name: str, low: Tensor, high: Tensor) -> None:
        """Widen the range of `name`."""
        self.lows[name] = torch.minimum(self.lows[name], low) if name in self.lows else low
        self.highs[name] = torch.maximum(self.highs[name], high) if name in self.highs else high

    def merge(self, other: Meter) -> None:
        """Take in everything the other one has seen."""
        self.add(**other.sums)
        for name in other.lows:
            self.extremes(name, other.lows[name], other.highs[name])

    def merge_heads(self, other: Meter) -> None:
        """Take in the figures of the next head: per-head sums (named `..._K`) are appended, the others added."""
        per_head = {name: value for name, value in other.sums.items() if name.endswith("_K")}
        for name, value in per_head.items():
            self.sums[name] = torch.cat([self.sums[name], value]) if name in self.sums else value
        rest = Meter()
        rest.sums = {name: value for name, value in other.sums.items() if name not in per_head}
        rest.lows, rest.highs = other.lows, other.highs
        self.merge(rest)

    def reduced(self, reduce: Reduce) -> dict[str, Tensor]:
        """The sums over all ranks, added in one go; the extremes become those of all ranks."""
        if reduce.size == 1:
            return dict(self.sums)
        flat = torch.cat([value.flatten().double() for value in self.sums.values()])
        parts = torch.split(reduce(flat), [value.numel() for value in self.sums.values()])
        for name in self.lows:
            low, high = reduce.largest(torch.stack([-self.lows[name], self.highs[name]]))
            self.lows[name], self.highs[name] = -low, high
        pairs = zip(self.sums.items(), parts, strict=True)
        return {name: part.view(value.shape).to(value.dtype) for (name, value), part in pairs}
