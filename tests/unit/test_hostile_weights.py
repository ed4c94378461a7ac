"""Files of weights made to harm: each is refused with a message, nothing in it is run, and little of it is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wmtp.errors import ModelError
from wmtp.formats.hf import load_causal_lm
from wmtp.formats.native import load_model, save_model
from wmtp.formats.scan import MOST_HEADER, MOST_TENSORS, check_safetensors, check_torch_file
from wmtp.testing import tiny_base, tiny_model

SHAPE = {"dim": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 50, "multiple_of": 16, "n_future_tokens": 2}


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def header(entries: Any, data: bytes = b"") -> bytes:
    """A safetensors file with such a header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], size: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}


SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "header longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header of 101 MB": struct.pack("<Q", 101 * 2**20) + b"{}" + b" " * 8,
    "not utf-8": header(b"\xff" * 16),
    "no json": header(b"}" * 16),
    "a list": header([1, 2]),
    "nested deeply": header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "no shape": header({"a": {"dtype": "F32"}}),
    "a shape of text": header({"a": {"dtype": "F32", "shape": 5, "data_offsets": [0, 4]}}),
    "negative size": header({"a": entry([-1], 4)}, b"\0" * 4),
    "size that overflows": header({"a": entry([2**40, 2**40], 4)}, b"\0" * 4),
    "offsets that overlap": header({"a": entry([1], 4), "b": entry([1], 4)}, b"\0" * 8),
    "fewer bytes than the shape": header({"a": entry([9], 4)}, b"\0" * 4),
    "unknown type": header({"a": entry([1], 4) | {"dtype": "F3"}}, b"\0" * 4),
    "trailing bytes": header({"a": entry([1], 4)}, b"\0" * 40),
    "a hundred thousand dimensions": header({"a": entry([1] * 100_000, 4)}, b"\0" * 4),
    "too many empty tensors": header({f"{i:x}": entry([0], 0) for i in range(MOST_TENSORS + 1)}),
    "a name twice": header(b'{"a":%b,"a":%b}' % ((json.dumps(entry([1], 4)).encode(),) * 2), b"\0" * 4),
    "metadata that is no text": header({"__metadata__": {"a": 1}, "a": entry([1], 4)}, b"\0" * 4),
    "a name that is a path": header({"../../a": entry([1], 4)}, b"\0" * 4),
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_model("llama", 2), tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def meta_folder(path: Path) -> Path:
    path.mkdir()
    (path / "params.json").write_text(json.dumps(SHAPE))
    return path


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    assert caught.value.exit_code == 2
    assert "weights_only" not in str(caught.value), "torch's advice to run what is in the file"
    return str(caught.value)


@pytest.fixture(scope="module")
def million() -> bytes:
    """A million empty tensors: a library takes a minute and 700 MB to read such a header."""
    one = '"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return header(("{" + ",".join(one % i for i in range(10**6)) + "}").encode())


@pytest.mark.parametrize("kind", SAFETENSORS)
@pytest.mark.parametrize(
    "file", ["model.safetensors", pytest.param("mtp_heads.safetensors", marks=pytest.mark.exhaustive)]
)
def test_a_hostile_safetensors_file_is_refused_and_named(folder: Path, file: str, kind: str) -> None:
    (folder / file).write_bytes(SAFETENSORS[kind])
    assert str(folder) in refused(lambda: load_model(str(folder)))


@pytest.mark.parametrize("kind", [kind for kind in SAFETENSORS if kind != "too many empty tensors"])
def test_so_it_is_in_metas_format(tmp_path: Path, kind: str) -> None:
    folder = meta_folder(tmp_path / "meta")
    (folder / "a.safetensors").write_bytes(SAFETENSORS[kind])
    assert str(folder) in refused(lambda: load_model(str(folder)))


