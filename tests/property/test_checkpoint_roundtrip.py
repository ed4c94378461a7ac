"""Any tree of storable values comes back as it was, and damage anywhere is found."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmtp.checkpoint import load, save
from wmtp.errors import CheckpointError

TYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2fnuz,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(TYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    count = torch.Size(shape).numel() * torch.empty(1, dtype=dtype).element_size()
    fill = draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        fill = bytes(value & 1 for value in fill)
    raw = torch.tensor(list(fill), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape).permute(draw(st.permutations(range(len(shape)))))


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**50).map(lambda n: n**9), st.floats(), st.text(), tensors()
)
KEYS = st.one_of(st.text(), st.integers(), st.sampled_from(["a", "b", "a.b", "tensor", "__metadata__", "a~1"]))


def grow(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(children, max_size=4)
    return st.one_of(lists, lists.map(tuple), st.dictionaries(KEYS, children, max_size=4))


TREES = st.dictionaries(KEYS, st.recursive(LEAVES, grow, max_leaves=12), max_size=4)


def same(a: Any, b: Any) -> bool:
    """Equal in value, type, order and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        x, y = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(x, y)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b) if isinstance(a, float) else bool(a == b)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=TREES, other=TREES, step=st.integers(0, 10**12))
def test_every_tree_comes_back_as_it_was(model: dict[Any, Any], other: dict[Any, Any], step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = load(save(Path(folder), step, {"model": model, "other": other}, {"n": step}))
        assert same(found.parts, {"model": model, "other": other})
        assert (found.step, found.facts) == (step, {"n": step})


@settings(max_examples=40, deadline=None)
@given(tree=TREES, data=st.data())
def test_a_changed_byte_anywhere_is_found_and_its_file_named(tree: dict[Any, Any], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder), 1, {"model": tree}, {"run": "r"})
        file = data.draw(st.sampled_from(sorted(path.iterdir())))
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=file.name):
            load(path)
