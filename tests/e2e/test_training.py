"""What the loop promises beside resuming: early stopping, non-finite steps, bf16, validation, the quickstart."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp import trainer
from wmtp.config import load
from wmtp.data.sources import read_records
from wmtp.dataset import held_out
from wmtp.errors import NonFiniteError
from wmtp.parts import build
from wmtp.storage import resolve
from wmtp.trainer import Silent, run

Command = Callable[..., tuple[int, str, str]]


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_early_stopping_ends_the_run_and_a_resumed_run_stays_stopped(recipe: Path, tmp_path: Path) -> None:
    overrides = ["optim.lr=1e-9", "train.eval_every=1", "train.early_stopping={patience: 2, min_delta: 0.01}"]
    config = load([recipe], [*overrides, "checkpoint.every=2"])
    result = run(config, out=tmp_path / "run")
    assert result.stopped_early
    assert result.steps == 3
    again = run(config, out=tmp_path / "run", resume="auto")
    assert again.stopped_early
    assert again.steps == 3


def test_early_stopping_counts_the_same_after_a_resume(recipe: Path, tmp_path: Path) -> None:
    overrides = ["optim.lr=1e-9", "train.eval_every=1", "train.early_stopping={patience: 4, min_delta: 0.01}"]
    config = load([recipe], [*overrides, "checkpoint.every=2"])
    whole = run(config, out=tmp_path / "whole")

    class StopsAfter(Silent):
        def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, out=tmp_path / "broken", reporter=StopsAfter())
    assert run(config, out=tmp_path / "broken", resume="auto").steps == whole.steps == 5


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """From the outside: the gradients of these steps are NaN."""
    from wmtp import objective

    original = objective.MTPObjective.backward
    calls = {"n": 0}

    def backward(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        meter = original(self, model, *arguments, **options)
        calls["n"] += 1
        if (calls["n"] + 1) // 2 in steps:
            for parameter in model.parameters():
                parameter.grad.mul_(math.nan)
        return meter

    monkeypatch.setattr(objective.MTPObjective, "backward", backward)


def test_one_non_finite_step_is_skipped_logged_and_survived(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {3})
    reporter = Silent()
    result = run(load([recipe]), out=tmp_path / "run", reporter=reporter)
    assert result.steps == 10
    assert any(note.startswith("step 3: the gradient norm is nan; step skipped") for note in reporter.notes)
    third = next(line for line in journal(tmp_path / "run") if line["step"] == 3)
    assert third["grad_norm"] is None
    model = trainer.checkpoint.load(tmp_path / "run" / "checkpoints" / "step_00000010").parts["model"]
    assert all(tensor.isfinite().all() for tensor in model.values())


def test_several_in_a_row_stop_the_run_naming_step_rows_and_checkpoint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {6, 7, 8})
    with pytest.raises(NonFiniteError) as caught:
        run(load([recipe], ["train.max_nonfinite=3"]), out=tmp_path / "run")
    message = str(caught.value)
    assert "steps 6 to 8" in message
    assert "problems " in message
    assert "step_00000004" in message


def test_a_run_that_ends_having_skipped_every_step_has_failed_and_writes_no_model(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {1, 2})
    with pytest.raises(NonFiniteError, match="steps 1 to 2 all had"):
        run(load([recipe], ["train.steps=2"]), out=tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()


def test_bf16_trains_close_to_fp32_and_keeps_fp32_weights(recipe: Path, tmp_path: Path) -> None:
    full = run(load([recipe]), out=tmp_path / "fp32")
    half = run(load([recipe], ["precision=bf16"]), out=tmp_path / "bf16")
    assert half.train["loss/nll"] == pytest.approx(full.train["loss/nll"], rel=0.02)
    assert half.train["loss/nll"] != full.train["loss/nll"]
    weights = trainer.checkpoint.load(tmp_path / "bf16" / "checkpoints" / "step_00000010").parts["model"]
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}


def test_micro_batches_change_nothing_but_rounding(recipe: Path, tmp_path: Path) -> None:
    one = run(load([recipe], ["train.micro_batch_size=null"]), out=tmp_path / "one")
    four = run(load([recipe], ["train.micro_batch_size=2"]), out=tmp_path / "four")
    assert four.train["loss/nll"] == pytest.approx(one.train["loss/nll"], rel=1e-4)
    assert four.train["tokens"] == one.train["tokens"]


def test_a_held_out_fraction_shares_no_problem_with_training(recipe: Path) -> None:
    parts = build(load([recipe], ["data.validation=null", "data.validation_fraction=0.2", "data.max_length=256"]))
    train, held = parts.data.train.rows, parts.data.validation.rows
    records, _ = read_records(resolve("embedded://problems_train.jsonl"))
    assert len(train) + len(held) == len([record for record in records if record.is_correct is not False])
    assert not {row.name for row in train} & {row.name for row in held}
    problems = {record.problem_id for record in records}
    assert held_out(problems, 0.2) >= {row.name for row in held}
    assert len(held_out(problems, 0.2)) == round(0.2 * len(problems))


def test_a_trained_model_with_heads_can_be_trained_on(recipe: Path, tmp_path: Path) -> None:
    first = run(load([recipe]), out=tmp_path / "first")
    overrides = [
        f"model={{path: '{tmp_path}/first/final', architecture: null, tokenizer: null}}",
        "optim.warmup_steps=0",
    ]
    second = run(load([recipe], overrides), out=tmp_path / "second")
    before = [line for line in journal(first.folder) if line["split"] == "train"]
    after = [line for line in journal(second.folder) if line["split"] == "train"]
    assert after[0]["loss/nll"] < before[0]["loss/nll"] - 0.1


def test_the_quickstart_trains_four_arms_prints_a_table_and_writes_the_page(
    tmp_path: Path, wmtp_command: Command
) -> None:
    out = tmp_path / "quickstart"
    small = ["train.steps=2", "train.batch_size=2", "train.eval_batches=1", "num_threads=1"]
    code, stdout, stderr = wmtp_command("quickstart", "--out", out, *small)
    assert code == 0, stderr
    for text in ("baseline", "verifiable", "rho1", "critic", "tokens/s", "peak", "does not show that an arm"):
        assert text in stdout
    results = json.loads((out / "quickstart.json").read_text())
    assert {result["arm"] for result in results} == {"critic", "baseline", "verifiable", "rho1"}
    assert f"The page: {out / 'report.html'}" in stdout
    page = (out / "report.html").read_text()
    for result in results:
        assert f'"label":"{result["arm"]}"' in page
        assert (out / result["arm"] / "eval" / "tokens.json").is_file()
    assert wmtp_command("quickstart", "--out", out)[0] == 2  # of other overrides
    shutil.rmtree(out / "rho1")
    (out / "report.html").unlink()
    assert wmtp_command("quickstart", "--out", out, *small)[0] == 0
    again = json.loads((out / "quickstart.json").read_text())
    assert again[:3] == results[:3]  # not trained again
    assert again[3]["validation"] == results[3]["validation"]
    (out / "mine.txt").write_text("")
    assert wmtp_command("quickstart", "--out", out, *small)[0] == 2


def test_json_output_is_one_object_and_nothing_else(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    code, stdout, stderr = wmtp_command(
        "train", "--recipe", recipe, "--out", tmp_path / "run", "--json", "train.steps=1"
    )
    assert code == 0
    assert stderr == ""
    assert json.loads(stdout)["steps"] == 1


def test_training_from_python_takes_a_recipe(recipe: Path, tmp_path: Path) -> None:
    import wmtp

    assert wmtp.train(recipe, ["train.steps=1"], out=tmp_path / "run").steps == 1
