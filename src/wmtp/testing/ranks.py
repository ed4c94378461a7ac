"""Threads that tell one another figures as processes do: a stand-in for several ranks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Ranks:
    """Several ranks in one process. A rank that asks for something else than the others is an error, not a standstill.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._slots: list[tuple[str, Tensor]] = [("", torch.zeros(0))] * size
        self._barrier = Barrier(size, timeout=20)

    def reduce(self, rank: int) -> OfRank:
        """The `Reduce` of one rank, for the thread that plays it."""
        return OfRank(self, rank)

    def run(self, work: Callable[[int, OfRank], T]) -> list[T]:
        """What `work` gives for each rank, all at once.

        Raises:
            RuntimeError: ranks asked for different things, or for different numbers of things.
        """

        def of_rank(rank: int) -> T:
            try:
                result = work(rank, self.reduce(rank))
                self.exchange(rank, "the end", torch.zeros(0))
            except BaseException:  # raised again: an interrupt too must let the other ranks go
                self._barrier.abort()
                raise
            return result

        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(of_rank, rank) for rank in range(self.size)]
        problems = [problem for future in futures if (problem := future.exception()) is not None]
        told = [problem for problem in problems if not isinstance(problem, BrokenBarrierError)]
        if problems:
            raise (told or problems)[0]
        return [future.result() for future in futures]

    def exchange(self, rank: int, what: str, value: Tensor) -> list[Tensor]:
        """Every rank's value, once all have given theirs for the same thing."""
        self._slots[rank] = (what, value)
        self._barrier.wait()
        names, values = zip(*self._slots, strict=True)
        self._barrier.wait()
        if len(set(names)) > 1:
            raise RuntimeError(f"ranks ask for different things at the same time: {', '.join(names)}")
        return list(values)


class OfRank:
    """One thread's `Reduce`."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.size = ranks, rank, ranks.size

    def __call__(self, total: Tensor) -> Tensor:
        """Sum over all ranks."""
        return torch.stack(self.ranks.exchange(self.rank, f"sum of {tuple(total.shape)}", total)).sum(0)

    def largest(self, value: Tensor) -> Tensor:
        """Elementwise maximum over all ranks."""
        return torch.stack(self.ranks.exchange(self.rank, f"largest of {tuple(value.shape)}", value)).amax(0)

    def gather(self, own: Tensor) -> tuple[Tensor, slice]:
        """All ranks' tensors one after another, and where ours is."""
        parts = self.ranks.exchange(self.rank, f"gather of {tuple(own.shape[1:])}", own)
        start = sum(len(part) for part in parts[: self.rank])
        return torch.cat(parts), slice(start, start + len(own))
