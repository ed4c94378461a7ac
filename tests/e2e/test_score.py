"""`wmtp score`, and training that reads what it wrote: the same weights, no frozen model, every mismatch named."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_recipe import with_few_rows
from torch import Tensor

from wmtp import frozen
from wmtp.cli.shared import leads
from wmtp.config import load
from wmtp.formats.hf import load_tokenizer, random_causal_lm
from wmtp.formats.native import save_model
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective, Seen
from wmtp.parts import Parts, build
from wmtp.storage import Place
from wmtp.testing import memory_storage
from wmtp.value import ValueModel

Command = Callable[..., tuple[int, str, str]]
SCHEMES = {
    "critic": "{scheme: critic, critic: MODELS/critic}",
    "next": "{scheme: rho1, reference: MODELS/heads}",
    "matched": "{scheme: rho1, reference: MODELS/heads, alignment: matched, mode: soft}",
    "hybrid": "{scheme: hybrid, parts: [{scheme: critic, critic: MODELS/critic, whiten: ema}, "
    "{scheme: rho1, reference: MODELS/heads, mode: soft}]}",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a critic and a reference with heads, of random weights that are large enough to tell tokens apart."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer("embedded://tiny-llama")
    recipe = with_few_rows(folder)
    architecture = {**(load([recipe]).model.architecture or {}), "initializer_range": 0.2}  # type: ignore[dict-item]
    torch.manual_seed(0)
    save_model(ValueModel(random_causal_lm(architecture, len(tokenizer), 1), "mlp"), folder / "critic", tokenizer)
    save_model(MTPModel(random_causal_lm(architecture, len(tokenizer), 2), 3, "fresh"), folder / "heads", tokenizer)
    return folder


def weighting(name: str, models: Path, scores: Path | None = None) -> str:
    text = SCHEMES[name].replace("MODELS", str(models))
    if scores is not None:
        for model in ("critic", "heads"):
            text = text.replace(f"{models}/{model}", f"{models}/{model}, scores: '{scores}'")
    return f"objective={{weighting: {text}}}"


@pytest.fixture(scope="module")
def scored(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of scores for every scheme, made by the command."""
    from wmtp.cli import run_command

    folders = {name: tmp_path_factory.mktemp("scores") / name for name in SCHEMES}
    for name, folder in folders.items():
        arguments = ["--recipe", str(models / "recipe.yaml"), "--out", str(folder), "--batch-tokens", "2000"]
        assert run_command(["score", *arguments, weighting(name, models)]) == 0
    return folders


def seen(parts: Parts, number: int) -> Seen:
    """Weights and scores of one training batch."""
    (batch,) = parts.data.train.at(number)
    assert isinstance(parts.objective, MTPObjective)
    assert isinstance(parts.model, MTPModel)
    return parts.objective.look(parts.model, batch)


def built(models: Path, *overrides: str) -> Parts:
    return build(load([models / "recipe.yaml"], overrides))


