"""An index, its records and tokenised rows in a store are what they are on a disk."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmtp.cli import run_command
from wmtp.config import Config, load
from wmtp.data import pieces
from wmtp.data.cache import cached_rows
from wmtp.data.columns import ColumnWriter
from wmtp.data.index import Index, build_index, default_folder
from wmtp.data.sources import read_records
from wmtp.data.text import Encoder
from wmtp.data.token_lengths import Measure
from wmtp.dataset import Data, build_data
from wmtp.errors import DataError, StorageError, UsageError
from wmtp.formats.hf import backend_fingerprint, load_tokenizer
from wmtp.storage import ObjectPath, Place, copy, lease, resolve, write_atomic
from wmtp.testing import memory_storage
from wmtp.testing.storage import MemoryStore

RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"
TOKENIZER = load_tokenizer("embedded://tiny-llama")
MEASURE = Measure(TOKENIZER, backend_fingerprint(TOKENIZER), "{prompt}\n", keep_ids=True)
PAIRS = ["objective={kind: value, loss: pairwise}", "data.sampling={pairs: unique, max_per_problem: 1}"]


@pytest.fixture
def bucket() -> Iterator[ObjectPath]:
    with memory_storage() as made:
        yield made


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Some of the embedded problems, indexed."""
    path = tmp_path / "records.jsonl"
    lines = resolve("embedded://problems_train.jsonl").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:120]))
    build_index(path, default_folder(path), MEASURE)
    return path


def in_store(local: Path, folder: ObjectPath) -> ObjectPath:
    """The same file in a store, indexed there."""
    path = folder / local.name
    copy(local, path)
    build_index(path, default_folder(path), MEASURE)
    return path


def columns(folder: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(".bin")}


def config(*overrides: str) -> Config:
    own = ["data.validation=null", "data.validation_fraction=0.3", "train.steps=3", "data.max_length=256"]
    return load([RECIPE], [*own, *overrides])


def same(one: Data, other: Data) -> bool:
    """Whether two runs train on the same rows in the same batches."""
    batches = [[data.train.rows_of(number) for number in range(3)] for data in (one, other)]
    return one.fingerprint == other.fingerprint and batches[0] == batches[1]


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_an_index_made_in_a_store_has_the_columns_and_reads_the_rows_of_one_on_a_disk(
    kind: str, local: Path, request: pytest.FixtureRequest
) -> None:
    path = in_store(local, request.getfixturevalue("bucket" if kind == "memory" else "s3") / "data")
    assert columns(default_folder(path)) == columns(default_folder(local))
    expected, _ = read_records(local)
    rows = np.random.default_rng(0).permutation(len(expected))[:40]
    encoder = Encoder(TOKENIZER, template="{prompt}\n", max_length=256)
    with Index(path) as far, Index(local) as near:
        assert list(far.read(rows)) == [expected[i] for i in rows]
        assert list(far.names()) == list(near.names())
        assert list(far.tokens(rows, encoder)) == list(near.tokens(rows, encoder))
        assert list(far.tokens(np.array([0, 119, 0]), encoder)) == list(near.tokens(np.array([0, 119, 0]), encoder))


