"""Safetensors in an object store, read by ranges: what `safetensors.safe_open` is for a file on the disk.

Only the header and the tensors that are asked for are fetched. Large ones come in several ranges at once, straight into
the memory that they will have; small neighbours come together. Beside the tensors themselves a few MiB are held.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from wmtp.storage import ObjectPath, Snapshot

AT_ONCE = 8
RANGE = 8 << 20
"""Bytes of one request, at most."""
TOGETHER = 1 << 20
"""Neighbours that are not larger come in one request."""
AHEAD = 2 * AT_ONCE * RANGE
"""Bytes that are asked for before the tensors in front of them are taken."""
MOST_HEADER = 100_000_000
_FIRST = 1 << 16
"""Bytes of the first request, which holds the header of most files."""

DTYPES = {
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
    "F32": torch.float32, "I32": torch.int32, "U32": torch.uint32,
    "F16": torch.float16, "BF16": torch.bfloat16, "I16": torch.int16, "U16": torch.uint16,
    "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""By their names in a header."""


@dataclass(frozen=True)
class _Entry:
    """A tensor: its bytes are from `start` to before `stop` of the object."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def empty(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """Memory for it, or for so many of its rows."""
        return torch.empty(self.shape if shape is None else shape, dtype=DTYPES[self.dtype])


class RangedTensors:
    """The tensors of one object by name.

    Raises:
        FileNotFoundError: there is no such object.
        ValueError: it is no safetensors file, or is cut off.
        StorageError: the store's; so too, here or from a read, if the object is replaced meanwhile.
    """

    def __init__(self, path: ObjectPath) -> None:
        self._snapshot = path.snapshot()
        self._entries = _entries(self._snapshot)

    def __enter__(self) -> RangedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def keys(self) -> list[str]:
        """Names, in the order of the file."""
        return list(self._entries)

    def get_slice(self, name: str) -> RangedSlice:
        """A tensor that is not read yet. Raises `KeyError`."""
        return RangedSlice(self._snapshot, self._entries[name])

    def get_tensor(self, name: str) -> Tensor:
        """A whole tensor. Raises `KeyError`."""
        return self.get_slice(name)[...]

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors in the order of the file, the next ones on their way."""
        under_way: deque[tuple[int, dict[str, Tensor], list[Future[None]]]] = deque()
        held = 0
        with ThreadPoolExecutor(AT_ONCE, "wmtp-ranges") as threads:
            for group in _groups(self._entries):
                tensors = {name: entry.empty() for name, entry in group.items()}
                size = sum(entry.stop - entry.start for entry in group.values())
                while under_way and held + size > AHEAD:
                    held -= under_way[0][0]
                    yield from _arrived(under_way.popleft())
                under_way.append((size, tensors, _ask(self._snapshot, group, tensors, threads)))
                held += size
            while under_way:
                yield from _arrived(under_way.popleft())


class RangedSlice:
    """A tensor that is read as far as it is indexed: of the first axis only the rows that are asked for."""

    def __init__(self, snapshot: Snapshot, entry: _Entry) -> None:
        self._snapshot, self._entry = snapshot, entry

    def get_shape(self) -> list[int]:
        """Of the whole tensor."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """As the header names it."""
        return self._entry.dtype

    def __getitem__(self, index: Any) -> Tensor:
        entry, box = self._entry, index if isinstance(index, tuple) else (index,)
        rows = slice(None)
        if entry.shape and box and isinstance(box[0], slice) and box[0].step in (None, 1):
            rows, index = box[0], (slice(None), *box[1:])
        first, stop, _ = rows.indices(entry.shape[0]) if entry.shape else (0, 1, 1)
        row_bytes = prod(entry.shape[1:]) * DTYPES[entry.dtype].itemsize
        tensor = entry.empty((max(0, stop - first), *entry.shape[1:]) if entry.shape else ())
        jobs = _ranges(entry.start + first * row_bytes, _memory(tensor))
        if len(jobs) == 1:
            self._snapshot.read_into(*jobs[0])
        elif jobs:
            with ThreadPoolExecutor(AT_ONCE, "wmtp-ranges") as threads:
                for future in [threads.submit(self._snapshot.read_into, *job) for job in jobs]:
                    future.result()
        return tensor[index]


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _ranges(start: int, view: memoryview) -> list[tuple[int, memoryview]]:
    """Arguments of `Snapshot.read_into` that fill some memory."""
    return [(start + i, view[i : i + RANGE]) for i in range(0, len(view), RANGE)]


def _groups(entries: Mapping[str, _Entry]) -> Iterator[dict[str, _Entry]]:
    """Tensors that are asked for together, in the order of the file."""
    group: dict[str, _Entry] = {}
    size = 0
    for name, entry in entries.items():
        own = entry.stop - entry.start
        if group and size + own > TOGETHER:
            yield group
            group, size = {}, 0
        group[name] = entry
        size += own
    if group:
        yield group


def _ask(
    snapshot: Snapshot, group: Mapping[str, _Entry], tensors: Mapping[str, Tensor], threads: ThreadPoolExecutor
) -> list[Future[None]]:
    if len(group) > 1:
        return [threads.submit(_fill, snapshot, group, tensors)]
    [(name, entry)] = group.items()
    return [threads.submit(snapshot.read_into, *job) for job in _ranges(entry.start, _memory(tensors[name]))]


def _fill(snapshot: Snapshot, group: Mapping[str, _Entry], tensors: Mapping[str, Tensor]) -> None:
    """Small neighbours, from one range."""
    start, stop = min(entry.start for entry in group.values()), max(entry.stop for entry in group.values())
    content = memoryview(bytearray(stop - start))
    if content:
        snapshot.read_into(start, content)
    for name, entry in group.items():
        _memory(tensors[name])[:] = content[entry.start - start : entry.stop - start]


def _arrived(asked: tuple[int, dict[str, Tensor], list[Future[None]]]) -> Iterator[tuple[str, Tensor]]:
    _, tensors, futures = asked
    for future in futures:
        future.result()
    yield from tensors.items()


# The header


def _entries(snapshot: Snapshot) -> dict[str, _Entry]:
    """What is where, checked: tensors fill the object, without gap or overlap."""
    size = snapshot.size
    start = bytearray(min(_FIRST, size))
    snapshot.read_into(0, memoryview(start))
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > min(size - 8, MOST_HEADER):
        raise ValueError(f"its header would have {length} bytes of {size}")
    header = bytearray(length)
    known = start[8 : 8 + length]
    header[: len(known)] = known
    if length > len(known):
        snapshot.read_into(8 + len(known), memoryview(header)[len(known) :])
    found: dict[str, _Entry] = {}
    for name, described in json.loads(header).items():
        if name != "__metadata__":
            first, last = described["data_offsets"]
            shape = tuple(int(length) for length in described["shape"])
            found[name] = _Entry(described["dtype"], shape, 8 + length + first, 8 + length + last)
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
    at = 8 + length
    for name, entry in ordered.items():
        if entry.dtype not in DTYPES:
            raise ValueError(f"{name!r} is of type {entry.dtype!r}, which is not known")
        if entry.start != at or entry.stop - at != prod(entry.shape) * DTYPES[entry.dtype].itemsize:
            raise ValueError(f"{name!r} is not where it should be")
        at = entry.stop
    if at != size:
        raise ValueError(f"its tensors end at byte {at}, the object at {size}")
    return ordered
