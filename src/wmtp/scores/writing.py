"""Writing stored scores, batch by batch, so that an interrupted command goes on and ends with the same files.

What a batch gave lies in `parts/`, in a file of its own that begins with the SHA-256 of the rest: a torn one is known
and made again. At the end the parts are put behind one another in the columns, and each goes once its copy is on the
disk, so that little lies there twice; `scores.json` comes last, and without it there are no scores.

A `ScoreFile` is on a disk; `wmtp.scores.in_store` has the same for a store.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
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
from wmtp.storage import Place, fsync_folder, sha256_file, write_atomic

ENTRY = np.dtype([("key", "u1", (16,)), ("start", "<i8")])
TWICE = 64 * 2**20
"""Bytes of scores that lie on the disk twice while the columns are put together."""
_DIGEST = 32


class ScoreWriter(ABC):
    """A folder of scores in the making.

    Args:
        card: what it will say, without the hashes.
        batches: the rows of every batch, in order.
    """

    def __init__(self, folder: Place, card: Card, batches: Sequence[Sequence[Span]]) -> None:
        self.folder, self.card, self.batches = folder, card, batches
        self._parts = folder / "parts"
        self._about = self._parts / "about.json"
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
        return self._missing()

    def write(self, number: int, scores: Mapping[str, NDArray[Any]]) -> None:
        """What a batch gave: per column `[tokens of its spans, C]`.

        Raises:
            WmtpError: a score that the number format cannot hold, or a disk or store that does not take it.
        """
        with np.errstate(over="ignore"):  # told below
            columns = [scores[name].astype(self.card.dtype) for name in self.card.columns]
        if not all(np.isfinite(column).all() for column in columns):
            raise WmtpError(f"a score is too large for {self.card.dtype}: use --dtype float32, in another folder")
        payload = b"".join(column.tobytes() for column in columns)
        self._put(number, hashlib.sha256(payload).digest() + payload)

    def finish(self) -> Card:
        """Put the columns together and publish the card; without anything to do where that is done already.

        Raises:
            WmtpError: a batch is missing, or the disk or store does not take it; the parts are kept.
        """
        try:
            if not (self.folder / CARD).exists():
                card = self.card.model_copy(update={"sha256": self._put_together()})
                write_atomic(self.folder / CARD, json.dumps(card.model_dump(), indent=2) + "\n")
            self._clear()
        except OSError as problem:
            raise WmtpError(
                f"cannot write scores to {self.folder}: {problem.strerror or problem}; run it again to go on"
            ) from problem
        return read_card(self.folder)

    @abstractmethod
    def _missing(self) -> list[int]:
        """The batches that have no scores yet."""

    @abstractmethod
    def _put(self, number: int, content: bytes) -> None:
        """Keep what a batch gave."""

    @abstractmethod
    def _put_together(self) -> dict[str, str]:
        """Index and columns from the parts; the SHA-256 of each file."""

    @abstractmethod
    def _clear(self) -> None:
        """Remove the parts."""

    def _name(self, number: int) -> str:
        """Of a part."""
        return f"{number:08}.part"

    def _of_part(self, number: int, content: bytes) -> list[NDArray[Any]] | None:
        """The columns of a batch; None if they are torn."""
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

    def _lost(self, number: int) -> WmtpError:
        return WmtpError(f"{self._parts / self._name(number)} is missing or damaged; run the command again to go on")

    def _index(self) -> NDArray[Any]:
        """Where the scores of each row start, by the rows' keys."""
        spans = [span for batch in self.batches for span in batch]
        starts = [0, *accumulate(span.length for span in spans)]
        entries = np.zeros(len(spans), dtype=ENTRY)
        for place, i in enumerate(sorted(range(len(spans)), key=lambda i: spans[i].key)):
            entries[place] = (np.frombuffer(spans[i].key, dtype=np.uint8), starts[i])
        return entries

    def _header(self, name: str) -> bytes:
        """What the `.npy` file of a column begins with."""
        dtype, width, header = np.dtype(self.card.dtype), self.card.columns[name].width, BytesIO()
        shape = (self.card.tokens, width)
        about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()

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


class ScoreFile(ScoreWriter):
    """A folder of scores in the making, on a disk. Args: as `ScoreWriter`."""

    def __init__(self, folder: Path, card: Card, batches: Sequence[Sequence[Span]]) -> None:
        super().__init__(folder, card, batches)
        self._disk = folder
        itemsize = np.dtype(card.dtype).itemsize
        self._columns = [
            _Column(folder / column_file(name), self._header(name), column.width * itemsize)
            for name, column in card.columns.items()
        ]

    def _missing(self) -> list[int]:
        return [n for n in range(len(self.batches)) if self._read(n) is None and not self._moved(n)]

    def _put(self, number: int, content: bytes) -> None:
        temporary = self._part(number).with_suffix(f".tmp{os.getpid()}")
        try:
            temporary.write_bytes(content)
            temporary.replace(self._part(number))
        except OSError as problem:
            raise WmtpError(
                f"cannot write {self._part(number)}: {problem.strerror or problem}; run it again to go on"
            ) from problem

    def _put_together(self) -> dict[str, str]:
        files = [self._write_index(), *self._write_columns()]
        return {file: sha256_file(self._disk / file) for file in files}

    def _clear(self) -> None:
        shutil.rmtree(self._disk / "parts", ignore_errors=True)

    def _write_columns(self) -> list[str]:
        """Every column from its parts, which are removed on the way; the names of the files."""
        copied, size = list[int](), 0
        with ExitStack() as held:
            files = [held.enter_context(column.opened()) for column in self._columns]
            for number in (n for n in range(len(self.batches)) if not self._moved(n)):
                found = self._read(number)
                if found is None:
                    raise self._lost(number)
                for file, column, numbers in zip(files, self._columns, found, strict=True):
                    file.seek(column.place(self._starts[number]))
                    file.write(numbers.tobytes())
                    size += numbers.nbytes
                copied.append(number)
                if size >= TWICE:
                    self._forget(copied, files)
                    copied, size = [], 0
            self._forget(copied, files)
        fsync_folder(self._disk)
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
        temporary = self._disk / f".tmp-{INDEX}"
        np.save(temporary, self._index(), allow_pickle=False)
        _publish(temporary, self._disk / INDEX)
        return INDEX

    def _part(self, number: int) -> Path:
        return self._disk / "parts" / self._name(number)

    def _read(self, number: int) -> list[NDArray[Any]] | None:
        """The columns of a batch; None if they are not there or torn."""
        try:
            return self._of_part(number, self._part(number).read_bytes())
        except FileNotFoundError:
            return None


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


def _publish(temporary: Path, path: Path) -> None:
    """On the disk first, then under its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