def test_a_long_header_is_refused_by_its_length_and_read_by_nobody(
    folder: Path, million: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(million) > MOST_HEADER
    (folder / "model.safetensors").write_bytes(million)
    monkeypatch.setattr("wmtp.formats.scan.json", None)
    assert "at most 8,388,608 are read" in refused(lambda: check_safetensors(folder / "model.safetensors"))
    assert "at most 8,388,608 are read" in refused(lambda: load_model(str(folder)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("file", ["model.safetensors", "mtp_heads.safetensors"])
def test_a_weight_that_is_not_finite_is_named(folder: Path, file: str, value: float) -> None:
    tensors = load_file(folder / file)
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name][3, 4] = value
    save_file(tensors, folder / file, metadata={"format": "pt"})
    told = refused(lambda: load_model(str(folder)))
    assert name in told
    assert "not finite" in told


@pytest.mark.parametrize("file", ["model.safetensors", "mtp_heads.safetensors"])
def test_whole_numbers_in_place_of_weights_are_named(folder: Path, file: str) -> None:
    tensors = load_file(folder / file)
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name] = tensors[name].to(torch.int64)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    assert f"{name} is of type I64" in refused(lambda: load_model(str(folder)))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    assert shards[1].name in refused(lambda: load_causal_lm(str(tmp_path / "m")))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/a.safetensors"])
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    tiny_base().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    index = tmp_path / "m" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], name)
    index.write_text(json.dumps(content))
    assert name in refused(lambda: load_causal_lm(str(tmp_path / "m")))


def test_an_embedding_that_should_be_tied_and_one_that_should_not_are_told(tmp_path: Path) -> None:
    for tied in (True, False):
        path = tmp_path / str(tied)
        tiny_base(tie_word_embeddings=tied).save_pretrained(path)
        config = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": not tied}
        (path / "config.json").write_text(json.dumps(config))
        assert "lm_head.weight" in refused(lambda path=path: load_causal_lm(str(path)))


# .pth


def good_tensors() -> dict[str, torch.Tensor]:
    from wmtp.formats.meta import Params, shapes

    return {name: torch.ones(size) for name, size in shapes(Params(**SHAPE), 50).items()}


def trapped(path: Path, sprung: Path) -> None:
    torch.save(good_tensors() | {"norm.weight": Trap(sprung)}, path)


def bare_pickle(path: Path, sprung: Path) -> None:
    torch.save(good_tensors() | {"x": Trap(sprung)}, path, _use_new_zipfile_serialization=False)


def repeated(path: Path, sprung: Path) -> None:
    """10^12 elements that are one number."""
    torch.save(good_tensors() | {"norm.weight": torch.zeros(1).expand(2**40)}, path)


def overlapping(path: Path, sprung: Path) -> None:
    torch.save(good_tensors() | {"norm.weight": torch.ones(40).as_strided((32,), (0,))}, path)


def inflating(path: Path, sprung: Path) -> None:
    """A zip that becomes a thousand times its size."""
    torch.save(good_tensors(), path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data + b"\0" * (2**24 if name.endswith("/0") else 0))


def lying(path: Path, sprung: Path) -> None:
    """An entry that says it is larger than the file."""
    torch.save(good_tensors(), path)
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<2L", 2**31, 2**31)
    path.write_bytes(content)


