"""A run with other heads than parallel ones, through the command line: trained, resumed, saved, decoded, exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wmtp.formats.native import load_model

Command = Callable[..., tuple[int, str, str]]
exhaustive = pytest.mark.exhaustive
RUNS = {
    "chain": ["model.heads={family: chain, num_heads: 3, init: fresh, trained: heads}"],
    "linear": ["model.heads={family: linear, num_heads: 3, trained: heads+norm}"],
    "matched": ["model.heads={num_heads: 3, depth: matched}", "model.architecture.num_hidden_layers=4"],
}


@pytest.mark.parametrize("name", ["chain", *(pytest.param(n, marks=exhaustive) for n in ("linear", "matched"))])
def test_a_run_is_trained_resumed_saved_decoded_and_exported(
    name: str, recipe: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    def run(command: str, *arguments: object) -> str:
        code, out, message = wmtp_command(command, *arguments)
        assert code == 0, message
        return out

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = RUNS[name]
    run("train", "--recipe", recipe, "--out", whole, *options)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "final")
    shutil.rmtree(parts / "checkpoints" / "step_00000010")
    run("train", "--recipe", recipe, "--out", parts, *options, "--resume", "auto")
    model, again = load_model(str(whole / "final")), load_model(str(parts / "final"))
    assert model.family == ("parallel" if name == "matched" else name)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    ask = ["--model", whole / "final", "--prompt", "def f(", "--max-new-tokens", "8", "--json"]
    plain, drafted = (json.loads(run("generate", *ask, "--mode", mode)) for mode in ("plain", "speculative"))
    assert drafted["completions"][0]["text"] == plain["completions"][0]["text"]
    run("export", "--model", whole, "--to", "hf", "--out", tmp_path / "hf")
    assert load_model(str(tmp_path / "hf"), num_heads=1).num_layers == model.num_layers
