"""Reading stored scores: mapped into memory (from a store, fetched into it), found by the content of a row."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.data.columns import fetched
from wmtp.data.stored import blocks
from wmtp.data.text import Row
from wmtp.errors import DataError
from wmtp.scores.card import ColumnCard, Key, check_column, check_key, read_card
from wmtp.scores.rows import judged_spans_of, span_in, spans_of
from wmtp.storage import ObjectPath, Place, sha256_file

INDEX = "index.npy"
_HEADER = 1 << 16
"""Bytes that the header of an `.npy` file has at most, and some."""


def column_file(name: str) -> str:
    """The file of a column."""
    return f"{name}.npy"


class StoredScores:
    """One column of a folder of scores.

    Args:
        key: what the run has, to be compared with what was scored.
        name: of the column.
        wanted: the model that the run would ask, and how.

    Raises:
        DataError: no scores, scores of something else (the message names what differs), or damaged files.
    """

    def __init__(self, folder: Place, key: Key, name: str, wanted: ColumnCard) -> None:
        self.folder, card = folder, read_card(folder)
        check_key(folder, card, key)
        check_column(folder, card, name, wanted)
        index, self._scores = (_checked(folder / file, card.sha256.get(file)) for file in (INDEX, column_file(name)))
        self._keys, self._starts = index["key"], index["start"]
        self._width, self._of = wanted.width, wanted.of

    def check_rows(self, rows: Iterable[Row]) -> None:
        """Raise `DataError` if a row has no scores: the data are others than those that were scored."""
        known = np.ascontiguousarray(self._keys).view("S16").ravel()
        count, unknown, first = 0, 0, ""
        for block in blocks(rows):
            keys = np.frombuffer(b"".join(span_in(row, self._of).key for row in block), "S16")
            there = known[np.searchsorted(known, keys).clip(max=len(known) - 1)] == keys
            if not there.all():
                first = first or block[int(there.argmin())].name
            count, unknown = count + len(block), unknown + int((~there).sum())
        if unknown:
            raise DataError(
                f"the scores in {self.folder} were made from other data: {unknown:,} of {count:,} rows have none, the "
                f"first is of problem {first!r}; score again with the run's recipe"
            )

    def of(self, batch: Batch) -> Tensor:
        """Scores of tokens, `[B, T, C]`, fp32; 0 outside the responses and the token before each. `[B, 1, C]` of rows.

        Raises:
            DataError: a row that was not scored.
        """
        of_tokens = self._of == "token"
        rows, places = batch.tokens_BT.shape
        scores_BTC = torch.zeros(rows, places if of_tokens else 1, self._width)
        for b, span in enumerate(spans_of(batch) if of_tokens else judged_spans_of(batch)):
            if span is None:
                continue
            start = self._start(span.key)
            if start is None:
                raise DataError(
                    f"the scores in {self.folder} were made from other data: row {b} of a batch has none; score again "
                    "with the run's recipe"
                )
            found = self._scores[start : start + span.length, : self._width].astype(np.float32)
            scores_BTC[b, span.start : span.end] = torch.from_numpy(found)
        return scores_BTC.to(batch.tokens_BT.device)

    def _start(self, key: bytes) -> int | None:
        """Where a row's scores start."""
        place = bisect.bisect_left(range(len(self._keys)), key, key=self._key)
        found = place < len(self._keys) and self._key(place) == key
        return int(self._starts[place]) if found else None

    def _key(self, place: int) -> bytes:
        key: bytes = self._keys[place].tobytes()
        return key


def _checked(path: Place, sha256: str | None) -> NDArray[Any]:
    """A file's array; mapped, as a plain one, since slices of `np.memmap` cost ten times as much. From a store all of
    it is in memory.

    Raises:
        DataError: it is not what was written.
    """
    if path.is_file():
        if isinstance(path, ObjectPath):
            content = fetched(path)
            if hashlib.sha256(content).hexdigest() == sha256:
                return _array(content)
        elif sha256_file(path) == sha256:
            return np.asarray(np.load(path, mmap_mode="r"))
    raise DataError(f"{path} is missing or damaged: it is not what was written; score again")


def _array(content: bytearray) -> NDArray[Any]:
    """What an `.npy` file holds, without a copy."""
    header = BytesIO(content[:_HEADER])
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    return np.frombuffer(content, dtype, offset=header.tell()).reshape(shape)