@pytest.mark.parametrize("name", SCHEMES)
def test_stored_scores_give_the_weights_that_the_models_give(
    name: str, models: Path, scored: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    online = built(models, weighting(name, models))
    for loader in ("load_value_model", "load_model", "empty_model"):
        monkeypatch.delattr(frozen, loader)  # nothing may be loaded
    stored = built(models, weighting(name, models, scored[name]))
    assert stored.frozen == []
    for number in range(3):
        expected, got = seen(online, number), seen(stored, number)
        for field in ("values_BT", "reference_nll_BTK"):
            one, other = getattr(expected.scheme_input, field), getattr(got.scheme_input, field)
            assert (one is None) == (other is None)
            if one is not None:
                assert float(one.abs().max()) > 0.1
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
        if name == "next":
            check_selected(expected, got)
        else:
            assert float(expected.weight_BTK.std()) > 0.01
            torch.testing.assert_close(got.weight_BTK, expected.weight_BTK, rtol=1e-4, atol=1e-5)


def check_selected(expected: Seen, got: Seen) -> None:
    """A pair may be kept by one and dropped by the other only where rounding decides: at the threshold itself."""
    known = expected.scheme_input
    assert known.nll_BTK is not None
    assert known.reference_nll_BTK is not None
    excess = known.nll_BTK - known.reference_nll_BTK
    for k in range(excess.shape[2]):
        kept = excess[:, :, k][expected.weight_BTK[:, :, k] == 1]
        differ: Tensor = excess[:, :, k][expected.weight_BTK[:, :, k] != got.weight_BTK[:, :, k]]
        assert len(differ) <= 2
        assert bool(((differ - kept.min()).abs() < 1e-5).all())


def test_a_run_from_stored_scores_needs_no_memory_for_the_frozen_model(
    models: Path, scored: dict[str, Path], wmtp_command: Command
) -> None:
    figures = []
    for scores in (None, scored["hybrid"]):
        code, out, _ = wmtp_command(
            "train", "--recipe", models / "recipe.yaml", weighting("hybrid", models, scores), "--dry-run", "--json"
        )
        assert code == 0
        figures.append(json.loads(out))
    assert figures[0]["frozen_parameters"] > 0
    assert figures[1]["frozen_parameters"] == 0


def test_a_run_that_reads_stored_scores_can_be_inspected_with_solutions_that_were_not_scored(
    models: Path, scored: dict[str, Path], wmtp_command: Command, tmp_path: Path
) -> None:
    run = ["--recipe", models / "recipe.yaml", weighting("hybrid", models, scored["hybrid"]), "--out", tmp_path / "run"]
    assert wmtp_command("train", *run, "train.steps=2", "train.eval_every=null")[0] == 0
    code, out, _ = wmtp_command("inspect", tmp_path / "run", "--rows", 1, "--json")
    assert code == 0
    assert {variant["correct"] for variant in json.loads(out)["problems"][0]["variants"]} == {True, False}


def test_a_subset_of_the_rows_reads_from_the_same_scores(models: Path, scored: dict[str, Path]) -> None:
    parts = built(
        models, weighting("critic", models, scored["critic"]), "data.validation=null", "data.validation_fraction=0.5"
    )
    assert float(seen(parts, 0).weight_BTK.std()) > 0.01


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.template='{prompt}'", "another data.template"),
        ("data.max_length=100", "another data.max_length"),
        ("data.on_long_row=drop", "another data.on_long_row"),
        ("precision=bf16", "another precision"),
        ("data.solutions=all", "other data"),
        ("objective.weighting.critic=MODELS/heads", "another model of values"),
        ("objective.weighting.scores=/nowhere", "no scores in /nowhere"),
    ],
)
def test_whatever_does_not_match_is_named_and_nothing_is_trained(
    override: str, told: str, models: Path, scored: dict[str, Path], wmtp_command: Command, tmp_path: Path
) -> None:
    code, _, error = wmtp_command(
        "train", "--recipe", models / "recipe.yaml", "--out", tmp_path / "run",
        weighting("critic", models, scored["critic"]),
        override.replace("MODELS", str(models)),
    )  # fmt: skip
    assert code == 2
    assert told in error
    assert not (tmp_path / "run").exists()


def test_the_recipe_says_where_the_scores_go_and_scoring_again_is_done_at_once(
    models: Path, wmtp_command: Command, tmp_path: Path
) -> None:
    arguments = ["score", "--recipe", models / "recipe.yaml", weighting("critic", models, tmp_path / "s"), "--json"]
    first, again = wmtp_command(*arguments), wmtp_command(*arguments)
    assert first[0] == again[0] == 0
    assert json.loads(first[1]) == json.loads(again[1])
    assert json.loads(first[1])["folder"] == str(tmp_path / "s")
    code, _, error = wmtp_command(*arguments, "data.max_length=100")
    assert code == 2
    assert "something else" in error
    assert "key.data.max_length" in error


