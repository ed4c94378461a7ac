"""The journal of a run: `metrics.jsonl`, one JSON object per log point. It is the truth; trackers copy it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from wmtp.errors import WmtpError
from wmtp.storage import Place, appender, write_atomic

TIME = "time/unix_s"
"""When a line was written, in seconds; a copy of the journal has this time, whenever it is made."""


class Journal:
    """Appends to `metrics.jsonl`; every line is on its way to the disk when `log` returns.

    Args:
        path: the file.
        keep_until: of an existing file, keep the lines up to this step (a resumed run repeats the rest).
    """

    def __init__(self, path: Place, keep_until: int = 0) -> None:
        cut(path, keep_until)
        self.path = path
        with told(path):
            self._file = appender(path)

    def log(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Append one object with the time of day; figures that do not exist (NaN) are null."""
        with told(self.path):
            self._file.write(_line({"step": step, "split": split, **metrics, TIME: round(time.time(), 3)}))
            self._file.flush()

    def settle(self) -> None:
        """Return when all lines are where they can be read: what a checkpoint is of must be in the journal."""
        with told(self.path):
            self._file.settle()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except WmtpError as problem:
            if error is None:
                raise
            error.add_note(f"and the journal could not be closed: {problem}")


class NoJournal:
    """Of a rank that writes none."""

    def log(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def settle(self) -> None:
        """Nothing."""

    def __enter__(self) -> NoJournal:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


def _line(entry: dict[str, Any]) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
    return json.dumps(clean, allow_nan=False) + "\n"


def cut(path: Place, keep_until: int) -> None:
    """Leave out the lines after a step, and a last one that a crash cut short.

    Raises:
        WmtpError: a line in between is damaged; with its number.
    """
    if path.exists():
        kept = [line for line in read_journal(path) if line["step"] <= keep_until]
        write_atomic(path, "".join(_line(entry) for entry in kept))


def read_journal(path: Place) -> list[dict[str, Any]]:
    """All whole lines; a last line cut short by a crash is left out.

    Raises:
        WmtpError: another line is damaged; with its number.
    """
    entries: list[dict[str, Any]] = []
    with told(path), path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                continue
            try:
                entry = json.loads(line)
                entry["step"] + 0
            except (ValueError, TypeError, KeyError) as problem:
                raise WmtpError(f"{path}:{number} is damaged; mend or delete that line") from problem
            entries.append(entry)
    return entries


@contextmanager
def told(path: Place) -> Iterator[None]:
    """Turn an operating system's error into ours, with the file's name."""
    try:
        yield
    except OSError as problem:
        raise WmtpError(f"cannot write or read {path}: {problem.strerror or problem}") from problem
