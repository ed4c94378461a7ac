"""What every kind of storage must do, tried on a disk, in memory and on real S3 servers over HTTP.

Of these one ignores conditions and one answers them with 501: both do all but locks.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmtp.errors import StorageError
from wmtp.storage import (
    ObjectPath,
    Place,
    appender,
    blocks,
    copy,
    created,
    files,
    place,
    remove_objects,
    s3,
    sha256_file,
    write_atomic,
)
from wmtp.testing import memory_storage

MOTO, RCLONE, REFUSING = (pytest.param(name, marks=pytest.mark.exhaustive) for name in ("moto", "rclone", "refusing"))
"""More S3 servers. SeaweedFS shows the same always; what is said of conditions: tests/fault/test_storage_faults.py."""
CONTENT, OTHERS = b"a" * 5000, (b"b" * 5000, b"b" * 10, b"b" * 9000)
"""Of a file, and of those that take its place: as long, shorter, longer."""


@pytest.fixture(params=["local", "memory", "s3", MOTO, RCLONE, REFUSING])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty folder."""
    if request.param == "local":
        yield place(tmp_path)
    elif request.param == "memory":
        with memory_storage() as bucket:
            yield bucket / "tests"
    else:
        yield request.getfixturevalue(request.param)


def _write(folder: Place, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, name)


def test_what_was_written_is_there_and_read_back(folder: Place) -> None:
    path = folder / "a ü+=%20 b.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new \xff")
    assert path.read_bytes() == b"new \xff"
    assert (path.is_file(), path.is_dir(), path.exists(), path.stat().st_size) == (True, False, True, 5)


def test_what_is_not_there_is_a_missing_file(folder: Place) -> None:
    path = folder / "nothing"
    assert (path.is_file(), path.is_dir(), path.exists()) == (False, False, False)
    for attempt in (path.read_bytes, path.stat, lambda: path.open("rb"), lambda: list(blocks(path))):
        with pytest.raises(FileNotFoundError, match="nothing"):
            attempt()
    path.unlink(missing_ok=True)


def test_folders_are_told_from_files_and_list_their_own_children_only(folder: Place) -> None:
    _write(folder, "a/one", "a/b/two", "a/b/c/three", "ab", "a-")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "a-", "ab"]
    assert sorted(path.name for path in (folder / "a").iterdir()) == ["b", "one"]
    assert (folder / "a").is_dir()
    assert not (folder / "a").is_file()
    assert sorted(str(path) for path in folder.glob("a/*")) == [str(folder / "a/b"), str(folder / "a/one")]
    assert [path.read_text() for path in folder.glob("*/b/t*")] == ["a/b/two"]


def test_a_listing_of_several_pages_is_all_of_it_and_all_of_it_is_removed(
    folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE", 3)
    names = [f"{number:02}" for number in range(7)]
    _write(folder, *names, *(f"below/{name}/x" for name in names))
    assert sorted(path.name for path in folder.iterdir()) == [*names, "below"]
    assert sorted(path.name for path in (folder / "below").iterdir()) == names
    assert len(list(folder.glob("below/*/x"))) == 7
    if isinstance(folder, ObjectPath):
        assert len(list(folder.files())) == 14
        remove_objects(folder)
        assert not folder.is_dir()


@pytest.mark.parametrize("folder", ["memory", "s3", MOTO], indirect=True)
def test_the_mark_of_an_empty_folder_that_a_console_leaves_is_no_object(folder: ObjectPath) -> None:
    folder.store.put(folder.prefix, b"")
    assert (folder.is_dir(), list(folder.iterdir()), list(folder.files())) == (False, [], [])
    _write(folder, "a")
    assert list(folder.iterdir()) == list(folder.files()) == [folder / "a"]


@pytest.mark.parametrize("folder", ["memory", MOTO], indirect=True)  # the others keep files of a disk
def test_an_object_that_is_a_folder_too_is_both_and_listed_once(folder: ObjectPath) -> None:
    _write(folder, "a", "a/b")
    assert list(folder.iterdir()) == [folder / "a"]
    assert ((folder / "a").is_file(), (folder / "a").is_dir()) == (True, True)
    remove_objects(folder / "a")
    assert list(folder.files()) == [folder / "a"]


@pytest.mark.parametrize("folder", ["memory", "s3", MOTO, RCLONE], indirect=True)
def test_of_uploads_that_nobody_began_none_is_dropped(folder: ObjectPath) -> None:
    folder.store.abandon(folder.prefix)


def test_a_place_is_a_value_that_sorts_and_travels(folder: Place) -> None:
    one, other = folder / "a", folder / "b"
    assert sorted([other, one]) == [one, other]  # type: ignore[type-var]
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301
    assert (one.parent, one.name, one.with_name("c")) == (folder, "a", folder / "c")
    assert place(str(one)) == one


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(data=st.data())
def test_any_read_of_a_file_is_the_same_as_of_its_bytes(folder: Place, data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=3000), "content")
    write_atomic(folder / "x", content)
    with (folder / "x").open("rb", buffering=data.draw(st.integers(2, 600), "buffer")) as stream:
        for start, count in data.draw(st.lists(st.tuples(st.integers(0, 3100), st.integers(0, 3100)), max_size=4)):
            stream.seek(start)
            assert stream.read(count) == content[start : start + count]
    assert b"".join(blocks(folder / "x")) == content
    assert sha256_file(folder / "x") == hashlib.sha256(content).hexdigest()


