"""From the bytes of a data file to its rows, whatever contains them.

JSON Lines or one JSON array, plain or compressed with gzip or Zstandard; Parquet; Arrow, as a file (Feather) or as a
stream. The first bytes tell which, the name of the file decides nothing. Rows are decoded one at a time: what is held
is a row, and of Parquet and Arrow a batch of the file. The last three need the extra `wmtp[parquet]`.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from wmtp.data.records import BadRow
from wmtp.errors import DataError, UsageError
from wmtp.storage import ObjectPath, Place

MAX_LINE_BYTES = 64 * 2**20
"""The longest row, as JSON text; a limit for files that are something else."""
BATCH = 64
"""Rows of Parquet that are read together."""
_START = 2**16
_PEEK = 4096
"""Bytes of which the first tell what the file is."""
_SPACE = " \t\r\n"
_CONVERT = (
    'pip install pyarrow, then python -c "import pyarrow.csv as c, pyarrow.parquet as p; '
    "p.write_table(c.read_csv('IN.csv', parse_options=c.ParseOptions(newlines_in_values=True)), 'OUT.parquet')\""
)

Decode = Callable[[], Any]


def rows(path: Place) -> Iterator[tuple[int, Decode]]:
    """(number, decoder) per row of a data file; the decoder raises `BadRow`.

    The number is the line's in JSON Lines, where blank lines are not rows, and elsewhere the row's, from 1.

    Raises:
        DataError: the file cannot be read, or is broken where no row can be told from the next.
        UsageError: it needs a library that is not installed.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a directory; a data file was expected")
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no ordinary file; a data file was expected")
        with path.open("rb", buffering=_PEEK) as beginning:
            start = beginning.read(8)
        if start.startswith(b"PAR1"):
            yield from _arrow_rows(path, _parquet_batches)
        elif start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _arrow_rows(path, _ipc_batches)
        elif path.name.lower().endswith(".csv") and not start.lstrip().startswith((b"{", b"[", b"\x1f\x8b")):
            raise DataError(f"{path}: CSV is not read, since it has no types; convert it to Parquet: {_CONVERT}")
        else:
            with _opened(path, start) as file:
                yield from _json_rows(path, file)
    except OSError as problem:
        raise DataError(
            f"cannot read the data file {path}: {problem.strerror or problem}; name a file that can be read"
        ) from problem


# JSON


def _opened(path: Place, start: bytes) -> io.BufferedReader:
    if start.startswith(b"\x1f\x8b"):
        return cast(io.BufferedReader, gzip.open(_source(path), "rb"))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_pyarrow(path).CompressedInputStream(_source(path), "zstd"))
    return path.open("rb")


def _source(path: Place) -> str | io.BufferedReader:
    """What libraries are given: the name of a file, an open object."""
    return path.open("rb") if isinstance(path, ObjectPath) else str(path)


def _json_rows(path: Place, file: io.BufferedReader) -> Iterator[tuple[int, Decode]]:
    number = 0
    try:
        is_array = file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        for number, decode in _array_rows(path, file) if is_array else _lines(path, file):
            yield number, decode
    except (EOFError, zlib.error, OSError) as problem:
        raise _broken(path, number, problem) from problem


def _broken(path: Place, number: int, problem: Exception) -> DataError:
    return DataError(f"{path} is broken after row {number} ({problem}); copy it again")


