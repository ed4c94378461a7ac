"""Safetensors of an object store are the library's, tensor by tensor and slice by slice."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from wmtp import ranged
from wmtp.errors import StorageError
from wmtp.formats.remote import tensors_of, write_tensors
from wmtp.ranged import DTYPES, RangedTensors
from wmtp.storage import ObjectPath, write_atomic
from wmtp.testing import memory_storage


@pytest.fixture
def path() -> Iterator[ObjectPath]:
    with memory_storage() as bucket:
        yield bucket / "x.safetensors"


def drawn(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bits."""
    size = torch.empty(shape, dtype=dtype).nbytes
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("small", [1, 200, 1 << 20])
def test_every_type_and_shape_comes_back_to_the_last_bit(
    path: ObjectPath, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(ranged, "RANGE", 64)
    monkeypatch.setattr(ranged, "TOGETHER", small)
    monkeypatch.setattr(ranged, "AHEAD", 128)
    shapes = [(), (0,), (3, 0), (5,), (7, 9)]
    tensors = {f"{n} {s}": drawn(dtype, *s) for n, dtype in DTYPES.items() for s in shapes}
    write_atomic(path, save(tensors, metadata={"format": "pt"}))
    opened = RangedTensors(path)
    assert {name: bits(tensor) for name, tensor in opened.read()} == {n: bits(t) for n, t in tensors.items()}
    assert all(bits(opened.get_tensor(name)) == bits(tensor) for name, tensor in tensors.items())
    again = path.with_name("again")
    write_tensors(again, tensors, {"format": "pt"})
    assert {n: bits(t) for n, t in tensors_of(again).items()} == {n: bits(t) for n, t in tensors.items()}


@given(st.data())
def test_a_slice_is_the_slice_of_the_whole_and_reads_its_rows_only(data: st.DataObject) -> None:
    tensor = torch.arange(60).reshape(5, 4, 3)
    ends = st.tuples(st.integers(-7, 7), st.integers(-7, 7))
    box = tuple(slice(*sorted(data.draw(ends))) for _ in range(data.draw(st.integers(1, 3))))
    with memory_storage() as bucket:
        write_atomic(bucket / "x", save({"a": torch.zeros(9), "t": tensor}))
        assert torch.equal(RangedTensors(bucket / "x").get_slice("t")[box], tensor[box])


def test_narrower_numbers_are_widened_as_they_arrive(path: ObjectPath) -> None:
    tensor, whole = torch.randn(4, 4).bfloat16(), torch.arange(3)
    write_atomic(path, save({"t": tensor, "n": whole}))
    found = tensors_of(path, widened=torch.float32)
    assert torch.equal(found["t"], tensor.float())
    assert found["n"].dtype == torch.int64


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:5],
        lambda content: b"",
        lambda content: (2**63).to_bytes(8, "little") + content[8:],
        lambda content: content.replace(b'"F32"', b'"F99"'),
        lambda content: content.replace(b"[2,3]", b"[3,3]"),
        lambda content: content.replace(b"[0,24]", b"[8,32]"),
        lambda content: (6).to_bytes(8, "little") + b"[1, 2]" + content,
        lambda content: (6).to_bytes(8, "little") + b"\xff\xfe not",
    ],
)
def test_a_file_that_is_cut_or_nonsense_is_an_error_and_not_a_tensor(path: ObjectPath, change: object) -> None:
    content = save({"t": torch.zeros(2, 3)})
    assert callable(change)
    write_atomic(path, change(content))
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError, json.JSONDecodeError)):
        RangedTensors(path)


def test_weights_that_are_replaced_while_they_are_read_are_an_error_and_never_a_mixture(
    path: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranged, "RANGE", 64)
    write_atomic(path, save({"t": torch.zeros(100)}))
    opened = RangedTensors(path)
    write_atomic(path, save({"t": torch.ones(100)}))
    for read in (lambda: opened.get_tensor("t"), lambda: opened.get_slice("t")[:5], lambda: list(opened.read())):
        with pytest.raises(StorageError, match="was replaced while it was read"):
            read()
