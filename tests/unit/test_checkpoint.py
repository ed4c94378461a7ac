"""Checkpoints: what goes in comes out, damage is found and named, a failed save loses nothing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from wmtp.checkpoint import folder as folder_module
from wmtp.checkpoint import list_steps, load, newest, remove_litter, save
from wmtp.errors import CheckpointError, StorageError

FACTS = {"run": "r1", "lr": 1e-4, "seeds": [1, 2], "note": None}
DEAD = 2**22 + 1
"""A process id that Linux never gives out."""


def small(value: float = 1.0) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((3, 4), value), "bias": torch.full((4,), value, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(value)}}, "param_groups": [{"betas": (0.9, 0.95)}]},
    }


def never(path: Path, reason: str) -> None:
    raise AssertionError(f"{path} was reported bad: {reason}")


def back(folder: Path, value: Any) -> Any:
    return load(save(folder, 0, {"p": {"v": value}}, {})).parts["p"]["v"]


# Round trips


def test_a_model_and_its_optimizer_continue_bit_for_bit_from_a_checkpoint(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model, optimizer = build()
    train(model, optimizer, 3)
    rng = {"torch": torch.get_rng_state(), "python": random.getstate()}
    path = save(tmp_path, 3, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng}, FACTS)
    train(model, optimizer, 3)

    again, optimizer_again = build()
    found = load(path)
    again.load_state_dict(found.parts["model"])
    optimizer_again.load_state_dict(found.parts["optimizer"])
    torch.set_rng_state(found.parts["rng"]["torch"])
    train(again, optimizer_again, 3)
    assert found.parts["rng"]["python"] == rng["python"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (found.step, found.facts, found.path) == (3, FACTS, path)


DTYPES = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
PLAIN = sorted((dtype for dtype in DTYPES if not str(dtype).startswith(("torch.qint", "torch.quint"))), key=str)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)], ids=str)
def test_a_tensor_of_any_type_and_shape_comes_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    width = torch.empty(1, dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (math.prod(shape) * width,), dtype=torch.uint8)
    found = back(tmp_path, raw.view(dtype).reshape(shape))
    assert (found.dtype, found.shape) == (dtype, torch.Size(shape))
    assert torch.equal(found.reshape(-1).view(torch.uint8), raw)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12).reshape(3, 4).t(),
        torch.arange(12)[::3],
        torch.ones(1).expand(4, 4),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.randn(3, requires_grad=True),
    ],
    ids=["transposed", "strided", "expanded", "channels-last", "conjugate", "negative", "needs-gradient"],
)
def test_a_tensor_in_any_layout_comes_back_equal_and_contiguous(tmp_path: Path, tensor: torch.Tensor) -> None:
    found = back(tmp_path, tensor)
    assert torch.equal(found, tensor)
    assert found.is_contiguous()
    assert not found.requires_grad


def test_tied_tensors_are_stored_once_and_come_back_as_one_object(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(100, 100))
    state = {"embed": weight, "head": weight.detach(), "again": [weight], "odd": torch.zeros(2, dtype=torch.complex128)}
    state["odd_too"] = state["odd"]
    path = save(tmp_path, 1, {"model": state}, {})
    found = load(path).parts["model"]
    assert found["embed"] is found["head"]
    assert found["embed"] is found["again"][0]
    assert found["odd"] is found["odd_too"]
    assert (path / "model.safetensors").stat().st_size < 41_000


def test_tensors_that_merely_share_memory_come_back_equal_and_apart(tmp_path: Path) -> None:
    base = torch.arange(16.0).reshape(4, 4)
    found = back(tmp_path, [base, base.t(), base[:2], base[2:], base.view(torch.int32), torch.empty(0), torch.empty(0)])
    expected = [base, base.t(), base[:2], base[2:], base.view(torch.int32)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=False))
    assert len({id(tensor) for tensor in found}) == 7
    found[0].fill_(-1)
    assert torch.equal(found[2], base[:2])


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**53, -(2**53) - 1, 2**64, 10**6000, -(10**6000),
        0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf,
        "", "ü\0\u2028\U0001f600", [], (), {}, [()], ([],), {"a": {}}, {0: 1, -5: 2, 2**70: 3, "0": 4},
        {"tuple": [1]}, {"tensor": "v"}, {"int": "0x1"}, {"dict": {"x": 1}}, [[1, (2, [3, {"x": (None,)}])]],
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, int) or value.bit_length() < 99 else "huge",
)  # fmt: skip
def test_a_plain_value_comes_back_exactly_and_of_the_same_type(tmp_path: Path, value: Any) -> None:
    found = back(tmp_path, value)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, float):
        assert math.copysign(1, found) == math.copysign(1, value)
    if isinstance(value, dict):
        assert [(type(key), key) for key in found] == [(type(key), key) for key in value]


def test_not_a_number_comes_back_as_such(tmp_path: Path) -> None:
    assert math.isnan(back(tmp_path, math.nan))


def test_an_ordered_dict_comes_back_as_a_dict_in_the_same_order(tmp_path: Path) -> None:
    found = back(tmp_path, OrderedDict(z=1, a=2))
    assert type(found) is dict
    assert list(found) == ["z", "a"]


def test_names_that_would_collide_in_the_tensor_file_stay_apart(tmp_path: Path) -> None:
    state = {"a.b": 0, "a": {"b": 1}, "a.b~1": 2, "": 3, "__metadata__": 4, "x": {"": 5}, "x.": 6, "ü\0\n\U0001f600": 7}
    filled = {
        key: {k: torch.tensor(v) for k, v in x.items()} if isinstance(x, dict) else torch.tensor(x)
        for key, x in state.items()
    }
    found = load(save(tmp_path, 1, {"p": filled}, {})).parts["p"]
    plain = {key: {k: v.item() for k, v in x.items()} if isinstance(x, dict) else x.item() for key, x in found.items()}
    assert plain == state


def test_the_tensor_files_are_ordinary_safetensors_files(tmp_path: Path) -> None:
    parts = small(3.0)
    path = save(tmp_path, 1, parts, {})
    found = safetensors.torch.load_file(path / "model.safetensors")
    assert found.keys() == {"weight", "bias"}
    assert all(torch.equal(found[name], parts["model"][name]) for name in found)


def test_loaded_tensors_do_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"p": {"v": torch.ones(100_000)}}, {})
    found = load(path).parts["p"]["v"]
    with open(path / "p.safetensors", "r+b") as stream:
        stream.truncate(10)
    assert found.sum() == 100_000


def test_a_checkpoint_may_have_no_tensors_and_no_parts_at_all(tmp_path: Path) -> None:
    assert load(save(tmp_path, 1, {"p": {}}, {})).parts == {"p": {}}
    assert load(save(tmp_path, 2, {}, {})).parts == {}


def test_only_the_named_parts_are_read_and_need_to_be_whole(tmp_path: Path) -> None:
    path = save(tmp_path, 1, small(), FACTS)
    (path / "optimizer.safetensors").unlink()
    assert list(load(path, parts=["model"]).parts) == ["model"]
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is missing"):
        load(path)
    with pytest.raises(CheckpointError, match=r"no part 'ema'; it has \['model', 'optimizer'\]"):
        load(path, parts=["ema"])


def test_a_copied_checkpoint_under_another_name_loads(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 7, small(), FACTS), tmp_path / "best")
    assert load(tmp_path / "best").step == 7


# What is refused


class Odd(dict[str, int]):
    pass


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "a builtins.set"),
        (b"x", "a builtins.bytes"),
        (1j, "a builtins.complex"),
        (Path("x"), "Path"),
        (Odd(), "Odd"),
        (defaultdict(int), "defaultdict"),
        (torch.Size([1]), "Size"),
        (torch.float32, "torch.dtype"),
        (torch.ones(2).numpy(), "numpy.ndarray"),
        (torch.ones(2).numpy()[0], "numpy.float32"),
        ({1.5: 0}, "key 1.5 is a float"),
        ({True: 0}, "key True is a bool"),
        ("\ud800", "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        (torch.ones(2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "no memory"),
        (torch.nn.parameter.UninitializedParameter(), "not a plain tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_stored_is_refused_with_its_place_and_type(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=r"extra: groups.1.x") as caught:
        save(tmp_path / "new", 1, {"model": {}, "extra": {"groups": [0, {"x": value}]}}, {})
    assert words in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_tensor_whose_memory_was_freed_is_refused(tmp_path: Path) -> None:
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(CheckpointError, match="p: v: the tensor has no memory"):
        back(tmp_path, tensor)


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="nested more than 100 deep"):
        back(tmp_path, loop)


def test_nesting_up_to_the_limit_round_trips(tmp_path: Path) -> None:
    value: Any = torch.ones(1)
    for _ in range(33):
        value = [({"k": value},)]
    found = back(tmp_path, value)
    for _ in range(33):
        found = found[0][0]["k"]
    assert found.item() == 1


@pytest.mark.parametrize(
    "facts", [{"x": math.nan}, {"x": (1,)}, {"x": {1: 2}}, {1: 2}, {"x": {3}}, {"x": "y" * 5_000_000}]
)
def test_facts_that_json_would_not_give_back_are_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="facts"):
        save(tmp_path, 1, {}, facts)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("step", "part", "keep_last"),
    [(-1, "p", 2), (True, "p", 2), (1, "../p", 2), (1, "", 2), (1, "a.b", 2), (1, "p", 0)],
)
def test_a_wrong_step_part_name_or_keep_last_is_refused(tmp_path: Path, step: int, part: str, keep_last: int) -> None:
    with pytest.raises(CheckpointError):
        save(tmp_path, step, {part: {}}, {}, keep_last=keep_last)
    assert os.listdir(tmp_path) == []


# Damage


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(tmp_path: Path, name: str) -> None:
    file = save(tmp_path, 1, small(), FACTS) / name
    content = file.read_bytes()
    positions = range(len(content) * 8) if name == "manifest.json" else range(0, len(content) * 8, 97)
    for position in positions:
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            load(file.parent)
        assert str(file) in str(caught.value)
    file.write_bytes(content)
    load(file.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("change", ["cut", "empty", "longer", "deleted", "folder", "fifo"])
def test_a_cut_grown_or_missing_file_is_found_and_named(tmp_path: Path, name: str, change: str) -> None:
    file = save(tmp_path, 1, small(), FACTS) / name
    content = file.read_bytes()
    file.unlink()
    if change == "folder":
        file.mkdir()
    elif change == "fifo":
        os.mkfifo(file)
    elif change != "deleted":
        file.write_bytes({"cut": content[:-1], "empty": b"", "longer": content + b" "}[change])
    with pytest.raises(CheckpointError, match=name):
        load(file.parent)


def test_swapped_files_are_found_and_named(tmp_path: Path) -> None:
    parts = {"a": {"v": torch.zeros(9)}, "b": {"v": torch.ones(9)}}
    path = save(tmp_path, 1, parts, {})
    (path / "a.safetensors").rename(path / "c")
    (path / "b.safetensors").rename(path / "a.safetensors")
    (path / "c").rename(path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged"):
        load(path)


def test_a_checkpoint_moved_to_another_steps_name_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1, small(), FACTS)
    path.rename(tmp_path / "step_00000009")
    with pytest.raises(CheckpointError, match="belongs to step 1"):
        load(tmp_path / "step_00000009")


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}', b'{"format": 3}', b"9" * 5000]
)
def test_a_garbage_manifest_is_refused_by_name(tmp_path: Path, garbage: bytes) -> None:
    path = save(tmp_path, 1, small(), FACTS)
    (path / "manifest.json").write_bytes(garbage)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load(path)


def test_an_enormous_manifest_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1, small(), FACTS)
    os.truncate(path / "manifest.json", 2**40)
    with pytest.raises(CheckpointError, match="larger than"):
        load(path)


def forge(path: Path, body: dict[str, Any], **files: bytes) -> Path:
    """A checkpoint made by someone who knows the format: every checksum in it is right."""
    path.mkdir(exist_ok=True)
    body = {"format": 2, "step": 1, "ranks": 1, "facts": {}, "files": {}, **body}
    for stem, content in files.items():
        name = {"state": "state.json"}.get(stem, f"{stem}.safetensors")
        (path / name).write_bytes(content)
        body["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    digest = hashlib.sha256((json.dumps(body, indent=1) + "\n").encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**body, "sha256": digest}, indent=1) + "\n")
    return path


PIECE = {"file": "p.safetensors", "key": "v", "offset": [0], "shape": [2]}
V = {"dtype": "torch.float32", "shape": [2], "pieces": [PIECE]}
TREE = {"dict": {"v": {"tensor": "v"}}}


def stored(**change: Any) -> dict[str, Any]:
    """An index of `v` in which something is wrong."""
    return {"tree": TREE, "tensors": {"v": {**V, **change}}}


def test_a_forged_checkpoint_of_the_right_form_loads_so_that_the_next_tests_mean_something(tmp_path: Path) -> None:
    tensors = safetensors.torch.save({"v": torch.ones(2)})
    path = forge(tmp_path / "f", {}, state=json.dumps({"p": stored()}).encode(), p=tensors)
    assert torch.equal(load(path).parts["p"]["v"], torch.ones(2))


@pytest.mark.parametrize(
    "body",
    [
        {"files": {"../x": {"size": 1, "sha256": ""}}},
        {"files": {"/etc/passwd": {"size": 1, "sha256": ""}}},
        {"files": {"a": {"size": "x", "sha256": ""}}},
        {"files": {"a": {}}},
        {"files": []},
        {"facts": 1},
        {"step": None},
    ],
)
def test_a_forged_manifest_is_refused_by_name(tmp_path: Path, body: dict[str, Any]) -> None:
    files = {"state": b"{}"} if isinstance(body.get("files", {}), dict) else {}
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load(forge(tmp_path / "f", body, **files))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"tree": {}, "tensors": {}},
        {"tree": 5, "tensors": {}},
        {"tree": [], "tensors": {}},
        {"tree": {"dict": [1]}, "tensors": {}},
        {"tree": {"dict": {"v": {"tensor": "w"}}}, "tensors": {"v": V}},
        {"tree": {"dict": {"v": {"tensor": ["v"]}}}, "tensors": {"v": V}},
        {"tree": {"dict": {"v": {"pickle": "v"}}}, "tensors": {}},
        {"tree": {"dict": {"v": {"int": "zz"}}}, "tensors": {}},
        {"tree": {"dict": {"v": {"a": 1, "b": 2}}}, "tensors": {}},
        {"tree": {"items": [[[1], 2]]}, "tensors": {}},
        {"tree": {"items": [[{}, 2]]}, "tensors": {}},
        {"tree": {"items": [[{"tensor": "v"}, 2]]}, "tensors": {"v": V}},
        {"tree": TREE, "tensors": {"v": V, "w": V}},
        {"tree": TREE, "tensors": {"v": 3}},
        {"tree": TREE, "tensors": [V]},
        stored(dtype="torch.load"),
        stored(dtype=None),
        stored(shape=[3]),
        stored(shape=[-2]),
        stored(shape=[2.0]),
        stored(shape=[True]),
        stored(shape=2),
        stored(pieces=[]),
        stored(pieces=[{**PIECE, "offset": [1]}]),
        stored(pieces=[{**PIECE, "offset": [0, 0]}]),
        stored(pieces=[{**PIECE, "file": "../secret"}]),
        stored(pieces=[{**PIECE, "file": "other.safetensors"}]),
        stored(pieces=[{**PIECE, "shape": [1]}, {**PIECE, "key": "w", "shape": [1]}]),
        stored(pieces=[{**PIECE, "shape": [1]}, {**PIECE, "offset": [1], "shape": [1]}]),
    ],
)
def test_a_forged_state_is_refused_by_name(tmp_path: Path, entry: Any) -> None:
    tensors = safetensors.torch.save({"v": torch.ones(2)})
    path = forge(tmp_path / "f", {}, state=json.dumps({"p": entry}).encode(), p=tensors)
    with pytest.raises(CheckpointError, match=r"state\.json is malformed"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "torch.int32"},
        {"dtype": "torch.complex64"},
        {"shape": [2**40], "pieces": [{**PIECE, "shape": [2**40]}]},
        {"pieces": [{**PIECE, "key": "w"}]},
        {
            "shape": [2**41],
            "pieces": [{**PIECE, "shape": [2**40]}, {**PIECE, "key": "w", "offset": [2**40], "shape": [2**40]}],
        },
    ],
    ids=str,
)
def test_an_index_that_the_tensor_file_does_not_bear_out_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    tensors = safetensors.torch.save({"v": torch.ones(2)})
    path = forge(tmp_path / "f", {}, state=json.dumps({"p": stored(**change)}).encode(), p=tensors)
    with pytest.raises(CheckpointError, match=r"p\.safetensors is malformed"):
        load(path)


def test_a_state_nested_past_the_parser_is_refused_by_name(tmp_path: Path) -> None:
    path = forge(
        tmp_path / "f", {}, state=b'{"p":' + b"[" * 100_000 + b"]" * 100_000 + b"}", p=safetensors.torch.save({})
    )
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load(path)


def header(entries: Any, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"xx",
        struct.pack("<Q", 2) + b"\xff\xff",
        header([]),
        header({"v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}, b"\0" * 8),
        header({"v": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"v": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"v": {"dtype": "NO", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 99),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_forged_tensor_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = forge(tmp_path / "f", {}, state=json.dumps({"p": stored()}).encode(), p=content)
    with pytest.raises(CheckpointError, match=r"p\.safetensors is malformed"):
        load(path)


def test_a_header_above_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = forge(tmp_path / "f", {}, state=json.dumps({"p": stored()}).encode(), p=b"")
    content = struct.pack("<Q", 100_000_001) + b" " * 100_000_001
    forge(path, {}, state=json.dumps({"p": stored()}).encode(), p=content)
    with pytest.raises(CheckpointError, match=r"p\.safetensors is malformed: header of 100000001 bytes"):
        load(path)


def test_files_the_manifest_does_not_list_are_ignored_even_a_pickle(tmp_path: Path) -> None:
    path = save(tmp_path, 1, small(), FACTS)
    (path / "extra.pt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert load(path).step == 1


class Canary:
    """A pickle of it makes the file `path` when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_program_in_the_index_of_another_tool_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = save(tmp_path / "checkpoints", 1, small(), FACTS)
    (path / ".metadata").write_bytes(pickle.dumps(Canary(canary)))
    assert load(path).step == 1
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest.json is missing; .* can run programs .* safetensors"):
        load(path)
    assert list_steps(path.parent) == []
    assert not canary.exists()
    pickle.loads((path / ".metadata").read_bytes())  # noqa: S301 - the canary works
    assert canary.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_another_tool_is_refused(tmp_path: Path) -> None:
    dcp.save({"weight": torch.ones(3)}, checkpoint_id=tmp_path / "step_00000001", no_dist=True)
    with pytest.raises(CheckpointError, match=r"manifest.json is missing; .*torch.distributed.checkpoint"):
        load(tmp_path / "step_00000001")
    assert list_steps(tmp_path) == []


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    path = save(tmp_path, 1, small(), FACTS, per_rank={"random": {"cpu": torch.get_rng_state()}})
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}
    assert not any(
        part in file.read_bytes() for file in path.iterdir() for part in (b"PK\x03\x04", b"\x80\x02", b"torch._utils")
    )


