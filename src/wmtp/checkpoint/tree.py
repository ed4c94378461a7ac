"""States as JSON with the tensors beside it: what a part of a checkpoint is made of.

A state is a tree of dicts (text or int keys), lists, tuples, None, bool, int, float, text and tensors. `encode`
turns it into JSON that `decode` turns back exactly, types and order included; only the tensors stay outside.
Nothing in a state is ever pickled, so nothing in a checkpoint can run.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from wmtp.errors import CheckpointError

State = dict[str, Any]
Path = tuple[str | int, ...]
"""The keys and positions that lead to a leaf."""

MAX_DEPTH = 100
_EXACT_INT = 2**53


@dataclass(frozen=True)
class Encoded:
    """A state: its tree as JSON, and each of its tensors once, under a unique name."""

    tree: Any
    tensors: dict[str, torch.Tensor]


def encode(state: Mapping[Any, Any], part: str) -> Encoded:
    """The state with its tensors apart; tensors that are one another (same memory, same layout) are one.

    Raises:
        CheckpointError: a value cannot be stored; the message has `part`, the place and the type.
    """
    shelf = _Shelf()
    return Encoded(_encode(state, part, "", shelf, 0), shelf.tensors)


def decode(tree: Any, tensor: Callable[[Path, str], torch.Tensor]) -> Any:
    """The inverse of `encode`; `tensor(path, name)` gives the tensor for each leaf.

    Raises:
        KeyError, TypeError, ValueError: the tree is not one that `encode` makes.
    """
    return _decode(tree, (), tensor)


def tensor_names(tree: Any) -> dict[Path, str]:
    """Where the tree has tensors, and the names they are stored under. Raises as `decode` does."""
    names: dict[Path, str] = {}
    decode(tree, lambda path, name: names.setdefault(path, name))  # type: ignore[arg-type,return-value]
    return names


def tensors_of(state: Mapping[Any, Any], part: str) -> dict[Path, torch.Tensor]:
    """Where a state has tensors, and the tensors themselves.

    Raises:
        CheckpointError: one of them has no memory to load into, or is of a kind that `encode` refuses.
    """
    found = dict(_walk(state, ()))
    for path, tensor in found.items():
        _check_tensor(tensor, part, shown(path))
    return found


def _local(tensor: DTensor) -> torch.Tensor:
    """This rank's piece, which shares memory with the tensor."""
    with torch.no_grad():
        piece: torch.Tensor = tensor.to_local()
    return piece


