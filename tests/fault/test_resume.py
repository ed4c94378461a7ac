"""Interrupt-and-resume is never-interrupted: every metric, the next batches, the final weights, to the last bit."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Zygote
from safetensors.torch import load_file
from tests_recipe import with_few_rows

from wmtp.cli import run_command

pytestmark = pytest.mark.fault

DRIVER = """
import os, signal, sys
from wmtp import objective, trainer
from wmtp.cli import main

where, step = sys.argv[1], int(sys.argv[2])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def mid_step(self, *arguments, original=objective.MTPObjective.backward, **options):
    meter = original(self, *arguments, **options)
    mid_step.calls += 1
    if mid_step.calls == 2 * (step - start()) :
        die()
    return meter
mid_step.calls = 0

def start():
    return mid_step.first - 1

def loop_init(self, *arguments, original=trainer.Loop.__init__):
    original(self, *arguments)
    mid_step.first = self.progress.step + 1
trainer.Loop.__init__ = loop_init

def boundary(self, *arguments, original=trainer.Loop._save_if_due):
    original(self, *arguments)
    if self.progress.step == step:
        die()

if where == "mid_step":
    objective.MTPObjective.backward = mid_step
else:
    trainer.Loop._save_if_due = boundary
main(sys.argv[3:])
"""
"""Kills its own process with SIGKILL: in the second micro-batch of a step, or right after a step's checkpoint."""

NOT_COMPARED = ("time/", "mem/")


def journal(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(NOT_COMPARED)} for line in lines]


def assert_same_run(run: Path, other: Path) -> None:
    assert journal(run) == journal(other)
    for file in sorted((run / "final").glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(other / "final" / file.name)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)


def arguments(recipe: Path, out: Path, *extra: str) -> list[str]:
    return ["train", "--recipe", str(recipe), "--out", str(out), *extra]


def killed(forks: Zygote, where: str, step: int, command: list[str]) -> None:
    process = forks.start(DRIVER, where, step, *command)
    assert process.wait() == -signal.SIGKILL, process.said()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recipe with dropout-like random use left out, a critic, and undisturbed runs of two arms with memory."""
    folder = tmp_path_factory.mktemp("resume")
    recipe = with_few_rows(folder)
    critic = ["objective={kind: value, loss: lambda_return, head: sigmoid}", "train.steps=3"]
    assert run_command(arguments(recipe, folder / "critic", *critic)) == 0
    return {"recipe": recipe, "folder": folder}


def scheme_with_memory(folder: Path) -> str:
    return f"objective={{weighting: {{scheme: critic, critic: '{folder}/critic/final', whiten: ema}}}}"


def test_killed_in_mid_step_and_again_at_a_step_boundary_the_resumed_run_is_the_same_run(
    prepared: dict[str, Path], forks: Zygote
) -> None:
    recipe, folder = prepared["recipe"], prepared["folder"]
    extra = [scheme_with_memory(folder)]
    assert run_command(arguments(recipe, folder / "whole", *extra)) == 0
    broken = folder / "broken"
    killed(forks, "mid_step", 6, arguments(recipe, broken, *extra))
    killed(forks, "boundary", 8, arguments(recipe, broken, *extra, "--resume", "auto"))
    assert run_command(arguments(recipe, broken, *extra, "--resume", "auto")) == 0
    assert_same_run(folder / "whole", broken)


def test_a_model_with_dropout_resumes_with_the_same_random_numbers(prepared: dict[str, Path], forks: Zygote) -> None:
    recipe, folder = prepared["recipe"], prepared["folder"]
    gpt2 = "model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 256"
    replace = [f"model.architecture={{{gpt2}, bos_token_id: 0, eos_token_id: 1, pad_token_id: 2}}"]
    text = recipe.read_text()
    head, tail = text.split("  architecture:\n")
    gpt2_recipe = folder / "gpt2.yaml"
    gpt2_recipe.write_text(head + tail[tail.index("  tokenizer:") :])
    assert run_command(arguments(gpt2_recipe, folder / "gpt2-whole", *replace)) == 0
    killed(forks, "mid_step", 6, arguments(gpt2_recipe, folder / "gpt2-broken", *replace))
    assert run_command(arguments(gpt2_recipe, folder / "gpt2-broken", *replace, "--resume", "auto")) == 0
    assert_same_run(folder / "gpt2-whole", folder / "gpt2-broken")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_state_exits_with_its_code_and_the_run_goes_on(
    prepared: dict[str, Path], forks: Zygote, number: int, code: int
) -> None:
    recipe, folder = prepared["recipe"], prepared["folder"]
    run = folder / f"signal-{number}"
    process = forks.start("from wmtp.cli import main; main()", *arguments(recipe, run, "train.steps=2000"))
    deadline = time.monotonic() + 100
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
        assert process.poll() is None, process.said()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait() == code, process.said()
    errors = process.said()
    assert "--resume auto" in errors
    assert "Traceback" not in errors
    saved = sorted((run / "checkpoints").iterdir())[-1]
    step = int(saved.name.removeprefix("step_"))
    assert journal(run)[-1]["step"] == step
    assert run_command(arguments(recipe, run, "train.steps=2000", "--resume", str(saved), "--dry-run")) == 0


def test_two_trainers_cannot_share_a_run_folder(prepared: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    recipe, folder = prepared["recipe"], prepared["folder"]
    run = folder / "locked"
    assert run_command(arguments(recipe, run, "train.steps=2")) == 0
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_command(arguments(recipe, run, "train.steps=2", "--resume", "auto")) == 2
    assert "another process is training" in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(
    prepared: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = prepared["recipe"], prepared["folder"]
    run = folder / "damaged"
    assert run_command(arguments(recipe, run)) == 0
    newest = sorted((run / "checkpoints").iterdir())[-1]
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert run_command(arguments(recipe, run, "--resume", "auto")) == 0
    errors = capsys.readouterr().err
    assert str(newest) in errors
    assert "step 8 of 10" in errors


def test_resume_writes_no_process_or_file_leak(prepared: dict[str, Path], forks: Zygote) -> None:
    recipe, folder = prepared["recipe"], prepared["folder"]
    code = (
        "import os, sys\n"
        "from wmtp.cli import run_command\n"
        "def files(): return {os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') "
        "if os.path.exists(f'/proc/self/fd/{n}')}\n"
        "assert run_command(sys.argv[1:]) == 0\n"
        "left = [f for f in files() if 'leak-run' in f]\n"
        "assert not left, left\n"
        "import multiprocessing; assert not multiprocessing.active_children()\n"
    )
    process = forks.start(code, *arguments(recipe, folder / "leak-run", "train.steps=2"))
    assert process.wait() == 0, process.said()
    assert "Warning" not in process.said()
    assert "leaked" not in process.said()
