"""`wmtp export`: a checkpoint becomes a model folder, and is what the run's own `final/` is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wmtp import load_model

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(recipe: Path, tmp_path: Path, wmtp_command: Command) -> Path:
    assert wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "run")[0] == 0
    return tmp_path / "run"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{f.name}/{k}": v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def test_a_checkpoint_is_exported_as_the_final_model(run: Path, tmp_path: Path, wmtp_command: Command) -> None:
    for source, name in ((run, "a"), (run / "checkpoints" / "step_00000010", "b"), (run / "final", "c")):
        code, out, message = wmtp_command("export", "--model", source, "--out", tmp_path / name)
        assert code == 0, message
        assert str(tmp_path / name) in out
        ours, theirs = tensors(tmp_path / name), tensors(run / "final")
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)


def test_without_heads_it_is_what_transformers_loads(run: Path, tmp_path: Path, wmtp_command: Command) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert wmtp_command("export", "--model", run, "--to", "hf", "--out", tmp_path / "hf")[0] == 0
    assert not any((tmp_path / "hf" / file).exists() for file in ("mtp_heads.safetensors", "wmtp.json"))
    assert load_model(str(tmp_path / "hf"), heads="chain", num_heads=3).num_heads == 3  # as of any model without heads
    tokens = AutoTokenizer.from_pretrained(tmp_path / "hf")("def f(x):", return_tensors="pt").input_ids
    one, other = (AutoModelForCausalLM.from_pretrained(f)(tokens).logits for f in (tmp_path / "hf", run / "final"))
    assert one.equal(other)


@pytest.mark.parametrize(
    ("source", "to", "says"),
    [
        ("nowhere", "wmtp", "no model folder"),
        ("run", "onnx", "--to must be one of wmtp, hf, head:K, meta"),
        (".", "hf", "cannot load a tokenizer"),
    ],
)
def test_what_cannot_be_exported_is_said(
    run: Path, tmp_path: Path, wmtp_command: Command, source: str, to: str, says: str
) -> None:
    code, _, message = wmtp_command("export", "--model", tmp_path / source, "--to", to, "--out", tmp_path / "out")
    assert code == 2
    assert says in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()
