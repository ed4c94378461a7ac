"""Saving in the background: only the copy stalls the caller, nothing is torn, a failure is told once, loses nothing."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.bench import run as run_benchmark
from wmtp.checkpoint import Saver, folder, list_steps, load, newest, save, saving, tensorfile
from wmtp.errors import CheckpointError


class Gate:
    """Stands before every tensor file until it is opened; keeps what happened in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.events = threading.Event(), []
        original = saving.write_tensors

        def write(path: Path, contents: Any) -> tuple[int, str]:
            self.events.append("writing")
            assert self.open.wait(60)
            written = original(path, contents)
            self.events.append("written")
            return written

        monkeypatch.setattr(saving, "write_tensors", write)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def never(path: Path, reason: str) -> None:
    raise AssertionError(f"{path} was reported bad: {reason}")


def test_save_returns_while_the_file_is_still_to_be_written(tmp_path: Path, gate: Gate) -> None:
    with Saver(tmp_path) as saver:
        path = saver.save(1, {"p": {"v": torch.ones(3)}}, {})
        gate.events.append("returned")
        assert list_steps(tmp_path) == []
        gate.open.set()
        saver.wait()
        assert list_steps(tmp_path) == [path]
    assert gate.events.index("returned") < gate.events.index("written")


def test_what_happens_to_the_tensors_after_save_returned_is_not_in_the_checkpoint(tmp_path: Path, gate: Gate) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step() -> None:
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()

    step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    own = {"random": {"cpu": torch.zeros(3)}}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [entry["exp_avg"].clone() for entry in optimizer.state_dict()["state"].values()]
    with Saver(tmp_path) as saver:
        path = saver.save(1, state, {}, per_rank=own)
        step()
        own["random"]["cpu"].fill_(7)
        optimizer.param_groups[0]["lr"] = 0.5
        assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
        gate.open.set()
    found = load(path)
    assert all(torch.equal(found.parts["model"][name], before[name]) for name in before)
    saved = [entry["exp_avg"] for entry in found.parts["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(saved, moments, strict=True))
    assert found.parts["optimizer"]["param_groups"][0]["lr"] == 0.1
    assert found.per_rank is not None
    assert not found.per_rank["random"]["cpu"].any()


def test_the_next_save_waits_for_the_one_before_since_it_takes_over_its_memory(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = saving.Staging.copy
    pointers = []

    def copy(self: saving.Staging, local: Any) -> Any:
        gate.events.append("copied")
        contents = original(self, local)
        pointers.append([content.read().data_ptr() for content in contents.values()])
        return contents

    monkeypatch.setattr(saving.Staging, "copy", copy)
    value = torch.ones(1000)
    with Saver(tmp_path, keep_last=3) as saver:
        saver.save(1, {"p": {"v": value}}, {})
        threading.Thread(target=gate.open.set).start()
        for step in (2, 3):
            value.fill_(step)
            saver.save(step, {"p": {"v": value}}, {})
    assert gate.events == ["copied", "writing", "written"] * 3
    assert pointers[0] == pointers[1] == pointers[2]
    for step, path in enumerate(list_steps(tmp_path), 1):
        assert (load(path).parts["p"]["v"] == step).all()


def test_the_memory_follows_what_is_saved(tmp_path: Path) -> None:
    with Saver(tmp_path, keep_last=9) as saver:
        for step, value in enumerate((torch.ones(3), torch.ones(5), torch.ones(3, 2).t(), torch.tensor(2.0))):
            path = saver.save(step, {"p": {"v": value}}, {})
            saver.wait()
            assert torch.equal(load(path).parts["p"]["v"], value)


def fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original: list[Callable[..., Any]] = [saving.write_tensors]

    def write(path: Path, contents: Any) -> tuple[int, str]:
        monkeypatch.setattr(saving, "write_tensors", original[0])
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(saving, "write_tensors", write)


@pytest.mark.parametrize("by", ["wait", "save", "close"])
def test_a_failed_save_is_told_once_by_whatever_comes_next_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    parts = {"p": {"v": torch.ones(3)}}
    saver = Saver(tmp_path)
    first = saver.save(1, parts, {})
    saver.wait()
    fails_once(monkeypatch)
    saver.save(2, parts, {})
    after: dict[str, Callable[[], Any]] = {
        "wait": saver.wait, "close": saver.close, "save": lambda: saver.save(3, parts, {})
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"cannot save .*step_00000002: disk full: need .* MiB, have .* MiB at"):
        after[by]()
    assert os.listdir(tmp_path) == [first.name]
    if by != "close":
        saver.save(4, parts, {})
        saver.close()
        assert newest(tmp_path, on_bad=never) == tmp_path / "step_00000004"


def test_an_error_in_the_block_is_not_hidden_by_one_of_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block() -> None:
        with Saver(tmp_path) as saver:
            saver.save(1, {"p": {"v": torch.ones(3)}}, {})
            raise ZeroDivisionError

    fails_once(monkeypatch)
    with pytest.raises(ZeroDivisionError) as caught:
        block()
    assert "the checkpoint under way failed: cannot save" in caught.value.__notes__[0]


def test_what_cannot_be_stored_is_refused_at_once_by_a_process_alone(tmp_path: Path) -> None:
    with Saver(tmp_path) as saver:
        with pytest.raises(CheckpointError, match=r"p: v: a builtins\.set cannot be stored"):
            saver.save(1, {"p": {"v": {1}}}, {})
        saver.save(2, {"p": {"v": 1}}, {}, wait=True)
        assert [path.name for path in list_steps(tmp_path)] == ["step_00000002"]


def test_a_save_that_is_waited_for_copies_nothing_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving.Staging, "copy", lambda *_: pytest.fail("copied"))
    with Saver(tmp_path) as saver:
        path = saver.save(1, {"p": {"v": torch.ones(3)}}, {}, wait=True)
        assert torch.equal(load(path).parts["p"]["v"], torch.ones(3))


def test_a_closed_saver_has_no_thread_left(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    saver.save(1, {"p": {"v": torch.ones(3)}}, {})
    saver.close()
    saver.close()
    assert not any(thread.name.startswith("wmtp-checkpoint") for thread in threading.enumerate())


def test_the_places_where_faults_can_happen_are_passed_in_the_order_of_the_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []
    for module in (saving, folder, tensorfile):
        monkeypatch.setattr(module, "fault", passed.append)
    save(tmp_path, 1, {"p": {"v": torch.ones(3)}}, {})
    del passed[:]
    save(tmp_path, 2, {"p": {"v": torch.ones(3)}}, {}, keep_last=1)
    assert passed == [
        "ckpt_write", "ckpt_write", "ckpt_before_manifest", "ckpt_write", "ckpt_before_rename", "ckpt_after_rename",
        "prune",
    ]  # fmt: skip


def test_the_benchmark_times_both_ways_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "disk").mkdir()
    file, disk = tmp_path / "figures.json", tmp_path / "disk"
    arguments = ["--parameters", "1000", "--repeat", "2", "--json", str(file), "--folder", str(disk)]
    assert run_benchmark("checkpoint", arguments) == 0
    document = json.loads(file.read_text())
    assert document["settings"] == {"parameters": 1000, "repeat": 2}
    assert document["checkpoint_bytes"] > 12 * 1000
    assert {name: len(taken) for name, taken in document["seconds"].items()} == {"at_once": 2, "background": 2}
    assert len(document["stall"]) == 3
    assert os.listdir(disk) == []
    assert "stall, background to at_once" in capsys.readouterr().out
