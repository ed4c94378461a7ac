"""Two ranks that are killed, stopped or changed in number go on as if nothing had been; nothing is left over.

Jobs that a supervisor or torchrun has no part in are ranks that are forked: they cost no imports.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Zygote

from wmtp.faults import VARIABLE
from wmtp.formats.remote import tensors_of
from wmtp.storage import ObjectPath, Place, matches

pytestmark = [pytest.mark.fault, pytest.mark.slow]
RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"
LIMIT_S = 240


def start(out: Place, *extra: str, fault: str = "", warnings: str = "") -> subprocess.Popen[str]:
    """`wmtp train` with two ranks."""
    command = [sys.executable, "-m", "wmtp", "train", "--recipe", str(RECIPE), "--out", str(out), *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WMTP_FAULT": fault, "PYTHONWARNINGS": warnings}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    _, errors = process.communicate(timeout=LIMIT_S)
    return process.returncode, errors


def train(out: Place, *extra: str, **options: Any) -> tuple[int, str]:
    return finish(start(out, *extra, **options))


def forked(forks: Zygote, ranks: int, out: Place, *extra: str, fault: str = "") -> tuple[list[int], str]:
    """The same without a supervisor: how each rank ended, and all that they printed."""
    arguments = ["train", "--recipe", str(RECIPE), "--out", str(out), *extra]
    return forks.ranks(ranks, "from wmtp.cli import main; main()", *arguments, environment={VARIABLE: fault})


def weights(run: Place) -> dict[str, Any]:
    return {f"{f.name}/{k}": v for f in matches(run / "final", "*.safetensors") for k, v in tensors_of(f).items()}


def losses(run: Place) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/nll"] for line in lines]


def assert_equal(run: Place, other: Place) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert losses(run) == losses(other)


@pytest.fixture(scope="module")
def undisturbed(forks: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, to the end, with every warning an error."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    codes, errors = forked(forks, 2, out)
    assert codes == [0, 0], errors
    assert "Warning" not in errors
    return out


def test_what_two_ranks_saved_becomes_one_folder(undisturbed: Path, tmp_path: Path) -> None:
    from wmtp.cli import run_command

    checkpoint = undisturbed / "checkpoints" / "step_00000010"
    assert len(list(checkpoint.glob("model*.safetensors"))) == 2
    assert run_command(["export", "--model", str(checkpoint), "--out", str(tmp_path / "final")]) == 0
    ours, theirs = weights(tmp_path), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_killed_rank_costs_nothing(undisturbed: Path, tmp_path: Path) -> None:
    code, errors = train(tmp_path / "run", "--ranks", "2", "--restarts", "3", fault="step_begin:7:kill9@1")
    assert code == 0, errors
    assert "rank 1" in errors
    assert_equal(tmp_path / "run", undisturbed)
    assert not [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]


@pytest.mark.exhaustive  # what a dead rank leaves in a store, always: test_checkpoint_ranks.py
def test_a_killed_rank_costs_nothing_in_a_store(undisturbed: Path, s3: ObjectPath) -> None:
    code, errors = train(s3 / "run", "--ranks", "2", "--restarts", "3", fault="step_begin:7:kill9@1")
    assert code == 0, errors
    assert "rank 1" in errors
    assert_equal(s3 / "run", undisturbed)
    kept = {path.parent.name for path in (s3 / "run" / "checkpoints").files()}
    assert kept == {path.name for path in (undisturbed / "checkpoints").iterdir()}
    assert not (s3 / "run" / ".lock").exists()


def test_two_ranks_that_are_stopped_save_and_go_on(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "--ranks", "2")
    deadline = time.monotonic() + LIMIT_S
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text().count("\n"):
        assert time.monotonic() < deadline
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 143, errors
    assert not (run / "final").exists()
    code, errors = train(run, "--ranks", "2", "--resume", "auto", warnings="error:::wmtp")
    assert code == 0, errors
    assert "Warning" not in errors
    assert_equal(run, undisturbed)


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.exhaustive)])
def test_a_run_goes_on_with_another_number_of_ranks(
    first: int, then: int, undisturbed: Path, forks: Zygote, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert forked(forks, first, run, fault="step_begin:7:raise")[0] == [1] * first
    assert not (run / "final").exists()
    codes, errors = forked(forks, then, run, "--resume", "auto")
    assert codes == [0] * then, errors
    assert "random states start anew" in errors
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-6)


def test_a_config_that_is_wrong_is_told_once_and_ends_all_ranks(tmp_path: Path) -> None:
    code, errors = train(tmp_path / "run", "--ranks", "2", "data.max_length=4096")
    assert code == 2
    assert errors.count("longer than the model's context") == 2, "the rank's own message, and the supervisor's summary"
    assert "last lines" not in errors
    assert "Traceback" not in errors


def test_strategies_that_cannot_be_are_refused(forks: Zygote, tmp_path: Path) -> None:
    codes, errors = forked(forks, 2, tmp_path / "run", "distributed.strategy=HYBRID_SHARD")
    assert codes == [2, 2]
    assert "needs several hosts" in errors
    assert "Traceback" not in errors
