"""Training on the policy's own samples: it learns what tests ask, resumes to the bit, and refuses what cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests_recipe import RECIPE

from wmtp.cli import run_command
from wmtp.config import load
from wmtp.errors import ConfigError, ModelError
from wmtp.parts import build
from wmtp.sandbox import Sandbox
from wmtp.study.budget import steps_within
from wmtp.study.settings import BudgetConfig

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
GRPO = "objective={weighting: {scheme: grpo, mode: positive, neutral: 0.0}}"
NEAR = "objective={weighting: {scheme: grpo, mode: positive, neutral: 0.0}, denominator: tokens}"
ONLINE = "online={samples: 8, max_new_tokens: 1, require: best}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems that any program solves which runs and prints nothing, about one token in twenty; and their recipe."""
    folder = tmp_path_factory.mktemp("online")
    prompts = (f"Write program {n} that does nothing." for n in range(12))
    rows = [{"prompt": prompt, "response": "pass", "cases": [["", ""]]} for prompt in prompts]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    data = [f"data.train.path={folder / 'problems.jsonl'}", "data.validation=null", "train.eval_every=null"]
    small = ["train.batch_size=32", "train.micro_batch_size=16", "train.steps=4", "checkpoint={every: 2, keep_last: 9}"]
    fast = ["optim.lr=3e-2", "model.heads.num_heads=1"]
    return ["train", "--recipe", f"{folder / 'recipe.yaml'}", "--out", f"{folder / out}", *data, *small, *fast, *more]


def journal(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "mem/"))} for line in lines]


def weights(run: Path) -> dict[str, Any]:
    return {name: t for file in (run / "final").glob("*.safetensors") for name, t in load_file(file).items()}


def assert_same_run(run: Path, other: Path) -> None:
    assert journal(run) == journal(other)
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_policy_learns_to_pass_the_tests_and_groups_without_contrast_move_nothing(folder: Path) -> None:
    """From a twentieth to most of its samples; every step is finite, though in some nothing weighs anything."""
    many = ["train.batch_size=64", "train.micro_batch_size=64", "train.steps=20", "checkpoint.every=null"]
    assert run_command(arguments(folder, "learns", GRPO, ONLINE, *many, "optim.schedule=constant")) == 0
    steps = journal(folder / "learns")
    rewards = [step["online/reward"] for step in steps]
    assert max(rewards[:3]) < 0.2
    assert min(rewards[-3:]) > 0.5
    neutral = [step for step in steps if step["online/neutral"] == 1.0]
    assert neutral
    assert {step["grad_norm"] for step in neutral} == {0.0}
    assert steps[-1]["online/neutral_steps"] == len(neutral)


@pytest.fixture(scope="module")
def start(folder: Path) -> Path:
    """A model of four heads after one step."""
    assert run_command(arguments(folder, "start", GRPO, ONLINE, "model.heads.num_heads=4", "train.steps=1")) == 0
    return folder / "start" / "final"


