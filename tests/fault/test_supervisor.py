"""A supervised job: what is started again, what is not, which exit code comes out, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from wmtp import outcome, supervisor
from wmtp.cli import run_command
from wmtp.supervisor import Options, newest_step, supervise

pytestmark = pytest.mark.fault

PATIENCE_S = 200
"""How long anything may take before a test gives up; no test is about time."""

JOB = """
import os, signal, sys, time
from pathlib import Path
from wmtp import outcome
from wmtp.watchdog import Watchdog

outcome.begin()
folder, what, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ.get("RANK", "0"))
starts = folder / f"starts-{rank}"
with starts.open("a") as stream:
    stream.write(f"{os.getpid()} ")
number = len(starts.read_text().split())

def leave(code, message="", kind=""):
    outcome.end(code, message, kind)
    os._exit(code)

def waits_for_ever():
    print("waiting", flush=True)
    (folder / f"waiting-{rank}").touch()
    time.sleep(1000)

def saves(signal_number, frame):
    if not saves.called:
        saves.called = True
        (folder / f"saved-{rank}").touch()
        leave(128 + signal_number, "saved")
saves.called = False
"""


class Job:
    """A small job: a program that every rank runs, in a folder of its own."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.program, self.said = folder, program, list[str]()
        self.saved: Callable[[], int] = lambda: -1

    def command(self, attempt: int) -> list[str]:
        return [sys.executable, "-c", JOB + self.program, str(self.folder), f"attempt-{attempt}"]

    def run(self, *, ranks: int = 1, restarts: int = 0, stop_timeout_s: float = 100.0) -> int:
        options = Options(ranks, restarts, stop_timeout_s, backoff_s=0.01)
        home = self.folder / "job"
        return supervise(self.command, progress=self.saved, options=options, folder=home, say=self.said.append)

    def starts(self, rank: int = 0) -> list[int]:
        """The process of each attempt."""
        return [int(pid) for pid in (self.folder / f"starts-{rank}").read_text().split()]


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], Job]:
    return lambda program: Job(tmp_path, program)


def wait_until(happened: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Small jobs


def test_a_job_that_succeeds_is_run_once_and_nothing_is_said(job: Callable[[str], Job]) -> None:
    one = job("leave(0)")
    assert one.run(restarts=5) == 0
    assert len(one.starts()) == 1
    assert one.said == []


def test_a_job_that_fails_is_started_again_and_its_last_words_are_passed_on(job: Callable[[str], Job]) -> None:
    one = job("leave(0) if number == 3 else leave(1, 'the disk is full', 'CheckpointError')")
    assert one.run(restarts=2) == 0
    assert len(one.starts()) == 3
    assert "exit code 1: the disk is full" in one.said[0]
    assert "restart 1 of 2" in one.said[0]
    assert "attempt 3: done" in one.said[-1]


def test_when_no_restart_is_left_the_code_is_1_and_the_last_reason_is_said(job: Callable[[str], Job]) -> None:
    one = job("os.kill(os.getpid(), signal.SIGKILL)")
    assert one.run(restarts=2) == 1
    assert len(one.starts()) == 3
    assert "killed by SIGKILL" in one.said[-2]
    assert "no restart is left" in one.said[-2]


def test_progress_gives_the_restarts_back(job: Callable[[str], Job]) -> None:
    one = job("leave(1)")
    newest = [-1, 5, 5, 10, 10, 10]  # before the first attempt, and after each
    steps = iter(newest)
    one.saved = lambda: next(steps)
    assert one.run(restarts=2) == 1
    assert len(one.starts()) == len(newest) - 1
    assert next(steps, None) is None


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("leave(2, 'optim.lr must be a number', 'ConfigError')", 2),
        ("leave(1, 'steps 3 to 5 all had a non-finite gradient norm', 'NonFiniteError')", 1),
        ("leave(2, 'there is no bucket', 'StorageError')", 2),
    ],
)
def test_a_wrong_config_and_a_diverged_run_are_not_tried_again(
    job: Callable[[str], Job], program: str, code: int
) -> None:
    one = job(program)
    assert one.run(restarts=5) == code
    assert len(one.starts()) == 1
    assert "would end the same way" in one.said[0]


