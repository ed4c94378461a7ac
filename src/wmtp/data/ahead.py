"""Batches that are made by threads before they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What `make` gives for a number, made ahead by threads for the numbers that follow.

    `make` must be a pure function: then nothing but time depends on the threads. Threads end with the block.

    Args:
        end: the first number that nobody will ask for.
        workers: threads, each of which is one number ahead; 0 makes everything when it is asked for.
    """

    def __init__(self, make: Callable[[int], T], end: int, workers: int) -> None:
        self._make, self._end, self._workers = make, end, workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="wmtp-batches") if workers else None
        self._made: dict[int, Future[T]] = {}

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.clear()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __call__(self, number: int) -> T:
        """What belongs to a number; an error of `make` comes out here, in its turn."""
        if self._threads is None:
            return self._make(number)
        wanted = range(number, min(number + self._workers, self._end - 1) + 1)
        for each in wanted:
            if each not in self._made:
                self._made[each] = self._threads.submit(self._make, each)
        self._made = {each: made for each, made in self._made.items() if each in wanted}
        return self._made.pop(number).result()