def test_a_stream_of_many_parts_is_one_file(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 5 << 20)
    monkeypatch.setattr(files, "BLOCK", 3_000_000)
    piece = bytes(range(251)) * 4000
    with created(folder / "x") as stream:
        for _ in range(13):
            stream.write(memoryview(piece))
    copy(folder / "x", folder / "y")
    assert sha256_file(folder / "y") == hashlib.sha256(piece * 13).hexdigest()


def test_a_stream_that_fails_leaves_no_whole_file_and_no_object(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 5 << 20)
    with pytest.raises(KeyboardInterrupt), created(folder / "x") as stream:  # noqa: PT012
        stream.write(bytes(12 << 20))
        raise KeyboardInterrupt
    assert not isinstance(folder, ObjectPath) or not (folder / "x").exists()


def test_lines_that_were_settled_are_in_the_file_and_more_follow_them(folder: Place) -> None:
    for number in range(3):
        lines = appender(folder / "log")
        lines.write(f"{number}\n")
        lines.flush()
        lines.settle()
        assert (folder / "log").read_text() == "".join(f"{i}\n" for i in range(number + 1))
        lines.close()


def test_a_removed_file_is_gone(folder: Place) -> None:
    _write(folder, "a", "b")
    (folder / "a").unlink()
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_file_that_is_replaced_while_it_is_read_is_never_a_mixture(
    folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk goes on with the old content, an object store cannot: there it is an error."""
    monkeypatch.setattr(files, "BLOCK", 100)
    path = folder / "x"
    for other in OTHERS:
        write_atomic(path, CONTENT)
        with path.open("rb", buffering=100) as stream:
            begun = blocks(path)
            read = [stream.read(100), next(begun)]
            write_atomic(path, other)
            for rest in (stream.read, lambda begun=begun: b"".join(begun)):
                if isinstance(path, ObjectPath):
                    with pytest.raises(StorageError, match="was replaced while it was read"):
                        rest()
                else:
                    read.append(rest())
        assert set(b"".join(read)) == set(CONTENT)


@pytest.mark.parametrize("folder", ["local", "memory", "s3", MOTO], indirect=True)  # rclone shows what is half written
def test_a_reader_beside_a_writer_gets_the_whole_of_one_content_or_an_error(
    folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", 1000)
    path, over = folder / "x", threading.Event()
    write_atomic(path, CONTENT)

    def write() -> None:
        for content in itertools.cycle((*OTHERS, CONTENT)):
            write_atomic(path, content)
            if over.is_set():
                return

    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(write)
        try:
            for _ in range(20):
                with suppress(StorageError):
                    assert b"".join(blocks(path)) in (*OTHERS, CONTENT)
        finally:
            over.set()
        writing.result()
    assert path.read_bytes() in (*OTHERS, CONTENT)


def test_an_object_is_told_from_another_one_in_its_place_and_from_nothing_else(s3: ObjectPath) -> None:
    """Also one of many parts, whose tag is no hash of its bytes."""
    for content in (b"x" * 10, bytes(12 << 20)):
        with created(s3 / "x") as stream:
            stream.write(content)
        one, other = (s3 / "x").snapshot(), (s3 / "x").snapshot()
        assert one == other
        one.read_into(2, memoryview(bytearray(5)))
        write_atomic(s3 / "x", b"y" * 10)
        assert (s3 / "x").snapshot() != one


@pytest.mark.parametrize("folder", ["memory", "s3", MOTO], indirect=True)
def test_of_several_that_create_the_same_object_one_does(folder: ObjectPath) -> None:
    bucket, key = folder.store, (folder / "lock").key
    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(lambda i: bucket.create(key, f"{i}".encode()), range(4)))
    assert sorted(won) == [False, False, False, True]
    assert bucket.get(key) == f"{won.index(True)}".encode()
