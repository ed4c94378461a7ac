"""Faults on purpose, for tests and for operators who want to see what happens. Off unless `WMTP_FAULT` is set.

    WMTP_FAULT=POINT:NTH:ACTION[@RANK]          several: separated by commas

The NTH time (from 1) that a process reaches POINT, it does ACTION; with @RANK, on that rank only.

    point                  where a run is
    step_begin             a step is about to begin
    after_backward         a step's gradients are there, not yet clipped or used
    before_save            a checkpoint is about to be written
    ckpt_write             a file of a checkpoint is about to be written
    ckpt_before_manifest   all files of a checkpoint are written, the manifest that vouches for them is not
    ckpt_before_rename     a checkpoint is complete under its temporary name
    ckpt_after_rename      a checkpoint has its name, older ones are still there
    prune                  an older checkpoint is about to be removed
    eval                   an evaluation is about to begin

    action                 what happens there
    kill9                  SIGKILL to this process
    raise                  RuntimeError
    enospc                 OSError: no space left on device
    memory                 an allocation that no machine can give: MemoryError
    sleep:SECONDS          a pause
    hang                   a pause without end
    stop                   SIGSTOP to this process
    exit0                  the process ends at once with exit code 0
    nan                    the caller spoils a gradient (after_backward only)
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import time
from dataclasses import dataclass

from wmtp.errors import UsageError

VARIABLE = "WMTP_FAULT"

POINTS = (
    "step_begin",
    "after_backward",
    "before_save",
    "ckpt_write",
    "ckpt_before_manifest",
    "ckpt_before_rename",
    "ckpt_after_rename",
    "prune",
    "eval",
)
ACTIONS = ("kill9", "raise", "enospc", "memory", "sleep:SECONDS", "hang", "stop", "exit0", "nan")


@dataclass(frozen=True)
class Fault:
    """One entry of `WMTP_FAULT`."""

    point: str
    nth: int
    action: str
    seconds: float = 0.0
    rank: int | None = None


class Faults:
    """The faults of one process, and how often it was at each point."""

    def __init__(self, text: str, rank: int) -> None:
        """Raises `UsageError` if `text` is not what the module's docstring says."""
        self._faults = [fault for fault in parse(text) if fault.rank in (None, rank)]
        self._seen = dict.fromkeys(POINTS, 0)

    def reach(self, point: str) -> str | None:
        """Count; do what is due. Returns "nan" where the caller has to act, else None."""
        self._seen[point] += 1
        spoil = None
        for fault in self._faults:
            if (fault.point, fault.nth) == (point, self._seen[point]):
                sys.stderr.write(f"wmtp: {VARIABLE}: {point}, time {fault.nth}: {fault.action}\n")
                sys.stderr.flush()
                spoil = _act(fault) or spoil
        return spoil


def parse(text: str) -> list[Fault]:
    """The entries of a `WMTP_FAULT`.

    Raises:
        UsageError: an entry is wrong.
    """
    return [_parse_one(entry.strip()) for entry in text.split(",")] if text.strip() else []


def _parse_one(entry: str) -> Fault:
    spec, _, rank = entry.partition("@")
    point, nth, action, *argument = [*spec.split(":"), "", ""]
    seconds = _seconds(argument[0]) if action == "sleep" else 0.0
    extra = [part for part in argument[1 if action == "sleep" else 0 :] if part]
    if point not in POINTS:
        raise _wrong(entry, f"there is no point {point!r}")
    if not nth.isdecimal() or int(nth) < 1:
        raise _wrong(entry, f"NTH is a whole number of at least 1, got {nth!r}")
    if action not in [known.partition(":")[0] for known in ACTIONS] or extra or seconds is None:
        raise _wrong(entry, f"there is no action {spec.split(':', 2)[-1]!r}")
    if action == "nan" and point != "after_backward":
        raise _wrong(entry, "nan spoils a gradient, so it goes with after_backward only")
    if "@" in entry and not rank.isdecimal():
        raise _wrong(entry, f"RANK is a whole number, got {rank!r}")
    return Fault(point, int(nth), action, seconds, int(rank) if rank else None)


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _wrong(entry: str, why: str) -> UsageError:
    return UsageError(
        f"{VARIABLE}: {entry!r}: {why}. It is POINT:NTH:ACTION[@RANK], several separated by commas; points: "
        f"{', '.join(POINTS)}; actions: {', '.join(ACTIONS)}. Unset {VARIABLE} to train without faults"
    )


def _act(fault: Fault) -> str | None:
    """What the tables say; one function per action that a stack should name."""
    if fault.action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "raise":
        raise RuntimeError(f"{VARIABLE}: {fault.point}, time {fault.nth}")
    elif fault.action == "enospc":
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({VARIABLE})")
    elif fault.action == "memory":
        bytearray(2**60)
    elif fault.action == "exit0":
        os._exit(0)
    elif fault.action == "sleep":
        time.sleep(fault.seconds)
    elif fault.action == "hang":
        _hang()
    return "nan" if fault.action == "nan" else None


def _hang() -> None:
    while True:
        time.sleep(3600)


_unread = os.environ.get(VARIABLE, "")
_faults: Faults | None = None


def check() -> None:
    """Read `WMTP_FAULT`, so that a wrong one is found before any work.

    Raises:
        UsageError: it is wrong.
    """
    global _faults
    if _unread and _faults is None:
        _faults = Faults(_unread, int(os.environ.get("RANK", "0")))


def fault(point: str) -> str | None:
    """A place where a fault can happen; "nan" if the caller is to spoil a gradient. Costs one look if none is set."""
    if not _unread:
        return None
    check()
    return _faults.reach(point) if _faults is not None else None
