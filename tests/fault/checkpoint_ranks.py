"""A rank of `test_checkpoint_ranks.py`: writes what it found to `<out>/<rank>.json`.

python checkpoint_ranks.py SCENARIO FOLDER OUT ARGUMENTS            (ARGUMENTS is JSON; RANK and WORLD_SIZE are set)
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from wmtp.checkpoint import Saver, load, save, saving
from wmtp.checkpoint import folder as checkpoint_folder
from wmtp.errors import CheckpointError
from wmtp.storage import Place, place, write_atomic

Report = dict[str, Any]


class Net(torch.nn.Module):
    """Tied, partly frozen, with sizes that do not divide by the number of ranks, and one smaller than it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(11, 6)
        self.body = torch.nn.Linear(6, 3)
        self.frozen = torch.nn.Linear(3, 5).requires_grad_(False)
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.tensor(seed))


def build(seed: int, ranks: int) -> tuple[Net, torch.optim.Optimizer]:
    model = Net(seed)
    if ranks > 1:
        mesh = init_device_mesh("cpu", (ranks,))
        fully_shard(model.body, mesh=mesh)
        fully_shard(model, mesh=mesh)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": trained[:1], "lr": 0.05}, {"params": trained[1:]}]
    return model, torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95))


def train(model: Net, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Elementwise, so that every number of ranks computes the same bits."""
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = parameter.detach() * 0.5 + 0.1
        optimizer.step()


def parts_of(model: Net, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "objective": {"mean": torch.tensor(0.25), "seen": 7},
        "progress": {"step": 3, "best": float("inf"), "rows": (1, None, "x")},
    }


def whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def expected(steps: int) -> dict[str, Any]:
    """The state of one process that never used more."""
    model, optimizer = build(1, 1)
    train(model, optimizer, steps)
    return parts_of(model, optimizer)


# Scenarios: (folder, rank, ranks, group) -> report


def save_sharded(folder: Place, rank: int, ranks: int, group: Any) -> Report:
    model, optimizer = build(1, ranks)
    train(model, optimizer, 3)
    own = {"random": {"cpu": torch.full((4,), rank), "rank": rank}}
    with Saver(folder, group=group) as saver:
        path = saver.save(3, parts_of(model, optimizer), {"run": "r"}, per_rank=own)
        train(model, optimizer, 1)  # the snapshot does not see it
    return {"path": path.name, "files": sorted(file.name for file in path.iterdir())}


def load_sharded(folder: Place, rank: int, ranks: int, group: Any) -> Report:
    model, optimizer = build(2, ranks)
    templates = {**parts_of(model, optimizer), "objective": None, "progress": None}
    found = load(folder / "step_00000003", templates, group=group)
    set_model_state_dict(model, found.parts["model"])
    set_optimizer_state_dict(model, optimizer, found.parts["optimizer"])
    report = {"restored": same(whole(parts_of(model, optimizer)), expected(3)), "ranks": found.ranks}
    plain = expected(0)
    report["plain"] = all(same(found.parts[name], plain[name]) for name in ("objective", "progress"))
    train(model, optimizer, 2)
    report["continued"] = same(whole(parts_of(model, optimizer)), expected(5))
    own = found.per_rank
    report["own"] = None if own is None else [own["random"]["rank"], own["random"]["cpu"].tolist()]
    return report


def load_whole(folder: Path, rank: int, ranks: int, group: Any) -> Report:
    found = load(folder / "step_00000003", ["model"], group=group).parts["model"]
    plain = all(type(tensor) is torch.Tensor for tensor in found.values())
    tied = found["embed.weight"] is found["head.weight"]
    return {"same": same(found, expected(3)["model"]), "plain": plain, "tied": tied}


def killed_in_mid_save(victim: int, folder: Place, rank: int, ranks: int, group: Any) -> Report:
    """One rank dies in the middle of writing step 2."""
    mesh = init_device_mesh("cpu", (ranks,))
    state = {"p": {"v": distribute_tensor(torch.arange(100_000.0), mesh, [Shard(0)])}}
    save(folder, 1, state, {}, group=group)
    original = saving.write_tensors

    def write(path: Place, contents: Any) -> tuple[int, str]:
        if rank == victim:
            write_atomic(path, b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, contents)

    saving.write_tensors = write
    saver = Saver(folder, group=group)
    saver.save(2, state, {})
    try:
        saver.close()
    except CheckpointError as error:
        return {"error": str(error)}
    return {}


def disk_full_on_one(folder: Path, rank: int, ranks: int, group: Any) -> Report:
    """Rank 1 may only write small files; step 2 does not fit, step 3 does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    mesh = init_device_mesh("cpu", (ranks,))

    def state(size: int) -> dict[str, Any]:
        return {"p": {"v": distribute_tensor(torch.ones(size), mesh, [Shard(0)])}}

    report: Report = {"errors": []}
    with Saver(folder, group=group) as saver:
        saver.save(1, state(100), {})
        saver.wait()
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        saver.save(2, state(1_000_000), {})
        try:
            saver.wait()
        except CheckpointError as error:
            report["errors"].append(str(error))
        dist.barrier(group)
        report["left"] = sorted(os.listdir(folder))
        dist.barrier(group)
        saver.save(3, state(100), {})
    return report


def refused_on_one(folder: Path, rank: int, ranks: int, group: Any) -> Report:
    """Each of these is wrong on one rank; all hear of it, and the ranks stay together."""
    errors = []
    mesh = init_device_mesh("cpu", (ranks,))
    sharded = distribute_tensor(torch.ones(8), mesh, [Shard(0)])
    attempts: list[Callable[[], tuple[int, dict[str, Any]]]] = [
        lambda: (1, {"p": {"v": {1} if rank == 1 else 1}}),
        lambda: (1 + rank, {"p": {"v": 1}}),
        lambda: (1, {"p": {"v": torch.ones(2 + rank)}}),
        lambda: (1, {"p": {}, **({"q": {"v": torch.ones(1)}} if rank == 1 else {})}),
        lambda: (1, {"p": {"v": torch.ones(8) if rank == 1 else sharded}}),
    ]
    with Saver(folder, group=group) as saver:
        for attempt in attempts:
            step, parts = attempt()
            saver.save(step, parts, {})
            try:
                saver.wait()
            except CheckpointError as error:
                errors.append(str(error))
        saver.save(9, {"p": {"v": 1}}, {}, wait=True)
    try:
        save(folder / "alone", 1, {"p": {"v": sharded}}, {})
    except CheckpointError as error:
        errors.append(str(error))
    return {"errors": errors, "left": sorted(path.name for path in folder.iterdir())}


def damaged(folder: Path, rank: int, ranks: int, group: Any) -> Report:
    try:
        load(folder / "step_00000003", group=group)
    except CheckpointError as error:
        return {"error": str(error)}
    return {}


def in_a_mesh(folder: Path, rank: int, ranks: int, group: Any) -> Report:
    """Sharded both ways, and sharded within replicas; loaded with other layouts."""
    data = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    mesh = init_device_mesh("cpu", (2, 2))
    grid = distribute_tensor(data, mesh, [Shard(0), Shard(1)])
    hybrid = distribute_tensor(data, mesh, [Replicate(), Shard(0)])
    scalar = torch.tensor(3.0)
    save(folder, 1, {"p": {"grid": grid, "hybrid": hybrid, "scalar": scalar}}, {}, group=group)
    flat = init_device_mesh("cpu", (4,))
    template = {
        "grid": distribute_tensor(torch.zeros(6, 10), flat, [Shard(1)]),
        "hybrid": distribute_tensor(torch.zeros(6, 10), mesh, [Shard(1), Shard(0)]),
        "scalar": torch.zeros(()),
    }
    found = load(folder / "step_00000001", {"p": template}, group=group).parts["p"]
    size = sum(file.stat().st_size for file in (folder / "step_00000001").glob("*.safetensors"))
    return {"same": same(whole(found), {"grid": data, "hybrid": data, "scalar": scalar}), "bytes": size}


def replicated(folder: Path, rank: int, ranks: int, group: Any) -> Report:
    """Plain tensors that every rank has; the disk has room for them once."""
    checkpoint_folder._space = lambda _: 3.5 * 2**20
    save(folder, 1, {"p": {"a": torch.ones(2**18), "b": torch.ones(2**18)}}, {}, group=group)
    return {"files": {file.name: file.stat().st_size for file in (folder / "step_00000001").glob("*.safetensors")}}


def snapshot(folder: Path, rank: int, ranks: int, group: Any) -> Report:
    """The optimiser steps while the writer is held up; the writer is let go only then."""
    gate, original = threading.Event(), saving.write_tensors

    def write(path: Path, contents: Any) -> tuple[int, str]:
        assert gate.wait(60)
        return original(path, contents)

    saving.write_tensors = write
    model, optimizer = build(1, ranks)
    train(model, optimizer, 3)
    with Saver(folder, group=group) as saver:
        saver.save(3, parts_of(model, optimizer), {})
        train(model, optimizer, 2)
        gate.set()
    found = load(folder / "step_00000003", group=group).parts
    return {"model": same(found["model"], expected(3)["model"]), "all": same(found, expected(3))}


# The machinery


def main(name: str, folder: str, out: Path, arguments: list[Any]) -> None:
    scenario: Any = globals()[name]
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    group, timeout = None, timedelta(seconds=60)
    if ranks > 1:
        dist.init_process_group("gloo", timeout=timeout)
        group = dist.new_group(backend="gloo", timeout=timeout)
    report = scenario(*arguments, place(folder), rank, ranks, group)
    (out / f"{rank}.json").write_text(json.dumps(report))
    if ranks > 1 and scenario is not killed_in_mid_save:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    sys.stderr.flush()
    os._exit(0)  # gloo's threads make an ordinary exit crash now and then