@pytest.mark.parametrize(("attempts", "code"), [(4, 0), (9, 1)])
def test_credentials_that_expire_in_mid_run_cost_restarts_and_are_no_mistake_of_the_user(
    job: Callable[[str], Job], attempts: int, code: int
) -> None:
    """The first attempt fails in training, and ends with 1; those after it are refused before they train: 2."""
    words = "'cannot read s3://bucket/a: ExpiredToken', 'StorageError'"
    one = job(f"leave(0) if number == {attempts} else leave(1 if number == 1 else 2, {words})")
    assert one.run(restarts=4) == code
    assert len(one.starts()) == min(attempts, 5)
    assert "ended with exit code 2: cannot read s3://bucket/a: ExpiredToken" in one.said[1]


def test_a_job_that_somebody_else_stopped_is_not_started_again(job: Callable[[str], Job]) -> None:
    one = job("leave(143, 'SIGTERM: stopped after step 5 of 10')")
    assert one.run(restarts=5) == 143
    assert len(one.starts()) == 1


def test_a_hang_is_ended_by_the_watchdog_and_the_job_is_started_again(
    job: Callable[[str], Job], capfd: pytest.CaptureFixture[str]
) -> None:
    one = job(
        "if number == 2: leave(0)\n"
        "with Watchdog(0.5, rank=rank, folder=folder) as watchdog:\n"
        "    watchdog.beat('step 7')\n"
        "    waits_for_ever()\n"
    )
    assert one.run(restarts=1) == 0
    assert len(one.starts()) == 2
    assert "'step 7' began" in one.said[0]
    assert "waits_for_ever" in one.said[0]
    assert "in waits_for_ever" in (one.folder / "watchdog" / "rank_0.txt").read_text()
    assert "in waits_for_ever" in capfd.readouterr().err


# Signals, to a supervisor in a process of its own

SUPERVISOR = """
import sys
from pathlib import Path
from wmtp.supervisor import Options, supervise

folder, program, ranks, stop_timeout_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
def command(attempt):
    return [sys.executable, "-c", program, str(folder), f"attempt-{attempt}"]
options = Options(ranks=ranks, restarts=3, stop_timeout_s=stop_timeout_s, backoff_s=0.01)
sys.exit(supervise(command, progress=lambda: -1, options=options, folder=folder / "job"))
"""


