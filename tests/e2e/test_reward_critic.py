"""A critic that learns a reward model's score: asked at every step or scored once, it is the same critic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests_recipe import with_few_rows

from wmtp import frozen
from wmtp.config import load
from wmtp.formats.native import VALUE_HEAD, load_value_head, read_card
from wmtp.parts import build
from wmtp.testing import tiny_tokenizer
from wmtp.trainer import run

Command = Callable[..., tuple[int, str, str]]
SHORT = ["train={steps: 3, batch_size: 8, micro_batch_size: 4, eval_every: 3, eval_batches: 2, log_every: 1}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with few rows without labels, and beside it `rm`: a reward model with its own tokenizer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    recipe = with_few_rows(folder, train=40, validation=20)
    for name in ("train.jsonl", "validation.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        (folder / name).write_text("".join(json.dumps({**line, "is_correct": None}) + "\n" for line in lines))
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_labels=1, pad_token_id=0, max_position_embeddings=2048, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).save_pretrained(folder / "rm")
    tokenizer.save_pretrained(folder / "rm")
    return recipe


def objective(recipe: Path, scores: Path | None = None) -> str:
    stored = "" if scores is None else f", scores: '{scores}'"
    reward = f"{{model: '{recipe.parent}/rm', template: '{{prompt}} => {{response}}'{stored}}}"
    return f"objective={{kind: value, loss: lambda_return, head: linear, reward: {reward}}}"


@pytest.fixture(scope="module")
def scores(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote."""
    from wmtp.cli import run_command

    folder = tmp_path_factory.mktemp("scores") / "reward"
    arguments = ["--recipe", str(recipe), "--batch-tokens", "1500", "--json"]
    assert run_command(["score", *arguments, objective(recipe, folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def critic(recipe: Path, scores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A critic that saw one step of stored rewards."""
    folder = tmp_path_factory.mktemp("critic")
    run(load([recipe], [objective(recipe, scores), *SHORT, "train.steps=1", "train.eval_every=null"]), out=folder)
    return folder / "final"


def test_a_row_has_one_stored_reward(recipe: Path, scores: Path) -> None:
    card = json.loads((scores / "scores.json").read_text())
    assert card["columns"]["reward"]["of"] == "row"
    assert card["tokens"] == card["rows"]
    assert sorted(card["sha256"]) == ["index.npy", "reward.npy"]
    assert (scores / "reward.npy").stat().st_size == 128 + 4 * card["rows"]


def test_stored_rewards_train_the_critic_that_asking_trains(
    recipe: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(load([recipe], [objective(recipe), *SHORT]), out=tmp_path / "online")
    monkeypatch.delattr(frozen, "load_reward_model")  # nothing may be loaded
    run(load([recipe], [objective(recipe, scores), *SHORT]), out=tmp_path / "stored")
    for file in (VALUE_HEAD, "model.safetensors"):
        one, other = (load_file(tmp_path / name / "final" / file) for name in ("online", "stored"))
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "stored" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "train"][-1]
    assert last["reward/std"] > 0.01
    assert -1 <= last["value/reward_correlation"] <= 1
    assert "value/calibration_error" not in last
    card = read_card(str(tmp_path / "stored" / "final"))
    assert card is not None
    assert card.rewards == "model"  # type: ignore[union-attr]
    load_value_head(str(tmp_path / "stored" / "final"))


def test_rows_from_a_cache_have_the_same_rewards(recipe: Path, scores: Path, tmp_path: Path) -> None:
    plain = build(load([recipe], [objective(recipe, scores), *SHORT]))
    for _ in ("written", "found"):
        cached = build(load([recipe], [objective(recipe, scores), *SHORT, f"data.cache={tmp_path / 'cache'}"]))
        assert cached.data.fingerprint == plain.data.fingerprint
        (one, *_), (other, *_) = plain.data.train.at(1), cached.data.train.at(1)
        assert plain.objective.reward is not None  # type: ignore[attr-defined]
        assert torch.equal(plain.objective.reward(one), cached.objective.reward(other))  # type: ignore[attr-defined]


def test_what_was_scored_by_another_template_is_refused_and_a_dry_run_tells_the_reward_models_size(
    recipe: Path, scores: Path, wmtp_command: Command
) -> None:
    other = objective(recipe, scores).replace("=>", "->")
    code, _, error = wmtp_command("train", "--recipe", recipe, other, *SHORT, "--dry-run")
    assert (code, "another objective.reward.template" in error) == (2, True)
    code, out, _ = wmtp_command("train", "--recipe", recipe, objective(recipe), *SHORT, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["frozen_parameters"] > 0


def test_weights_that_compare_is_correct_with_such_a_critics_values_are_refused(
    recipe: Path, critic: Path, wmtp_command: Command
) -> None:
    weighting = f"objective={{weighting: {{scheme: critic, critic: '{critic}', terminal: reward}}}}"
    labelled = [f"data.{role}.path=embedded://problems_{role}.jsonl" for role in ("train", "validation")]
    code, _, error = wmtp_command("train", "--recipe", recipe, weighting, *labelled, "--dry-run")
    assert (code, "the critic foresees the score of a reward model" in error) == (2, True)


def test_weights_come_from_such_a_critic_and_the_policy_s_own_value_head_goes_along(
    recipe: Path, critic: Path, wmtp_command: Command, tmp_path: Path
) -> None:
    short = [*SHORT, "train.eval_every=null", "checkpoint.every=2"]
    weighting = f"{{scheme: critic, critic: '{critic}'}}"
    policy = [f"objective={{weighting: {weighting}, aux_value_loss: 0.5}}", *short]
    run(load([recipe], policy), out=tmp_path / "whole")
    one = load_value_head(str(tmp_path / "whole" / "final")).state_dict()
    before = load_value_head(str(critic)).state_dict()
    assert any(not tensor.equal(before[name]) for name, tensor in one.items())
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all("loss/value" in line for line in lines)
    shutil.copytree(
        tmp_path / "whole" / "checkpoints" / "step_00000002", tmp_path / "again" / "checkpoints" / "step_00000002"
    )
    shutil.copy(tmp_path / "whole" / "config.yaml", tmp_path / "again" / "config.yaml")
    run(load([recipe], policy), out=tmp_path / "again", resume="auto")
    other = load_value_head(str(tmp_path / "again" / "final")).state_dict()
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
    assert wmtp_command("export", "--model", tmp_path / "whole", "--out", tmp_path / "exported")[0] == 0
    exported = load_value_head(str(tmp_path / "exported")).state_dict()
    assert all(tensor.equal(exported[name]) for name, tensor in one.items())