@pytest.mark.parametrize("leading", [True, False])
def test_of_several_ranks_the_first_one_says_what_was_done(
    leading: bool, models: Path, scored: dict[str, Path], wmtp_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmtp.cli.training.leads", lambda: leading)
    arguments = ["score", "--recipe", models / "recipe.yaml", "--out", scored["critic"], "--batch-tokens", 2000]
    code, out, _ = wmtp_command(*arguments, weighting("critic", models))
    assert (code, "scored tokens" in out) == (0, leading)
    assert leading or out == ""


@pytest.mark.parametrize(
    ("set_to", "leading"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
    ],
)
def test_a_process_leads_unless_it_is_a_later_one_of_several(
    set_to: dict[str, str], leading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert leads() is leading


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["RECIPE"], "nothing to score: the arm baseline"),
        ([], "nothing to score: give --recipe"),
        (["RECIPE", "CRITIC"], "say where"),
        (["RECIPE", "CRITIC", "--out", "s", "--dtype", "int8"], "float32, float16"),
    ],
)
def test_what_cannot_be_scored_is_told(arguments: list[Any], told: str, models: Path, wmtp_command: Command) -> None:
    meant = {"CRITIC": [weighting("critic", models)], "RECIPE": ["--recipe", models / "recipe.yaml"]}
    given = [part for argument in arguments for part in meant.get(argument, [argument])]
    code, _, error = wmtp_command("score", *given)
    assert code == 2
    assert told in error


def test_scores_are_made_in_a_store_and_read_from_there(
    models: Path, scored: dict[str, Path], wmtp_command: Command
) -> None:
    with memory_storage() as bucket:
        scores = bucket / "scores"
        arguments = ["--recipe", models / "recipe.yaml", "--batch-tokens", "2000"]
        in_store = weighting("critic", models).replace("critic: ", f"scores: '{scores}', critic: ", 1)
        code, out, _ = wmtp_command("score", *arguments, in_store, "--json")
        assert (code, json.loads(out)["folder"]) == (0, str(scores))
        assert contents(scores) == contents(scored["critic"])
        near, far = (built(models, way) for way in (weighting("critic", models, scored["critic"]), in_store))
        assert torch.equal(seen(far, 0).weight_BTK, seen(near, 0).weight_BTK)


# killed

DRIVER = """
import os, signal, sys
from wmtp.scores.writing import ScoreFile
from wmtp.cli import main

left = int(sys.argv[1])

def write(self, number, scores, original=ScoreFile.write):
    global left
    original(self, number, scores)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

ScoreFile.write = write
main(sys.argv[2:])
"""
"""Kills its own process with SIGKILL after so many batches."""


def contents(folder: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.exhaustive
@pytest.mark.fault
def test_killed_and_resumed_scoring_writes_the_same_files(
    models: Path, scored: dict[str, Path], wmtp_command: Command, tmp_path: Path
) -> None:
    arguments = ["score", "--recipe", models / "recipe.yaml", "--out", tmp_path / "s", "--batch-tokens", "2000"]
    arguments = [str(part) for part in [*arguments, weighting("critic", models)]]
    done = subprocess.run([sys.executable, "-c", DRIVER, "3", *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((tmp_path / "s" / "parts").glob("*.part"))) == 3
    assert wmtp_command(*arguments)[0] == 0
    assert contents(tmp_path / "s") == contents(scored["critic"])


def killed(arguments: list[str], parts: Path, *, at: int, draw: random.Random) -> bool:
    """Whether the command was killed, at some instant once there were so many parts; it may be done before."""
    process = subprocess.Popen([sys.executable, "-m", "wmtp", *arguments])
    while process.poll() is None:
        time.sleep(draw.uniform(0.0, 0.02))
        if len(list(parts.glob("*.part"))) >= at:
            process.kill()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_million_tokens_killed_at_random_end_with_the_same_files(
    models: Path, wmtp_command: Command, tmp_path: Path
) -> None:
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "return", "def", "for", "if", "sum", "x", "y", "+", "="]
    rows = [
        {
            "problem_id": f"p{i}",
            "prompt": f"task {i}",
            "response": " ".join(draw.choices(words, k=120)),
            "is_correct": True,
        }
        for i in range(10_500)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        f"data.train={{path: '{data}'}}",
        "data.validation=null",
        "train.eval_every=null",
        weighting("critic", models),
    ]

    def arguments(folder: str) -> list[str]:
        return ["score", "--recipe", str(models / "recipe.yaml"), "--out", str(tmp_path / folder), *given]

    assert wmtp_command(*arguments("whole"))[0] == 0
    assert json.loads((tmp_path / "whole" / "scores.json").read_text())["tokens"] >= 1_000_000
    parts, kills = tmp_path / "broken" / "parts", 0
    while killed(arguments("broken"), parts, at=len(list(parts.glob("*.part"))) + draw.randint(10, 60), draw=draw):
        kills += 1
    assert kills >= 2
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
