"""A folder of columns: `NAME.bin` holds the values of one column, `header.json` says what they are and where from.

Columns are written as they come, so that nothing is held that is not being worked on, and read as memory-mapped
arrays, so that several processes share one copy and touch only what they ask for. A folder takes its name when it is
complete and on the disk; before, and after a failure, nothing has that name.
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
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import DataError, UsageError, WmtpError
from wmtp.storage import fsync_folder, write_atomic

HEADER = "header.json"
DTYPES = ("int8", "uint8", "int32", "uint32", "int64", "float64")


class ColumnWriter:
    """Columns of a folder in the making."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.folder, self._stack = folder, files
        self._files: dict[str, IO[bytes]] = {}
        self._columns: dict[str, tuple[str, int]] = {}

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Put values at the end of a column."""
        if name not in self._files:
            self._files[name] = self._stack.enter_context((self.folder / f"{name}.bin").open("wb"))
            self._columns[name] = (values.dtype.name, 0)
        kind, count = self._columns[name]
        if values.dtype.name != kind:
            raise TypeError(f"column {name} holds {kind}, got {values.dtype.name}")
        self._files[name].write(np.ascontiguousarray(values).data)
        self._columns[name] = (kind, count + values.size)

    def length(self, name: str) -> int:
        """Values that a column has so far."""
        return self._columns.get(name, ("", 0))[1]

    def columns(self) -> Columns:
        """What was written so far."""
        for file in self._files.values():
            file.flush()
        arrays = {name: _mapped(self.folder / f"{name}.bin", *column) for name, column in self._columns.items()}
        return Columns({}, arrays)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Put all columns and what is known of them on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        write_atomic(self.folder / HEADER, json.dumps({**about, "columns": self._columns}, indent=2) + "\n")


@contextmanager
def new_folder(out: Path, kind: str) -> Iterator[ColumnWriter]:
    """Write a folder; it is called `out` once the block has ended well. An older one of the same kind is replaced.

    Raises:
        UsageError: something else is called `out`.
        WmtpError: the disk does not take it.
    """
    if out.exists() and _kind(out) != kind:
        raise UsageError(f"{out} is there already and is no {kind}; remove it, or name another folder")
    making = out.parent / f".{out.name}.making-{os.getpid()}-{secrets.token_hex(4)}"
    old = making.with_name(f"{making.name}-old")
    try:
        making.mkdir(parents=True)
        with ExitStack() as files:
            writer = ColumnWriter(making, files)
            yield writer
        if _kind(making) != kind:
            raise TypeError("`finish` was not called, or with another kind")
        if out.exists():
            out.rename(old)
        making.rename(out)
        fsync_folder(out.parent)
    except OSError as problem:
        raise WmtpError(f"cannot write {out}: {problem.strerror or problem}") from problem
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Columns:
    """What a folder holds."""

    about: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    """Memory-mapped, read-only, one-dimensional."""


def open_folder(folder: Path, kind: str, version: int, remedy: str) -> Columns:
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
            columns = about.pop("columns")
            arrays = {name: _mapped(folder / f"{name}.bin", *column) for name, column in columns.items()}
            return Columns(about, arrays)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise DataError(f"the {kind} {folder} is damaged ({problem}); {remedy}") from problem
    raise DataError(f"{folder} is {found[0]} of version {found[1]}, expected {kind} of version {version}; {remedy}")


def _kind(folder: Path) -> str | None:
    """What a folder says it is, if it says so."""
    try:
        about: Any = json.loads((folder / HEADER).read_bytes())
    except (OSError, ValueError):
        return None
    return about.get("kind") if isinstance(about, dict) else None


def _mapped(path: Path, dtype: str, count: int) -> NDArray[Any]:
    if dtype not in DTYPES:
        raise ValueError(f"{path.name} holds values of an unknown kind")
    size = path.stat().st_size
    if size != count * np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} has {size:,} bytes, {count * np.dtype(dtype).itemsize:,} were written")
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
