"""What code that adds up figures needs to know of other ranks: how to ask, not who they are."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Reduce(Protocol):
    """Figures over all ranks; every rank must ask for the same ones in the same order."""

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    def __call__(self, total: Tensor) -> Tensor:
        """Sum of a tensor over all ranks."""
        ...

    def largest(self, value: Tensor) -> Tensor:
        """Elementwise maximum over all ranks."""
        ...

    def gather(self, own: Tensor) -> tuple[Tensor, slice]:
        """All ranks' tensors one after another along the first axis, whose length may differ, and where ours is."""
        ...


class Alone:
    """The `Reduce` of a single process."""

    size = 1

    def __call__(self, total: Tensor) -> Tensor:
        """The tensor itself."""
        return total

    def largest(self, value: Tensor) -> Tensor:
        """The tensor itself."""
        return value

    def gather(self, own: Tensor) -> tuple[Tensor, slice]:
        """The tensor itself, all of it."""
        return own, slice(0, len(own))


alone = Alone()