def shown(path: Path) -> str:
    """The path as text."""
    return ".".join(map(str, path))


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one another; a tensor without elements has no memory to share.

    Of a sharded tensor the local piece counts, so ranks that hold an empty piece may call two tensors different
    that are one: `wmtp.checkpoint.pieces` takes the word of those that hold something.
    """
    if isinstance(tensor, DTensor):
        piece = _local(tensor)
        return (*identity(piece), tuple(tensor.shape), tensor.placements) if piece.numel() else (id(tensor),)
    if tensor.numel() == 0:
        return (id(tensor),)
    layout = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (tensor.untyped_storage().data_ptr(), tensor.device, tensor.dtype, *layout)


@dataclass(frozen=True)
class _Shelf:
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    names: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def add(self, tensor: torch.Tensor, name: str) -> str:
        """The name it is stored under: the first tensor with the same memory and layout gave it."""
        key = identity(tensor)
        if key not in self.names:
            unique, count = name, 1
            while unique in self.tensors or unique == "__metadata__":
                unique, count = f"{name}~{count}", count + 1
            self.tensors[unique], self.names[key] = tensor, unique
        return self.names[key]


def _encode(value: Any, part: str, name: str, shelf: _Shelf, depth: int) -> Any:
    """The value as JSON: what JSON cannot say is an object with one key that names its kind."""
    kind = type(value)
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{part}: {name[:200]}... is nested more than {MAX_DEPTH} deep")
    if kind in (dict, OrderedDict):
        return _encode_dict(value, part, name, shelf, depth)
    if kind in (list, tuple):
        items = [_encode(item, part, _below(name, i), shelf, depth + 1) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if isinstance(value, torch.Tensor):
        _check_tensor(value, part, name)
        return {"tensor": shelf.add(value, name)}
    return _encode_leaf(value, part, name)


def _encode_leaf(value: Any, part: str, name: str) -> Any:
    kind = type(value)
    if value is None or kind is bool or (kind is str and _is_unicode(value)):
        return value
    if kind is int:
        return value if abs(value) < _EXACT_INT else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    what = "text with a lone surrogate" if kind is str else f"a {kind.__module__}.{kind.__qualname__}"
    known = "dict, list, tuple, None, bool, int, float, str and tensors"
    raise CheckpointError(f"{part}: {name}: {what} cannot be stored; a state holds {known}")


def _encode_dict(value: Mapping[Any, Any], part: str, name: str, shelf: _Shelf, depth: int) -> dict[str, Any]:
    for key in value:
        if type(key) not in (str, int):
            raise CheckpointError(f"{part}: {name}: key {key!r} is a {type(key).__name__}; keys are text or int")
    pairs = [
        (_encode_leaf(key, part, name), _encode(item, part, _below(name, key), shelf, depth + 1))
        for key, item in value.items()
    ]
    return {"dict": dict(pairs)} if all(type(key) is str for key in value) else {"items": pairs}


def _below(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_tensor(tensor: torch.Tensor, part: str, name: str) -> None:
    """Ordinary tensors and sharded ones (DTensor) of ordinary pieces: another subclass would lose what makes it one."""
    kind = type(tensor)
    if isinstance(tensor, DTensor):
        if any(placement.is_partial() for placement in tensor.placements):
            raise CheckpointError(f"{part}: {name}: a DTensor with a pending sum cannot be stored; redistribute it")
        tensor = _local(tensor)
    elif kind not in (torch.Tensor, torch.nn.Parameter):
        raise CheckpointError(f"{part}: {name}: a {kind.__module__}.{kind.__qualname__} is not a plain tensor")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        problem = f"a tensor of layout {tensor.layout} and type {tensor.dtype} cannot be stored; make it dense"
    elif tensor.is_meta or (tensor.numel() and tensor.untyped_storage().data_ptr() == 0):
        problem = "the tensor has no memory, so no values"
    else:
        return
    raise CheckpointError(f"{part}: {name}: {problem}")


def _walk(value: Any, path: Path) -> Iterator[tuple[Path, torch.Tensor]]:
    if len(path) > MAX_DEPTH:
        raise CheckpointError(f"{shown(path)[:200]}... is nested more than {MAX_DEPTH} deep")
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, (*path, key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _walk(item, (*path, i))


def _decode(node: Any, path: Path, tensor: Callable[[Path, str], torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, (*path, i), tensor) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    ((kind, body),) = node.items()
    if kind == "dict":
        return {key: _decode(item, (*path, key), tensor) for key, item in body.items()}
    if kind == "items":
        keys = [_key(key) for key, _ in body]
        return {key: _decode(item, (*path, key), tensor) for key, (_, item) in zip(keys, body, strict=True)}
    if kind == "tuple":
        return tuple(_decode(item, (*path, i), tensor) for i, item in enumerate(body))
    return tensor(path, str(body)) if kind == "tensor" else _number(kind, body)


def _key(node: Any) -> str | int:
    key: Any = node
    if isinstance(node, dict):
        ((kind, body),) = node.items()
        key = _number(kind, body)
    if type(key) not in (str, int):
        raise TypeError(f"key {key!r} is a {type(key).__name__}")
    known: str | int = key
    return known


def _number(kind: str, body: Any) -> int | float:
    if kind == "int":
        return int(body, 16)
    if kind == "float":
        return float(body)
    raise ValueError(f"unknown kind {kind!r}")
