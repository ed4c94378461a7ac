"""Two ranks and a folder that fails them: a full disk, one that cannot be written, one that is taken."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from forked import Zygote
from test_ranks_resume import LIMIT_S, assert_equal, finish, forked, start, train

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def test_a_disk_that_is_full_for_one_rank_costs_a_checkpoint_and_not_the_run(forks: Zygote, tmp_path: Path) -> None:
    codes, errors = forked(forks, 2, tmp_path / "calm", "train.steps=6")
    assert codes == [0, 0], errors
    run = tmp_path / "run"
    codes, errors = forked(forks, 2, run, "train.steps=6", fault="ckpt_write:1:enospc@1")
    assert codes == [0, 0], errors
    assert "a checkpoint was not written" in errors
    assert "training goes on" in errors
    assert_equal(run, tmp_path / "calm")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000006"]


@pytest.mark.exhaustive
def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", Path("/proc/wmtp-run")):  # root may write anywhere else
        code, errors = train(out, "--ranks", "2")
        assert code == 2, errors
        assert str(out) in errors
        assert "Traceback" not in errors


@pytest.mark.exhaustive
def test_a_second_job_in_the_same_folder_is_refused_and_the_first_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(run, "--ranks", "2", fault="step_begin:2:hang@0")
    deadline = time.monotonic() + LIMIT_S
    while not (run / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        assert first.poll() is None, finish(first)
        time.sleep(0.05)
    code, errors = train(run, "--ranks", "2", "--resume", "auto")
    assert code == 2, errors
    assert "another process is training in" in errors
    assert "Traceback" not in errors
    assert first.poll() is None
    first.kill()
    finish(first)