def test_a_checkpoint_of_an_older_format_is_refused_and_its_version_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"format 1, written by wmtp 0\.1\.0\.dev0 before .* Finish the run with"):
        load(forge(tmp_path / "f", {"format": 1}))
    with pytest.raises(CheckpointError, match=r"format 3, written by wmtp 7\.0; this is wmtp .*, which reads 2"):
        load(forge(tmp_path / "g", {"format": 3, "wmtp": "7.0"}))


# Templates


def test_a_template_is_filled_in_place_and_what_is_no_tensor_comes_from_the_file(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    state = {"w": weight, "tied": weight, "groups": [{"lr": 0.1, "betas": (0.9, None)}], 7: [torch.tensor(2.0)]}
    path = save(tmp_path, 1, {"p": state, "q": {"x": torch.ones(2)}}, {})
    mine = torch.zeros(4, 3).t()
    template = {"w": mine, "tied": mine, "groups": [], 7: [torch.tensor(0.0)], "other": "text"}
    found = load(path, {"p": template, "q": None}).parts
    assert found["p"]["w"] is found["p"]["tied"] is mine
    assert torch.equal(mine, weight)
    assert found["p"]["groups"] == state["groups"]
    assert found["p"][7][0] is template[7][0]
    assert template[7][0] == 2
    assert list(found["p"]) == ["w", "tied", "groups", 7]
    assert torch.equal(found["q"]["x"], torch.ones(2))


def test_tensors_that_were_one_may_be_two_in_the_template_but_not_the_other_way_round(tmp_path: Path) -> None:
    one = torch.ones(3)
    path = save(tmp_path, 1, {"p": {"a": one, "b": one}}, {})
    template = {"a": torch.zeros(3), "b": torch.zeros(3)}
    load(path, {"p": template})
    assert torch.equal(template["a"], one)
    assert torch.equal(template["b"], one)
    path = save(tmp_path, 2, {"p": {"a": one, "b": torch.zeros(3)}}, {})
    with pytest.raises(CheckpointError, match="b and a are two tensors in the checkpoint and one now"):
        load(path, {"p": {"a": one, "b": one}})


def test_what_template_and_checkpoint_do_not_share_is_named_and_nothing_is_filled(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"p": {"a": torch.ones(3), "b": {"c": torch.ones(2)}, "d": torch.ones(2, 2)}}, {})
    template = {"a": torch.zeros(3), "b": {"x": torch.zeros(2)}, "d": torch.zeros(4), "e": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load(path, {"p": template})
    for words in ("e is not in the checkpoint", "b.x is not in the checkpoint", "b.c is only in the checkpoint"):
        assert words in str(caught.value)
    assert "d is torch.float32 [2, 2] in the checkpoint and torch.float32 [4] now" in str(caught.value)
    assert not template["a"].any()
    with pytest.raises(CheckpointError, match=r"a is torch.float32 \[3\] in the checkpoint and torch.bfloat16"):
        load(path, {"p": {**template, "a": torch.zeros(3).bfloat16()}})


def test_a_template_without_memory_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"p": {"a": torch.ones(3)}}, {})
    with pytest.raises(CheckpointError, match="p: a: the tensor has no memory"):
        load(path, {"p": {"a": torch.ones(3, device="meta")}})