def crowded(path: Path, sprung: Path) -> None:
    """A zip of very many files."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**30, 0, 0)
    path.write_bytes(b"PK\x03\x04" + b"\0" * 64 + end)


def large_pickle(path: Path, sprung: Path) -> None:
    torch.save(good_tensors() | {"note": "x" * (MOST_HEADER + 1)}, path)


def truncated(path: Path, sprung: Path) -> None:
    torch.save(good_tensors(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def without_a_storage(path: Path, sprung: Path) -> None:
    torch.save(good_tensors(), path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("data/3")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def repacked(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """The good file with other content, and checksums that fit it."""
    torch.save(good_tensors(), path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, change(name, data))


def short_storage(path: Path, sprung: Path) -> None:
    """A tensor whose numbers are not all there; others follow it."""
    repacked(path, lambda name, data: data[: len(data) // 2] if name.endswith("data/3") else data)


def flipped(path: Path, sprung: Path) -> None:
    """One bit of one number."""
    torch.save(good_tensors(), path)
    content = bytearray(path.read_bytes())
    content[content.find(torch.ones(32).numpy().tobytes()) + 8] ^= 1
    path.write_bytes(content)


def many_entries(path: Path, sprung: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(MOST_TENSORS + 1):
            archive.writestr(f"{number:x}", b"")


def sparse(path: Path, sprung: Path) -> None:
    torch.save(good_tensors() | {"norm.weight": torch.ones(32).to_sparse()}, path)


def no_dictionary(path: Path, sprung: Path) -> None:
    torch.save([torch.ones(3)], path)


def numbered(path: Path, sprung: Path) -> None:
    torch.save({1: torch.ones(3)}, path)


def garbage(path: Path, sprung: Path) -> None:
    path.write_bytes(b"\x80\x02}q\0." * 50)


def empty(path: Path, sprung: Path) -> None:
    path.write_bytes(b"")


PTH: list[Callable[[Path, Path], None]] = [
    trapped,
    bare_pickle,
    repeated,
    overlapping,
    inflating,
    lying,
    crowded,
    large_pickle,
    truncated,
    without_a_storage,
    short_storage,
    flipped,
    many_entries,
    sparse,
    no_dictionary,
    numbered,
    garbage,
    empty,
]


@pytest.mark.parametrize("make", PTH, ids=lambda make: make.__name__)
def test_a_hostile_pth_is_refused_and_nothing_in_it_is_run(make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    folder = meta_folder(tmp_path / "meta")
    make(folder / "consolidated.pth", tmp_path / "sprung")
    assert str(folder) in refused(lambda: load_model(str(folder)))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("make", [inflating, lying, crowded, large_pickle, bare_pickle], ids=lambda make: make.__name__)
def test_what_need_not_be_opened_is_not(
    make: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.pth", tmp_path / "sprung")
    monkeypatch.setattr(torch, "load", None)
    refused(lambda: check_torch_file(tmp_path / "a.pth"))


def test_the_good_file_is_taken(tmp_path: Path) -> None:
    folder = meta_folder(tmp_path / "meta")
    torch.save(good_tensors(), folder / "consolidated.pth")
    assert load_model(str(folder)).num_heads == 2


# What they may cost.

MEASURE = """
import resource, sys
from pathlib import Path
from wmtp.errors import ModelError
from wmtp.formats.native import load_model

def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) // 1024

for folder in sorted(Path(sys.argv[1]).iterdir()):
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    before, used = megabytes("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    try:
        load_model(str(folder))
    except ModelError:
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        print(folder.name, megabytes("VmHWM") - before, round(cpu, 2))
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
def test_none_takes_over_300_mb_or_over_two_seconds_of_the_processor(
    good: Path, tmp_path: Path, million: bytes
) -> None:
    """In a process of its own, one after another; a good folder comes first, so that libraries are there."""
    root = tmp_path / "all"
    root.mkdir()
    shutil.copytree(good, root / "_good")
    for make in PTH:
        make(meta_folder(root / make.__name__) / "consolidated.pth", tmp_path / "sprung")
    files = SAFETENSORS | {"million": million}
    for kind, content in files.items():
        name = kind.replace(" ", "_")
        (meta_folder(root / f"meta_{name}") / "a.safetensors").write_bytes(content)
        for file in ("model.safetensors", "mtp_heads.safetensors"):
            folder = Path(shutil.copytree(good, root / f"{file[:5]}_{name}"))
            (folder / file).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(root)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = [line.split() for line in done.stdout.splitlines()]
    assert len(figures) == len(PTH) + 3 * len(files)
    assert all(int(megabytes) < 300 and float(cpu) < 2 for _, megabytes, cpu in figures), done.stdout
    assert not (tmp_path / "sprung").exists()