def test_of_records_and_ids_in_a_store_only_what_is_asked_for_is_fetched(
    local: Path, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = in_store(local, bucket)
    fetched: dict[str, int] = {}
    read_into = MemoryStore.read_into

    def counting(self: MemoryStore, key: str, start: int, view: memoryview, version: str | None = None) -> None:
        fetched[key] = fetched.get(key, 0) + len(view)
        read_into(self, key, start, view, version)

    monkeypatch.setattr(MemoryStore, "read_into", counting)
    monkeypatch.setattr(pieces, "NEAR", 0)
    rows = np.array([3, 50, 51])
    lines = local.read_bytes().splitlines(keepends=True)
    with Index(path) as index:
        ids = [tokens.ids for tokens in index.tokens(rows, Encoder(TOKENIZER, template="{prompt}\n", max_length=256))]
        assert len(list(index.read(rows))) == 3
    assert fetched[path.key] == sum(len(lines[i]) for i in rows)
    assert fetched[f"{default_folder(path).key}/id.bin"] == 4 * sum(map(len, ids))
    assert not {name.rpartition("/")[2] for name in fetched} & {"name.bin", "problem.bin", "difficulty.bin"}


def test_an_index_from_a_disk_belongs_to_the_same_file_in_a_store(local: Path, bucket: ObjectPath) -> None:
    copy(local, bucket / "renamed")
    with Index(bucket / "renamed", default_folder(local)) as index:
        assert list(index.read([7])) == [read_records(local)[0][7]]


def test_another_content_of_the_same_size_is_told_and_the_same_one_written_again_is_not(
    local: Path, bucket: ObjectPath
) -> None:
    path, content = in_store(local, bucket), local.read_bytes()
    write_atomic(path, content)
    Index(path)
    write_atomic(path, content.replace(b"Write", b"Wrote", 1))
    with pytest.raises(DataError, match=r"another content .* make the index anew: wmtp data index memory://"):
        Index(path)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read the data file memory://\S+: no such object"):
        Index(path)


def test_a_row_that_changes_after_the_index_was_opened_is_told(local: Path, bucket: ObjectPath) -> None:
    path = in_store(local, bucket)
    with Index(path) as index:
        write_atomic(path, local.read_bytes().replace(b"Write", b"Wrote", 1))
        with pytest.raises(StorageError, match=r"records.jsonl was replaced while it was read"):
            list(index.read([0]))
        path.unlink()
        with pytest.raises(DataError, match="cannot read the data file"):
            list(index.read([0]))


def test_an_older_index_in_a_store_is_replaced_and_nothing_else_is(local: Path, bucket: ObjectPath) -> None:
    path = in_store(local, bucket)
    build_index(path, default_folder(path))
    with Index(path) as index:
        assert not index.in_tokens
    assert not (default_folder(path) / "id.bin").exists()
    write_atomic(bucket / "mine" / "notes.txt", "mine")
    with pytest.raises(UsageError, match="is there already and is no index of records"):
        build_index(path, bucket / "mine")


def test_an_index_in_a_store_that_was_not_finished_is_none_and_is_made_anew(local: Path, bucket: ObjectPath) -> None:
    path = in_store(local, bucket)
    (default_folder(path) / "header.json").unlink()
    with pytest.raises(DataError, match=r"is damaged .* make it with: wmtp data index"):
        Index(path)
    write_atomic(path, path.read_bytes() + b"{}\n")
    with pytest.raises(DataError, match=r"records.jsonl:121: field 'prompt' is missing"):
        build_index(path, default_folder(path))
    assert not default_folder(path).exists(), "nothing is left of it"
    with pytest.raises(DataError, match="no index of records at memory://"):
        Index(path)


def test_a_column_that_is_not_whole_is_told(local: Path, bucket: ObjectPath) -> None:
    path = in_store(local, bucket)
    column = default_folder(path) / "crc.bin"
    write_atomic(column, column.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"crc.bin has 479 bytes, 480 were written"):
        Index(path)


def test_a_run_on_records_index_and_cache_in_a_store_has_the_rows_of_one_on_a_disk(
    local: Path, bucket: ObjectPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(local, bucket / "records.jsonl")
    path = str(bucket / "records.jsonl")
    options = ["--tokenizer", "embedded://tiny-llama", "--ids", "--json"]
    assert run_command(["data", "index", path, *options]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == f"{path}.index"

    def built(records: str, index: str, cache: str) -> Data:
        own = [f"data.train.path={records}", f"data.index={index}", f"data.cache={cache}"]
        return build_data(config(*own, *PAIRS), TOKENIZER)

    near = built(str(local), str(default_folder(local)), str(tmp_path / "cache"))
    far = built(path, f"{path}.index", f"{bucket}/cache")
    assert same(far, near)
    assert same(built(path, f"{path}.index", f"{bucket}/cache"), near)
    assert far.notes == [note.replace(str(tmp_path), str(bucket)) for note in near.notes]
    assert [item.name for item in (bucket / "cache").iterdir()] == [p.name for p in (tmp_path / "cache").glob("rows*")]


def test_of_several_that_want_the_same_rows_of_a_store_one_makes_them_and_the_others_wait(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 6.0)
    made, found = [], []

    def write(writer: ColumnWriter) -> dict[str, Any]:
        made.append(1)
        time.sleep(0.4)
        writer.append("x", np.arange(5, dtype=np.int64))
        return {"sum": int(writer.columns().arrays["x"].sum())}

    def want() -> None:
        found.append(cached_rows(bucket / "cache", {"a": 1}, write))

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(is_new for _, is_new in found) == [False, False, True]
    assert all((rows.about["sum"], rows.arrays["x"].tolist()) == (10, [0, 1, 2, 3, 4]) for rows, _ in found)


def test_rows_in_a_store_that_were_not_finished_are_made_again(bucket: ObjectPath) -> None:
    def write(writer: ColumnWriter) -> dict[str, Any]:
        writer.append("x", np.arange(3, dtype=np.int32))
        return {}

    cached_rows(bucket, {}, write)
    [header] = bucket.glob("rows-*/header.json")
    header.unlink()
    assert cached_rows(bucket, {}, write)[1]
    assert not cached_rows(bucket, {}, write)[1]
