"""Weights say what they were when they were written: one flipped bit is told, wherever it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wmtp.errors import ModelError
from wmtp.export import export
from wmtp.formats.mimo import write_mimo
from wmtp.formats.native import copy_model, load_model, load_value_model, save_model
from wmtp.formats.sums import SUMS, write_sums
from wmtp.testing import tiny_base, tiny_model, tiny_tokenizer
from wmtp.value import ValueModel

FILES = ("model.safetensors", "mtp_heads.safetensors")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(str(save_model(tiny_model("llama", 2), tmp_path_factory.mktemp("good") / "m", tiny_tokenizer())))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_any_place_is_refused_and_the_folder_named(
    good: Path, tmp_path: Path, file: str, place: float, bit: int
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "m", dirs_exist_ok=True))
    content = bytearray((good / file).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=str(folder)) as caught:
        load_model(str(folder))
    assert caught.value.exit_code == 2


def changed(folder: Path, file: str) -> Path:
    """One number that is as good as the one before."""
    tensors = load_file(folder / file)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def test_a_change_that_was_meant_takes_the_sums_away(good: Path, tmp_path: Path) -> None:
    for file in FILES:
        folder = changed(Path(shutil.copytree(good, tmp_path / file)), file)
        with pytest.raises(ModelError, match=f"{file} is not the file that {SUMS} beside it names.*remove {SUMS}"):
            load_model(str(folder))
        (folder / SUMS).unlink()
        assert load_model(str(folder)).num_heads == 2


def test_a_critic_and_an_exported_or_copied_model_have_them_too(good: Path, tmp_path: Path) -> None:
    critic = save_model(ValueModel(tiny_base()), tmp_path / "critic")
    with pytest.raises(ModelError, match="is not the file"):
        load_value_model(str(changed(Path(str(critic)), "value_head.safetensors")))
    made = {"hf": export(str(good), str(tmp_path / "hf"), "hf"), "copy": copy_model(good, tmp_path / "copy")}
    for folder in made.values():
        with pytest.raises(ModelError, match="is not the file"):
            load_model(str(changed(Path(str(folder)), "model.safetensors")))


def test_they_are_read_by_the_tool_of_that_name(good: Path) -> None:
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no sha256sum here")
    done = subprocess.run([tool, "--check", SUMS], cwd=good, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{file}: OK" for file in FILES]


def test_sums_of_another_hand_are_read_as_sha256sum_reads_them(good: Path, tmp_path: Path) -> None:
    """Capital letters, a path that begins here, lines that say something else."""
    folder = Path(shutil.copytree(good, tmp_path / "m"))
    lines = [line.split() for line in (folder / SUMS).read_text().splitlines()]
    said = "".join(f"{digest.upper()}  ./{name}\n" for digest, name in lines)
    (folder / SUMS).write_text(f"-----BEGIN PGP SIGNED MESSAGE-----\n\n{said}")
    load_model(str(folder))
    (folder / SUMS).write_text(f"\n{said}".replace(lines[0][0].upper(), "0" * 64))
    with pytest.raises(ModelError, match=lines[0][1]):
        load_model(str(folder))


@pytest.mark.parametrize("content", [b"garbage", b"\xff\xfe", b"a b\nc"])
def test_sums_that_cannot_be_read_are_named(good: Path, tmp_path: Path, content: bytes) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "m"))
    (folder / SUMS).write_bytes(content)
    with pytest.raises(ModelError, match=f"{SUMS} cannot be read"):
        load_model(str(folder))


def sharded(folder: Path, names: dict[str, str]) -> Path:
    """The model's tensors in files of other names, by their beginning, and an index of them; sums of what is there."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {tensor: next(file for begin, file in names.items() if tensor.startswith(begin)) for tensor in tensors}
    for file in set(where.values()):
        part = {tensor: value for tensor, value in tensors.items() if where[tensor] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    write_sums(folder, {})
    return folder


def test_files_that_an_index_names_are_compared_whatever_their_names(good: Path, tmp_path: Path) -> None:
    names = {"model.layers.": "layers.safetensors", "": "rest.safetensors"}
    folder = sharded(Path(shutil.copytree(good, tmp_path / "m")), names)
    assert load_model(str(folder)).num_heads == 2
    with pytest.raises(ModelError, match=r"layers\.safetensors is not the file"):
        load_model(str(changed(folder, "layers.safetensors")))


def test_layers_for_multi_token_prediction_are_compared_in_a_file_of_their_own(tmp_path: Path) -> None:
    write_mimo(tiny_model("llama", 2, heads="chain", noise=0.1), tmp_path, "sglang")
    tensors = load_file(tmp_path / "model.safetensors")
    layers = {name: tensors.pop(name) for name in list(tensors) if name.startswith("model.mtp_layers.")}
    for file, part in (("model.safetensors", tensors), ("mtp.safetensors", layers)):
        save_file(part, tmp_path / file, metadata={"format": "pt"})
    write_sums(tmp_path, {})
    assert load_model(str(tmp_path)).family == "chain"
    with pytest.raises(ModelError, match=r"mtp\.safetensors is not the file"):
        load_model(str(changed(tmp_path, "mtp.safetensors")))
