"""A run with other heads than parallel ones, through the command line: trained, resumed, saved, decoded, exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests_recipe import with_few_rows

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


def test_a_run_goes_on_from_a_model_with_fewer_heads_and_says_once_which_are_new(
    tmp_path: Path, wmtp_command: Command
) -> None:
    recipe = with_few_rows(tmp_path)
    short = "train={steps: 1, batch_size: 4, micro_batch_size: 4, eval_batches: 1, seed: 7}"

    def train(name: str, *options: str) -> tuple[int, str]:
        code, out, message = wmtp_command("train", "--recipe", recipe, "--out", tmp_path / name, short, *options)
        return code, " ".join((out + message).split())

    def linear(source: str, count: int) -> str:
        chosen = f"path: '{tmp_path / source / 'final'}', architecture: null, tokenizer: null"
        return f"model={{{chosen}, heads: {{family: linear, num_heads: {count}}}}}"

    assert train("one", "model.heads.num_heads=1")[0] == 0
    code, said = train("three", linear("one", 3))
    assert code == 0, said
    assert "was saved with 1 of the 3 heads: heads 2 to 3 are new, by init 'copy'" in said
    assert load_model(str(tmp_path / "three" / "final")).num_heads == 3
    code, said = train("three", linear("one", 3), "--resume", "auto")
    assert code == 0, said
    assert "was saved with" not in said
    code, said = train("two", linear("three", 2))
    assert code == 2
    assert "was saved with 3 linear heads" in said
