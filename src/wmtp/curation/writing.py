"""Writing a long file of rows so that an interrupted command goes on where it was, and ends with the same file.

What one input row gives is written together, in the order of the input. While a file is being made it is `NAME.part`,
beside `NAME.part.about`, which says what it is made from; at the end it takes its name in one step, and
`NAME.report.json` says what was kept and what was not. A name that ends in `.gz` gets a compressed file.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

from wmtp.errors import DataError, UsageError, WmtpError
from wmtp.storage import Place, drop_torn_line, fsync_folder, sha256_file, write_atomic

A = TypeVar("A")
B = TypeVar("B")
Rows = list[dict[str, Any]]
Report = Callable[[str], None]
"""Gets a line of progress now and then."""
_EXAMPLES = 20


@dataclass(frozen=True)
class Made:
    """What one input row gave."""

    rows: Rows = field(default_factory=list)
    dropped: str = ""
    """Why it gave nothing."""
    name: str = ""
    """For the report, where it was dropped."""


def source_sha256(path: Place) -> str:
    """What tells whether a source is still the same.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sha256_file(path)
    except WmtpError as error:
        raise DataError(f"the source cannot be used: {error}; name a file that can be read") from error


class RowFile:
    """A file in the making.

    Args:
        path: of the finished file.
        about: what it is made from; a file that was begun from something else is not gone on with.

    Raises:
        UsageError: `path` is there already, or was begun from something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        if path.exists():
            raise UsageError(f"{path} is there already; remove it, or name another file with --out")
        self.path, self.part = path, Path(f"{path}.part")
        self._note = Path(f"{path}.part.about")
        wanted = json.loads(json.dumps(about))
        if not self.part.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._note, json.dumps(wanted, indent=2) + "\n")
            self.part.touch()
        self._check(wanted)
        drop_torn_line(self.part)
        self.done = sum(1 for _ in self._groups())
        """Input rows whose results are written."""

    def _check(self, wanted: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self._note.read_bytes())
        except (OSError, ValueError):
            before = {}
        if before != wanted:
            different = ", ".join(key for key in {**before, **wanted} if before.get(key) != wanted.get(key))
            raise UsageError(
                f"{self.part} was begun from something else ({different}); remove it to start again, or name another "
                "--out"
            )

    def _groups(self) -> Iterator[Made]:
        with self.part.open("rb") as file:
            for line in file:
                try:
                    yield Made(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise UsageError(f"{self.part} is damaged ({error}); remove it to start again") from error

    def extend(self, results: Iterable[Made]) -> None:
        """Append the results of the input rows after the first `done`.

        Raises:
            WmtpError: the disk does not take them.
        """
        try:
            with self.part.open("a", encoding="utf-8") as file:
                for made in results:
                    file.write(json.dumps(vars(made), ensure_ascii=False) + "\n")
                    file.flush()
        except OSError as error:
            raise WmtpError(f"cannot write {self.part}: {error.strerror or error}; run it again to go on") from error

    def finish(self, summary: Callable[[Iterator[dict[str, Any]]], dict[str, Any]]) -> dict[str, Any]:
        """Give the rows their name and write the report: counts, drops with reasons, and `summary` of the rows.

        Raises:
            WmtpError: the disk does not take them; the unfinished file is as it was.
        """
        reasons: Counter[str] = Counter()
        examples: dict[str, list[str]] = {}
        inputs = kept = 0
        temporary = Path(f"{self.path}.done")
        try:
            with _text_file(temporary, compressed=self.path.suffix == ".gz") as file:
                for made in self._groups():
                    inputs, kept = inputs + 1, kept + len(made.rows)
                    if made.dropped:
                        reasons[made.dropped] += 1
                        names = examples.setdefault(made.dropped, [])
                        names += [made.name] if len(names) < _EXAMPLES else []
                    for row in made.rows:
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
            _sync(temporary)
            report = {
                "input_rows": inputs,
                "rows": kept,
                "dropped": dict(reasons.most_common()),
                "dropped_examples": examples,
                **summary(row for made in self._groups() for row in made.rows),
            }
            write_atomic(Path(f"{self.path}.report.json"), json.dumps(report, indent=2) + "\n")
            os.replace(temporary, self.path)
        except OSError as error:
            raise WmtpError(
                f"cannot write {self.path}: {error.strerror or error}; {self.part} is complete, run it again to go on"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(self.path.parent)
        self.part.unlink()
        self._note.unlink()
        return report


def _text_file(path: Path, *, compressed: bool) -> TextIO:
    """A new file for text; two with the same text have the same bytes."""
    if not compressed:
        return path.open("w", encoding="utf-8")
    return io.TextIOWrapper(gzip.GzipFile(path, "wb", mtime=0), encoding="utf-8")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def in_order(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`map` by threads, in order, reading a bounded number of items ahead.

    Where `items` raises, what came before it is yielded first.
    """
    workers = (os.cpu_count() or 1) + 1
    source, waiting = iter(items), deque[Future[B]]()
    problem: Exception | None = None
    executor = ThreadPoolExecutor(workers, thread_name_prefix="wmtp-curation")
    try:
        while True:
            try:
                while problem is None and len(waiting) < 4 * workers:
                    waiting.append(executor.submit(function, next(source)))
            except StopIteration:
                pass
            except Exception as error:  # noqa: BLE001 it is raised below, in its turn
                problem = error
            if waiting:
                yield waiting.popleft().result()
            elif problem is not None:
                raise problem
            else:
                return
    finally:
        executor.shutdown(cancel_futures=True)
