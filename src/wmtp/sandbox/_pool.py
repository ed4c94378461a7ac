"""Zygotes that take turns: started when first needed, replaced when used up, ended together."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from wmtp.sandbox._start import Plan, Started, start
from wmtp.sandbox.verdict import SandboxError

RESTART_AFTER = 2000
"""Programs after which a zygote is replaced, so that whatever might build up in it cannot."""


class Pool:
    """At most `size` zygotes. Threads share it; each zygote serves one at a time."""

    def __init__(self, plan: Plan, size: int) -> None:
        self._plan, self.size = plan, size
        self._owner = os.getpid()
        self._slots: queue.SimpleQueue[Started | None] = queue.SimpleQueue()
        for _ in range(size):
            self._slots.put(None)
        self._alive: set[Started] = set()
        self._lock = threading.Lock()
        self._gate = _Gate()
        self.closed = False
        # The kernel ends a zygote with the thread that started it: so one thread starts all, and lives as long.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="wmtp-sandbox")
        self._finalizer = weakref.finalize(self, _end_all, self._alive, self._starter, self._owner)

    @contextmanager
    def borrow(self, alone: bool = False) -> Iterator[Started]:
        """A zygote for one run; with `alone`, while no other runs. After an exception it is replaced.

        Raises:
            WorkerLost: none could be started this time.
            SandboxError: the pool is closed, or belongs to another process.
        """
        with self._gate.passage(alone):
            self._require_open()
            started = self._slots.get()
            try:
                if started is None:
                    started = self._start()
                yield started
                if started.worker.runs >= RESTART_AFTER:
                    self._end(started)
                    started = None
            except BaseException:  # raised again: an interrupt too must leave no worker in mid-program
                if started is not None:
                    self._end(started)
                    started = None
                raise
            finally:
                self._slots.put(started)

    def _require_open(self) -> None:
        if self.closed:
            raise SandboxError("the sandbox is closed; use it inside its `with` block")
        if os.getpid() != self._owner:
            raise SandboxError("a sandbox cannot be used in a forked process; make one there")

    def _start(self) -> Started:
        started = self._starter.submit(start, self._plan).result()
        with self._lock:
            self._alive.add(started)
            closed = self.closed
        if closed:
            self._end(started)
            self._require_open()
        return started

    def _end(self, started: Started) -> None:
        with self._lock:
            self._alive.discard(started)
        started.close()

    def close(self) -> None:
        """Ends every zygote, in the middle of a run too; what waits for one gets WorkerLost or SandboxError."""
        with self._lock:
            self.closed = True
        self._finalizer()


def _end_all(alive: set[Started], starter: ThreadPoolExecutor, owner: int) -> None:
    if os.getpid() != owner:  # a fork has copies of the handles, but the zygotes are not its own
        return
    for started in list(alive):  # they end beside one another
        started.worker.hang_up()
    while alive:
        alive.pop().close()
    starter.shutdown()


class _Gate:
    """Many may pass at once, or one alone; who wants to be alone waits only for those who are in."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._inside = 0
        self._alone = 0

    @contextmanager
    def passage(self, alone: bool) -> Iterator[None]:
        with self._change:
            if alone:
                self._alone += 1
                self._change.wait_for(lambda: self._inside == 0)
            else:
                self._change.wait_for(lambda: self._alone == 0)
            self._inside += 1
        try:
            yield
        finally:
            with self._change:
                self._inside -= 1
                self._alone -= alone
                self._change.notify_all()
