"""A folder of columns: `NAME.bin` holds the values of one column, `header.json` says what they are and where from.

Columns are written as they come, so that nothing is held that is not being worked on, and read as memory-mapped
arrays, so that several processes share one copy and touch only what they ask for. A folder takes its name when it is
complete and on the disk; before, and after a failure, nothing has that name.

In a store columns are streams of which the header is the last: without it a folder is none. They are read whole, into
the memory of the process, each when it is first asked for; of `Columns.pieces` no more than the pieces.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmtp.data.pieces import read_pieces
from wmtp.data.sampling import Integers
from wmtp.errors import DataError, UsageError, WmtpError
from wmtp.storage import ObjectPath, Place, Sink, Snapshot, blocks, created, fsync_folder, remove_objects, write_atomic

HEADER = "header.json"
DTYPES = ("int8", "uint8", "int32", "uint32", "int64", "float64")


class ColumnWriter:
    """Columns of a folder in the making."""

    def __init__(self, folder: Place, files: ExitStack) -> None:
        self.folder, self._stack = folder, files
        self._files: dict[str, Sink] = {}
        self._columns: dict[str, tuple[str, int]] = {}

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Put values at the end of a column."""
        if name not in self._files:
            self._files[name] = self._stack.enter_context(created(self.folder / _file(name)))
            self._columns[name] = (values.dtype.name, 0)
        kind, count = self._columns[name]
        if values.dtype.name != kind:
            raise TypeError(f"column {name} holds {kind}, got {values.dtype.name}")
        if values.size:
            self._files[name].write(np.ascontiguousarray(values).data)
        self._columns[name] = (kind, count + values.size)

    def length(self, name: str) -> int:
        """Values that a column has so far."""
        return self._columns.get(name, ("", 0))[1]

    def columns(self) -> Columns:
        """What was written; nothing can be appended to it any more."""
        self._stack.close()
        return _opened(self.folder, self._columns, {})

    def finish(self, about: Mapping[str, Any]) -> None:
        """Put all columns and what is known of them on the disk, or in the store."""
        self._stack.close()
        write_atomic(self.folder / HEADER, json.dumps({**about, "columns": self._columns}, indent=2) + "\n")


@contextmanager
def new_folder(out: Place, kind: str) -> Iterator[ColumnWriter]:
    """Write a folder; it is called `out` once the block has ended well. An older one of the same kind is replaced; in a
    store it goes first.

    Raises:
        UsageError: something else is called `out`.
        WmtpError: the disk, or the store, does not take it.
    """
    if not _is_free(out, kind):
        raise UsageError(f"{out} is there already and is no {kind}; remove it, or name another folder")
    try:
        with _making(out) as folder:
            with ExitStack() as files:
                yield ColumnWriter(folder, files)
            if _kind(folder) != kind:
                raise TypeError("`finish` was not called, or with another kind")
    except OSError as problem:
        raise WmtpError(f"cannot write {out}: {problem.strerror or problem}") from problem


def _is_free(out: Place, kind: str) -> bool:
    """Whether nothing is there but an older one of the same kind, or columns that a killed process left in a store."""
    if not out.exists() or _kind(out) == kind:
        return True
    return isinstance(out, ObjectPath) and all(path.name.endswith(".bin") for path in out.iterdir())