def test_a_ranks_own_states_come_back_with_all_parts_and_not_with_named_ones(tmp_path: Path) -> None:
    own = {"random": {"cpu": torch.get_rng_state(), "python": random.getstate()}, "more": {"cpu": torch.ones(2)}}
    path = save(tmp_path, 1, small(), FACTS, per_rank=own)
    found = load(path)
    assert found.ranks == 1
    assert found.per_rank is not None
    assert torch.equal(found.per_rank["random"]["cpu"], own["random"]["cpu"])
    assert found.per_rank["random"]["python"] == own["random"]["python"]
    assert torch.equal(found.per_rank["more"]["cpu"], torch.ones(2))
    assert load(path, {"model": None}).per_rank is not None
    assert load(path, ["model"]).per_rank is None
    assert load(save(tmp_path, 2, small(), FACTS)).per_rank is None
    (path / "rank-00000.own.safetensors").unlink()
    load(path, ["model"])
    with pytest.raises(CheckpointError, match=r"rank-00000.own.safetensors is missing"):
        load(path)


# Which one to continue from


def test_steps_are_listed_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (5, 200_000_000, 3, 1_000_000_000):
        save(tmp_path, step, {}, {}, keep_last=9)
    (tmp_path / "step_00000004").mkdir()
    (tmp_path / "step_x").mkdir()
    (tmp_path / "step_00000006").touch()
    assert [path.name for path in list_steps(tmp_path)] == [
        "step_00000003", "step_00000005", "step_200000000", "step_1000000000",
    ]  # fmt: skip


