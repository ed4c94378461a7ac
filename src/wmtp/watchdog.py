"""Finds a process that hangs: shows where every thread is, then ends it.

A hung collective cannot be unwound, so the end is `os._exit(1)`; whoever supervises the job starts it again. Time is
`time.monotonic()`: a clock that is set does nothing. A thread that never gives the interpreter back (native code that
hangs while it holds the lock) stops the watchdog's own thread too; then `faulthandler`, which needs no interpreter,
prints the stacks after twice the time and ends the process. A process that is stopped (SIGSTOP) is found by neither.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from wmtp import outcome

LAST_WORDS_S = 10.0
"""Printing the stacks may take so long; then the process ends without the rest (the disk may be what hangs)."""


@dataclass(frozen=True)
class Beat:
    """What a process said it begins, and how long that may take."""

    what: str
    since: float
    limit_s: float


class Watchdog:
    """Ends the process if `beat` is not called for `timeout_s`.

        with Watchdog(600.0, rank=0, folder=run_folder, grace_s=1800.0) as watchdog:
            for step in ...:
                watchdog.beat(f"step {step}")

    Args:
        timeout_s: None switches it off.
        folder: the run folder; the stacks go to `watchdog/rank_N.txt` in it, and to stderr in any case.
        grace_s: more time for the first of each kind of work (the first word that `beat` is given), and for what
            comes before the first: the first step may compile, the first save may be the first to touch a disk.
    """

    def __init__(
        self, timeout_s: float | None, *, rank: int = 0, folder: Path | None = None, grace_s: float = 0.0
    ) -> None:
        self.timeout_s, self.rank, self.folder, self.grace_s = timeout_s, rank, folder, grace_s
        self._kinds: set[str] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._beat = self._begins("start")

    def __enter__(self) -> Watchdog:
        if self.timeout_s is not None:
            self._beat = self._begins("start")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.timeout_s is not None:
            self._done.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self, what: str) -> None:
        """This begins now; what was said before is over."""
        if self.timeout_s is not None:
            self._beat = self._begins(what)

    def _begins(self, what: str) -> Beat:
        kind = what.partition(" ")[0]
        first = kind not in self._kinds or what == "start"
        self._kinds.add(kind)
        return Beat(what, time.monotonic(), (self.timeout_s or 0.0) + (self.grace_s if first else 0.0))

    def _watch(self) -> None:
        while True:
            beat = self._beat
            left = beat.since + beat.limit_s - time.monotonic()
            if left <= 0:
                self._end(beat)
            faulthandler.dump_traceback_later(2 * beat.limit_s + LAST_WORDS_S, exit=True)
            if self._done.wait(min(left, beat.limit_s / 2)):
                return

    def _end(self, beat: Beat) -> None:
        faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True)
        waited = time.monotonic() - beat.since
        message = (
            f"watchdog: {beat.what!r} began {waited:.1f} s ago and may take {beat.limit_s:g} s; the main thread is in "
            f"{_main_thread()}"
        )
        outcome.end(1, message, "Watchdog")
        message = f"rank {self.rank}: {message}"
        sys.stderr.write(f"wmtp: {message}. All threads, then the end (exit code 1):\n")
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        if self.folder is not None:
            self._keep(self.folder / "watchdog" / f"rank_{self.rank}.txt", message)
        os._exit(1)

    def _keep(self, file: Path, message: str) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} pid {os.getpid()}: {message}\n")
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)
            sys.stderr.write(f"wmtp: the same is in {file}\n")
        except OSError as problem:
            sys.stderr.write(f"wmtp: {file} could not be written: {problem}\n")
        sys.stderr.flush()


def _main_thread() -> str:
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "no Python code"
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
