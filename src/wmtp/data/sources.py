"""From a data file to records, row by row, whatever the file's kind.

The kind is told from the rows, never from the path: MBPP's rows have `task_id` and `code`, ours have `prompt` and
`response`, anything else needs a field map. A file is JSON Lines, or one JSON array (as MBPP's sanitized file is),
either of them compressed by gzip or not, which its first bytes tell.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from wmtp.data.records import BadRow, Record, parse
from wmtp.errors import DataError

MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
"""Task ids of MBPP's official splits (Austin et al. 2021, arXiv 2108.07732)."""

MAX_LINE_BYTES = 64 * 2**20


@dataclass
class SourceReport:
    """What reading a source left out. Nothing is left out without a line here."""

    path: str
    rows: int = 0
    kept: int = 0
    other_split: int = 0
    bad: list[str] = field(default_factory=list)
    """One message per bad row (at most 20 are kept)."""
    num_bad: int = 0

    def summary(self) -> str:
        """One line for people."""
        text = f"{self.path}: {self.kept:,} of {self.rows:,} rows"
        if self.other_split:
            text += f"; {self.other_split:,} of another split"
        if self.num_bad:
            text += f"; {self.num_bad:,} bad rows skipped, the first: {self.bad[0]}"
        return text


def read_records(
    path: Path,
    *,
    role: str = "train",
    split: str | None = None,
    fields: Mapping[Any, str] | None = None,
    on_bad_row: str = "error",
) -> tuple[list[Record], SourceReport]:
    """All records of a file, as `stream_records` gives them, and what was left out."""
    report = SourceReport(str(path))
    found = list(stream_records(path, report, role=role, split=split, fields=fields, on_bad_row=on_bad_row))
    return found, report


def stream_records(
    path: Path,
    report: SourceReport,
    *,
    role: str | None = None,
    split: str | None = None,
    fields: Mapping[Any, str] | None = None,
    on_bad_row: str = "error",
) -> Iterator[Record]:
    """The records of a file, one after another.

    Args:
        report: is filled on the way.
        role: what the records are for, `train` or `validation`: the split taken where the data set has official ones.
            None takes the rows of all splits.
        split: another official split than the role's own; an error where the data set has none. MBPP's test split
            is refused for training.
        fields: our field name -> the row's; the row's other fields are then ignored.
        on_bad_row: `error` stops at the first bad row, `skip` counts it.

    Raises:
        DataError: the file cannot be read, has no usable row, or a row is bad; with file and line.
    """
    for line, decode in rows(path):
        report.rows += 1
        try:
            record, row_split = parse_row(decode(), fields)
            _check_split(row_split, split, role)
        except BadRow as problem:
            message = f"{path}:{line}: {problem}"
            if on_bad_row == "error":
                raise DataError(f"{message}\n(set data.on_bad_row=skip to leave such rows out, counted)") from problem
            report.num_bad += 1
            report.bad = [*report.bad, message][:20]
            continue
        if row_split is not None and (split or role or row_split) != row_split:
            report.other_split += 1
            continue
        report.kept += 1
        yield record
    if not report.kept:
        raise DataError(f"no usable rows: {report.summary()}")


def parse_row(row: Any, fields: Mapping[Any, str] | None) -> tuple[Record, str | None]:
    """The record of a row, and the official split it belongs to where its data set has splits.

    Records that were made from MBPP's, by labelling or mutating, belong to the split of their task.
    """
    is_mbpp = isinstance(row, dict) and {"task_id", "code", "test_list"} <= set(row)
    if fields:
        return parse(_mapped(row, fields)), mbpp_split(row["task_id"]) if is_mbpp else None
    if is_mbpp:
        return _from_mbpp(row)
    record = parse(row)
    task = record.problem_id.removeprefix("mbpp/")
    return record, mbpp_split(int(task)) if record.source == "mbpp" and task.isascii() and task.isdigit() else None


def _mapped(row: Any, fields: Mapping[str, str]) -> Any:
    if not isinstance(row, dict):
        return row
    missing = sorted(theirs for theirs in fields.values() if theirs not in row)
    if missing:
        raise BadRow(f"field {missing[0]!r} (from data.*.fields) is missing; the row has {', '.join(sorted(row)[:12])}")
    return {ours: row[theirs] for ours, theirs in fields.items()}


