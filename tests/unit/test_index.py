"""An index finds rows by position, belongs to one content, and is never half there."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.data import index as index_module
from wmtp.data.index import Index, build_index, default_folder, describe
from wmtp.data.records import Record
from wmtp.data.sources import read_records
from wmtp.errors import DataError, UsageError, WmtpError

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)


def row(problem: int, **fields: Any) -> dict[str, Any]:
    return {"problem_id": f"p{problem}", "prompt": f"Prompt {problem}.", "response": "x = 1", **fields}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [row(i // 4, response=f"y = {i}\n" * (1 + i % 5), is_correct=(True, False, None)[i % 3], difficulty=i % 4)
            for i in range(40)]  # fmt: skip
    return write(tmp_path / "records.jsonl", rows)


@pytest.fixture
def indexed(file: Path) -> Path:
    """The same file, with an index beside it."""
    build_index(file, default_folder(file))
    return file


@given(
    st.lists(
        st.tuples(
            TEXT, TEXT, TEXT, st.sampled_from([True, False, None]), st.integers(0, 9), st.sampled_from("\n\r \f\xa0")
        ),
        min_size=1, max_size=12,
    ),
    st.booleans(),
)  # fmt: skip
def test_rows_read_by_position_are_the_rows_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[Any, ...]], last_newline: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "r.jsonl"
    names = ("problem_id", "prompt", "response", "is_correct", "difficulty")
    lines = [json.dumps(dict(zip(names, row, strict=False)), ensure_ascii=False) + row[-1] for row in drawn]
    path.write_text("\n".join(lines) + "\n" * last_newline, encoding="utf-8", newline="")
    build_index(path, path.parent / "index")
    expected, _ = read_records(path)
    with Index(path, path.parent / "index") as index:
        assert list(index.read(range(len(index)))) == expected
        assert [index.name(p) for p in index.facts.problem_R] == [record.problem_id for record in expected]
        assert index.facts.response_R.tolist() == [len(record.response) for record in expected]
        labels = {True: 1, False: 0, None: -1}
        assert index.facts.correct_R.tolist() == [labels[record.is_correct] for record in expected]
        assert index.facts.difficulty_R.tolist() == [record.difficulty for record in expected]


def test_rows_come_in_the_order_asked_for(indexed: Path) -> None:
    everything, _ = read_records(indexed)
    with Index(indexed) as index:
        assert list(index.read([7, 3, 3, 39])) == [everything[i] for i in (7, 3, 3, 39)]


def test_four_ranks_read_every_row_once_and_nothing_else(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_read: Counter[int] = Counter()
    pread = os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        bytes_read.update(range(offset, offset + size))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(index_module.os, "pread", counting)
    order = np.random.default_rng(0).permutation(40)
    for rank in range(4):
        with Index(indexed) as own:
            assert len(list(own.read(order[rank::4]))) == 10
    assert bytes_read == Counter(range(indexed.stat().st_size))


def test_the_counts_are_those_of_the_file(file: Path) -> None:
    counts = build_index(file, default_folder(file))
    assert counts == {"rows": 40, "correct": 14, "incorrect": 13, "unlabelled": 13, "problems": 10}
    with Index(file) as index:
        assert describe(index) == {
            "problems_with_both": 10,
            "unique_pairs": 10,
            "difficulties": {"0": 10, "1": 10, "2": 10, "3": 10},
        }


# belonging to one content


def test_a_file_that_grew_is_told_by_its_size(indexed: Path) -> None:
    file = indexed
    with file.open("a") as stream:
        stream.write(json.dumps(row(1)) + "\n")
    with pytest.raises(DataError, match=r"is the index of a file of [\d,]+ bytes; .* make the index anew"):
        Index(file)


def test_another_content_of_the_same_size_is_told_when_the_file_was_touched(indexed: Path) -> None:
    file = indexed
    file.write_bytes(file.read_bytes().replace(b"y = 3", b"y = 4"))
    os.utime(file, ns=(0, 1))
    with pytest.raises(DataError, match="another content"):
        Index(file)


def test_a_changed_row_is_told_when_it_is_read_even_if_the_clock_says_nothing(indexed: Path) -> None:
    file = indexed
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"y = 3\\n", b"y = 4\\n", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with Index(file) as own:
        assert len(list(own.read([0, 1, 2]))) == 3
        with pytest.raises(DataError, match=r"row 3 of .*records.jsonl, at byte \d+, is not what it was"):
            list(own.read([3]))


def test_a_file_that_was_only_touched_or_copied_keeps_its_index(indexed: Path, tmp_path: Path) -> None:
    file = indexed
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    os.utime(copy, ns=(0, 1))
    with Index(copy, default_folder(file)) as own:
        assert len(own) == 40


# what cannot be indexed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b'{"prompt": "a"}\n', mtime=0), "compressed: what is in the middle cannot be read"),
        (b"\x28\xb5\x2f\xfd0000", "compressed"),
        (b'[{"prompt": "a", "response": "b"}]', "not JSON Lines"),
        (b"PAR1....", "not JSON Lines"),
        (b"", "has no rows"),
        (b"\n\n", "not JSON Lines|has no rows"),
        (b'{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n', r"records.jsonl:2: field 'response' is missing"),
        (b'{"prompt": "a", "response": "\xff"}\n', r"records.jsonl:1: broken UTF-8"),
        (b'{"prompt": "a", "response": "b", "difficulty": 3000000000}\n', "must be at most 2,147,483,647"),
        (b'{"task_id": 601, "code": "c", "test_list": []}\n', "wmtp data prepare"),
    ],
)
def test_what_has_no_positions_is_refused_with_the_reason(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        build_index(file, default_folder(file))
    assert sorted(p.name for p in file.parent.iterdir()) == ["records.jsonl"], "nothing is left of an index"


def test_an_endless_line_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_LINE_BYTES", 64)
    write(file, [row(0, response="x" * 200)])
    with pytest.raises(DataError, match=r"records.jsonl:1: a line longer than 64 bytes"):
        build_index(file, default_folder(file))


def test_a_file_that_grows_while_it_is_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = index_module._row

    def growing(*arguments: Any) -> Any:
        with file.open("a") as stream:
            stream.write("\n")
        return real(*arguments)

    monkeypatch.setattr(index_module, "_row", growing)
    with pytest.raises(DataError, match="was written to while it was read"):
        build_index(file, default_folder(file))


# the folder


def test_an_index_is_replaced_but_nothing_else_is(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    build_index(file, out)
    write(file, [row(0)])
    assert build_index(file, out)["rows"] == 1
    with Index(file, out) as index:
        assert list(index.read([0])) == [Record("p0", "Prompt 0.", "x = 1")]
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="is there already and is no index of records"):
        build_index(file, tmp_path / "mine")


def damage_header(folder: Path) -> None:
    (folder / "header.json").write_text("{")


def damage_version(folder: Path) -> None:
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | {"version": 99}))


def damage_column(folder: Path) -> None:
    (folder / "offset.bin").write_bytes((folder / "offset.bin").read_bytes()[:-3])


def damage_dtype(folder: Path) -> None:
    text = (folder / "header.json").read_text()
    (folder / "header.json").write_text(text.replace('"int8"', '"object"'))


def remove_column(folder: Path) -> None:
    (folder / "crc.bin").unlink()


@pytest.mark.parametrize("damage", [damage_header, damage_version, damage_column, damage_dtype, remove_column])
def test_a_damaged_index_is_told_with_what_makes_it_anew(indexed: Path, damage: Callable[[Path], None]) -> None:
    damage(default_folder(indexed))
    with pytest.raises(DataError, match=r"make it with: wmtp data index .*records.jsonl"):
        Index(indexed)


def test_no_index_is_told_with_what_makes_one(file: Path) -> None:
    with pytest.raises(DataError, match=r"no index of records at .* wmtp data index"):
        Index(file)


def test_a_disk_that_does_not_take_it_is_told(file: Path) -> None:
    with pytest.raises(WmtpError, match="cannot write"):
        build_index(file, file / "inside-a-file")
