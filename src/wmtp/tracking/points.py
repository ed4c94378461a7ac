"""A journal as points of a store: one per figure, with the time its line was written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wmtp.errors import TrackingError
from wmtp.storage import Place
from wmtp.tracking.journal import TIME, told

MAX_READ = 1 << 17
"""Bytes of a journal that are in memory at once, whole lines; a longer line counts as damaged."""


@dataclass(frozen=True)
class Point:
    """One figure."""

    name: str
    value: float
    step: int
    at_ms: int
    """Milliseconds since 1970. The same for the same line whenever it is sent: a point sent twice is one point."""


def points_of(lines: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Every finite number of these lines, named `SPLIT/NAME`."""
    return [
        Point(f"{line['split']}/{name}", float(value), int(line["step"]), round(line[TIME] * 1000))
        for line in lines
        for name, value in line.items()
        if name not in ("step", TIME) and _is_figure(value)
    ]


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Tail:
    """The lines of a journal from some line on, as they are written.

    Args:
        path: the journal; need not exist yet.
        skip: lines at its beginning that are left out.
    """

    def __init__(self, path: Place, skip: int) -> None:
        self._path, self._skip = path, skip
        self._offset, self._line = 0, 0
        self._returned: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """The next whole lines, `MAX_READ` bytes at most; empty when there are none yet.

        Raises:
            TrackingError: a line is no log point; with its number.
            WmtpError: the file cannot be read.
        """
        if self._returned:
            found, self._returned = self._returned, []
            return found
        while block := self._next_block():
            numbered = list(enumerate(block.split(b"\n")[:-1], self._line + 1))
            found = [self._parsed(number, text) for number, text in numbered if number > self._skip]
            self._offset, self._line = self._offset + len(block), self._line + len(numbered)
            if found:
                return found
        return []

    def again(self, lines: list[dict[str, Any]]) -> None:
        """Give lines back: the next `read` has them once more."""
        self._returned = lines

    def _next_block(self) -> bytes:
        """Whole lines."""
        if not self._path.exists():
            return b""
        with told(self._path), self._path.open("rb", buffering=MAX_READ) as file:
            file.seek(self._offset)
            block = file.read(MAX_READ)
        whole = block.rfind(b"\n") + 1
        if not whole and len(block) == MAX_READ:
            raise TrackingError(f"{self._path}:{self._line + 1} is longer than {MAX_READ} bytes; mend or delete it")
        return block[:whole]

    def _parsed(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            line: dict[str, Any] = json.loads(text)
            int(line["step"]), str(line["split"]), float(line[TIME])
        except (ValueError, TypeError, KeyError) as problem:
            raise TrackingError(
                f"{self._path}:{number} is no log point with step, split and {TIME}; mend or delete that line"
            ) from problem
        return line


def lines_in(path: Place) -> Iterator[dict[str, Any]]:
    """All whole lines of a journal.

    Raises:
        TrackingError, WmtpError: see `Tail.read`.
    """
    tail = Tail(path, 0)
    while lines := tail.read():
        yield from lines