def test_a_store_that_does_not_answer_is_no_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, {"model": {"weight": torch.ones(2)}}, {})

    def unreachable(path: Path, *, hashes: bool = True) -> None:
        raise CheckpointError("cannot read it") from StorageError("after 5 attempts")

    monkeypatch.setattr(folder_module, "verify", unreachable)
    passed_over: list[Path] = []
    with pytest.raises(CheckpointError, match="cannot read it"):
        newest(tmp_path, on_bad=lambda path, reason: passed_over.append(path))
    assert not passed_over


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    assert newest(tmp_path / "none", on_bad=never) is None
    assert newest(tmp_path, on_bad=never) is None
    assert list_steps(tmp_path / "none") == []
    remove_litter(tmp_path / "none")


def test_the_newest_whole_one_is_found_and_each_bad_one_reported(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, small(step), FACTS, keep_last=4) for step in (1, 2, 3)]
    os.truncate(paths[2] / "model.safetensors", 9)
    (paths[1] / "state.json").write_bytes(b"{}")
    bad: dict[Path, str] = {}
    assert newest(tmp_path, on_bad=bad.__setitem__) == paths[0]
    assert list(bad) == [paths[2], paths[1]]
    assert "model.safetensors" in bad[paths[2]]
    assert "state.json" in bad[paths[1]]


