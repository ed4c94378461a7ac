"""A file that lines are appended to, also where nothing can be appended.

An object can only be replaced. So all lines are kept in memory, and a thread writes the whole object again: when it is
due, and when somebody waits for it. A write is due after `INTERVAL_S`, and after as many seconds as the object has
`RATE`s, so that a long journal does not use the connection up. A failed write is tried again when the next one is due;
only who waits is told.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Protocol

from wmtp.errors import StorageError
from wmtp.storage.objects import ObjectPath
from wmtp.storage.paths import Place

INTERVAL_S = 10.0
RATE = 100_000
"""Bytes a second."""


class Appender(Protocol):
    """What lines are appended to."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


def appender(path: Place) -> Appender:
    """The file, ready for more lines.

    Raises:
        OSError: it cannot be opened.
        StorageError: what it has cannot be read.
    """
    return _Object(path) if isinstance(path, ObjectPath) else _File(path)


class _File:
    """On a disk."""

    def __init__(self, path: Place) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, text: str, /) -> int:
        """Append."""
        return self._file.write(text)

    def flush(self) -> None:
        """On its way to the disk."""
        self._file.flush()

    def settle(self) -> None:
        """The same: a line that the system has is in the file."""
        self._file.flush()

    def close(self) -> None:
        """Whoever writes a line flushes it."""
        self._file.close()


class _Object:
    """In an object store."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._text = bytearray(path.read_bytes() if path.is_file() else b"")
        self._written = len(self._text)
        self._changed = threading.Condition()
        self._alone = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._keep_up, name="wmtp-append", daemon=True)
        self._thread.start()

    def write(self, text: str, /) -> int:
        """Append."""
        with self._changed:
            self._text += text.encode()
        return len(text)

    def flush(self) -> None:
        """The thread will see to it."""

    def settle(self) -> None:
        """Return when all lines are in the object. Raises `StorageError` if they cannot be written."""
        with self._alone:
            with self._changed:
                text = bytes(self._text)
            if len(text) > self._written:
                self._path.store.put(self._path.key, text)
                self._written = len(text)

    def close(self) -> None:
        """The last write. Raises as `settle` does."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.settle()

    def _keep_up(self) -> None:
        while True:
            with self._changed:
                pause = max(INTERVAL_S, len(self._text) / RATE)
                self._changed.wait_for(lambda: self._closing, timeout=pause)
                if self._closing:
                    return
            with suppress(StorageError):
                self.settle()
