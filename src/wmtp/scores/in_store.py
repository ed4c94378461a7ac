"""Writing stored scores to an object store, where a file is whole or not there and can only be replaced.

A part is known by its name. The columns are put together in streams from all parts, which are removed when the card is
there: until then the scores are in the store twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmtp.data.ahead import Ahead
from wmtp.scores.card import Card
from wmtp.scores.rows import Span
from wmtp.scores.stored import INDEX, column_file
from wmtp.scores.writing import ScoreFile, ScoreWriter
from wmtp.storage import ObjectPath, Place, Sink, created, remove_objects

AT_ONCE = 8
"""Parts that are fetched ahead while others become columns."""


def score_writer(folder: Place, card: Card, batches: Sequence[Sequence[Span]]) -> ScoreWriter:
    """A folder of scores in the making, wherever it is. Args: as `ScoreWriter`."""
    if isinstance(folder, ObjectPath):
        return ScoreObjects(folder, card, batches)
    return ScoreFile(folder, card, batches)


class ScoreObjects(ScoreWriter):
    """A folder of scores in the making, in a store. Args: as `ScoreWriter`."""

    def __init__(self, folder: ObjectPath, card: Card, batches: Sequence[Sequence[Span]]) -> None:
        super().__init__(folder, card, batches)
        self._store = folder / "parts"

    def _missing(self) -> list[int]:
        there = {path.name for path in self._store.iterdir()}
        return [number for number in range(len(self.batches)) if self._name(number) not in there]

    def _put(self, number: int, content: bytes) -> None:
        part = self._store / self._name(number)
        part.store.put(part.key, content)

    def _put_together(self) -> dict[str, str]:
        names = list(self.card.columns)
        self._store.store.abandon(self._store.parent.prefix)
        with ExitStack() as streams, Ahead(self._read, len(self.batches), AT_ONCE) as read:
            columns = [streams.enter_context(_hashed(self._store.with_name(column_file(name)))) for name in names]
            for column, name in zip(columns, names, strict=True):
                column.write(self._header(name))
            for number in range(len(self.batches)):
                for column, numbers in zip(columns, read(number), strict=True):
                    column.write(numbers.tobytes())
            index = streams.enter_context(_hashed(self._store.with_name(INDEX)))
            content = BytesIO()
            np.save(content, self._index(), allow_pickle=False)
            index.write(content.getbuffer())
        files = [INDEX, *map(column_file, names)]
        return {file: stream.digest.hexdigest() for file, stream in zip(files, [index, *columns], strict=True)}

    def _clear(self) -> None:
        remove_objects(self._store)

    def _read(self, number: int) -> list[NDArray[Any]]:
        """The columns of a batch. One that is damaged goes, so that it is scored again."""
        part = self._store / self._name(number)
        try:
            found = self._of_part(number, part.read_bytes())
        except FileNotFoundError as problem:
            raise self._lost(number) from problem
        if found is None:
            part.unlink()
            raise self._lost(number)
        return found


class _Hashed:
    """A stream, and the SHA-256 of what it was given."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self.digest = sink, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """To both."""
        self.digest.update(data)
        self._sink.write(data)


@contextmanager
def _hashed(path: ObjectPath) -> Iterator[_Hashed]:
    """A new object."""
    with created(path) as sink:
        yield _Hashed(sink)
