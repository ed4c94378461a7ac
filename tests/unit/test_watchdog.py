"""The watchdog ends what hangs, says where it hung, and leaves what works alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, threading, time
from pathlib import Path
from wmtp.watchdog import Watchdog

folder = Path(sys.argv[1])

def stuck_in_a_collective():
    time.sleep(1000)

def second_thread_waits():
    time.sleep(1000)
"""


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM + program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_a_hang_ends_with_the_stacks_of_all_threads(tmp_path: Path) -> None:
    done = run(
        "threading.Thread(target=second_thread_waits, daemon=True).start()\n"
        "with Watchdog(0.3, rank=5, folder=folder) as watchdog:\n"
        "    watchdog.beat('step 12')\n"
        "    stuck_in_a_collective()\n",
        tmp_path,
    )
    assert done.returncode == 1
    kept = (tmp_path / "watchdog" / "rank_5.txt").read_text()
    for text in (done.stderr, kept):
        assert "rank 5" in text
        assert "'step 12' began" in text
        assert text.count("stuck_in_a_collective") >= 2  # the message's and the stack's
        assert "second_thread_waits" in text


def test_beats_keep_a_process_alive_that_takes_longer_than_the_timeout(tmp_path: Path) -> None:
    done = run(
        "clock = [0.0]\n"
        "time.monotonic = lambda: clock[0]\n"
        "with Watchdog(10.0, folder=folder) as watchdog:\n"
        "    watchdog._done.wait = lambda seconds, wait=watchdog._done.wait: wait(0.001)\n"
        "    for step in range(50):\n"
        "        clock[0] += 9.0\n"
        "        watchdog.beat(f'step {step}')\n"
        "        time.sleep(0.01)\n",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "watchdog").exists()


def test_the_first_of_each_kind_of_work_has_more_time() -> None:
    from wmtp.watchdog import Watchdog

    watchdog = Watchdog(10.0, grace_s=100.0)
    limits = []
    for what in ("step 1", "step 2", "eval 2", "step 3", "eval 3"):
        watchdog.beat(what)
        limits.append((watchdog._beat.what, watchdog._beat.limit_s))
    assert limits == [("step 1", 110.0), ("step 2", 10.0), ("eval 2", 110.0), ("step 3", 10.0), ("eval 3", 10.0)]


def test_a_clock_that_is_set_changes_nothing(tmp_path: Path) -> None:
    done = run(
        "time.time = lambda: 4e9\n"
        "with Watchdog(1000.0, folder=folder) as watchdog:\n"
        "    watchdog.beat('step 1')\n"
        "    time.time = lambda: 0.0\n"
        "    watchdog.beat('step 2')\n"
        "    time.sleep(0.2)\n",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_switched_off_it_has_no_thread() -> None:
    import threading

    from wmtp.watchdog import Watchdog

    before = threading.active_count()
    with Watchdog(None) as watchdog:
        watchdog.beat("step 1")
        assert threading.active_count() == before


def test_it_ends_when_its_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "watchdog").write_text("a file where a folder should be")
    done = run("with Watchdog(0.2, folder=folder):\n    stuck_in_a_collective()\n", tmp_path)
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert "stuck_in_a_collective" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the library that sleeps with the interpreter's lock is glibc")
def test_native_code_that_never_gives_the_interpreter_back_is_ended_too(tmp_path: Path) -> None:
    done = run(
        "import ctypes\n"
        "from wmtp import watchdog as module\n"
        "module.LAST_WORDS_S = 0.2\n"
        "def deaf():\n"
        "    ctypes.PyDLL('libc.so.6').sleep(1000)\n"
        "with Watchdog(0.3, folder=folder) as watchdog:\n"
        "    watchdog.beat('step 1')\n"
        "    time.sleep(0.2)\n"
        "    deaf()\n",
        tmp_path,
    )
    assert done.returncode == 1
    assert "in deaf" in done.stderr
