"""Files of weights are looked at before a library opens them: what would cost much to find out is found out here.

A safetensors header may list a million empty tensors (a minute and 700 MB), a zip may inflate to a thousand times its
size, a pickled tensor may claim 10^12 elements that share one number. None of this needs the file's content to be told.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmtp.errors import ModelError, first_line
from wmtp.storage import Place, matches

MOST_HEADER = 8 * 2**20
"""Bytes of a safetensors header, or of the list of files in a zip, or of the pickle in it."""
MOST_TENSORS = 50_000
MOST_DIMENSIONS = 8

_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ZIP64_PLACE = struct.Struct("<4sLQL")


def check_safetensors(path: Place) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file, if its header is no larger than any model's; the rest is the
    library's to check.

    Raises:
        ModelError: it is, with the file's name.
    """
    return {name: tuple(entry["shape"]) for name, entry in _entries(path).items()}


def check_floating(path: Place, names: Collection[str]) -> None:
    """Raise `ModelError` that names the first of these tensors of a safetensors file that holds something else than
    floating-point numbers: libraries would make such of it."""
    for name, entry in _entries(path).items():
        dtype = str(entry.get("dtype"))
        if name in names and not dtype.startswith(("F", "BF")):
            raise ModelError(f"{path}: {name} is of type {dtype}; floating-point numbers were expected")


def _entries(path: Place) -> dict[str, dict[str, Any]]:
    """What the header of a safetensors file says of each tensor."""
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=2**16) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ModelError(
                    f"{path} is no whole safetensors file: its header alone would be {length:,} bytes; copy it again"
                )
            if length > MOST_HEADER:
                raise ModelError(f"{path} has a header of {length:,} bytes; at most {MOST_HEADER:,} are read")
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        deepest = max((len(entry["shape"]) for entry in tensors.values()), default=0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise ModelError(
            f"{path} is no safetensors file: its header cannot be read ({first_line(problem)}); copy it again"
        ) from problem
    if len(tensors) > MOST_TENSORS:
        raise ModelError(f"{path} lists {len(tensors):,} tensors; at most {MOST_TENSORS:,} are read")
    if deepest > MOST_DIMENSIONS:
        raise ModelError(f"{path} has a tensor of {deepest:,} dimensions; at most {MOST_DIMENSIONS} are read")
    return tensors


def stored_shapes(folder: Place) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the safetensors files of a folder.

    Raises:
        ModelError: see `check_safetensors`.
    """
    files = [path for path in matches(folder, "*.safetensors") if path.is_file()]
    return {name: shape for path in files for name, shape in check_safetensors(path).items()}


def weight_files(folder: Place) -> list[Place]:
    """The files of a model's own weights, as transformers chooses them: `model.safetensors`, or else those that its
    index names; none of a model whose config names another file. `check_folder` has looked at it before."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else []
    return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]


def check_folder(folder: Place) -> None:
    """`check_safetensors` of every such file of a model folder, and that its index names files of the folder.

    Raises:
        ModelError: see there.
    """
    for path in matches(folder, "*.safetensors"):
        if path.is_file():
            check_safetensors(path)
    for path in matches(folder, "*.safetensors.index.json"):
        try:
            files = set(json.loads(path.read_bytes())["weight_map"].values())
            outside = sorted(name for name in files if Path(name).name != name)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
            raise ModelError(f"{path} is no index of weights: {first_line(problem)}; copy it again") from problem
        if outside:
            raise ModelError(f"{path} names {outside[0]!r}; weights are read from the folder itself only")
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            raise ModelError(
                f"{folder} lacks {missing[0]}, which {path.name} names: {len(missing)} of {len(files)}; copy them too"
            )


def check_torch_file(path: Path) -> int:
    """Bytes of the numbers in a `.pth` file, a zip of plain, uncompressed entries that are what their checksums say,
    and a pickle of bearable size.

    Raises:
        ModelError: it is something else; older `.pth` files, which are bare pickles, are too.
    """
    try:
        listed = _zip_directory_bytes(path)
        if listed > MOST_HEADER:
            raise ModelError(f"{path} is a zip whose list of files takes {listed:,} bytes; at most {MOST_HEADER:,}")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, struct.error, zipfile.BadZipFile, NotImplementedError) as problem:
        # zipfile raises NotImplementedError for a zip of a later kind than it reads
        raise ModelError(
            f"{path} is no checkpoint that torch.save writes today: {first_line(problem)}; expected one of today's"
        ) from problem
    if len(entries) > MOST_TENSORS:
        raise ModelError(f"{path} is a zip of {len(entries):,} files; at most {MOST_TENSORS:,} are read")
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ModelError(f"{path} is a compressed zip ({packed[0]}); expected one that torch.save wrote")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ModelError(f"{path} claims more bytes than it has; copy it again")
    pickled = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if pickled > MOST_HEADER:
        raise ModelError(f"{path} has {pickled:,} bytes of pickle beside its tensors; at most {MOST_HEADER:,} are read")
    damaged = _damaged(path)
    if damaged is not None:
        raise ModelError(f"{path}: {damaged} is not what its checksum says: download it again")
    return sum(entry.file_size for entry in entries if "/data/" in entry.filename)


def _damaged(path: Path) -> str | None:
    """The first entry of a zip that is not what its checksum says. Reads the whole file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (OSError, ValueError, RuntimeError, EOFError, struct.error) as problem:
        return f"an entry ({problem})"


def _zip_directory_bytes(path: Path) -> int:
    """Size of a zip's central directory, which lists its files."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - _ZIP_END.size - 2**16)
        file.seek(start)
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0:
            raise ValueError("it is not a zip")
        listed = int(_ZIP_END.unpack_from(tail, at)[5])
        if listed != 0xFFFFFFFF:
            return listed
        _, _, place, _ = _ZIP64_PLACE.unpack_from(tail, at - _ZIP64_PLACE.size)
        file.seek(place)
        return int(_ZIP64_END.unpack(file.read(_ZIP64_END.size))[8])


def check_tensor(path: Place, name: str, value: object) -> Tensor:
    """The tensor, if it is an ordinary one whose numbers are all in the file.

    Raises:
        ModelError: it is something else, or claims more numbers than there are.
    """
    if type(value) not in (Tensor, torch.nn.Parameter) or not isinstance(value, Tensor):
        raise ModelError(f"{path}: {name} is something else, expected a tensor")
    if value.layout != torch.strided or value.device.type != "cpu" or not value.is_floating_point():
        raise ModelError(f"{path}: {name} is no plain tensor of floating-point numbers, as weights must be")
    if not value.is_contiguous() or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ModelError(f"{path}: {name} {tuple(value.shape)} must have a number of its own for each element")
    return value


def check_finite(source: object, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `ModelError` that names the first tensor with a NaN or an infinity."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            low, high = torch.aminmax(tensor.detach())
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise ModelError(f"{source}: {name} holds numbers that are not finite; copy the weights again")
