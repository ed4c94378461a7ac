"""Rows in a folder of columns, memory-mapped: a rank touches only those that it trains on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import nan
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from wmtp.data.columns import Columns, ColumnWriter, append_texts, text_at
from wmtp.data.facts import facts_of
from wmtp.data.groups import Groups
from wmtp.data.sampling import UNKNOWN, RowFacts
from wmtp.data.text import Row

BLOCK = 4096
"""Rows that are held before they are written."""


class StoredRows(Sequence[Row]):
    """The rows that `write_rows` wrote.

    Args:
        prefix: what the names of their columns begin with.
    """

    def __init__(self, columns: Columns, prefix: str) -> None:
        skip = len(prefix)
        self._arrays = {name[skip:]: array for name, array in columns.arrays.items() if name.startswith(prefix)}

    def __len__(self) -> int:
        return len(self._arrays.get("token_end", ()))

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        i, arrays = place % len(self), self._arrays
        tokens = _piece(arrays, "token", i)
        problem, correct = int(arrays["problem"][i]), int(arrays["correct"][i])
        mean, deviation = arrays["group"][2 * problem : 2 * problem + 2].tolist()
        return Row(
            tokens,
            int(arrays["start"][i]),
            problem,
            nan if correct == UNKNOWN else float(correct),
            int(arrays["difficulty"][i]),
            text_at(arrays, "name", problem),
            (mean, deviation),
            _piece(arrays, "judged", i) if "judged" in arrays else None,
        )

    @cached_property
    def facts(self) -> RowFacts:
        """Of all rows, lengths in tokens."""
        arrays = self._arrays
        length_R = np.diff(arrays["token_end"], prepend=0).astype(np.int32)
        return RowFacts(
            arrays["problem"], arrays["correct"], arrays["difficulty"], length_R, length_R - arrays["start"]
        )


def write_rows(writer: ColumnWriter, prefix: str, rows: Iterable[Row]) -> None:
    """Put rows into columns; their groups and names are written by `write_problems`, when all are known."""
    for block in blocks(rows):
        facts = facts_of(block)
        _append_ids(writer, f"{prefix}token", [row.tokens for row in block])
        judged = [row.judged for row in block if row.judged is not None]
        if judged:
            _append_ids(writer, f"{prefix}judged", judged)
        writer.append(f"{prefix}start", np.array([row.response_start for row in block], np.int32))
        writer.append(f"{prefix}problem", facts.problem_R)
        writer.append(f"{prefix}correct", facts.correct_R)
        writer.append(f"{prefix}difficulty", facts.difficulty_R)


def _append_ids(writer: ColumnWriter, name: str, pieces: Sequence[NDArray[np.int32]]) -> None:
    """Two columns for ids: `NAME` those of one row after another, `NAME_end` where each row ends."""
    end = writer.length(name)
    writer.append(name, np.concatenate(pieces))
    writer.append(f"{name}_end", end + np.cumsum([len(piece) for piece in pieces], dtype=np.int64))


def _piece(arrays: Mapping[str, NDArray[Any]], name: str, i: int) -> NDArray[np.int32]:
    """The ids of row `i`."""
    ends = arrays[f"{name}_end"]
    return arrays[name][int(ends[i - 1]) if i else 0 : int(ends[i])]


def write_problems(writer: ColumnWriter, prefix: str, names: Sequence[str], groups: Groups) -> None:
    """Names and reward groups of the problems, by number."""
    append_texts(writer, f"{prefix}name", names)
    writer.append(f"{prefix}group", np.array([groups.get(name, (nan, nan)) for name in names], np.float64).ravel())


def blocks(rows: Iterable[Any], size: int = BLOCK) -> Iterator[list[Any]]:
    """The same in lists of so many."""
    block: list[Any] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
