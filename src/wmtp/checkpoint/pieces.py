"""The tensors of a checkpoint, in pieces: which rank writes which, where they are, and how they get back.

`torch.distributed.checkpoint` (DCP) plans: what a rank holds of each tensor, which of several ranks with the same
piece writes it, and which stored pieces overlap with what a rank needs. So a state saved by two ranks loads on one or
four. The files are ours, for DCP's own have a pickle for an index (`.metadata`), run it when they are read, and carry
no checksums: here tensors are in ordinary safetensors files, one for each part and rank, and the index is JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from wmtp.checkpoint.tensorfile import NATIVE, Content, get, opened_tensors
from wmtp.errors import CheckpointError
from wmtp.storage import Place

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


# What a rank holds


@dataclass(frozen=True)
class Outline:
    """What a rank holds, without the values: what the ranks tell one another."""

    plan: SavePlan
    dtypes: dict[str, str]
    """Types by name. DCP knows only the common ones, so in the plan the others are called bytes."""


@dataclass(frozen=True)
class Held:
    """What a rank holds."""

    outline: Outline
    local: dict[MetadataIndex, torch.Tensor]


def hold(tensors: Mapping[str, torch.Tensor]) -> Held:
    """What this rank holds of tensors that may be sharded; names are `part/name`.

    A rank that holds nothing of a tensor does not mention it.
    """
    planner = _save_planner()
    planner.set_up_planner(dict(tensors))
    local: dict[MetadataIndex, torch.Tensor] = {}
    items = []
    for item in planner.create_local_plan().items:
        assert item.tensor_data is not None
        if prod(item.tensor_data.chunk.sizes) or not prod(item.tensor_data.size):
            value = planner.resolve_data(item)
            assert isinstance(value, torch.Tensor)
            local[item.index] = value
            items.append(item if value.dtype in NATIVE else _as_if_bytes(item))
    dtypes = {index.fqn: str(value.dtype) for index, value in local.items()}
    return Held(Outline(SavePlan(items), dtypes), local)


def _as_if_bytes(item: WriteItem) -> WriteItem:
    assert item.tensor_data is not None
    return replace(item, tensor_data=replace(item.tensor_data, properties=TensorProperties(torch.uint8)))


def _save_planner() -> DefaultSavePlanner:
    return DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


class Staging:
    """CPU memory that a rank's pieces are copied to, kept from save to save; pinned where they are on a CUDA device."""

    def __init__(self) -> None:
        self._buffers: dict[MetadataIndex, torch.Tensor] = {}

    def copy(self, local: Mapping[MetadataIndex, torch.Tensor]) -> dict[MetadataIndex, Content]:
        """The values as they are now, whatever becomes of the tensors; valid until the next `copy`."""
        buffers, contents = {}, {}
        devices = set()
        for index, tensor in local.items():
            source = _as_bytes(index.fqn, tensor)
            buffer = self._buffers.pop(index, None)
            if buffer is None or buffer.numel() != source.numel() or buffer.is_pinned() != source.is_cuda:
                buffer = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=source.is_cuda)
            buffer.copy_(source, non_blocking=source.is_cuda)
            if source.is_cuda:
                devices.add(source.device)
            buffers[index] = buffer
            contents[index] = Content(tensor.dtype, tuple(tensor.shape), partial(_same, buffer))
        for device in devices:
            torch.cuda.synchronize(device)
        self._buffers = buffers
        return contents

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers = {}


def live(local: Mapping[MetadataIndex, torch.Tensor]) -> dict[MetadataIndex, Content]:
    """The values as they will be when they are read; at most one tensor at a time is copied."""
    return {
        index: Content(tensor.dtype, tuple(tensor.shape), partial(_as_bytes, index.fqn, tensor))
        for index, tensor in local.items()
    }


def _same(buffer: torch.Tensor) -> torch.Tensor:
    return buffer


def _as_bytes(name: str, tensor: torch.Tensor) -> torch.Tensor:
    try:
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
        return plain.reshape(-1).view(torch.uint8)
    except RuntimeError as error:
        raise CheckpointError(
            f"tensor {name!r} ({tensor.dtype}, {tuple(tensor.shape)}) cannot be read: {error}"
        ) from error


# Who writes what


@dataclass(frozen=True)
class Order:
    """One piece that a rank has to write."""

    index: MetadataIndex
    file: str
    key: str


