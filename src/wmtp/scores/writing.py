"""Writing stored scores, batch by batch, so that an interrupted command goes on and ends with the same files.

What a batch gave lies in `parts/`, in a file of its own that begins with the SHA-256 of the rest: a torn one is known
and made again. At the end the parts are put behind one another in the columns, and each goes once its copy is on the
disk, so that little lies there twice; `scores.json` comes last, and without it there are no scores.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import UsageError, WmtpError, first_line
from wmtp.scores.card import CARD, Card, read_card
from wmtp.scores.rows import Span
from wmtp.scores.stored import INDEX, column_file
from wmtp.storage import fsync_folder, sha256_file, write_atomic

ENTRY = np.dtype([("key", "u1", (16,)), ("start", "<i8")])
TWICE = 64 * 2**20
"""Bytes of scores that lie on the disk twice while the columns are put together."""
_DIGEST = 32


class ScoreFile:
    """A folder of scores in the making.

    Args:
        card: what it will say, without the hashes.
        batches: the rows of every batch, in order.
    """

    def __init__(self, folder: Path, card: Card, batches: Sequence[Sequence[Span]]) -> None:
        self.folder, self.card, self.batches = folder, card, batches
        self._parts = folder / "parts"
        self._about = self._parts / "about.json"
        self._columns = [_column(folder, card, name) for name in card.columns]
        self._starts = [0, *accumulate(sum(span.length for span in batch) for batch in batches)]
        """Tokens before each batch, and all of them."""

    def begin(self) -> list[int]:
        """The batches that are still to be scored; makes the folder where it is not there.

        Raises:
            UsageError: the folder has, or was begun for, scores of something else.
            WmtpError: it cannot be written.
        """
        if (self.folder / CARD).exists():
            self._check(read_card(self.folder))
            return []
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            if not self._about.exists():
                if any(path for path in self.folder.iterdir() if path != self._parts):
                    raise UsageError(f"{self.folder} holds something else; name a new folder with --out")
                write_atomic(self._about, self.card.model_dump_json())
            self._check(Card.model_validate_json(self._about.read_bytes()))
        except (OSError, ValueError) as problem:
            raise WmtpError(
                f"cannot write scores to {self.folder}: {first_line(problem)}; run it again to go on"
            ) from problem
        return [n for n in range(len(self.batches)) if self._read(n) is None and not self._moved(n)]

    def write(self, number: int, scores: Mapping[str, NDArray[Any]]) -> None:
        """What a batch gave: per column `[tokens of its spans, C]`.

        Raises:
            WmtpError: a score that the number format cannot hold, or a disk that does not take it.
        """
        with np.errstate(over="ignore"):  # told below
            columns = [scores[name].astype(self.card.dtype) for name in self.card.columns]
        if not all(np.isfinite(column).all() for column in columns):
            raise WmtpError(f"a score is too large for {self.card.dtype}: use --dtype float32, in another folder")
        payload = b"".join(column.tobytes() for column in columns)
        temporary = self._part(number).with_suffix(f".tmp{os.getpid()}")
        try:
            temporary.write_bytes(hashlib.sha256(payload).digest() + payload)
            temporary.replace(self._part(number))
        except OSError as problem:
            raise WmtpError(
                f"cannot write {self._part(number)}: {problem.strerror or problem}; run it again to go on"
            ) from problem

    def finish(self) -> Card:
        """Put the columns together and publish the card; without anything to do where that is done already.

        Raises:
            WmtpError: a batch is missing, or the disk does not take it; the parts are kept.
        """
        try:
            if not (self.folder / CARD).exists():
                files = [self._write_index(), *self._write_columns()]
                hashes = {file: sha256_file(self.folder / file) for file in files}
                card = self.card.model_copy(update={"sha256": hashes})
                write_atomic(self.folder / CARD, json.dumps(card.model_dump(), indent=2) + "\n")
            shutil.rmtree(self._parts, ignore_errors=True)
        except OSError as problem:
            raise WmtpError(
                f"cannot write scores to {self.folder}: {problem.strerror or problem}; run it again to go on"
            ) from problem
        return read_card(self.folder)

    def _write_columns(self) -> list[str]:
        """Every column from its parts, which are removed on the way; the names of the files."""
        copied, size = list[int](), 0
        with ExitStack() as held:
            files = [held.enter_context(column.opened()) for column in self._columns]
            for number in (n for n in range(len(self.batches)) if not self._moved(n)):
                found = self._read(number)
                if found is None:
                    raise WmtpError(f"{self._part(number)} is missing or damaged; run the command again to go on")
                for file, column, numbers in zip(files, self._columns, found, strict=True):
                    file.seek(column.place(self._starts[number]))
                    file.write(numbers.tobytes())
                    size += numbers.nbytes
                copied.append(number)
                if size >= TWICE:
                    self._forget(copied, files)
                    copied, size = [], 0
            self._forget(copied, files)
        fsync_folder(self.folder)
        return [column.path.name for column in self._columns]

    def _forget(self, numbers: Sequence[int], files: Sequence[IO[bytes]]) -> None:
        """Remove the parts of batches that were copied, once the copies are on the disk."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        for number in numbers:
            self._part(number).unlink()

    def _moved(self, number: int) -> bool:
        """Whether a batch has no part because the columns, which grow from the front, have its scores."""
        end = self._starts[number + 1]
        return not self._part(number).exists() and all(column.size() >= column.place(end) for column in self._columns)

    def _write_index(self) -> str:
        """The index; the name of its file."""
        spans = [span for batch in self.batches for span in batch]
        starts = [0, *accumulate(span.length for span in spans)]
        entries = np.zeros(len(spans), dtype=ENTRY)
        for place, i in enumerate(sorted(range(len(spans)), key=lambda i: spans[i].key)):
            entries[place] = (np.frombuffer(spans[i].key, dtype=np.uint8), starts[i])
        temporary = self.folder / f".tmp-{INDEX}"
        np.save(temporary, entries, allow_pickle=False)
        _publish(temporary, self.folder / INDEX)
        return INDEX

    def _part(self, number: int) -> Path:
        return self._parts / f"{number:08}.part"

    def _read(self, number: int) -> list[NDArray[Any]] | None:
        """The columns of a batch; None if they are not there or torn."""
        try:
            content = self._part(number).read_bytes()
        except FileNotFoundError:
            return None
        digest, payload = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(payload).digest() != digest:
            return None
        tokens, columns, start = sum(span.length for span in self.batches[number]), [], 0
        for column in self.card.columns.values():
            size = tokens * column.width * np.dtype(self.card.dtype).itemsize
            numbers = np.frombuffer(payload[start : start + size], dtype=self.card.dtype)
            columns.append(numbers.reshape(tokens, column.width))
            start += size
        return columns

    def _check(self, found: Card) -> None:
        """Raise `UsageError` if what is there is not what is to be made."""
        before, now = (card.model_dump(exclude={"sha256"}) for card in (found, self.card))
        for nested in ("key", "columns"):
            before |= {f"{nested}.{name}": value for name, value in before.pop(nested).items()}
            now |= {f"{nested}.{name}": value for name, value in now.pop(nested).items()}
        different = ", ".join(name for name in {**before, **now} if before.get(name) != now.get(name))
        if different:
            raise UsageError(
                f"{self.folder} has scores of something else ({different}); remove it, or name another with --out"
            )


class _Column(NamedTuple):
    """The file of a column, and where in it the scores of a token are."""

    path: Path
    header: bytes
    token_bytes: int

    def place(self, token: int) -> int:
        """Where the scores of a token start, counted over all batches."""
        return len(self.header) + token * self.token_bytes

    def opened(self) -> IO[bytes]:
        """To be written to; what is there is kept."""
        self.path.touch()
        file = self.path.open("r+b")
        file.write(self.header)
        return file

    def size(self) -> int:
        """Of the file; 0 where there is none yet."""
        return self.path.stat().st_size if self.path.exists() else 0


def _column(folder: Path, card: Card, name: str) -> _Column:
    """A column in the format of `.npy`."""
    dtype, width, header = np.dtype(card.dtype), card.columns[name].width, BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (card.tokens, width)}
    np.lib.format.write_array_header_1_0(header, about)
    return _Column(folder / column_file(name), header.getvalue(), width * dtype.itemsize)


def _publish(temporary: Path, path: Path) -> None:
    """On the disk first, then under its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
