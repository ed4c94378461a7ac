"""Stage 1 from the command line: every loss and backbone, selection by unseen problems, early stopping that resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests_recipe import with_few_rows

from wmtp.config import load
from wmtp.formats.native import load_value_model, read_card
from wmtp.trainer import Silent, run

Command = Callable[..., tuple[int, str, str]]
SHORT = ["train={steps: 4, batch_size: 8, micro_batch_size: 8, eval_every: 2, eval_batches: 1, log_every: 1}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe on few rows."""
    return with_few_rows(tmp_path_factory.mktemp("recipe"))


def journal(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


@pytest.mark.parametrize(
    "objective",
    [
        "{kind: value, loss: monte_carlo, head: sigmoid, backbone: frozen}",
        "{kind: value, loss: combined, head: linear, lam: {start: 0.5, end: 1}, rates: {head: 0.01, backbone: 0.001}}",
    ],
)
def test_every_loss_trains_and_is_written_on_the_card(objective: str, recipe: Path, tmp_path: Path) -> None:
    run(load([recipe], [f"objective={objective}", *SHORT]), out=tmp_path / "run")
    held_out = journal(tmp_path / "run", "validation")[-1]
    assert 0 <= held_out["value/pair_accuracy"] <= 1
    assert 0 <= held_out["value/calibration_error"] <= 1
    assert any(name.startswith("reliability/correct_") for name in held_out)
    card = read_card(str(tmp_path / "run" / "final"))
    assert card is not None
    assert f"loss: {card.loss}" in objective  # type: ignore[union-attr]


def pretend(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    from wmtp import trainer

    left = iter(accuracies)
    original = trainer.evaluate

    def evaluate(*arguments: Any, **options: Any) -> dict[str, float]:
        return original(*arguments, **options) | {"value/pair_accuracy": next(left), "loss/weighted": 1.0}

    monkeypatch.setattr(trainer, "evaluate", evaluate)


def test_the_final_critic_is_that_of_the_best_evaluation(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = ["objective={kind: value}", *SHORT, "train.steps=6", "checkpoint.select=best"]
    run(load([recipe], [*critic[:-2], "train.steps=4", "optim.schedule=constant"]), out=tmp_path / "four")
    at_four = load_file(tmp_path / "four" / "final" / "value_head.safetensors")
    pretend(monkeypatch, [0.5, 0.9, 0.9])
    told = Silent()
    run(load([recipe], [*critic, "optim.schedule=constant"]), out=tmp_path / "best", reporter=told)
    assert told.notes[-1] == "final/ is the best evaluation's model: 90.0% of the held-out pairs right"
    for folder in ("best", "final"):
        got = load_file(tmp_path / "best" / folder / "value_head.safetensors")
        assert all(tensor.equal(at_four[name]) for name, tensor in got.items()), folder
    load_value_model(str(tmp_path / "best" / "final"))


def test_selection_and_early_stopping_go_on_after_a_resume(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = "train.early_stopping={patience: 9, gradient_spread: 2.0, value_std: [0.0001, 50]}"
    config = load([recipe], ["objective={kind: value}", *SHORT, stopping, "checkpoint={every: 2, select: best}"])

    class Stops(Silent):
        def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
            if step == 4:
                raise KeyboardInterrupt

    pretend(monkeypatch, [0.9, 0.5, 0.5])
    with pytest.raises(KeyboardInterrupt):
        run(config, out=tmp_path / "run", reporter=Stops())
    best = load_file(tmp_path / "run" / "best" / "value_head.safetensors")
    run(config, out=tmp_path / "run", resume="auto")
    final = load_file(tmp_path / "run" / "final" / "value_head.safetensors")
    assert all(tensor.equal(best[name]) for name, tensor in final.items())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.validation.path=embedded://problems_train.jsonl"], "problems with data.train, the first is"),
        (["checkpoint.select=best", "objective.loss=lambda_return", "train.batch_size=1", "train.micro_batch_size=1",
          "train.eval_batches=1"],
         "checkpoint.select = best goes by held-out pairs"),
        (["checkpoint.select=best", "data.validation=null", "train.eval_every=null"], "checkpoint.select = best"),
        (["objective={kind: mtp}", "checkpoint.select=best"], "needs objective.kind = value"),
        (["objective={kind: mtp}", "train.early_stopping={value_std: [0.1, 1]}"], "value_std is for objective.kind"),
        (["train.early_stopping={mode: all}"], "mode = all needs"),
    ],
)  # fmt: skip
def test_a_critic_that_cannot_be_judged_as_asked_is_refused(
    overrides: list[str], told: str, recipe: Path, wmtp_command: Command
) -> None:
    code, _, error = wmtp_command("train", "--recipe", recipe, "--dry-run", "objective={kind: value}", *overrides)
    assert code == 2
    assert told in error


def test_a_critic_with_adapters_is_saved_without_them(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters need peft: pip install 'wmtp[lora]'")
    objective = "objective={kind: value, head: linear, backbone: lora, lora: {rank: 2}, rates: {adapters: 0.05}}"
    config = load([recipe], [objective, *SHORT, "checkpoint.every=2"])
    run(config, out=tmp_path / "run")
    stored = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert not [name for name in stored if "lora" in name or "base_layer" in name]
    load_value_model(str(tmp_path / "run" / "final"))
    assert run(config, out=tmp_path / "run", resume="auto").steps == 4