Index = dict[str, dict[str, Any]]
"""Part -> name -> `{"dtype", "shape", "pieces": [{"file", "key", "offset", "shape"}]}`, as it stands in JSON."""


def share_out(outlines: Sequence[Outline], file_of: Callable[[str, int], str]) -> tuple[list[list[Order]], Index]:
    """What every rank writes and where all of it will be; a piece that several ranks hold is written once.

    Args:
        file_of: the file for a part and a rank.

    Raises:
        CheckpointError: the ranks' pieces are not those of one state.
    """
    dtypes = _check_same_tensors(outlines)
    try:
        shared, metadata = _save_planner().create_global_plan([outline.plan for outline in outlines])
    except (AssertionError, ValueError) as error:
        raise CheckpointError(f"the ranks do not hold pieces of the same state: {error}") from error
    index: Index = {}
    for fqn, stored in metadata.state_dict_metadata.items():
        part, name = fqn.split("/", 1)
        assert isinstance(stored, TensorStorageMetadata)
        index.setdefault(part, {})[name] = {
            "dtype": dtypes[fqn], "shape": list(stored.size), "pieces": [],
        }  # fmt: skip
    used: set[tuple[str, str]] = set()
    orders = [_orders(plan, rank, file_of, used, index) for rank, plan in enumerate(shared)]
    for part, tensors in index.items():
        for name, entry in tensors.items():
            if not _covered(entry["shape"], [(piece["offset"], piece["shape"]) for piece in entry["pieces"]]):
                raise CheckpointError(
                    f"{part}: {name}: of a tensor of shape {entry['shape']} only the pieces {entry['pieces']} are "
                    "here; give the group of all ranks that hold it"
                )
    return orders, index


def bytes_of(index: Index) -> int:
    """Size of all values."""
    entries = [entry for tensors in index.values() for entry in tensors.values()]
    return sum(prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize for entry in entries)


def _check_same_tensors(outlines: Sequence[Outline]) -> dict[str, str]:
    """The type of every tensor, which has that type and one shape on all ranks."""
    known: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for rank, outline in enumerate(outlines):
        for item in outline.plan.items:
            assert item.tensor_data is not None
            dtype, size = outline.dtypes[item.index.fqn], tuple(item.tensor_data.size)
            first = known.setdefault(item.index.fqn, (dtype, size, rank))
            if first[:2] != (dtype, size):
                raise CheckpointError(
                    f"{item.index.fqn} is {first[0]} {first[1]} on rank {first[2]} and {dtype} {size} on rank {rank}; "
                    "every rank must save the same state"
                )
    return {name: dtype for name, (dtype, _, _) in known.items()}


def _orders(
    plan: SavePlan, rank: int, file_of: Callable[[str, int], str], used: set[tuple[str, str]], index: Index
) -> list[Order]:
    orders = []
    for item in plan.items:
        part, name = item.index.fqn.split("/", 1)
        assert item.tensor_data is not None
        file, key, count = file_of(part, rank), name, 1
        while (file, key) in used:
            key, count = f"{name}~{count}", count + 1
        used.add((file, key))
        orders.append(Order(item.index, file, key))
        chunk = item.tensor_data.chunk
        place = {"offset": list(chunk.offsets), "shape": list(chunk.sizes)}
        index[part][name]["pieces"].append({"file": file, "key": key, **place})
    return orders