def test_checkpoints_none_of_which_is_whole_are_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step, small(), FACTS) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint .* is whole.*step_00000002.*step_00000001"):
        newest(tmp_path, on_bad=lambda path, reason: None)


# Saving again, pruning and litter


def visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def hidden(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step, small(step), FACTS, keep_last=3)
    assert visible(tmp_path) == ["step_00000002", "step_00000003", "step_00000004"]
    assert hidden(tmp_path) == []


def test_the_one_just_saved_is_kept_even_when_its_step_is_the_lowest(tmp_path: Path) -> None:
    save(tmp_path, 100, small(), FACTS)
    save(tmp_path, 60, small(), FACTS, keep_last=1)
    assert visible(tmp_path) == ["step_00000060"]


def test_a_damaged_one_never_pushes_out_a_whole_one(tmp_path: Path) -> None:
    for step in (10, 100):
        save(tmp_path, step, small(), FACTS)
    (tmp_path / "step_00000100" / "model.safetensors").unlink()
    save(tmp_path, 60, small(), FACTS, keep_last=2)
    assert visible(tmp_path) == ["step_00000010", "step_00000060", "step_00000100"]


def test_saving_the_same_step_with_the_same_content_changes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 1, small(), FACTS)
    before = path.stat()
    assert save(tmp_path, 1, small(), FACTS) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(("value", "facts"), [(2.0, FACTS), (1.0, {"run": "other"})])
