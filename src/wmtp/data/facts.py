"""What sampling knows of rows, whether they are in memory or in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Protocol, runtime_checkable

import numpy as np

from wmtp.data.sampling import UNKNOWN, RowFacts
from wmtp.data.text import Row


@runtime_checkable
class KnownRows(Protocol):
    """Rows whose facts are there already."""

    @property
    def facts(self) -> RowFacts:
        """Of all rows, lengths in tokens."""


def facts_of(rows: Sequence[Row]) -> RowFacts:
    """The facts of rows, lengths in tokens."""
    if isinstance(rows, KnownRows):
        return rows.facts
    length_R = np.array([len(row.tokens) for row in rows], np.int32)
    return RowFacts(
        np.array([row.problem for row in rows], np.int32),
        np.array([UNKNOWN if isnan(row.reward) else int(row.reward) for row in rows], np.int8),
        np.array([row.difficulty for row in rows], np.int32),
        length_R,
        length_R - np.array([row.response_start for row in rows], np.int32),
    )