@pytest.mark.exhaustive
def test_the_shipped_recipe_trains(folder: Path, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps from random weights, which never pass: both are counted as neutral, and no gradient is left."""
    small = ["train.batch_size=8", "online.max_new_tokens=8"]
    monkeypatch.setenv("WMTP_START", str(start))
    recipe = str(ROOT / "recipes" / "grpo_online_embedded_cpu.yaml")
    command = ["train", "--recipe", recipe, "--out", str(folder / "shipped"), *small, "train.steps=2"]
    assert run_command(command) == 0
    first, second = journal(folder / "shipped")
    assert (first["online/reward"], first["online/neutral"], first["loss/kl"]) == (0.0, 1.0, 0.0)
    assert (first["grad_norm"], second["online/neutral_steps"]) == (0.0, 2.0)


@pytest.fixture(scope="module")
def whole(folder: Path, start: Path) -> Path:
    """An undisturbed run near a reference."""
    assert run_command(arguments(folder, "whole", *near(start))) == 0
    return folder / "whole"


def near(reference: Path) -> list[str]:
    """Other weights than the reference's, so that the divergence is not 0."""
    return [NEAR, ONLINE, "online.kl=0.2", f"online.reference={reference}", "train.seed=3", "online.max_new_tokens=2"]


def test_a_resumed_run_draws_the_same_samples_and_ends_as_the_same_run(folder: Path, start: Path, whole: Path) -> None:
    shutil.copytree(whole, folder / "cut")
    shutil.rmtree(folder / "cut" / "checkpoints" / "step_00000004")
    shutil.rmtree(folder / "cut" / "final")
    assert run_command(arguments(folder, "cut", *near(start), "--resume", "auto")) == 0
    assert_same_run(whole, folder / "cut")
    steps = journal(whole)
    assert all(step["loss/kl"] > 0 for step in steps)
    assert {"online/reward", "online/neutral", "online/ended"} <= steps[0].keys()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"])
def test_two_ranks_draw_and_train_what_one_process_does(folder: Path, start: Path, strategy: str) -> None:
    """With heads that draft answers of different lengths, so that ranks take different numbers of forward passes."""
    longer = ["model.heads.num_heads=3", "online.max_new_tokens=10", "train.batch_size=24"]
    objective = "objective={weighting: {scheme: grpo}, denominator: tokens}"
    runs = []
    for ranks in (1, 2):
        more = [objective, *near(start)[1:], *longer, f"distributed.strategy={strategy}", "--ranks", f"{ranks}"]
        command = [sys.executable, "-m", "wmtp", *arguments(folder, f"{strategy}-{ranks}", *more)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(journal(folder / f"{strategy}-{ranks}"))
    for one, two in zip(*runs, strict=True):
        numbers = {name: value for name, value in one.items() if isinstance(value, int | float)}
        assert numbers == pytest.approx({name: two[name] for name in numbers}, rel=1e-5, abs=1e-6)
        assert one.keys() == two.keys()


WRONG = {
    "objective.kind = mtp": ["objective={kind: value}"],
    "a weighting that reads rewards": ["objective={kind: mtp}"],
    "data.workers does nothing": [GRPO, "data.workers=1"],
    "data.solutions does nothing": [GRPO, "data.solutions=all"],
    "must be a multiple of online.samples": [GRPO, "train.batch_size=20"],
    "leaves no room for a prompt": [GRPO, "online.max_new_tokens=128"],
    "kl needs objective.denominator = tokens": [GRPO, "online.kl=0.1"],
    "where the run starts from random weights": [NEAR, "online.kl=0.1"],
    "online.reference does nothing": [GRPO, "online.reference=/nowhere"],
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_cannot_be_is_refused_with_a_reason(reason: str, folder: Path, wmtp_command: Command) -> None:
    code, _, err = wmtp_command(*arguments(folder, "never", ONLINE, *WRONG[reason]))
    assert code == 2
    assert reason in err
    assert not (folder / "never").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_policy_that_cannot_be_decoded_is_refused_before_anything_is_written(
    more: list[str], folder: Path, wmtp_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(model: Any) -> None:
        raise ModelError("it has layers of another kind")

    monkeypatch.setattr("wmtp.rollouts.check_cached", check)
    code, _, err = wmtp_command(*arguments(folder, "never", GRPO, ONLINE, *more))
    assert code == 2
    assert "online: this policy cannot sample what it trains on: it has layers of another kind" in err
    assert not (folder / "never").exists()


def test_what_nobody_can_know_before_is_not_counted_or_scored(folder: Path, wmtp_command: Command) -> None:
    options = arguments(folder, "never", NEAR, ONLINE, "online={kl: 0.1, reference: /nowhere, samples: 8}")[1:]
    options = [option for option in options if option not in ("--out", f"{folder / 'never'}")]
    code, _, err = wmtp_command("score", *options, "--out", folder / "scores")
    assert (code, "an online run samples what it trains on" in err) == (2, True)
    config = load([folder / "recipe.yaml"], [GRPO, ONLINE])
    for budget in (BudgetConfig(tokens=1000), BudgetConfig(flops=1e12)):
        with pytest.raises(ConfigError, match="a budget of seconds, or none"):
            steps_within(config, budget)


def test_less_isolation_than_required_refuses_before_anything_is_written(
    folder: Path, wmtp_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = partial(Sandbox, without=("namespaces", "Landlock", "seccomp"))
    monkeypatch.setattr("wmtp.rollouts.Sandbox", less)
    strict = "online={samples: 8, max_new_tokens: 1}"
    code, _, err = wmtp_command(*arguments(folder, "weak", GRPO, strict))
    assert code == 1
    assert "require='strong' needs isolation level 2" in err
    assert not (folder / "weak" / "metrics.jsonl").exists()


def test_problems_that_are_held_out_are_not_asked(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"is_correct": True} for line in (folder / "problems.jsonl").read_text().splitlines()]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = arguments(tmp_path, "unused", GRPO, ONLINE, "data.validation_fraction=0.25")[5:]
    data = build(load([folder / "recipe.yaml"], overrides)).data
    assert data.validation is not None
    asked, held = ({row.name for row in rows} for rows in (data.train.rows, data.validation.rows))
    assert (len(asked), len(held)) == (9, 3)
    assert not asked & held
