"""Model folders in an object store: small files at hand for libraries that want a disk, weights in a stream.

    reading    `at_hand` gives a temporary folder of all but weights; weights come by ranges (`wmtp.ranged`), or, for
               formats that must be mapped, through a temporary file (`spooled`)
    writing    `published` lets a library write its small files into a temporary folder, while its weights go straight
               into the store; `config.json` comes last, for a folder without it is no model

Temporary files are in memory where the system has a place for that (/dev/shm), and are gone when they were read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmtp.errors import ModelError
from wmtp.formats.sums import write_sums
from wmtp.ranged import DTYPES, RangedTensors
from wmtp.storage import ObjectPath, Place, copy, created

CONFIGS = ("config.json", "params.json")
"""What makes a folder a model: it is removed first and written last."""
WRITING = ".writing"
"""Marks a folder whose model is not whole yet."""
MOST_SMALL = 256 << 20
"""Bytes of all files but the weights; a limit for folders that are something else."""
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".msgpack", ".h5", ".onnx")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


# Reading


@contextmanager
def at_hand(folder: ObjectPath) -> Iterator[Path]:
    """A local folder with the files of a model folder, but weights and what is further below.

    Raises:
        ModelError: together they are too large for that.
    """
    small = {
        key: size
        for key, size in folder.store.listed(folder.prefix)
        if "/" not in key[len(folder.prefix) :] and not key.endswith(_WEIGHTS)
    }
    if sum(small.values()) > MOST_SMALL:
        raise ModelError(
            f"{folder}: its files beside weights have {sum(small.values()):,} bytes; expected a model folder, with at "
            f"most {MOST_SMALL:,}"
        )
    with _temporary() as made:
        for key in small:
            (made / key[len(folder.prefix) :]).write_bytes(folder.store.get(key))
        yield made


@contextmanager
def spooled(path: ObjectPath) -> Iterator[Path]:
    """A local copy of one object, for what must be mapped; it takes the object's size on the disk of TMPDIR."""
    with tempfile.TemporaryDirectory(prefix="wmtp-") as made:
        copy(path, Path(made) / path.name)
        yield Path(made) / path.name


def opened(path: Place, held: ExitStack) -> Any:
    """A safetensors file, open as the library opens it."""
    from safetensors import safe_open

    if isinstance(path, ObjectPath):
        return RangedTensors(path)
    return held.enter_context(safe_open(path, framework="pt", device="cpu"))


def tensors_of(path: Place, widened: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Args:
        widened: narrower floating-point tensors of an object become this type as they arrive.
    """
    from safetensors.torch import load_file

    if not isinstance(path, ObjectPath):
        local: dict[str, Tensor] = load_file(path)
        return local
    return {name: _wide(tensor, widened) for name, tensor in RangedTensors(path).read()}


def _wide(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    narrower = dtype is not None and tensor.is_floating_point() and tensor.itemsize < dtype.itemsize
    return tensor.to(dtype) if narrower else tensor


# Writing


def write_tensors(path: ObjectPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """A safetensors object in a stream, one tensor at a time in memory beside those that are given; its SHA-256."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        header[name] = {
            "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes],
        }  # fmt: skip
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for _, tensor in ordered:
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

    digest = hashlib.sha256()
    with created(path) as stream:
        for piece in pieces():
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


def published(folder: ObjectPath, write: Callable[[Path], None], *, on_disk: bool = False) -> None:
    """The files that `write` makes in a local folder, in the store.

    What it gives to safetensors' `save_file`, as transformers does too, is never in that folder. Until all is there the
    folder is no model; one that was there is gone from the first moment on.

    Args:
        on_disk: the local folder is in TMPDIR, for files that are large.
    """
    with _temporary(on_disk) as made, _replacing(folder) as written, _weights_into(folder, made, written) as sums:
        write(made)
        write_sums(made, sums)
        small = sorted((path for path in made.rglob("*") if path.is_file()), key=lambda path: path.name in CONFIGS)
        for path in small:
            written.append(folder / path.relative_to(made).as_posix())
            copy(path, written[-1])


def copied(source: ObjectPath, target: ObjectPath) -> None:
    """The same model folder once more, as `published` makes one.

    Raises:
        ModelError: there is no whole model at the source.
    """
    if not any((source / name).is_file() for name in CONFIGS):
        raise ModelError(f"{source} holds no whole model: a write that did not end has left it; write it again")
    with _replacing(target) as written:
        for path in sorted(source.files(), key=lambda path: path.name in CONFIGS):
            written.append(target / path.key.removeprefix(source.prefix))
            copy(path, written[-1])


@contextmanager
def _replacing(folder: ObjectPath) -> Iterator[list[ObjectPath]]:
    """Around the writing of a model: before it there is none in the folder, after it only what the block has listed.

    What an earlier write had sent when it was killed is dropped.
    """
    folder.store.abandon(folder.prefix, below=False)
    before, written = list(folder.files()), list[ObjectPath]()
    folder.store.put((folder / WRITING).key, b"")
    folder.store.remove([(folder / name).key for name in CONFIGS])
    yield written
    old = [path.key for path in before if path not in written]
    folder.store.remove([*old, (folder / WRITING).key])


@contextmanager
def _weights_into(folder: ObjectPath, made: Path, written: list[ObjectPath]) -> Iterator[dict[str, str]]:
    """Within it, what `save_file` would write into a local folder goes into the store, and is listed. Gives the SHA-256
    of each file by name."""
    from safetensors import torch as library
    from transformers import modeling_utils

    def save_file(tensors: dict[str, Tensor], filename: Any, metadata: dict[str, str] | None = None) -> None:
        written.append(folder / Path(filename).relative_to(made).as_posix())
        sums[Path(filename).name] = write_tensors(written[-1], tensors, metadata)

    sums: dict[str, str] = {}
    originals = library.save_file, modeling_utils.safe_save_file
    library.save_file = modeling_utils.safe_save_file = save_file
    try:
        yield sums
    finally:
        library.save_file, modeling_utils.safe_save_file = originals


@contextmanager
def _temporary(on_disk: bool = False) -> Iterator[Path]:
    memory = "/dev/shm"
    there = memory if not on_disk and os.path.isdir(memory) and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="wmtp-", dir=there) as made:
        yield Path(made)
