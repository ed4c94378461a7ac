"""Pieces of a file, read by their position.

Pieces that touch one another come in one read. In a store, where a request takes as long as a megabyte does, those that
are near come together too, and the next reads are on their way while pieces are used.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from wmtp.data.sampling import Integers
from wmtp.storage import Snapshot

TOUCHING, NEAR = 0, 1 << 20
"""Bytes that may lie between pieces that come together: on a disk, in a store."""
MOST = 4 << 20
"""Bytes of one read, unless it is a single piece or ends with one."""
AT_ONCE = 8
"""Reads that are on their way from a store."""


def read_pieces(file: int | Snapshot, start_N: Integers, end_N: Integers) -> Iterator[bytes]:
    """The bytes from each start to before its end, in the order asked for; fewer where a file on the disk is shorter.

    Args:
        file: a descriptor, or one version of an object.

    Raises:
        OSError: it cannot be read.
        StorageError: the store's; or the object was replaced.
    """
    first_S = _firsts(start_N, end_N, TOUCHING if isinstance(file, int) else NEAR)
    starts, ends = start_N.tolist(), end_N.tolist()
    spans = [(starts[first], ends[stop - 1]) for first, stop in pairwise(first_S)]
    contents = _now(file, spans) if isinstance(file, int) else _ahead(file, spans)
    for (first, stop), content in zip(pairwise(first_S), contents, strict=True):
        origin = starts[first]
        for i in range(first, stop):
            yield content[starts[i] - origin : ends[i] - origin]


def _firsts(start_N: Integers, end_N: Integers, gap: int) -> list[int]:
    """The first piece of every read, and behind them the number of pieces."""
    apart_N = start_N[1:] - end_N[:-1]
    other = (apart_N < 0) | (apart_N > gap) | (start_N[1:] // MOST != start_N[:-1] // MOST)
    first_S = [0, *(np.flatnonzero(other) + 1).tolist()] if len(start_N) else []
    return [*first_S, len(start_N)]


def _now(descriptor: int, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The content of each span of a file on the disk."""
    for start, end in spans:
        yield os.pread(descriptor, end - start, start)


def _ahead(snapshot: Snapshot, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The content of each span of an object."""

    def fetch(start: int, end: int) -> bytes:
        content = bytearray(end - start)
        snapshot.read_into(start, memoryview(content))
        return bytes(content)

    under_way = deque[Future[bytes]]()
    with ThreadPoolExecutor(AT_ONCE, "wmtp-pieces") as threads:
        for span in spans:
            if len(under_way) == AT_ONCE:
                yield under_way.popleft().result()
            under_way.append(threads.submit(fetch, *span))
        while under_way:
            yield under_way.popleft().result()