def test_saving_the_same_step_with_other_content_replaces_it(
    tmp_path: Path, value: float, facts: dict[str, Any]
) -> None:
    save(tmp_path, 1, small(), FACTS)
    found = load(save(tmp_path, 1, small(value), facts))
    assert found.facts == facts
    assert (found.parts["model"]["weight"] == value).all()
    assert os.listdir(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("damage", ["cut", "no-manifest", "file"])
def test_saving_over_a_damaged_step_keeps_the_damaged_one_aside(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path, 1, small(), FACTS)
    if damage == "cut":
        os.truncate(path / "model.safetensors", 9)
    if damage == "no-manifest":
        (path / "manifest.json").unlink()
    if damage == "file":
        shutil.rmtree(path)
        path.touch()
    assert load(save(tmp_path, 1, small(), FACTS)).facts == FACTS
    assert visible(tmp_path) == ["step_00000001"]
    assert [name.startswith(".bad-step_00000001-") for name in hidden(tmp_path)] == [True]
    remove_litter(tmp_path)
    assert len(hidden(tmp_path)) == 1


def test_litter_of_dead_processes_and_of_this_one_is_removed_and_that_of_others_left(tmp_path: Path) -> None:
    other = os.getppid()
    for pid in (DEAD, os.getpid(), other, 10**30):
        for kind in ("tmp", "del"):
            (tmp_path / f".{kind}-step_00000001-{pid}-00ff").mkdir()
            (tmp_path / f".{kind}-step_00000001-{pid}-00ff" / "f").touch()
    (tmp_path / ".tmp-something-else").mkdir()
    remove_litter(tmp_path)
    kept = [f".del-step_00000001-{other}-00ff", ".tmp-something-else", f".tmp-step_00000001-{other}-00ff"]
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("act", ["newest", "save", "remove_litter"])
def test_a_crash_between_the_two_renames_of_a_replacement_is_undone(tmp_path: Path, act: str) -> None:
    path = save(tmp_path, 1, small(5.0), FACTS)
    path.rename(tmp_path / f".old-step_00000001-{DEAD}-00ff")
    if act == "newest":
        assert newest(tmp_path, on_bad=never) == path
    elif act == "save":
        save(tmp_path, 2, small(), FACTS)
    else:
        remove_litter(tmp_path)
    assert (load(path).parts["model"]["weight"] == 5.0).all()
    assert hidden(tmp_path) == []


def test_a_crash_after_the_second_rename_leaves_the_new_one_and_the_old_one_is_cleared(tmp_path: Path) -> None:
    old = save(tmp_path, 1, small(5.0), FACTS)
    old.rename(tmp_path / f".old-step_00000001-{DEAD}-00ff")
    shutil.copytree(tmp_path / f".old-step_00000001-{DEAD}-00ff", tmp_path / "spare")
    (tmp_path / "spare").rename(old)
    assert newest(tmp_path, on_bad=never) == old
    remove_litter(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [old.name]


# Failures while saving


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    before = save(tmp_path, 1, small(), FACTS)
    with pytest.raises(CheckpointError, match=rf"disk full: need 42949672\d\d\.\d MiB, have [\d.]+ MiB at {tmp_path}"):
        save(tmp_path, 2, {"p": {"v": torch.zeros(1).expand(2**50)}}, {})
    assert os.listdir(tmp_path) == [before.name]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from wmtp.checkpoint import save
from wmtp.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
save(folder, 1, {"model": {"v": torch.ones(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for step in (1, 2):
    try:
        save(folder, step, {"model": {"v": torch.ones(1_000_000)}}, {})
    except CheckpointError as error:
        print(error)
"""


def test_a_write_that_fails_half_way_names_the_file_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"cannot save {tmp_path}/step_00000001: File too large: ")
    assert second.startswith(f"cannot save {tmp_path}/step_00000002: File too large: ")
    assert "model.safetensors" in first
    assert os.listdir(tmp_path) == ["step_00000001"]
    assert load(tmp_path / "step_00000001").parts["model"]["v"].numel() == 10


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot save .*file/ckpt/step_00000001"):
        save(tmp_path / "file" / "ckpt", 1, {}, {})


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    assert load(save(tmp_path / "a" / "b", 1, small(), FACTS)).step == 1


def test_a_tensor_that_cannot_be_copied_is_a_checkpoint_error_and_leaves_no_litter(tmp_path: Path) -> None:
    odd = torch.zeros(6, dtype=torch.uint8).view(torch.uint4)[::2]
    with pytest.raises(
        CheckpointError, match=r"tensor 'p/v' \(torch.uint4, \(3,\)\) cannot be read: .*not implemented"
    ):
        save(tmp_path, 1, {"p": {"v": odd}}, {})
    assert os.listdir(tmp_path) == []