def _covered(shape: Sequence[int], pieces: Sequence[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Whether boxes (offset, shape) fill a box from 0 to `shape` without overlap."""
    inside = all(
        len(offset) == len(size) == len(shape)
        and all(min(o, s) >= 0 and o + s <= whole for o, s, whole in zip(offset, size, shape, strict=True))
        for offset, size in pieces
    )
    if not inside or not pieces or sum(prod(size) for _, size in pieces) != prod(shape):
        return False
    boxes = [(tuple(offset), tuple(size)) for offset, size in pieces if prod(size)]
    if len(boxes) < 2:
        return True
    return _disjoint(boxes, max(range(len(shape)), key=lambda d: len({offset[d] for offset, _ in boxes})))


def _disjoint(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], along: int) -> bool:
    """Sweep along one dimension, so that only boxes that are side by side in it are compared."""
    active: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for offset, size in sorted(boxes, key=lambda box: box[0][along]):
        active = [box for box in active if box[0][along] + box[1][along] > offset[along]]
        for other, length in active:
            if all(a < b + n and b < a + m for a, m, b, n in zip(offset, size, other, length, strict=True)):
                return False
        active.append((offset, size))
    return True


# Reading


@dataclass(frozen=True)
class Piece:
    """Where a part of a tensor is."""

    file: str
    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint: pieces that fill it without gap or overlap."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def read_index(entries: Mapping[str, Any]) -> dict[str, Stored]:
    """The index of one part.

    Raises:
        KeyError, TypeError, ValueError: it is not one that `share_out` makes.
    """
    found, used = {}, set()
    for name, entry in entries.items():
        pieces = tuple(
            Piece(str(piece["file"]), str(piece["key"]), _sizes(piece["offset"]), _sizes(piece["shape"]))
            for piece in entry["pieces"]
        )
        stored = Stored(_DTYPES[entry["dtype"]], _sizes(entry["shape"]), pieces)
        if not _covered(stored.shape, [(piece.offset, piece.shape) for piece in pieces]):
            raise ValueError(f"the pieces of {name!r} do not fill it")
        for piece in pieces:
            if (piece.file, piece.key) in used:
                raise ValueError(f"{piece.key!r} in {piece.file} is the piece of two tensors")
            used.add((piece.file, piece.key))
        found[name] = stored
    return found


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(size) is not int or size < 0 for size in value):
        raise ValueError(f"{value!r} is no shape")
    return tuple(value)


def read_whole(folder: Place, wanted: Iterable[Stored]) -> dict[Stored, torch.Tensor]:
    """The tensors, each as one on the CPU, contiguous; they share no memory with the files."""
    found: dict[Stored, torch.Tensor] = {}
    in_pieces: list[tuple[Stored, torch.Tensor]] = []
    single: dict[str, list[Stored]] = {}
    for stored in wanted:
        if len(stored.pieces) == 1:
            single.setdefault(stored.pieces[0].file, []).append(stored)
        else:
            _check_size(folder, stored)
            found[stored] = torch.empty(stored.shape, dtype=stored.dtype)
            in_pieces.append((stored, found[stored]))
    for name, entries in single.items():
        with opened_tensors(folder / name) as opened:
            for stored in entries:
                found[stored] = get(opened, stored.pieces[0].key, stored.dtype, stored.shape)
    read_into(folder, in_pieces)
    return found


def _check_size(folder: Place, stored: Stored) -> None:
    """Before memory is taken for a tensor, its files must be large enough to hold it."""
    files = {piece.file for piece in stored.pieces}
    there = sum((folder / file).stat().st_size for file in files)
    if prod(stored.shape) * stored.dtype.itemsize > there:
        raise CheckpointError(f"{folder / min(files)} is malformed: a tensor of shape {stored.shape} is not in it")


def read_into(folder: Place, wanted: Sequence[tuple[Stored, torch.Tensor]]) -> None:
    """Fill tensors of the right type and shape in place, sharded ones with this rank's pieces."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner({str(i): target for i, (_, target) in enumerate(wanted)}, _metadata(wanted), True)
    needed: dict[str, list[Any]] = {}
    places = {(str(i), piece.offset): piece for i, (stored, _) in enumerate(wanted) for piece in stored.pieces}
    for item in planner.finish_plan(planner.create_local_plan()).items:
        piece = places[item.storage_index.fqn, tuple(item.storage_index.offset or ())]
        needed.setdefault(piece.file, []).append((item, piece))
    for name, items in needed.items():
        with opened_tensors(folder / name) as opened, torch.no_grad():
            for item, piece in items:
                box = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))
                target = planner.resolve_tensor(item).detach()
                target.copy_(get(opened, piece.key, wanted[int(item.dest_index.fqn)][0].dtype, piece.shape, box))
                planner.commit_tensor(item, target)


def _metadata(wanted: Sequence[tuple[Stored, torch.Tensor]]) -> Metadata:
    return Metadata(
        {
            str(i): TensorStorageMetadata(
                TensorProperties(stored.dtype),
                torch.Size(stored.shape),
                [ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape)) for piece in stored.pieces],
            )
            for i, (stored, _) in enumerate(wanted)
        }
    )
