"""Threads that add tensors as processes do: a hand-made stand-in for several ranks."""

from __future__ import annotations

from threading import Barrier
from typing import Any

import torch
from torch import Tensor


class Ranks:
    """Adds tensors over threads, as all_reduce does over processes."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = Barrier(size, timeout=20)

    def reduce(self, rank: int) -> OfRank:
        return OfRank(self, rank)

    def gather(self, rank: int, tensor: Tensor) -> Tensor:
        self.slots[rank] = tensor
        self.barrier.wait()
        stacked = torch.stack(self.slots)
        self.barrier.wait()
        return stacked


class OfRank:
    """One thread's `Reduce`."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank = ranks, rank

    def __call__(self, total: Tensor) -> Tensor:
        return self.ranks.gather(self.rank, total).sum(0)

    def largest(self, value: Tensor) -> Tensor:
        return self.ranks.gather(self.rank, value).amax(0)
