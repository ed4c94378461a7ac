"""The best model of a run is whole at every instant, wherever it is and whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from wmtp import best
from wmtp.errors import ModelError, StorageError
from wmtp.formats.native import write_folder
from wmtp.storage import ObjectPath, Place, write_atomic
from wmtp.testing import MemoryStore, memory_storage

NAMES = ("model.safetensors", "config.json")
FILES = (*NAMES, "SHA256SUMS")


def model(content: bytes) -> Callable[[Place], Place]:
    """What writes a folder of files with this content, as a model is written."""

    def fill(folder: Path) -> None:
        for name in NAMES:
            (folder / name).write_bytes(content)

    return lambda folder: write_folder(folder, fill)


def content(run: Place) -> bytes | None:
    """Of the best model, whose files are all of one."""
    found = best.find(run)
    if found is None:
        return None
    (one,) = {(found / name).read_bytes() for name in NAMES}
    return one


def fail_after(changes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many changes are made in memory, then none any more."""
    left = iter(range(changes))
    for name in ("put", "remove"):

        def change(self: MemoryStore, *given: object, made: Callable[..., None] = getattr(MemoryStore, name)) -> None:
            if next(left, None) is None:
                raise StorageError("the store is gone")
            made(self, *given)

        monkeypatch.setattr(MemoryStore, name, change)


def test_whichever_change_fails_the_best_model_is_whole_and_the_new_one_only_if_that_was_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for changes in count():
        with memory_storage() as run:
            best.keep(run, 2, model(b"old"))
            with monkeypatch.context() as patched:
                fail_after(changes, patched)
                try:
                    best.keep(run, 4, model(b"new"))
                except StorageError:
                    expected = b"old"
                else:
                    expected = b"new"
            assert content(run) == expected
            left_over = len(list(run.files())) - len(FILES) - 1
            best.keep(run, 6, model(b"newer"))
            assert content(run) == b"newer"
            assert len(list(run.files())) == len(FILES) + 1
        if expected == b"new" and not left_over:
            break
    assert changes > 5


def test_on_a_disk_it_is_the_folder_itself(tmp_path: Path) -> None:
    assert best.find(tmp_path) is None
    for step, said in ((2, b"old"), (4, b"new")):
        best.keep(tmp_path, step, model(said))
        best.clear_up(tmp_path)
        assert best.find(tmp_path) == tmp_path / "best"
        assert content(tmp_path) == said
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == sorted(FILES)


def test_what_an_interrupted_write_has_left_goes_at_the_next_start(s3: ObjectPath) -> None:
    best.keep(s3, 2, model(b"old"))
    half = s3 / "best" / "step_00000004-0123abcd"
    write_atomic(half / ".writing", b"")
    s3.store.upload((half / "model.safetensors").key).write(bytes(20 << 20))
    best.clear_up(s3)
    assert content(s3) == b"old"
    assert len(list(s3.files())) == len(FILES) + 1
    uploads = s3.store._ask("list", s3.prefix, "list_multipart_uploads", Prefix=s3.prefix)  # type: ignore[attr-defined]
    assert not uploads.get("Uploads")


def test_before_there_is_one_the_beginning_of_one_is_none_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_storage() as run:
        with monkeypatch.context() as patched:
            fail_after(3, patched)
            with pytest.raises(StorageError):
                best.keep(run, 2, model(b"first"))
        assert run.is_dir()
        assert best.find(run) is None
        best.clear_up(run)
        assert not run.is_dir()


@pytest.mark.parametrize("said", [b"", b"[]", b'{"folder": 3}', b'{"folder": "../final"}', b'{"folder": "step_1/x"}'])
def test_a_pointer_that_is_damaged_is_told_and_leads_nowhere(said: bytes) -> None:
    with memory_storage() as run:
        best.keep(run, 2, model(b"old"))
        write_atomic(run / "best" / best.CURRENT, said)
        with pytest.raises(ModelError, match=r"current\.json is damaged"):
            best.find(run)


def test_a_model_that_lies_in_the_folder_itself_counts_until_there_is_a_better_one() -> None:
    with memory_storage() as run:
        model(b"old")(run / "best")
        best.clear_up(run)
        assert content(run) == b"old"
        best.keep(run, 4, model(b"new"))
        assert content(run) == b"new"
        assert len(list(run.files())) == len(FILES) + 1
