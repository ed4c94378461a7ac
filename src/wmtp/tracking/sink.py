"""A thread that copies the journal of a run to a store while the run goes on.

It reads the journal from the disk, so whoever writes the journal knows nothing of it and never waits for it: there is
no queue that could fill and no call that could block or raise. What a store does not take stays in the journal; it
is tried again, and `wmtp track sync` sends it later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from wmtp.errors import TrackingError, WmtpError
from wmtp.redaction import without_credentials
from wmtp.storage import Place
from wmtp.tracking.delivered import FILE, JOURNAL, Delivered
from wmtp.tracking.points import Tail, points_of
from wmtp.tracking.store import Ended, RunCard, Store

START_S = 60.0
"""Longest wait for a store's first answer, before step 1; a store's own time-outs are shorter."""
MAX_PAUSE_S = 60.0
"""Between two attempts at a store that does not answer."""


def deliver(store: Store, run_id: str, delivered: Delivered, tail: Tail, write: Callable[[], None]) -> None:
    """Send every line of the journal that the store has not.

    Args:
        write: writes `delivered` down; called before and after every batch.

    Raises:
        TrackingError: the store did not take them; what it took is written down.
        WmtpError: the journal cannot be read.
    """
    if delivered.doubtful:
        store.log(run_id, points_of(delivered.doubtful))
        delivered.settled()
        write()
    while lines := tail.read():
        try:
            delivered.sending = len(lines)
            write()
            store.log(run_id, points_of(delivered.new(lines)))
        except WmtpError:
            tail.again(lines)
            raise
        delivered.sent(lines)
        write()


class Sink:
    """Copies one run to one store.

    Args:
        folder: the run folder.
        delivered: what the store has so far; kept up to date here.
        files: copied into the store once.
        flush_s: seconds between two looks at the journal.
        end_s: longest wait, in seconds, for all that `close` does.
    """

    def __init__(
        self,
        folder: Place,
        store: Store,
        card: RunCard,
        delivered: Delivered,
        files: Sequence[Place],
        *,
        flush_s: float,
        end_s: float,
    ) -> None:
        self.folder, self.store, self.card, self.delivered = folder, store, card, delivered
        self.flush_s, self.end_s = flush_s, end_s
        self.problem: str | None = "the store has not answered yet"
        """Why the store has not everything that is in the journal; None if it has."""
        self._tail = Tail(folder / JOURNAL, delivered.lines)
        self._open, self._files = False, list(files)
        self._answered, self._ending = threading.Event(), threading.Event()
        self._writing, self._given_up = threading.Lock(), threading.Event()
        self._written = replace(delivered)
        """As it is in the run folder; its lists are replaced there, never changed."""
        self._unnoted: str | None = None
        """Why the end of the run could not be written down."""
        self._thread = threading.Thread(target=self._work, name="wmtp-tracking", daemon=True)

    def start(self) -> None:
        """Begin; returns when the store has answered or failed once, or after `START_S`."""
        self._thread.start()
        self._answered.wait(START_S)

    def close(self, how: Ended) -> None:
        """Never raises. Send what is left, and how the run ended; returns when that is done or has failed once more, or
        after `end_s`, whatever hangs: the store, or the run folder where it is in a store too.

        How the run ended is written down beside that. A store that hangs is left alone; what it answers later is not
        written down.
        """
        deadline = time.monotonic() + self.end_s
        self.delivered.ended = how
        noting = threading.Thread(target=self._note_end, args=(how,), name="wmtp-tracking-end", daemon=True)
        noting.start()
        self._ending.set()
        asked = {self.store.uri: self._thread, str(self.folder / FILE): noting}
        for thread in asked.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [name for name, thread in asked.items() if thread.is_alive()]
        if late:
            self._given_up.set()
            self.delivered = replace(self._written, ended=how)
            self.problem = f"{late[0]} did not answer within {self.end_s:g} s (tracking.end_s)"
        elif self._unnoted is not None:
            self.problem = self._unnoted

    def _note_end(self, how: Ended) -> None:
        try:
            with self._writing:
                if not self._given_up.is_set():
                    self._put(replace(self._written, ended=how))
        except WmtpError as problem:
            self._unnoted = str(problem)

    def _work(self) -> None:
        failures, last = 0, False
        while not last and not self._given_up.is_set():
            last = self._ending.is_set()
            try:
                self._attempt(last)
                self.problem, failures = None, 0
            except WmtpError as problem:
                self.problem, failures = str(problem), failures + 1
            except Exception as problem:  # noqa: BLE001 a thread that ends in silence would claim to have sent all
                self.problem, failures = f"{type(problem).__name__}: {without_credentials(str(problem))}", failures + 1
            finally:
                self._answered.set()
            self._ending.wait(min(self.flush_s * 2 ** min(failures, 10), max(self.flush_s, MAX_PAUSE_S)))

    def _attempt(self, last: bool) -> None:
        if not self._open:
            self.delivered.run_id = self.store.open(self.card, self.delivered.run_id)
            self._open = True
            self._write()
        run_id = str(self.delivered.run_id)
        deliver(self.store, run_id, self.delivered, self._tail, self._write)
        if last and self.delivered.ended is not None:
            self.store.end(run_id, self.delivered.ended)
        if self._files:
            self.store.attach(run_id, self._files)
            self._files = []

    def _write(self) -> None:
        with self._writing:
            if self._given_up.is_set():
                raise TrackingError(f"{self.store.uri} answered too late")
            self._put(replace(self.delivered))

    def _put(self, delivered: Delivered) -> None:
        delivered.write(self.folder)
        self._written = delivered
