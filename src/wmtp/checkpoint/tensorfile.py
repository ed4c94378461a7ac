"""Safetensors files: written in a stream with a checksum, read with suspicion.

They are ordinary files of the format. Tensors of types that it cannot name are stored as bytes; the index (see
`wmtp.checkpoint.pieces`) knows what they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from wmtp.checkpoint.folder import as_checkpoint_error, well_formed
from wmtp.errors import CheckpointError
from wmtp.faults import fault
from wmtp.ranged import DTYPES, RangedTensors
from wmtp.storage import ObjectPath, Place, created

MAX_HEADER = 100_000_000
_SLICE = 16 << 20

NATIVE = {dtype: name for name, dtype in DTYPES.items()}
"""What every supported safetensors can name; tensors of other types are stored as bytes."""


@dataclass(frozen=True)
class Content:
    """The values of one piece; `read` gives them as bytes, perhaps on another device."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return prod(self.shape) * self.dtype.itemsize


# Writing


def write_tensors(path: Place, contents: Mapping[str, Content]) -> tuple[int, str]:
    """Write and sync a new safetensors file; return its size in bytes and its SHA-256."""
    return write_file(path, _chunks(contents))


def write_file(path: Place, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write and sync a new file; return size and SHA-256 of what was meant to be written."""
    digest, size = hashlib.sha256(), 0
    try:
        fault("ckpt_write")
        with created(path) as stream:
            for chunk in chunks:
                digest.update(chunk)
                size += stream.write(chunk)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return size, digest.hexdigest()


def _chunks(contents: Mapping[str, Content]) -> Iterator[bytes | memoryview]:
    """Wide elements first, so that every tensor in the file is aligned to its element."""
    ordered = sorted(contents.items(), key=lambda item: (-_stored_width(item[1]), item[0]))
    yield _header(ordered)
    for _, content in ordered:
        data = content.read().cpu().numpy().data
        for start in range(0, len(data), _SLICE):
            yield data[start : start + _SLICE]


def _stored_width(content: Content) -> int:
    return content.dtype.itemsize if content.dtype in NATIVE else 1


def _header(ordered: Sequence[tuple[str, Content]]) -> bytes:
    entries, end = {}, 0
    for key, content in ordered:
        native = NATIVE.get(content.dtype)
        shape = list(content.shape) if native else [content.nbytes]
        entries[key] = {"dtype": native or "U8", "shape": shape, "data_offsets": [end, end + content.nbytes]}
        end += content.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"the tensors' names and shapes take {len(text)} bytes, {MAX_HEADER} are possible")
    return len(text).to_bytes(8, "little") + text


# Reading


@contextmanager
def opened_tensors(file: Place) -> Iterator[Any]:
    """The file, for `get`; whatever is wrong with it is a CheckpointError."""
    with as_checkpoint_error(f"{file} cannot be read"), well_formed(file):
        if isinstance(file, ObjectPath):
            yield RangedTensors(file)
            return
        _check_header(file)
        with safe_open(file, framework="pt", device="cpu") as opened:
            yield opened


def _check_header(file: Path) -> None:
    with open(file, "rb") as stream:
        prefix = stream.read(8)
        length, room = int.from_bytes(prefix, "little"), file.stat().st_size - 8
    if len(prefix) < 8 or length > min(room, MAX_HEADER):
        raise CheckpointError(f"{file} is malformed: header of {length} bytes, {min(room, MAX_HEADER)} possible")


def get(
    opened: Any, key: str, dtype: torch.dtype, shape: tuple[int, ...], box: tuple[slice, ...] | None = None
) -> torch.Tensor:
    """A copy of a tensor of an opened file, or of a box in it; the library itself hands out views of the file.

    Raises:
        ValueError: the file has another type or shape for it; the library's errors: it does not have it.
    """
    native = NATIVE.get(dtype)
    size = prod(shape) * dtype.itemsize
    entry = opened.get_slice(key)
    expected = (native or "U8", list(shape) if native else [size])
    if (entry.get_dtype(), entry.get_shape()) != expected:
        raise ValueError(f"{key!r} is {entry.get_dtype()} {entry.get_shape()}, the index says {expected}")
    if native and box is not None:
        part: torch.Tensor = entry[box]
        return part
    tensor: torch.Tensor = opened.get_tensor(key).clone()  # as bytes, since not every type can be cloned
    if not native:
        tensor = tensor.view(dtype).reshape(shape)
    return tensor if box is None else tensor[box]
