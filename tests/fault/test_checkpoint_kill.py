"""Processes killed outright while they save: whatever the instant, a whole checkpoint remains.

Once at random instants, mostly in the middle of writing, and once before each single change to the folder.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wmtp.checkpoint import list_steps, load, newest, remove_litter

KILLS = 15

SAVER = """
import os, sys
from pathlib import Path
import torch
from wmtp.checkpoint import load, newest, save
torch.set_num_threads(1)

def work(folder):
    found = newest(folder, on_bad=lambda path, reason: print(reason, file=sys.stderr, flush=True))
    step = load(found).step if found else 0
    tensors = {"large": torch.empty(2_000_000), "small": torch.empty(3, dtype=torch.bfloat16), "one": torch.empty(())}
    while True:
        step += 1
        for attempt in (1, 2):  # the second replaces the first
            for tensor in tensors.values():
                tensor.fill_(step % 200 + attempt)
            parts = {"model": tensors, "optimizer": {"state": {0: tensors["one"]}, "step": step}}
            save(folder, step, parts, {"step": step, "attempt": attempt})

for line in sys.stdin:  # one line, one child that saves until it is killed
    child = os.fork()
    if not child:
        try:
            work(Path(sys.argv[1]))
        finally:
            os._exit(1)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@contextmanager
def saver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Torch is imported once; each kill then costs milliseconds."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SAVER, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=one_thread) as process:
        yield process
        _, complaints = process.communicate(timeout=30)
    assert complaints == ""


def kill_while_saving(process: subprocess.Popen[str], delay: float) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    child = int(process.stdout.readline())
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    assert int(process.stdout.readline()) == signal.SIGKILL, "the child ended by itself"


def never(path: Path, reason: str) -> None:
    raise AssertionError(f"{path} was reported bad: {reason}")


def checked_step(folder: Path) -> int:
    """The step of the newest checkpoint, after checking that everything in it belongs to that step."""
    for path in folder.iterdir():
        assert path.name.startswith(".") or (path / "manifest.json").is_file()
    path = newest(folder, on_bad=never)
    if path is None:
        return 0
    found = load(path)
    expected = found.step % 200 + found.facts["attempt"]
    assert found.facts["step"] == found.parts["optimizer"]["step"] == found.step
    assert all((tensor == expected).all() for tensor in found.parts["model"].values())
    assert found.parts["optimizer"]["state"][0] == expected
    return found.step


@pytest.mark.fault
def test_after_a_kill_at_any_instant_the_newest_checkpoint_is_whole_and_none_is_lost(tmp_path: Path) -> None:
    delays = random.Random(20)
    step, interrupted = 0, 0
    with saver(tmp_path) as process:
        for _ in range(KILLS):
            kill_while_saving(process, delays.uniform(0.02, 0.6))
            interrupted += any(path.name.startswith(".") for path in tmp_path.iterdir())
            before, step = step, checked_step(tmp_path)
            assert step >= before, "a finished checkpoint was lost"
            for path in list_steps(tmp_path):
                load(path)
    assert step > 0, "no save was ever finished, so the test shows nothing"
    assert interrupted > 0, "no save was ever interrupted, so the test shows nothing"
    remove_litter(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in list_steps(tmp_path)}


STEPPER = """
import os, shutil, signal, sys
from pathlib import Path
import torch
from wmtp.checkpoint import list_steps, load, newest, remove_litter, save
torch.set_num_threads(1)
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}

def put(folder, step, value):
    save(folder, step, {"model": {"v": torch.full((9,), value)}}, {"value": value})

def die_before_change(number):
    left = [number]
    def count(event, arguments):
        if event in CHANGES:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

def child(folder, number):
    die_before_change(number)
    put(folder, 2, 20.5)  # replaces step 2
    put(folder, 3, 30.0)  # pushes out step 1
    os._exit(0)

def never(path, reason):
    raise AssertionError(f"{number}: {path} was reported bad: {reason}")

folder, number, status, seen = Path(sys.argv[1]), 0, signal.SIGKILL, []
while status == signal.SIGKILL:
    number += 1
    shutil.rmtree(folder, ignore_errors=True)
    put(folder, 1, 10.0)
    put(folder, 2, 20.0)
    pid = os.fork()
    if not pid:
        child(folder, number)
    status = os.waitpid(pid, 0)[1]
    found = load(newest(folder, on_bad=never))
    assert (found.parts["model"]["v"] == found.facts["value"]).all(), number
    seen.append(found.facts["value"])
    remove_litter(folder)
    assert sorted(folder.iterdir()) == list_steps(folder), number
    assert len(list_steps(folder)) >= 2, number
assert status == 0, status
print(number, seen == sorted(seen), sorted(set(seen)))
"""


@pytest.mark.fault
def test_a_kill_before_any_single_change_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STEPPER, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    instants, in_order, values = done.stdout.split(maxsplit=2)
    assert int(instants) > 30
    assert (in_order, values) == ("True", "[20.0, 20.5, 30.0]\n")
