"""What a process of a supervised job leaves for its supervisor: that it began, and how it ended.

The supervisor names a folder in `WMTP_JOB`. A rank writes `rank_N.json` there when it begins and once more when it
ends; one that dies hard leaves only the first. Ranks above 0 print to `rank_N.log` there, so that the terminal shows
one rank. Without `WMTP_JOB`, `begin` does nothing and `end` only tells torchrun, where that has asked for it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

JOB = "WMTP_JOB"
"""Environment variable: the folder of the attempt this process belongs to. Whoever has it is ended with the job."""
TORCHRUN_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable set by torchrun: where it looks for the reason when a rank fails."""

LEFT_ALONE = "wmtp-left-alone"
"""Name of a thread that nobody waits for after a signal."""


@dataclass(frozen=True)
class Outcome:
    """What a rank wrote last."""

    rank: int
    pid: int
    code: int | None = None
    """Exit code; None while it runs, and for ever if it died hard."""
    kind: str = ""
    """Class of the error."""
    message: str = ""
    at: float = 0.0
    """`time.monotonic()`, which all processes of a host share."""


_said = False


def begin() -> None:
    """First thing in a rank of a supervised job."""
    folder, rank = _job(), _rank()
    if folder is None or _file(folder, rank).exists():  # somebody below a rank runs wmtp too: not a rank
        return
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped)
    _write(folder, Outcome(rank, os.getpid(), at=time.monotonic()))
    if rank:
        log = os.open(log_file(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


def _stopped(number: int, frame: FrameType | None) -> None:
    """A signal before training began, or after it ended: there is nothing to save."""
    end(128 + number, "stopped while it was not training; there was nothing to save", "Interrupted")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)


def end(code: int, message: str = "", kind: str = "") -> None:
    """How this process is about to end. The first call counts."""
    global _said
    if _said:
        return
    if code and message and os.environ.get(TORCHRUN_FILE):
        _said = True
        _tell_torchrun(Path(os.environ[TORCHRUN_FILE]), message)
    folder, rank = _job(), _rank()
    if folder is not None and (began := read(folder, rank)) is not None and began.pid == os.getpid():
        _said = True
        _write(folder, Outcome(rank, os.getpid(), code, kind, message, time.monotonic()))


def leaves_work() -> bool:
    """Whether a thread goes on that nobody waits for: an ordinary exit would wait for what it uploads."""
    return any(thread.name == LEFT_ALONE for thread in threading.enumerate())


def read(folder: Path, rank: int) -> Outcome | None:
    """What a rank wrote; None if it never began."""
    try:
        return Outcome(**json.loads(_file(folder, rank).read_text()))
    except FileNotFoundError:
        return None


def log_file(folder: Path, rank: int) -> Path:
    """Where a rank above 0 prints."""
    return folder / f"rank_{rank}.log"


def supervised() -> bool:
    """Whether a supervisor or torchrun started this process: then a signal may come twice, and someone else sees to
    it that a stop takes no longer than it may."""
    return JOB in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def _job() -> Path | None:
    return Path(os.environ[JOB]) if os.environ.get(JOB) else None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.json"


def _write(folder: Path, outcome: Outcome) -> None:
    _replace(_file(folder, outcome.rank), json.dumps(asdict(outcome)))


def _tell_torchrun(file: Path, message: str) -> None:
    """In the form that `torch.distributed.elastic.multiprocessing.errors` documents."""
    extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
    _replace(file, json.dumps({"message": {"message": message, "extraInfo": extra}}))


def _replace(file: Path, text: str) -> None:
    """What cannot be written is told, and changes nothing about how the process ends."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(file)
    except OSError as problem:
        sys.stderr.write(f"wmtp: {file} could not be written, so the supervisor will not know why: {problem}\n")
