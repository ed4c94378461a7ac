"""What must never happen to a run folder: a second history, a lost model, a silent start from step 1."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import wmtp
from wmtp import checkpoint, objective, runfolder, trainer
from wmtp.config import load
from wmtp.errors import CheckpointError, Interrupted, ModelError, UsageError, WmtpError
from wmtp.estimate import checkpoint_bytes
from wmtp.parts import build
from wmtp.tracking import read_journal
from wmtp.trainer import Silent, run

Command = Callable[..., tuple[int, str, str]]


def train(recipe: Path, out: Any, *overrides: str, **options: Any) -> Any:
    return run(load([recipe], overrides), out=out, **options)


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_finished_run_without_periodic_checkpoints_is_not_trained_again(recipe: Path, tmp_path: Path) -> None:
    first = train(recipe, tmp_path / "run", "checkpoint.every=null")
    before = lines(tmp_path / "run")
    again = train(recipe, tmp_path / "run", "checkpoint.every=null", resume="auto")
    assert again.steps == first.steps == 10
    assert lines(tmp_path / "run") == before


def test_a_run_that_another_process_took_further_meanwhile_is_not_resumed_from_an_older_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, free = tmp_path / "run", trainer.only_trainer
    train(recipe, folder, "checkpoint.save_final=false")
    shutil.rmtree(folder / "checkpoints" / "step_00000010", ignore_errors=True)

    @contextmanager
    def after_another(run: Path) -> Iterator[None]:
        shutil.copytree(folder / "checkpoints" / "step_00000008", folder / "checkpoints" / "step_00000009")
        with free(run):
            yield

    monkeypatch.setattr(trainer, "only_trainer", after_another)
    with pytest.raises(CheckpointError, match=r"another process has saved step_00000009 .* run it again"):
        train(recipe, folder, "checkpoint.save_final=false", resume="auto")


def test_a_run_whose_checkpoints_are_gone_is_not_started_again(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        train(recipe, tmp_path / "run", resume="auto")


def test_checkpoints_without_manifests_are_not_taken_for_none(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", "checkpoint.save_final=false")
    for manifest in (tmp_path / "run" / "checkpoints").rglob("manifest.json"):
        manifest.unlink()
    with pytest.raises(CheckpointError, match="no manifest"):
        train(recipe, tmp_path / "run", "checkpoint.save_final=false", resume="auto")


def test_an_older_checkpoint_is_not_resumed_beside_newer_ones(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run")
    older = tmp_path / "run" / "checkpoints" / "step_00000008"
    with pytest.raises(UsageError, match="two histories"):
        train(recipe, None, resume=str(older))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000010")
    assert train(recipe, None, resume=str(older)).steps == 10


def test_a_restarted_run_keeps_its_id(recipe: Path, tmp_path: Path) -> None:
    class Dies(Silent):
        def step(self, step: int, metrics: dict[str, Any]) -> None:
            if step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", reporter=Dies())
    train(recipe, tmp_path / "run", resume="auto")
    facts = json.loads((tmp_path / "run" / "provenance.json").read_text())
    saved = checkpoint.load(tmp_path / "run" / "checkpoints" / "step_00000010", parts=[]).facts
    assert saved["run_id"] == facts["run_id"]
    assert len(facts["starts"]) == 2


@pytest.mark.parametrize("out", ["s3://bucket/run", "http://host/run", ""])
def test_an_out_that_cannot_be_written_is_refused_before_training(
    recipe: Path, out: str, wmtp_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    for command in (["train", "--recipe", recipe], ["quickstart"]):
        code, _, message = wmtp_command(*command, "--out", out)
        assert code == 2
        assert "Traceback" not in message
    assert set(tmp_path.rglob("*")) == before


def test_a_disk_that_cannot_hold_the_checkpoints_is_told_before_the_first_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, needed = tmp_path / "run", checkpoint_bytes(build(load([recipe]), weights=False).model)
    free = [needed * 2 - 1]
    monkeypatch.setattr(runfolder.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with pytest.raises(UsageError, match=r"2 checkpoints of [\d.]+ [KM]iB do not fit .* lower checkpoint.keep_last"):
        train(recipe, folder, "checkpoint.every=5", "checkpoint.keep_last=1")
    assert not folder.exists() or not (folder / "metrics.jsonl").exists()
    train(recipe, folder, "checkpoint.every=10", "checkpoint.keep_last=9")
    free[0] = 0
    assert train(recipe, folder, "checkpoint.every=5", resume="auto").steps == 10  # saves no more


def test_an_out_that_is_a_file_or_below_one_is_refused(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        code, _, message = wmtp_command("train", "--recipe", recipe, "--out", out)
        assert code == 2, message
        assert "file" in message


def test_out_may_be_a_file_url(recipe: Path, tmp_path: Path) -> None:
    assert train(recipe, f"file://{tmp_path}/run", "train.steps=1").folder == tmp_path / "run"


def test_bad_steps_are_neither_saved_nor_named_as_good(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = objective.MTPObjective.backward
    calls = {"n": 0}

    def poisoned(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        meter = original(self, model, *arguments, **options)
        calls["n"] += 1
        if calls["n"] > 6:
            for parameter in model.parameters():
                parameter.grad.mul_(math.nan)
        return meter

    monkeypatch.setattr(objective.MTPObjective, "backward", poisoned)
    with pytest.raises(WmtpError, match=r"Last good checkpoint: .*step_00000003"):
        train(recipe, tmp_path / "run", "checkpoint.every=1", "train.max_nonfinite=4")
    assert [path.name for path in checkpoint.list_steps(tmp_path / "run" / "checkpoints")] == [
        "step_00000002",
        "step_00000003",
    ]


def test_a_save_that_fails_costs_a_checkpoint_and_not_the_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmtp.checkpoint import saving

    original = saving._commit

    def fails_once(job: Any, *arguments: Any) -> Any:
        if job.step == 4:
            raise CheckpointError("disk full")
        return original(job, *arguments)

    monkeypatch.setattr(saving, "_commit", fails_once)
    reporter = Silent()
    assert train(recipe, tmp_path / "run", reporter=reporter).steps == 10
    assert any("a checkpoint was not written: disk full" in note for note in reporter.notes)
    monkeypatch.setattr(saving, "_commit", lambda *a, **k: (_ for _ in ()).throw(CheckpointError("disk full")))
    with pytest.raises(CheckpointError, match="disk full"):
        train(recipe, tmp_path / "other", "checkpoint.every=1")


def test_weights_that_are_not_finite_are_not_saved(recipe: Path, tmp_path: Path) -> None:
    class Spoils(Silent):
        def step(self, step: int, metrics: dict[str, Any]) -> None:
            if step == 4:
                for parameter in self.loop.parts.model.parameters():  # type: ignore[attr-defined]
                    parameter.data.fill_(math.inf)
                    break

    from wmtp import trainer

    reporter = Spoils()
    original = trainer.Loop.__init__

    def remembers(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        reporter.loop = self  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Loop, "__init__", remembers)
        with pytest.raises(WmtpError):
            train(recipe, tmp_path / "run", reporter=reporter)
    assert checkpoint.list_steps(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "provenance.json"])
def test_a_damaged_journal_or_provenance_is_named(recipe: Path, tmp_path: Path, name: str) -> None:
    train(recipe, tmp_path / "run", "train.steps=2")
    (tmp_path / "run" / name).write_text("garbage\n")
    with pytest.raises(WmtpError, match=name):
        train(recipe, tmp_path / "run", "train.steps=2", resume="auto")


def test_a_journal_of_half_a_line_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert read_journal(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_validation_does_not_depend_on_the_micro_batch_size(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "reference", "train.steps=1")
    scheme = f"objective={{weighting: {{scheme: rho1, reference: '{tmp_path}/reference/final'}}}}"
    results = [
        train(recipe, tmp_path / f"m{size}", scheme, f"train.micro_batch_size={size}", "train.steps=2").validation
        for size in (8, 2)
    ]
    for name, value in results[0].items():
        if not name.startswith("time/"):
            assert results[1][name] == pytest.approx(value, rel=1e-4), name


def test_a_damaged_frozen_model_is_refused_and_does_not_become_uniform(recipe: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    train(recipe, tmp_path / "critic", "objective={kind: value}", "train.steps=1")
    file = tmp_path / "critic" / "final" / "value_head.safetensors"
    save_file({name: tensor * math.nan for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="not finite"):
        train(
            recipe, tmp_path / "run", f"objective={{weighting: {{scheme: critic, critic: '{tmp_path}/critic/final'}}}}"
        )


def test_a_lambda_return_critic_takes_odd_batches_and_has_pairs_of_held_out_problems_alone(
    recipe: Path, tmp_path: Path
) -> None:
    overrides = ["objective={kind: value, loss: lambda_return}", "train.batch_size=5", "train.micro_batch_size=3"]
    result = train(recipe, tmp_path / "run", *overrides)
    assert 0 <= result.validation["value/pair_accuracy"] <= 1
    lines = read_journal(tmp_path / "run" / "metrics.jsonl")
    assert {line["split"] for line in lines if "value/pair_accuracy" in line} == {"validation"}


def test_an_encoder_is_refused_for_every_objective(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text()
    head, tail = text.split("  architecture:\n")
    bert = tmp_path / "bert.yaml"
    bert.write_text(head + tail[tail.index("  tokenizer:") :])
    architecture = (
        "{model_type: bert, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
    )
    for kind in ("mtp", "value"):
        with pytest.raises(ModelError):
            train(bert, tmp_path / kind, f"model.architecture={architecture}", f"objective={{kind: {kind}}}")


def test_training_works_outside_the_main_thread(recipe: Path, tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(wmtp.train(recipe, ["train.steps=1"], out=tmp_path / "run"))
    )
    thread.start()
    thread.join()
    assert results[0].steps == 1


def test_a_signal_before_the_first_step_says_that_nothing_was_written(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmtp import trainer

    original = trainer.build

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(trainer, "build", interrupted)
    with pytest.raises(Interrupted, match="nothing was written") as caught:
        train(recipe, tmp_path / "run")
    assert caught.value.exit_code == 130
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override",
    [
        "model.architecture.vocab_size=2",
        "model.architecture.num_hidden_layers=0",
        "model.architecture.num_key_value_heads=5",
        "model.architecture.num_key_value_heads=0",
        "model.architecture.pad_token_id=9999999",
        "model.architecture.hidden_act=foo",
        "num_threads=10000000000000",
        "optim.lr=.inf",
        "data.train.path=/dev/null",
    ],
)
def test_absurd_values_are_answered_with_exit_code_2(
    recipe: Path, tmp_path: Path, wmtp_command: Command, override: str
) -> None:
    code, _, message = wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "run", override)
    assert code == 2, message
    assert "Traceback" not in message


def test_the_quickstart_refuses_what_it_could_not_compare(tmp_path: Path, wmtp_command: Command) -> None:
    for override in ("checkpoint.save_final=false",):
        code, _, message = wmtp_command("quickstart", "--out", tmp_path / "q", override)
        assert code == 2
        assert "keep both on" in message
    assert not (tmp_path / "q").exists()
