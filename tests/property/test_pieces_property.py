"""Pieces of a file are its bytes, however they are put together, on a disk and in a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmtp.data import pieces
from wmtp.data.pieces import read_pieces
from wmtp.storage import ObjectPath, Place, write_atomic
from wmtp.testing import memory_storage
from wmtp.testing.storage import MemoryStore

CONTENT = bytes(range(256)) * 2
BOUNDS = st.tuples(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT))).map(sorted)


@pytest.fixture(params=["local", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with memory_storage() as bucket:
        path = tmp_path / "x" if request.param == "local" else bucket / "x"
        write_atomic(path, CONTENT)
        yield path


def read(path: Place, bounds: list[list[int]]) -> list[bytes]:
    columns = np.array(bounds, np.int64).reshape(-1, 2).T
    if isinstance(path, ObjectPath):
        return list(read_pieces(path.snapshot(), *columns))
    with path.open("rb") as file:
        return list(read_pieces(file.fileno(), *columns))


@given(bounds=st.lists(BOUNDS, max_size=12), near=st.integers(0, 60), most=st.integers(1, 90), ordered=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_are_those_of_the_file_in_the_order_asked_for(
    path: Place, bounds: list[list[int]], near: int, most: int, ordered: bool
) -> None:
    wanted = sorted(bounds) if ordered else bounds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "NEAR", near)
        patch.setattr(pieces, "TOUCHING", near)
        patch.setattr(pieces, "MOST", most)
        patch.setattr(pieces, "AT_ONCE", 2)
        assert read(path, wanted) == [CONTENT[start:end] for start, end in wanted]


ROWS = [[i, i + 10] for i in range(0, 200, 10)]


def test_on_a_disk_rows_that_touch_come_in_one_read_and_nothing_between_others_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "x", CONTENT)
    asked, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: asked.append([start, start + size]) or pread(
        file, size, start))  # fmt: skip
    read(tmp_path / "x", [*ROWS[:5], ROWS[7], ROWS[9], ROWS[3]])
    assert asked == [[0, 50], ROWS[7], ROWS[9], ROWS[3]]


def test_in_a_store_rows_that_are_near_come_in_one_request_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, read_into = [], MemoryStore.read_into
    monkeypatch.setattr(pieces, "NEAR", 15)
    monkeypatch.setattr(pieces, "MOST", 100)
    monkeypatch.setattr(MemoryStore, "read_into", lambda self, key, start, view, version: asked.append(
        [start, start + len(view)]) or read_into(self, key, start, view, version))  # fmt: skip
    with memory_storage() as bucket:
        write_atomic(bucket / "x", CONTENT)
        read(bucket / "x", [ROWS[0], ROWS[2], ROWS[5], ROWS[8], ROWS[10], ROWS[12]])
    assert sorted(asked) == [[0, 30], [50, 60], [80, 90], [100, 130]]