@contextmanager
def _making(out: Place) -> Iterator[Place]:
    """The folder to write to: on a disk one beside `out`, which gets its name."""
    if isinstance(out, ObjectPath):
        remove_objects(out, HEADER)
        out.store.abandon(out.prefix)
        yield out
        return
    making = out.parent / f".{out.name}.making-{os.getpid()}-{secrets.token_hex(4)}"
    old = making.with_name(f"{making.name}-old")
    try:
        making.mkdir(parents=True)
        yield making
        if out.exists():
            out.rename(old)
        making.rename(out)
        fsync_folder(out.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Columns:
    """What a folder holds."""

    about: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    """One-dimensional, read-only; memory-mapped, or fetched from a store when first asked for."""

    def pieces(self, name: str, start_N: Integers, end_N: Integers) -> Iterator[NDArray[Any]]:
        """The values of a column from each start to before its end.

        Raises:
            OSError, StorageError: as `read_pieces`.
        """
        if isinstance(self.arrays, _Fetched):
            yield from self.arrays.pieces(name, start_N, end_N)
        else:
            array = self.arrays[name]
            yield from (array[start:end] for start, end in zip(start_N.tolist(), end_N.tolist(), strict=True))


class _Fetched(Mapping[str, NDArray[Any]]):
    """Columns of a folder in a store, each in memory once it was asked for."""

    def __init__(self, folder: ObjectPath, columns: Mapping[str, tuple[str, int]]) -> None:
        self._folder, self._columns = folder, columns
        self._found: dict[str, NDArray[Any]] = {}
        self._versions: dict[str, Snapshot] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._found:
            path, (dtype, count) = self._folder / _file(name), self._columns[name]
            array = np.frombuffer(fetched(path), dtype)
            if len(array) != count:
                raise DataError(f"{path} was written to while it was read; run it again")
            array.flags.writeable = False
            self._found[name] = array
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def pieces(self, name: str, start_N: Integers, end_N: Integers) -> Iterator[NDArray[Any]]:
        """See `Columns.pieces`."""
        dtype = np.dtype(self._columns[name][0])
        places = (bound_N * dtype.itemsize for bound_N in (start_N, end_N))
        for content in read_pieces(self._version_of(name), *places):
            yield np.frombuffer(content, dtype)

    def _version_of(self, name: str) -> Snapshot:
        """That of the first reading, so that all pieces of a column are of one."""
        if name not in self._versions:
            self._versions[name] = (self._folder / _file(name)).snapshot()
        return self._versions[name]


def fetched(path: ObjectPath) -> bytearray:
    """All of an object, in memory.

    Raises:
        OSError, StorageError: as `wmtp.storage.blocks`.
    """
    content = bytearray()
    for block in blocks(path):
        content += block
    return content


def open_folder(folder: Place, kind: str, version: int, remedy: str) -> Columns:
    """The columns of a folder.

    Args:
        remedy: how the folder is made anew, for messages.

    Raises:
        DataError: it is not there, of another kind or version, or damaged.
    """
    if not folder.is_dir():
        raise DataError(f"no {kind} at {folder}; {remedy}")
    try:
        about: Any = json.loads((folder / HEADER).read_bytes())
        found = (about["kind"], about["version"])
        if found == (kind, version):
            return _opened(folder, about.pop("columns"), about)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise DataError(f"the {kind} {folder} is damaged ({problem}); {remedy}") from problem
    raise DataError(f"{folder} is {found[0]} of version {found[1]}, expected {kind} of version {version}; {remedy}")


def _kind(folder: Place) -> str | None:
    """What a folder says it is, if it says so."""
    try:
        about: Any = json.loads((folder / HEADER).read_bytes())
    except (OSError, ValueError):
        return None
    return about.get("kind") if isinstance(about, dict) else None


def _opened(folder: Place, columns: Mapping[str, tuple[str, int]], about: Mapping[str, Any]) -> Columns:
    """The columns that a header names, after a look at their sizes."""
    for name, (dtype, count) in columns.items():
        path = folder / _file(name)
        if dtype not in DTYPES:
            raise ValueError(f"{path.name} holds values of an unknown kind")
        size = path.stat().st_size
        if size != count * np.dtype(dtype).itemsize:
            raise ValueError(f"{path.name} has {size:,} bytes, {count * np.dtype(dtype).itemsize:,} were written")
    if isinstance(folder, ObjectPath):
        return Columns(about, _Fetched(folder, columns))
    return Columns(about, {name: _mapped(folder / _file(name), *column) for name, column in columns.items()})


def _file(name: str) -> str:
    """Of a column."""
    return f"{name}.bin"


def _mapped(path: Path, dtype: str, count: int) -> NDArray[Any]:
    if not count:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r", shape=(count,)))


def append_texts(writer: ColumnWriter, name: str, texts: Sequence[str]) -> None:
    """Two columns for texts: `NAME` their UTF-8 bytes, one after another, `NAME_end` where each ends."""
    encoded = [text.encode() for text in texts]
    sizes = np.array([len(text) for text in encoded], np.int64)
    end = writer.length(name)
    writer.append(name, np.frombuffer(b"".join(encoded), np.uint8))
    writer.append(f"{name}_end", end + np.cumsum(sizes))


def text_at(arrays: Mapping[str, NDArray[Any]], name: str, i: int) -> str:
    """The text that was number `i`."""
    ends = arrays[f"{name}_end"]
    return bytes(arrays[name][ends[i - 1] if i else 0 : ends[i]]).decode()