def _from_mbpp(row: dict[str, Any]) -> tuple[Record, str | None]:
    """MBPP's two published schemas: the full file (`text`, `test_setup_code`) and the sanitized one (`prompt`)."""
    task = row["task_id"]
    split = mbpp_split(task)
    imports = row.get("test_imports") or []
    if not isinstance(imports, list) or not all(isinstance(line, str) for line in imports):
        raise BadRow(f"field 'test_imports' must be a list of strings, got {imports!r:.60}")
    setup = row.get("test_setup_code") or "\n".join(imports)
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not isinstance(tests[0], str):
        raise BadRow(f"field 'test_list' must be a non-empty list of strings, got {tests!r:.60}")
    if "text" not in row and "prompt" not in row:
        raise BadRow("field 'text' (or 'prompt') is missing")
    code = row["code"]
    record = parse(
        {
            "problem_id": f"mbpp/{task}",
            "prompt": _mbpp_prompt(row.get("text") or row.get("prompt"), tests),
            "response": code.replace("\r\n", "\n").replace("\r", "\n") if isinstance(code, str) else code,
            "is_correct": True,
            "tests": [setup, *tests] if setup else tests,
            "source": "mbpp",
        }
    )
    return record, split


def mbpp_split(task: Any) -> str:
    """The official split of a task id. Raises `BadRow`: no id of MBPP."""
    if isinstance(task, int) and not isinstance(task, bool):
        for name, (low, high) in MBPP_SPLITS.items():
            if low <= task <= high:
                return name
    raise BadRow(f"MBPP task_id must be an integer from 1 to 974, got {task!r:.60}")


def _mbpp_prompt(text: Any, tests: list[str]) -> Any:
    """The statement and one test, which is where MBPP says what the function is called."""
    return f"{text}\n{tests[0]}" if isinstance(text, str) and text.strip() else text


def _check_split(row_split: str | None, split: str | None, role: str | None) -> None:
    if split is None:
        return
    if row_split is None:
        raise BadRow(f"data.{role}.split is {split!r}, but this row's data set has no official splits")
    if split not in MBPP_SPLITS:
        raise BadRow(f"this is an MBPP row: data.{role}.split must be one of {', '.join(MBPP_SPLITS)}, got {split!r}")
    if role == "train" and split == "test":
        raise BadRow("MBPP's test split is for evaluation; training on it would spoil every later score")


Decode = Callable[[], Any]


def rows(path: Path) -> Iterator[tuple[int, Decode]]:
    """(line number, decoder) per row of a data file; the decoder raises `BadRow`. Blank lines are not rows.

    Raises:
        DataError: the file cannot be read, or is broken where no row can be told from the next.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a directory; a JSON Lines file was expected")
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no ordinary file; a JSON Lines file was expected")
        with _open(path) as file:
            start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
            file.seek(0)
            if start.startswith(b"["):
                yield from _array_rows(path, file.read())
                return
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    raise DataError(
                        f"{path}:{number}: a line longer than {MAX_LINE_BYTES:,} bytes; is this JSON Lines?"
                    )
                if line.strip():
                    yield number, partial(decode_line, line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise DataError(f"{path} is a broken gzip file ({problem}); was it copied whole?") from problem
    except OSError as problem:
        raise DataError(f"cannot read the data file {path}: {problem.strerror or problem}") from problem


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if compressed else path.open("rb")


def decode_line(line: bytes) -> Any:
    """The JSON value of a line. Raises `BadRow`: it is none, or cannot be held."""
    try:
        return json.loads(line.decode("utf-8-sig").rstrip(), object_pairs_hook=_unique)
    except UnicodeDecodeError as problem:
        raise BadRow(f"broken UTF-8 at byte {problem.start} of the line") from problem
    except RecursionError as problem:
        raise BadRow("brackets nested too deeply") from problem
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno} of it, " if problem.lineno > 1 else ""
        raise BadRow(f"not valid JSON: {problem.msg} at {place}column {problem.colno}") from problem
    except BadRow:
        raise
    except ValueError as problem:
        raise BadRow("a number has too many digits") from problem


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise BadRow(f"field {name!r:.60} appears twice")
    return row


def _array_rows(path: Path, data: bytes) -> Iterator[tuple[int, Decode]]:
    """Rows of one JSON array; the number is the row's place in it, from 1."""
    try:
        rows = decode_line(data)
    except BadRow as problem:
        raise DataError(f"{path}: {problem}") from problem
    for number, row in enumerate(rows, 1):
        yield number, partial(_identity, row)


def _identity(row: Any) -> Any:
    return row