def _lines(path: Place, file: io.BufferedReader) -> Iterator[tuple[int, Decode]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise DataError(
                f"{path}:{number}: a line longer than {MAX_LINE_BYTES:,} bytes; expected JSON Lines: an object a line"
            )
        if line.strip():
            yield number, partial(decode_line, line)


def decode_line(line: bytes) -> Any:
    """The JSON value of a line. Raises `BadRow`: it is none, or cannot be held."""
    try:
        return json.loads(line.decode("utf-8-sig").rstrip(), object_pairs_hook=_unique)
    except UnicodeDecodeError as problem:
        raise BadRow(f"broken UTF-8 at byte {problem.start} of the line; save the file as UTF-8") from problem
    except json.JSONDecodeError as problem:
        raise BadRow(f"not valid JSON: {problem.msg} at column {problem.colno}") from problem
    except (RecursionError, ValueError) as problem:
        raise _bad_value(problem) from problem


def decode_lines(lines: Sequence[bytes]) -> list[Any]:
    """The JSON values of lines that `decode_line` takes, all at once."""
    try:
        values: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:  # a line begins with a byte order mark, or ends with what is no whitespace in JSON
        return [decode_line(line) for line in lines]
    return values


def _bad_value(problem: Exception) -> BadRow:
    """What JSON text is told that parses but cannot be kept."""
    if isinstance(problem, BadRow):
        return problem
    return BadRow(
        f"{'brackets nested too deeply' if isinstance(problem, RecursionError) else 'a number has too many digits'}; "
        "mend the row, or leave it out"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise BadRow(f"field {name!r:.60} appears twice; keep one")
    return row


class _Window:
    """The part of a text that is looked at: it grows at the end, and what is done with is forgotten."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file
        self.text, self.at, self.lines = "", 0, 0

    def grow(self) -> bool:
        """Twice as much text; False at the end of the file, and where that is too much for one row."""
        rest = self.text[self.at :]
        more = "" if len(rest) > MAX_LINE_BYTES else self._file.read(max(_START, len(rest)))
        self.lines += self.text.count("\n", 0, self.at)
        self.text, self.at = rest + more, 0
        return bool(more)

    def next(self) -> str:
        """The next character that is no space, which is not passed; empty at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _SPACE:
                    return self.text[self.at]
                self.at += 1
            if not self.grow():
                return ""

    def line_of(self, place: int) -> int:
        """The line, from 1, of a place in the text."""
        return self.lines + self.text.count("\n", 0, place) + 1


def _array_rows(path: Place, file: io.BufferedReader) -> Iterator[tuple[int, Decode]]:
    """Rows of one JSON array, one after another; where one is broken, the next cannot be told from it."""
    number = 0
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            window = _Window(text)
            for number, row in enumerate(_elements(window), 1):
                yield number, partial(_identity, row)
            if window.next():
                raise BadRow(f"not valid JSON: something follows the array in line {window.line_of(window.at)}")
    except BadRow as problem:
        raise DataError(f"{path}:{number + 1}: {problem}") from problem
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{path}:{number + 1}: broken UTF-8 in this row or a little after it; save the file as UTF-8"
        ) from problem


def _elements(window: _Window) -> Iterator[Any]:
    """The values of the array, whose bracket is the next character; it stops behind the closing one."""
    window.next()
    window.at += 1
    closed = window.next() == "]"
    while not closed:
        yield _element(window)
        closed = window.next() == "]"
        if not closed:
            if window.next() != ",":
                raise BadRow(f"not valid JSON: expecting ',' or ']' in line {window.line_of(window.at)}")
            window.at += 1
    window.at += 1


def _element(window: _Window) -> Any:
    """The next value, whole: `1` could be the beginning of `1e+5` where the window ends."""
    window.next()
    while True:
        try:
            value, end = _DECODER.raw_decode(window.text, window.at)
        except json.JSONDecodeError as problem:
            line = window.line_of(problem.pos)
            if not window.grow():
                raise BadRow(f"not valid JSON: {problem.msg} in line {line}") from problem
        except (RecursionError, ValueError) as problem:
            raise _bad_value(problem) from problem
        else:
            if len(window.text) - end >= len("e+5"):
                window.at = end
                return value
            start = window.at
            if not window.grow():
                window.at = end - start
                return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _identity(row: Any) -> Any:
    return row


# Arrow and Parquet


def _pyarrow(path: Place) -> Any:
    try:
        import pyarrow
    except ImportError as problem:
        raise UsageError(
            f"{path} is Parquet, Arrow or Zstandard, which needs: pip install 'wmtp[parquet]'"
        ) from problem
    return pyarrow


def _arrow_rows(path: Place, batches: Callable[[Place], Iterator[Any]]) -> Iterator[tuple[int, Decode]]:
    arrow, number = _pyarrow(path), 0
    try:
        for batch in batches(path):
            for place in range(batch.num_rows):
                number += 1
                yield number, partial(_arrow_row, batch, place)
    except (arrow.ArrowException, OSError) as problem:
        raise _broken(path, number, problem) from problem


def _parquet_batches(path: Place) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(_source(path), buffer_size=_START) as file:
        yield from file.iter_batches(BATCH, use_threads=False)


def _ipc_batches(path: Place) -> Iterator[Any]:
    import pyarrow

    source = _source(path)
    with pyarrow.memory_map(source) if isinstance(source, str) else pyarrow.PythonFile(source, "r") as file:
        if file.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            file.seek(0)
            yield from pyarrow.ipc.open_stream(file)


def _arrow_row(batch: Any, place: int) -> dict[str, Any]:
    try:
        [row] = batch.slice(place, 1).to_pylist()
    except UnicodeDecodeError as problem:
        raise BadRow(f"broken UTF-8 at byte {problem.start} of a text; save it as UTF-8") from problem
    return {name: value for name, value in row.items() if value is not None}