def supervisor_of(one: Job, ranks: int = 1, stop_timeout_s: float = 100.0) -> subprocess.Popen[str]:
    arguments = [str(one.folder), JOB + one.program, str(ranks), str(stop_timeout_s)]
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, *arguments], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_is_passed_on_once_and_the_jobs_answer_is_the_exit_code(
    job: Callable[[str], Job], number: int, code: int
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("this process was started with the signal ignored, by nohup perhaps, and so is what it starts")
    one = job("for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, saves)\nwaits_for_ever()")
    process = supervisor_of(one)
    wait_until((one.folder / "waiting-0").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, errors
    assert (one.folder / "saved-0").exists()
    assert len(one.starts()) == 1


@pytest.mark.parametrize(("stop_timeout_s", "signals"), [(0.1, 1), (100.0, 2)])
def test_a_job_that_does_not_stop_is_killed_after_the_bound_or_on_a_second_signal(
    job: Callable[[str], Job], stop_timeout_s: float, signals: int
) -> None:
    one = job("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwaits_for_ever()")
    process = supervisor_of(one, stop_timeout_s=stop_timeout_s)
    wait_until((one.folder / "waiting-0").exists, process)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)  # two signals of one kind that come at once are one signal
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "killed, since" in errors
    assert not alive(one.starts()[0])
    assert len(one.starts()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_supervisor_that_is_killed_takes_the_job_with_it(job: Callable[[str], Job]) -> None:
    one = job("waits_for_ever()")
    process = supervisor_of(one)
    wait_until((one.folder / "waiting-0").exists, process)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not alive(one.starts()[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only process groups are killed")
def test_what_the_job_left_running_is_gone_when_the_attempt_is_over(job: Callable[[str], Job]) -> None:
    one = job(
        "import subprocess\n"
        "left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'], start_new_session=True)\n"
        "(folder / 'left').write_text(str(left.pid))\n"
        "leave(0)\n"
    )
    assert one.run() == 0
    assert not alive(int((one.folder / "left").read_text()))


# Two ranks under torchrun


def test_a_rank_that_is_killed_ends_the_other_and_is_named_and_an_exit_code_comes_out_of_torchrun(
    job: Callable[[str], Job],
) -> None:
    one = job(
        "if rank == 0: waits_for_ever()\n"
        "if number == 2: leave(2, 'no such data file', 'DataError')\n"
        "while not (folder / 'waiting-0').exists(): time.sleep(0.02)\n"
        "print('last words of rank 1', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert one.run(ranks=2, restarts=5) == 2
    assert "last words of rank 1" in one.said[0]
    assert "rank 1 was killed by SIGKILL" in one.said[1]
    assert "rank 1 ended with exit code 2: no such data file" in one.said[-2]
    assert len(one.starts(1)) == 2
    assert not any(alive(pid) for rank in (0, 1) for pid in one.starts(rank))


def test_a_signal_reaches_both_ranks_and_their_code_comes_out_of_torchrun(job: Callable[[str], Job]) -> None:
    one = job("signal.signal(signal.SIGTERM, saves)\nwaits_for_ever()")
    process = supervisor_of(one, ranks=2)
    wait_until(lambda: all((one.folder / f"waiting-{rank}").exists() for rank in (0, 1)), process)
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, errors
    assert all((one.folder / f"saved-{rank}").exists() for rank in (0, 1))


def failure(rank: int, exitcode: int, timestamp: int = 100) -> dict[str, int]:
    return {"rank": rank, "exitcode": exitcode, "timestamp": timestamp}


@pytest.mark.parametrize(
    ("failures", "said", "returncode", "verdict"),
    [
        # A rank that was killed is the cause, not one that lost its peer in the same moment, whichever is listed first.
        (
            [failure(0, 1), failure(1, -9)],
            {0: (1, "Connection closed by peer", 5.0), 1: None},
            1,
            (1, 1, True, "rank 1 was killed by SIGKILL"),
        ),
        # torchrun kills what does not end 30 s after the first failure: that is not the cause.
        (
            [failure(1, 1), failure(0, -9, 130)],
            {0: None, 1: (1, "the disk is full", 5.0)},
            1,
            (1, 1, True, "the disk is full"),
        ),
        # Of several that failed by themselves, the first.
        (
            [failure(0, 1), failure(1, 1)],
            {0: (1, "Connection closed by peer", 5.2), 1: (1, "division by zero", 5.1)},
            1,
            (1, 1, True, "division by zero"),
        ),
        # torchrun ends the others with SIGTERM, and they may save: neither is the cause.
        (
            [failure(0, 143), failure(2, -15), failure(1, 2)],
            {0: (143, "SIGTERM: stopped", 5.0), 1: (2, "no such file", 5.1)},
            1,
            (2, 1, False, "rank 1 ended with exit code 2: no such file"),
        ),
        # A rank that left with 0 while another was at work is not among the failures.
        (
            [failure(0, 1)],
            {0: (1, "Connection closed by peer", 5.0), 1: None, 2: (0, "", 6.0)},
            1,
            (1, 1, True, "rank 1 left with exit code 0 while others were at work"),
        ),
        (None, {0: None, 1: None}, -9, (1, None, True, "torchrun was killed by SIGKILL")),
        (None, {0: (143, "SIGTERM: stopped", 5.0), 1: (143, "SIGTERM: stopped", 5.0)}, 1, (143, None, False, "signal")),
    ],
)
def test_the_cause_is_told_from_what_follows_from_it(
    failures: list[dict[str, int]] | None,
    said: dict[int, tuple[int, str, float] | None],
    returncode: int,
    verdict: tuple[int, int | None, bool, str],
    tmp_path: Path,
) -> None:
    if failures is not None:
        (tmp_path / supervisor.FAILURES).write_text(json.dumps(failures))
    for rank, words in said.items():
        code, message, at = words or (None, "", 0.0)
        outcome._write(tmp_path, outcome.Outcome(rank, 1, code, "SomeError" if code else "", message, at))
    job = supervisor._Job(lambda attempt: [], {}, tmp_path, None)
    with supervisor.Stop() as stop:
        watching = supervisor._Supervisor(job, lambda: -1, Options(ranks=3), lambda text: None, stop)
        ended = watching._judge(returncode, tmp_path, None)
    assert (ended.code, ended.rank, ended.again) == verdict[:3]
    assert verdict[3] in ended.reason


# Training

KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
from wmtp import tracking
from wmtp.cli import main

marker = Path(sys.argv[1])

def log(self, step, split, metrics, original=tracking.Journal.log):
    original(self, step, split, metrics)
    if step == 7 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

tracking.Journal.log = log
main(sys.argv[2:])
"""


def arguments(recipe: Path, out: Path, *extra: str) -> list[str]:
    return ["train", "--recipe", str(recipe), "--out", str(out), *extra]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("supervised") / "recipe.yaml"
    path.write_text((Path(__file__).parents[1] / "e2e" / "small_recipe.yaml").read_text())
    return path


@pytest.fixture
def command_line() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `wmtp train --restarts ...` as a user would."""
    started: list[subprocess.Popen[str]] = []

    def start(*extra: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-m", "wmtp", *extra]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.exhaustive  # with two ranks, always: test_ranks_resume.py; one process alone: test_resume.py
def test_a_training_that_is_killed_ends_with_the_weights_of_one_that_is_not(recipe: Path) -> None:
    folder = recipe.parent
    assert run_command(arguments(recipe, folder / "whole")) == 0
    run, said = folder / "killed", list[str]()

    def command(attempt: int) -> list[str]:
        resumed = ["--resume", "auto"] if attempt else []
        marker = str(folder / "was-killed")
        return [sys.executable, "-c", KILLED_ONCE, marker, *arguments(recipe, run, *resumed)]

    options = Options(restarts=1, backoff_s=0.01)
    assert supervise(command, progress=lambda: newest_step(run), options=options, say=said.append) == 0
    assert "killed by SIGKILL; last checkpoint: step 4" in said[0]
    for file in sorted((run / "final").glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(folder / "whole" / "final" / file.name)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_signal_to_a_supervised_training_saves_its_state(
    recipe: Path, command_line: Callable[..., subprocess.Popen[str]]
) -> None:
    run = recipe.parent / "stopped"
    process = command_line(*arguments(recipe, run, "train.steps=2000", "--restarts", "3"))
    journal = run / "metrics.jsonl"
    wait_until(lambda: journal.exists() and len(journal.read_text().splitlines()) >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert newest_step(run) == json.loads(journal.read_text().splitlines()[-1])["step"]


def test_a_wrong_config_starts_no_job(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recipe.parent / "wrong"
    assert run_command(arguments(recipe, run, "--restarts", "3", "optim.lr=fast")) == 2
    assert "optim.lr" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize("options", [["--ranks", "2"], ["--restarts", "1"]])
def test_a_rank_of_torchrun_does_not_start_ranks(
    options: list[str], recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run_command(arguments(recipe, recipe.parent / "never", *options)) == 2
    assert "WORLD_SIZE is 2" in capsys.readouterr().err


def test_the_supervisor_needs_no_torch() -> None:
    program = "import sys, wmtp.cli, wmtp.supervisor, wmtp.watchdog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=dict(os.environ), timeout=PATIENCE_S).returncode == 0
