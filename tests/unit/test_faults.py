"""`WMTP_FAULT`: what it may say, and that each action does what its line in the table says."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wmtp import faults
from wmtp.errors import UsageError
from wmtp.faults import ACTIONS, POINTS, Fault, Faults, fault, parse

GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"


def run(spec: str | None, program: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("WMTP_FAULT", "RANK")}
    environment |= more | ({"WMTP_FAULT": spec} if spec is not None else {})
    command = [sys.executable, "-c", f"from wmtp.faults import fault\n{program}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_entries_are_read_as_they_are_written() -> None:
    assert parse("step_begin:3:kill9@1, before_save:1:sleep:0.5,after_backward:2:nan") == [
        Fault("step_begin", 3, "kill9", rank=1),
        Fault("before_save", 1, "sleep", 0.5),
        Fault("after_backward", 2, "nan"),
    ]
    assert parse("") == []


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("step_end:1:kill9", "no point 'step_end'"),
        ("step_begin", "NTH is a whole number"),
        ("step_begin:0:kill9", "at least 1, got '0'"),
        ("step_begin:x:kill9", "got 'x'"),
        ("step_begin:1:", "no action"),
        ("step_begin:1:explode", "no action 'explode'"),
        ("step_begin:1:kill9:3", "no action 'kill9:3'"),
        ("step_begin:1:sleep", "no action 'sleep'"),
        ("step_begin:1:sleep:nan", "no action 'sleep:nan'"),
        ("step_begin:1:nan", "after_backward only"),
        ("step_begin:1:kill9@one", "RANK is a whole number, got 'one'"),
        ("step_begin:1:kill9@", "RANK is a whole number, got ''"),
        ("step_begin:1:kill9,", "no point ''"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_would_be_right(spec: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(spec)
    assert why in str(caught.value)
    assert all(name in str(caught.value) for name in (*POINTS, *ACTIONS))


def test_a_fault_happens_at_its_count_and_rank_and_at_no_other() -> None:
    here = Faults("eval:2:raise@3,after_backward:1:nan", rank=3)
    assert here.reach("eval") is None
    with pytest.raises(RuntimeError, match="eval, time 2"):
        here.reach("eval")
    assert here.reach("eval") is None
    assert [here.reach("after_backward"), here.reach("after_backward")] == ["nan", None]
    elsewhere = Faults("eval:1:raise@3", rank=0)
    assert elsewhere.reach("eval") is None


def test_a_full_disk_looks_like_one() -> None:
    with pytest.raises(OSError, match="WMTP_FAULT") as caught:
        Faults("ckpt_write:1:enospc", 0).reach("ckpt_write")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(("action", "code"), [("kill9", -signal.SIGKILL), ("exit0", 0), ("sleep:0", 7)])
def test_a_process_ends_as_its_fault_says(action: str, code: int) -> None:
    done = run(f"prune:1:{action}", "fault('prune'); raise SystemExit(7)")
    assert done.returncode == code
    assert "WMTP_FAULT: prune, time 1" in done.stderr


def test_a_stopped_process_goes_on_when_it_may() -> None:
    command = [sys.executable, "-c", "from wmtp.faults import fault; fault('eval')"]
    process = subprocess.Popen(command, env={**os.environ, "WMTP_FAULT": "eval:1:stop"}, stderr=subprocess.PIPE)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=100)
    assert process.returncode == 0


def test_the_rank_of_a_process_is_what_torchrun_says() -> None:
    assert run("eval:1:exit0@1", "fault('eval'); raise SystemExit(7)", RANK="1").returncode == 0
    assert run("eval:1:exit0@1", "fault('eval'); raise SystemExit(7)", RANK="0").returncode == 7


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_unread", "")
    assert fault("a name that would be refused otherwise") is None


def test_the_command_line_refuses_a_wrong_entry_before_any_work() -> None:
    command = [sys.executable, "-P", "-m", "wmtp", "train"]
    environment = {**os.environ, "WMTP_FAULT": "no_such_point:1:kill9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "no_such_point" in done.stderr
    assert "step_begin" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tables_of_the_module_and_of_the_guide_name_every_point_and_action() -> None:
    for text in (faults.__doc__ or "", GUIDE.read_text()):
        words = set(re.findall(r"^\|?\s*`?([a-z0-9_:]+|sleep:SECONDS)`?\s", text, re.MULTILINE))
        assert set(POINTS) <= words
        assert set(ACTIONS) <= words
