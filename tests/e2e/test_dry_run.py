"""`--dry-run` writes nothing, says what a run needs, and is right about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wmtp import devices
from wmtp.config import load
from wmtp.estimate import estimate
from wmtp.formats.hf import load_tokenizer, random_causal_lm
from wmtp.parts import build

Command = Callable[..., tuple[int, str, str]]
FROZEN = ("WMTP_REFERENCE", "WMTP_CRITIC", "WMTP_START")
"""Environment variables by which recipes name the model that another run has trained."""


def test_it_writes_nothing_and_gives_figures(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = wmtp_command("train", "--recipe", recipe, "--out", out, "--dry-run", "--json")
    assert code == 0, stderr
    figures = json.loads(stdout)
    assert not out.exists()
    assert figures["parameters"] > 0
    assert figures["steps"] == 10
    assert set(figures["bytes"]) >= {"weights", "gradients", "optimiser", "activations", "logits chunk"}


def test_the_table_is_readable(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    code, stdout, _ = wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "out", "--dry-run")
    assert code == 0
    assert "disk per checkpoint" in stdout


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_strategy_is_told_for_each_rank(recipe: Path, tmp_path: Path, wmtp_command: Command, ranks: int) -> None:
    command = ["train", "--recipe", recipe, "--out", tmp_path / "out", "--dry-run", "--ranks", ranks]
    code, stdout, stderr = wmtp_command(*command, "--json")
    assert code == 0, stderr
    figures = json.loads(stdout)
    needs = {found["strategy"]: found for found in figures["needs"]}
    assert figures["ranks"] == ranks
    assert list(needs) == ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD"]
    assert figures["bytes"] == needs["FULL_SHARD"]["bytes"], "the config's strategy"
    whole = 16 * figures["trainable"]
    assert needs["NO_SHARD"]["state_bytes"] == whole
    assert whole / ranks <= needs["FULL_SHARD"]["state_bytes"] <= 1.1 * whole / ranks
    code, stdout, _ = wmtp_command(*command)
    assert code == 0
    assert all(name in stdout for name in ("FULL_SHARD*", "NO_SHARD", "activations of a micro-batch"))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_model_too_large_for_this_machine_is_planned_without_its_weights(recipe: Path) -> None:
    wide = "{model_type: llama, hidden_size: 8192, intermediate_size: 28672, num_hidden_layers: 80, "
    wide += "num_attention_heads: 64, max_position_embeddings: 4096, vocab_size: 128000}"
    config = load([recipe], [f"model.architecture={wide}", "train.activation_checkpointing=true"])
    before = devices.resident_memory()
    parts = build(config, weights=False)
    figures = estimate(parts, 4)
    assert all(parameter.is_meta for parameter in parts.model.parameters())
    assert figures.parameters > 60e9
    assert figures.total > 4 * figures.parameters
    if before is not None:
        grown = (devices.resident_memory() or 0) - before
        assert grown < 600 * 2**20, "libraries, and nothing of the size of a weight"


def test_predicted_disk_is_what_a_checkpoint_takes(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    config = load([recipe])
    predicted = estimate(build(config)).checkpoint_bytes
    assert wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "run", "train.steps=4")[0] == 0
    saved = tmp_path / "run" / "checkpoints" / "step_00000004"
    actual = sum(path.stat().st_size for path in saved.iterdir())
    assert predicted <= actual <= predicted + 100_000


def test_building_leaves_the_random_state_to_the_seed_alone(recipe: Path) -> None:
    def first_weights() -> list[torch.Tensor]:
        return [p.detach().clone() for p in build(load([recipe])).model.parameters()]

    torch.manual_seed(1)
    before = first_weights()
    torch.manual_seed(2)
    assert all(a.equal(b) for a, b in zip(before, first_weights(), strict=True))


def test_an_unwritable_folder_is_found_before_training(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    (tmp_path / "file").write_text("")
    code, _, message = wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "file" / "run", "--dry-run")
    assert code == 2
    assert "cannot be made" in message


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
RECIPES = [path for path in RECIPES if not path.name.startswith("study_")]  # test_study.py has these


def test_every_shipped_recipe_loads() -> None:
    from wmtp.quickstart import configs

    root = Path(__file__).parents[2]
    assert RECIPES
    for path in RECIPES:
        for where in sorted((root / "configs").glob("*.yaml")):
            load([where, path])
    assert set(configs(Path("x"), [])) == {"critic", "baseline", "verifiable", "rho1"}


ALWAYS = ("6.7b", "llama30m", "hybrid", "critic_", "annealed", "online")
"""In the names of recipes that are tried each time; what is left differs from them in a word."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=() if any(part in path.name for part in ALWAYS) else pytest.mark.exhaustive)
        for path in RECIPES
    ],
)
def test_every_shipped_recipe_dry_runs(
    name: str, recipe: Path, tmp_path: Path, wmtp_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    mbpp = root.parent / "shared" / "data" / "mbpp" / "mbpp.jsonl"
    if "mbpp" in name and not mbpp.exists():
        pytest.skip(f"{name} reads MBPP, which is not part of this repository and was not found beside it")
    monkeypatch.setenv("WMTP_MBPP", str(mbpp))
    monkeypatch.setenv("WMTP_TRAIN", "embedded://problems_train.jsonl")
    monkeypatch.setenv("WMTP_MODEL", str(tmp_path / "base"))
    if "6.7b" in name:
        tokenizer = load_tokenizer("embedded://tiny-llama")
        random_causal_lm("embedded://tiny-llama", len(tokenizer), 0).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
    text = (root / "recipes" / name).read_text()
    if any(f"${{{frozen}:-" in text for frozen in FROZEN):
        arm = "objective={kind: value}" if "WMTP_CRITIC" in text else "model.heads.num_heads=4"
        fits = ["train.steps=1", "model.architecture.max_position_embeddings=512"]
        assert wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "frozen", arm, *fits)[0] == 0
    for frozen in FROZEN:
        monkeypatch.setenv(frozen, str(tmp_path / "frozen" / "final"))
    command = ["train", "--recipe", root / "recipes" / name, "--out", tmp_path / "x", "--dry-run"]
    if "6.7b" in name:
        command.append("data.max_length=256")  # the stand-in has a short context
    code, _, message = wmtp_command(*command)
    assert code == 0, message
