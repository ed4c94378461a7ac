"""Where each row of a records file is, and what sampling must know of it, so that rows are read by position.

The index of a file is a folder of columns: per row the offset and size of its line, the line's CRC-32, its problem,
`is_correct`, `difficulty`, the characters of prompt and response, and whether an official split keeps it from training;
and the problems' names. It belongs to one content: opening it compares size and, where the file was touched since (its
time of change, or in a store its tag, is another), the SHA-256 of the whole; reading compares every line with its CRC.
Records that are not in our own schema are made so first (`wmtp data prepare`).

With a tokenizer it also has lengths in tokens (`wmtp.data.token_lengths`), which belong to that tokenizer.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from types import TracebackType
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from wmtp.data import token_lengths
from wmtp.data.columns import ColumnWriter, append_texts, new_folder, open_folder, text_at
from wmtp.data.containers import MAX_LINE_BYTES, decode_line, decode_lines
from wmtp.data.kinds import official_split
from wmtp.data.pieces import read_pieces
from wmtp.data.records import BadRow, Record, parse
from wmtp.data.sampling import UNKNOWN, Integers, RowFacts
from wmtp.data.stored import blocks
from wmtp.data.text import Encoder, Tokens
from wmtp.data.token_lengths import NO_LIMIT, Measure, Measured
from wmtp.errors import DataError
from wmtp.storage import ObjectPath, Place, sha256_file

KIND, VERSION = "index of records", 2
MAX_DIFFICULTY = 2**31 - 1
_COLUMNS = {
    "offset": np.int64,
    "size": np.int32,
    "crc": np.uint32,
    "problem": np.int32,
    "correct": np.int8,
    "difficulty": np.int32,
    "prompt": np.int32,
    "response": np.int32,
    "split": np.int8,
}
_NO_SPLIT, _TRAIN, _OTHER_SPLIT = 0, 1, 2
_ROWS, _BYTES = 1 << 16, 1 << 16
"""Rows that are looked up, and bytes of lines that are decoded, at once."""


def default_folder(path: Place) -> Place:
    """Where the index of a file is unless somebody says otherwise: beside it."""
    return path.with_name(f"{path.name}.index")


def build_index(path: Place, out: Place, measure: Measure | None = None) -> dict[str, Any]:
    """Read a records file once and write its index; what is in it, as counts.

    Holds some 200 bytes for every problem, and nothing for rows; for every column of an index in a store up to 8 MiB.

    Args:
        measure: how rows are measured in tokens; without it, in characters alone.

    Raises:
        DataError: no plain JSON Lines, or a row that is no record; with file and line.
        ModelError, WmtpError: as `with_tokens`.
        UsageError: `out` is there and is no index.
    """
    state = _state(path)
    with new_folder(out, KIND) as writer:
        digest, problems = hashlib.sha256(), _Problems(writer)
        counts = {"rows": 0, "correct": 0, "incorrect": 0, "unlabelled": 0}
        for block in blocks(_measured(_lines(path, digest, problems), measure)):
            columns = np.array([places for places, _ in block], np.int64).T
            for (name, kind), column in zip(_COLUMNS.items(), columns, strict=True):
                writer.append(name, column.astype(kind))
            if measure is not None:
                token_lengths.append(writer, [measured for _, measured in block])
            labels = np.bincount(columns[list(_COLUMNS).index("correct")] - UNKNOWN, minlength=3)
            for name, count in zip(("unlabelled", "incorrect", "correct"), labels.tolist(), strict=True):
                counts[name] += count
            counts["rows"] += len(block)
        if not counts["rows"]:
            raise DataError(f"{path} has no rows; expected one JSON object a line")
        if _state(path) != state:
            raise DataError(f"{path} was written to while it was read; run it again when it is complete")
        about = {"kind": KIND, "version": VERSION, **state, "sha256": digest.hexdigest()}
        counts["problems"] = problems.finish()
        writer.finish(about | counts | {"lengths": measure.about() if measure is not None else None})
    return counts


class Index:
    """An index and its file, open for reading.

    Args:
        path: of the records.
        folder: of the index; default beside the records.

    Raises:
        DataError: no index, a damaged one, or one of another file or content.
    """

    def __init__(self, path: Place, folder: Place | None = None) -> None:
        self.path, self.folder = path, folder or default_folder(path)
        self._columns = open_folder(self.folder, KIND, VERSION, f"make it with: wmtp data index {path}")
        self._arrays = self._columns.arrays
        self._check()
        self._file = path.snapshot() if isinstance(path, ObjectPath) else os.open(path, os.O_RDONLY)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._file, int):
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._arrays["offset"])

    @property
    def sha256(self) -> str:
        """Of the records file."""
        return str(self._columns.about["sha256"])

    @cached_property
    def facts(self) -> RowFacts:
        """Of all rows, lengths in characters."""
        arrays = self._arrays
        lengths = arrays["prompt"] + arrays["response"]
        return RowFacts(arrays["problem"], arrays["correct"], arrays["difficulty"], lengths, arrays["response"])

    @property
    def in_tokens(self) -> bool:
        """Whether it has lengths in tokens."""
        return self._lengths is not None

    @property
    def has_ids(self) -> bool:
        """Whether it has the ids of all rows."""
        return self._lengths is not None and bool(self._lengths["ids"])

    def require_measured_by(self, fingerprint: str, template: str) -> None:
        """Raise `DataError` unless its lengths in tokens are those of this tokenizer and template.

        Args:
            fingerprint: of the tokenizer, `wmtp.formats.hf.backend_fingerprint`.
        """
        wanted = token_lengths.identity(fingerprint, template)
        other = [name for name in wanted if (self._lengths or {}).get(name) != wanted[name]]
        if other:
            what = {"tokenizer": "another tokenizer", "template": "another data.template", "code": "another version"}
            raise DataError(
                f"the lengths in tokens of {self.folder} were made with {' and '.join(what[name] for name in other)} "
                f"than this run has; make it anew: wmtp data index {self.path} --tokenizer MODEL "
                f"--template {template!r}, or without --tokenizer, to go by characters"
            )

    def facts_in_tokens(self, max_length: int) -> RowFacts:
        """Of all rows, lengths in tokens as they are after truncation to `max_length`."""
        arrays = self._arrays
        lengths = token_lengths.lengths(arrays, max_length)
        return RowFacts(arrays["problem"], arrays["correct"], arrays["difficulty"], *lengths)

    def longer_R(self, max_length: int) -> NDArray[np.bool_]:
        """Rows of more than `max_length` tokens."""
        return np.asarray(self._arrays["tokens"] > max_length)

    def tokens(self, rows: Integers, encoder: Encoder) -> Iterator[Tokens]:
        """What `encoder.tokens` gives for some rows, from the ids that are kept."""
        return token_lengths.kept_tokens(self._columns, rows, len(encoder.before))

    @property
    def _lengths(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self._columns.about.get("lengths")
        return found

    @property
    def trainable_R(self) -> NDArray[np.bool_]:
        """Rows that are in no official split but that for training."""
        return np.asarray(self._arrays["split"] != _OTHER_SPLIT)

    def name(self, problem: int) -> str:
        """Of a problem."""
        return text_at(self._arrays, "name", problem)

    def names(self) -> Iterator[str]:
        """Of all problems, by number."""
        return map(self.name, range(len(self._arrays["name_end"])))

    def read(self, rows: Sequence[int] | Integers) -> Iterator[Record]:
        """The records of some rows, counted from 0, in the order asked for; on a disk nothing else is read.

        Raises:
            DataError: a line is not what was indexed, or cannot be read.
            StorageError: the store's.
        """
        rows_N = np.asarray(rows, np.int64)
        try:
            for start in range(0, len(rows_N), _ROWS):
                for lines in self._lines(rows_N[start : start + _ROWS]):
                    yield from map(parse, decode_lines(lines))
        except OSError as problem:
            raise _unreadable(self.path, problem) from problem

    def _lines(self, rows_N: Integers) -> Iterator[list[bytes]]:
        """The lines of some rows, as many as are decoded at once."""
        start_N, size_N, crc_N = (self._arrays[name][rows_N] for name in ("offset", "size", "crc"))
        lines, held = list[bytes](), 0
        read = read_pieces(self._file, start_N, start_N + size_N)
        for row, start, crc, line in zip(rows_N.tolist(), start_N.tolist(), crc_N.tolist(), read, strict=True):
            if crc32(line) != crc:
                raise DataError(
                    f"row {row} of {self.path}, at byte {start}, is not what it was when {self.folder} was made; make "
                    f"the index anew: wmtp data index {self.path}"
                )
            lines.append(line)
            held += len(line)
            if held >= _BYTES:
                yield lines
                lines, held = [], 0
        yield lines

    def _check(self) -> None:
        about, now = self._columns.about, _state(self.path)
        remedy = f"make the index anew: wmtp data index {self.path}"
        if now["bytes"] != about["bytes"]:
            raise DataError(
                f"{self.folder} is the index of a file of {about['bytes']:,} bytes; {self.path} has {now['bytes']:,}; "
                f"{remedy}"
            )
        untouched = all(about.get(name) == value != "" for name, value in now.items())
        if not untouched and sha256_file(self.path) != about["sha256"]:
            raise DataError(f"{self.folder} is the index of another content than {self.path} has now; {remedy}")


class _Problems:
    """Numbers for problems, in the order in which they come; names go to the disk at once."""

    def __init__(self, writer: ColumnWriter) -> None:
        self._writer, self._numbers, self._waiting = writer, dict[bytes, int](), list[str]()

    def number(self, name: str) -> int:
        """Of a problem, old or new."""
        key = blake2b(name.encode(), digest_size=16).digest()  # a name may be a whole prompt
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self._waiting.append(name)
            if len(self._waiting) == 4096:
                self._write()
        return self._numbers[key]

    def finish(self) -> int:
        """How many there are."""
        self._write()
        return len(self._numbers)

    def _write(self) -> None:
        append_texts(self._writer, "name", self._waiting)
        self._waiting = []


def _state(path: Place) -> dict[str, int | str]:
    """What is another when a file was written to."""
    try:
        if isinstance(path, ObjectPath):
            found = path.stat()
            return {"bytes": found.st_size, "tag": found.version or ""}
        status = path.stat()
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _unreadable(path: Place, problem: OSError) -> DataError:
    return DataError(f"cannot read the data file {path}: {problem.strerror or problem}; name a file that can be read")


def _measured(
    rows: Iterator[tuple[Record, tuple[int, ...]]], measure: Measure | None
) -> Iterator[tuple[tuple[int, ...], Measured | None]]:
    """The columns of each row, with its lengths in tokens."""
    if measure is None:
        yield from ((places, None) for _, places in rows)
        return
    waiting: deque[tuple[int, ...]] = deque()

    def records() -> Iterator[Record]:
        for record, places in rows:
            waiting.append(places)
            yield record

    for measured in measure.measured(records()):
        yield waiting.popleft(), measured


def _lines(path: Place, digest: Any, problems: _Problems) -> Iterator[tuple[Record, tuple[int, ...]]]:
    """The record and the columns of each row; `digest` is given every byte."""
    try:
        with path.open("rb") as file:
            _require_lines(path, file.read(4096))
            file.seek(0)
            number, offset = 0, 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    raise DataError(
                        f"{path}:{number}: a line longer than {MAX_LINE_BYTES:,} bytes; expected JSON Lines: an object "
                        "a line"
                    )
                digest.update(line)
                if line.strip():
                    record, facts = _row(path, number, line, problems)
                    yield record, (offset, len(line), crc32(line), *facts)
                offset += len(line)
    except OSError as problem:
        raise _unreadable(path, problem) from problem


def _row(path: Place, number: int, line: bytes, problems: _Problems) -> tuple[Record, tuple[int, ...]]:
    try:
        record = parse(decode_line(line))
        _, split = official_split(record)
        if record.difficulty > MAX_DIFFICULTY:
            raise BadRow(f"field 'difficulty' must be at most {MAX_DIFFICULTY:,} for an index, got {record.difficulty}")
    except BadRow as problem:
        raise DataError(
            f"{path}:{number}: {problem}\n(an index needs records in our own schema; make them with: wmtp data prepare)"
        ) from problem
    correct = UNKNOWN if record.is_correct is None else int(record.is_correct)
    lengths = len(record.prompt), len(record.response)
    place = _NO_SPLIT if split is None else _TRAIN if split == "train" else _OTHER_SPLIT
    return record, (problems.number(record.problem_id), correct, record.difficulty, *lengths, place)


def _require_lines(path: Place, start: bytes) -> None:
    """Raise `DataError` unless rows can be found again by their position."""
    if start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        raise DataError(
            f"{path} is compressed: what is in the middle cannot be read without all that comes before it; unpack it "
            "before it is indexed"
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start and not text.startswith(b"{"):
        raise DataError(
            f"{path} is not JSON Lines: one object per line was expected, got {text[:20]!r}; make records with: "
            "wmtp data prepare"
        )


def describe(index: Index) -> dict[str, Any]:
    """Figures of an index beyond its counts: problems with both kinds of responses, difficulties, tokens."""
    facts = index.facts
    size = int(facts.problem_R.max()) + 1
    both = [np.bincount(facts.problem_R[facts.correct_R == label], minlength=size) for label in (1, 0)]
    levels, counts = _counted(facts.difficulty_R)
    found: dict[str, Any] = {
        "problems_with_both": int(((both[0] > 0) & (both[1] > 0)).sum()),
        "unique_pairs": int(np.minimum(*both).sum()),
        "difficulties": dict(zip(map(str, levels), counts, strict=True)),
    }
    if index.in_tokens:
        length_R = index.facts_in_tokens(NO_LIMIT).length_R
        found |= {"tokens": int(length_R.sum()), "longest": int(length_R.max())}
    return found


def _counted(values: NDArray[np.int32]) -> tuple[list[int], list[int]]:
    levels, counts = np.unique(values, return_counts=True)
    return levels.tolist(), counts.tolist()
