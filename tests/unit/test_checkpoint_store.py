"""Checkpoints in an object store: what a disk promises by renaming, the manifest promises here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp import checkpoint
from wmtp.checkpoint import saving
from wmtp.checkpoint.folder import prune
from wmtp.errors import CheckpointError, StorageError
from wmtp.storage import ObjectPath, remove_objects, write_atomic
from wmtp.testing import MemoryStore, memory_storage


@pytest.fixture(params=["memory", "s3"])
def folder(request: pytest.FixtureRequest) -> Iterator[ObjectPath]:
    if request.param == "s3":
        yield request.getfixturevalue("s3")
    else:
        with memory_storage() as bucket:
            yield bucket / "checkpoints"


def parts(seed: int) -> dict[str, Any]:
    """A model that is tied and one tensor of each kind."""
    torch.manual_seed(seed)
    weight = torch.randn(30, 7)
    return {
        "model": {"a": weight, "tied": weight, "b": torch.arange(5), "c": torch.rand(3).bfloat16()},
        "more": {"x": 1},
    }


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) if isinstance(one[k], torch.Tensor) else one[k] == other[k] for k in one
    )


def steps(folder: ObjectPath) -> list[str]:
    return [path.name for path in checkpoint.list_steps(folder)]


def no_bad(path: object, reason: str) -> None:
    raise AssertionError(f"{path}: {reason}")


def test_what_was_saved_in_the_background_is_read_back_and_older_ones_are_gone(folder: ObjectPath) -> None:
    with checkpoint.Saver(folder, keep_last=2) as saver:
        for step in (1, 2, 3):
            saver.save(step, parts(step), {"run": step}, per_rank={"own": {"r": torch.ones(2)}})
    assert steps(folder) == ["step_00000002", "step_00000003"]
    newest = checkpoint.newest(folder, on_bad=no_bad)
    assert newest == folder / "step_00000003"
    found = checkpoint.load(newest)
    assert all(same(found.parts[name], state) for name, state in parts(3).items())
    assert found.parts["model"]["a"] is found.parts["model"]["tied"]
    assert found.per_rank is not None
    template = {"model": {name: torch.zeros_like(value) for name, value in parts(2)["model"].items()}}
    template["model"]["tied"] = template["model"]["a"]
    checkpoint.load(folder / "step_00000002", template)
    assert same(template["model"], parts(2)["model"])


def test_it_is_the_same_checkpoint_as_on_a_disk_file_by_file(folder: ObjectPath, tmp_path: Path) -> None:
    here, there = (checkpoint.save(place, 4, parts(4), {"f": 1}) for place in (tmp_path, folder))
    assert sorted(path.name for path in there.iterdir()) == sorted(path.name for path in here.iterdir())
    assert all((there / path.name).read_bytes() == path.read_bytes() for path in here.iterdir())


def test_a_save_that_is_interrupted_leaves_the_one_before_and_the_next_clears_up(
    folder: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(folder, 1, parts(1), {})
    with monkeypatch.context() as patched:
        patched.setattr(saving, "_commit", lambda *_: (_ for _ in ()).throw(SystemExit(9)))
        patched.setattr(saving.folders, "undo", lambda *_: None)  # a process that is gone clears nothing up
        with pytest.raises(SystemExit):
            checkpoint.save(folder, 2, parts(2), {})
    assert steps(folder) == ["step_00000001"]
    assert (folder / "step_00000002").is_dir()
    assert checkpoint.newest(folder, on_bad=no_bad) == folder / "step_00000001"
    checkpoint.save(folder, 3, parts(3), {})
    assert {path.parent.name for path in folder.files()} == {"step_00000001", "step_00000003"}


def test_a_store_that_fails_in_mid_save_is_a_checkpoint_error_that_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with memory_storage() as bucket:
        checkpoint.save(bucket, 1, parts(1), {})
        put = MemoryStore.put

        def failing(self: MemoryStore, key: str, data: bytes) -> None:
            if key.endswith("state.json"):
                raise StorageError("the store is gone")
            put(self, key, data)

        monkeypatch.setattr(MemoryStore, "put", failing)
        with pytest.raises(CheckpointError, match=r"cannot save memory://bucket/step_00000002: the store is gone"):
            checkpoint.save(bucket, 2, parts(2), {})
        assert {path.parent.name for path in bucket.files()} == {"step_00000001"}


def test_a_damaged_one_is_passed_over_and_replaced_and_a_whole_one_is_not_overwritten(folder: ObjectPath) -> None:
    for step in (1, 2):
        checkpoint.save(folder, step, parts(step), {})
    damaged = folder / "step_00000002" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    write_atomic(damaged, bytes(content))
    told: list[str] = []
    assert checkpoint.newest(folder, on_bad=lambda _, reason: told.append(reason)) == folder / "step_00000001"
    assert "model.safetensors is damaged" in told[0]
    checkpoint.save(folder, 2, parts(2), {})
    assert checkpoint.newest(folder, on_bad=no_bad) == folder / "step_00000002"
    with pytest.raises(CheckpointError, match="there and whole"):
        checkpoint.save(folder, 2, parts(3), {})


@pytest.mark.parametrize("late", [(), (3,), (2, 3), (1,)])
def test_what_a_listing_that_lags_hides_or_still_shows_costs_no_checkpoint_that_should_stay(
    late: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory_storage() as bucket:
        store, shown = bucket.store, MemoryStore()
        assert isinstance(store, MemoryStore)
        for step in range(5):
            checkpoint.save(bucket, step, {"model": {"x": step}}, {}, keep_last=9)
        for key, content in store.objects.items():
            if not any(key.startswith(f"step_{step:08}") for step in late):
                shown.put(key, content)
        remove_objects(bucket / "step_00000000")
        for name in ("status", "listed", "children"):
            monkeypatch.setattr(store, name, getattr(shown, name))
        prune(bucket, bucket / "step_00000004", 2)
        left = {key.partition("/")[0] for key in store.objects}
    assert {"step_00000003", "step_00000004"} <= left


def test_parts_of_an_upload_that_nobody_finished_are_dropped_by_the_next_save(
    s3: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = s3.store.upload((s3 / "step_00000001" / "model.safetensors").key)
    upload.write(bytes(20 << 20))
    bucket, prefix = s3.store, s3.prefix
    assert _unfinished(bucket, prefix) == 1
    checkpoint.save(s3, 2, parts(2), {})
    assert _unfinished(bucket, prefix) == 0


def _unfinished(bucket: Any, prefix: str) -> int:
    answer = bucket._ask("list", prefix, "list_multipart_uploads", Prefix=prefix)
    return len(answer.get("Uploads", ()))
