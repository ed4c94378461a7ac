"""One set of rows, whatever contains them; and what is told of a container that is broken."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmtp.data import containers
from wmtp.data.containers import decode_line, decode_lines, rows
from wmtp.data.records import BadRow
from wmtp.errors import DataError, UsageError

ROWS: list[dict[str, Any]] = [
    {"prompt": f"p{i} ü\u2028", "response": "r" * i, "cases": [["1 2\n", "3\n"]], "about": {"n": i}} for i in range(300)
]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
WITHOUT_ARROW = {
    "lines": lambda path: path.write_bytes(TEXT),
    "lines.gz": lambda path: path.write_bytes(gzip.compress(TEXT)),
    "array": lambda path: path.write_text(json.dumps(ROWS)),
    "array.indented": lambda path: path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False)),
    "array.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
}


def write_parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=70)


def write_feather(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.feather").write_feather(pyarrow.Table.from_pylist(ROWS), str(path), chunksize=70)


def write_stream(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)


def write_zst(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(TEXT)


WITH_ARROW = {"parquet": write_parquet, "feather": write_feather, "stream": write_stream, "lines.zst": write_zst}
WRITERS: dict[str, Callable[[Path], object]] = {**WITHOUT_ARROW, **WITH_ARROW}


def read(path: Path) -> list[Any]:
    return [decode() for _, decode in rows(path)]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_container_gives_the_same_rows_and_its_name_decides_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data.json"
    WRITERS[kind](path)
    found = list(rows(path))
    assert [number for number, _ in found] == list(range(1, 301))
    assert [decode() for _, decode in found] == ROWS


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in ("lines", "array", "array.indented")])
def test_a_container_that_was_cut_off_is_named_with_the_row_after_which(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data"
    WRITERS[kind](path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 5, 40):
        path.write_bytes(whole[:size])
        told = refused(path)
        assert f"{path} is broken after row " in told
        assert "copy it again" in told


@pytest.mark.parametrize("cut", [1, 2, 500, -1])
def test_an_array_that_was_cut_off_is_named_with_row_and_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(json.dumps(ROWS, indent=1).encode()[:cut])
    told = refused(path)
    assert told.startswith(f"{path}:")
    assert "not valid JSON" in told
    assert "in line " in told


def test_a_broken_element_is_told_with_its_row_and_its_line_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    good = "\n".join(f'{{"a": "{"x" * 1000}"}},' for _ in range(200))
    path.write_text(f"[\n{good}\n{{]\n]")
    told = refused(path)
    assert told.startswith(f"{path}:201: not valid JSON")
    assert "in line 202" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2] 3", "something follows the array in line 1"),
        ("[1 2]", "expecting ',' or ']' in line 1"),
        ("[1, ]", "Expecting value in line 1"),
        ('[{"a": 1, "a": 2}]', "field 'a' appears twice"),
        ("[" * 10**5, "nested too deeply"),
        ("[1" + "0" * 10**4 + "]", "too many digits"),
    ],
)
def test_a_broken_array_is_told(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "data"
    path.write_text(content)
    assert message in refused(path)


def test_broken_utf_8_in_an_array_is_told_with_the_row_it_is_near(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b'["a", "caf\xe9"]')
    assert "broken UTF-8" in refused(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=8), st.sampled_from([None, 0, 3]), st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_an_array_read_a_little_at_a_time_is_the_array(
    tmp_path: Path, values: list[Any], indent: int | None, start: int
) -> None:
    path = tmp_path / "data"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "_START", start)
        assert read(path) == values


def test_a_long_array_is_not_held(tmp_path: Path) -> None:
    """20 MB of rows are read with a tenth of that."""
    path = tmp_path / "data"
    row = json.dumps({"text": "x" * 10_000})
    path.write_text("[" + ",".join([row] * 2000) + "]")
    assert peak_bytes(path) < os.path.getsize(path) / 10


def peak_bytes(path: Path) -> int:
    """The most memory that reading a file takes at once, its broken rows too."""
    tracemalloc.start()
    for _, decode in rows(path):
        with contextlib.suppress(BadRow):
            decode()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    "line", [b'{"a": "' + b"x" * 50_000_000 + b'"}', b"x" * 50_000_000, b"\x00" * 50_000_000], ids=["row", "x", "nul"]
)
def test_a_line_of_50_mb_takes_a_few_times_its_size(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(line)
    assert peak_bytes(path) < 5 * len(line)


def test_a_row_of_parquet_that_is_no_utf_8_is_a_bad_row_like_any_other(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "data"
    text = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(b"\0\0\0\0\3\0\0\0\6\0\0\0"), pyarrow.py_buffer(b"abc\xff\xff\xff")
    )
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"a": text}), path)
    (_, good), (number, bad) = rows(path)
    assert good() == {"a": "abc"}
    assert number == 2
    with pytest.raises(BadRow, match="broken UTF-8"):
        bad()


def test_a_value_that_parquet_leaves_out_is_a_field_that_is_not_there(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "data"
    table = pyarrow.Table.from_pylist([{"a": 1, "b": None}, {"a": None, "b": "x"}])
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    assert read(path) == [{"a": 1}, {"b": "x"}]


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for start in (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"\x28\xb5\x2f\xfd"):
        path = tmp_path / "data"
        path.write_bytes(start + b"0" * 50)
        with pytest.raises(UsageError, match=r"pip install 'wmtp\[parquet\]'"):
            read(path)


def test_lines_that_are_decoded_together_are_those_that_are_decoded_one_by_one() -> None:
    plain = [b'{"a": 1}\n', b'{"a": "\xc3\xa9"} \r\n', b"[2]"]
    odd = [b'\xef\xbb\xbf{"a": 1}\n', '{"b": 2}\u00a0\f\n'.encode()]
    for lines in (plain, [*plain, odd[0]], [odd[1], *plain], []):
        assert decode_lines(lines) == [decode_line(line) for line in lines]
