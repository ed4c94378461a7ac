"""Threads that add tensors as processes do: a hand-made stand-in for several ranks."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier
from typing import Any

import torch
from torch import Tensor


class Ranks:
    """Adds tensors over threads, as all_reduce does over processes."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = Barrier(size, timeout=20)

    def reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        def add(tensor: Tensor) -> Tensor:
            self.slots[rank] = tensor
            self.barrier.wait()
            total = torch.stack(self.slots).sum(0)
            self.barrier.wait()
            return total

        return add
