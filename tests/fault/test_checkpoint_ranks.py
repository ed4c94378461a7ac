"""Checkpoints of several processes: any number of ranks to any other, and no rank's death or failure costs the old one.

Ranks are forked, run `checkpoint_ranks.py`, and talk over gloo.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Zygote

from wmtp.checkpoint import list_steps, load, newest, remove_litter, save
from wmtp.storage import ObjectPath, Place

pytestmark = [pytest.mark.fault, pytest.mark.slow]

Run = Callable[..., list[Any]]
SCENARIOS = Path(__file__).with_name("checkpoint_ranks.py")


@pytest.fixture(scope="module")
def run(forks: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a scenario on so many ranks; the reports in rank order."""

    def run(name: str, ranks: int, folder: Place, *arguments: Any, died: dict[int, int] | None = None) -> list[Any]:
        out = tmp_path_factory.mktemp("out")
        loopback = {"GLOO_SOCKET_IFNAME": "lo"}
        codes, said = forks.ranks(ranks, SCENARIOS, name, folder, out, json.dumps(arguments), environment=loopback)
        assert codes == [(died or {}).get(rank, 0) for rank in range(ranks)], said[-5000:]
        return [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]

    return run


@pytest.fixture(scope="module")
def saved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same state, saved by 1, 2 and 4 ranks in the background."""
    folders = {ranks: tmp_path_factory.mktemp(f"saved-{ranks}") for ranks in (1, 2, 4)}
    for ranks, folder in folders.items():
        reports = run("save_sharded", ranks, folder)
        assert all(report == reports[0] for report in reports)
    return folders


def never(path: Place, reason: str) -> None:
    raise AssertionError(f"{path} was reported bad: {reason}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("to", [1, 2, 4])
@pytest.mark.parametrize("by", [1, 2, 4])
def test_a_sharded_model_and_its_optimizer_continue_bit_for_bit_on_any_number_of_ranks(
    run: Run, saved: dict[int, Path], by: int, to: int
) -> None:
    reports = run("load_sharded", to, saved[by])
    for rank, report in enumerate(reports):
        own = [rank, [rank] * 4] if by == to else None
        assert report == {"restored": True, "continued": True, "plain": True, "ranks": by, "own": own}


def test_every_rank_writes_its_own_files(saved: dict[int, Path]) -> None:
    mine = [
        "model.00001.safetensors", "optimizer.00001.safetensors", "rank-00001.json", "rank-00001.own.safetensors",
    ]  # fmt: skip
    assert set(mine) < set(names(saved[2] / "step_00000003"))
    assert names(saved[1] / "step_00000003") == [
        "manifest.json", "model.safetensors", "objective.safetensors", "optimizer.safetensors",
        "rank-00000.json", "rank-00000.own.safetensors", "state.json",
    ]  # fmt: skip


@pytest.mark.parametrize("by", [1, 2, 4])
def test_the_model_alone_comes_back_whole_in_one_process(run: Run, saved: dict[int, Path], by: int) -> None:
    assert run("load_whole", 1, saved[by]) == [{"same": True, "plain": True, "tied": True}]
    ours, theirs = (load(saved[n] / "step_00000003").parts["model"] for n in (by, 1))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_grid_and_replicas_are_stored_once_and_load_in_other_layouts(run: Run, tmp_path: Path) -> None:
    for report in run("in_a_mesh", 4, tmp_path):
        assert report["same"]
        assert report["bytes"] < 2 * 240 + 4 + 4 * 600, "a replica was stored twice"


def test_tensors_that_every_rank_has_are_written_once_by_all_together_and_need_room_once(
    run: Run, tmp_path: Path
) -> None:
    files = run("replicated", 2, tmp_path)[0]["files"]
    assert files.keys() == {"p.00000.safetensors", "p.00001.safetensors"}
    assert all(2**20 < size < 2**20 + 1000 for size in files.values())


def test_an_optimizer_step_after_save_returned_does_not_tear_the_snapshot(run: Run, tmp_path: Path) -> None:
    assert run("snapshot", 2, tmp_path) == [{"model": True, "all": True}] * 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_in_mid_save_leaves_the_previous_checkpoint_as_the_newest(
    run: Run, tmp_path: Path, victim: int
) -> None:
    (report,) = run("killed_in_mid_save", 2, tmp_path, victim, died={victim: -signal.SIGKILL})
    assert "lost touch with the others: one died" in report["error"]
    first = tmp_path / "step_00000001"
    assert newest(tmp_path, on_bad=never) == first
    assert torch.equal(load(first).parts["p"]["v"], torch.arange(100_000.0))
    assert list_steps(tmp_path) == [first]
    remove_litter(tmp_path)
    assert names(tmp_path) == [first.name]
    save(tmp_path, 2, {"p": {"v": torch.ones(2)}}, {})
    assert [path.name for path in list_steps(tmp_path)] == ["step_00000001", "step_00000002"]


@pytest.mark.exhaustive  # a share of it always: the next one
def test_ranks_save_into_a_store_and_any_number_goes_on_from_there(run: Run, s3: ObjectPath) -> None:
    run("save_sharded", 2, s3)
    for to in (1, 2):
        for report in run("load_sharded", to, s3):
            assert report["restored"]
            assert report["continued"]
            assert (report["own"] is None) == (to == 1)


def test_a_rank_killed_in_mid_save_leaves_the_previous_checkpoint_in_a_store_too(run: Run, s3: ObjectPath) -> None:
    (report,) = run("killed_in_mid_save", 2, s3, 1, died={1: -signal.SIGKILL})
    assert "lost touch with the others: one died" in report["error"]
    first = s3 / "step_00000001"
    assert newest(s3, on_bad=never) == first
    assert torch.equal(load(first).parts["p"]["v"], torch.arange(100_000.0))
    save(s3, 3, {"p": {"v": torch.ones(2)}}, {})
    assert list_steps(s3) == [first, s3 / "step_00000003"]
    assert {path.parent for path in s3.files()} == set(list_steps(s3))


def test_a_full_disk_on_one_rank_is_told_on_all_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    reports = run("disk_full_on_one", 2, tmp_path)
    for report in reports:
        (error,) = report["errors"]
        assert error.startswith(f"rank 1: cannot save {tmp_path}/step_00000002: File too large: ")
        assert "p.00001.safetensors" in error
        assert report["left"] == ["step_00000001"]
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_what_is_wrong_on_one_rank_is_told_on_all_and_they_stay_together(run: Run, tmp_path: Path) -> None:
    for report in run("refused_on_one", 2, tmp_path):
        refused, steps, shapes, parts, kinds, alone = report["errors"]
        assert refused == "rank 1: p: v: a builtins.set cannot be stored; a state holds " + refused.split("holds ")[1]
        assert steps == "rank 0: the ranks save different steps: [1, 2]"
        assert "p/v is torch.float32 (2,) on rank 0 and torch.float32 (3,) on rank 1" in shapes
        assert "rank 0 has no q/v, another rank has" in parts
        assert "the ranks do not hold pieces of the same state" in kinds
        assert "give the group of all ranks" in alone
    assert names(tmp_path) == ["step_00000009"]


def test_damage_in_the_file_of_one_rank_is_named_on_all(run: Run, saved: dict[int, Path], tmp_path: Path) -> None:
    for name in names(saved[4] / "step_00000003"):
        file = saved[4] / "step_00000003" / name
        content = file.read_bytes()
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        reports = run("damaged", 4, saved[4]) if name.startswith(("model.00002", "rank-00001.own", "state")) else []
        bad: dict[Path, str] = {}
        with pytest.raises(Exception, match="is whole"):
            newest(saved[4], on_bad=bad.__setitem__)
        file.write_bytes(content)
        assert all(name in report["error"] for report in reports)
        assert name in bad[file.parent]
