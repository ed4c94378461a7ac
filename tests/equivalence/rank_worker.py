"""Trains every case for a few steps, in one process or as a rank of several, and writes what came out.

python rank_worker.py CASES.json OUT            (with the environment that torchrun makes, or without)
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fsdp_events import recorded, units_of

from wmtp import parts as parts_module
from wmtp.bench.ranks import state_bytes
from wmtp.config import load
from wmtp.distributed import World, joined, leave, local, release, whole
from wmtp.formats.streamed import fill, fill_rows
from wmtp.parts import Parts, build, sharding_of
from wmtp.prescoring import score_in
from wmtp.step import evaluate, train_step

STEPS = 3
streamed: list[str] = []
drawn: list[str] = []


def counted(model: Any, source: str, device: torch.device, new: Any) -> None:
    """`fill`, noted."""
    streamed.append(source)
    fill(model, source, device, new)


def counted_rows(model: Any, rows: Any, device: torch.device) -> None:
    """`fill_rows` of random weights, noted."""
    drawn.append(type(model).__name__)
    fill_rows(model, rows, device)


parts_module.fill = counted
parts_module.fill_rows = counted_rows


def main(cases_file: str, out: str) -> None:
    """All cases, one after another."""
    warnings.simplefilter("error")
    cases: dict[str, dict[str, Any]] = json.loads(Path(cases_file).read_text())
    with joined(torch.device("cpu"), timeout_s=60) as world:
        for name, case in cases.items():
            config = load([Path(case["recipe"])], case["overrides"])
            if config.distributed.strategy == "HYBRID_SHARD":  # as if there were hosts of two ranks each
                here = replace(world, local_size=min(2, world.size))
            else:
                here = world
            streamed.clear()
            drawn.clear()
            parts = build(config, here, sharding_of(config, here))
            result = train(parts, world)
            if name == "baseline-FULL_SHARD":
                result["units"] = units_of(parts.model)
                with recorded() as result["events"]:
                    train(parts, world)
            result["streamed"] = len(streamed)
            result["drawn"] = len(drawn)
            if world.leads:
                torch.save(result, Path(out) / f"{name}.pt")
        scored = next((case for name, case in cases.items() if name.startswith("stored")), None)
        if scored is not None:
            config = load([Path(scored["recipe"])], scored["overrides"])
            score_in(world, config, Path(out) / "scores", "float32", 512)


def train(parts: Parts, world: World) -> dict[str, Any]:
    """Metrics of every step and of an evaluation, the weights, and which rows this rank saw."""
    sizes = (parts.config.train.micro_batch_size, parts.config.train.micro_batch_tokens)
    share = {"rank": world.rank, "ranks": world.size}
    steps, rows = [], []
    for step in range(STEPS):
        batches = parts.data.train.at(step, *sizes, **share)
        rows.append([row for batch in batches for row in batch.row_B])
        parts.objective.begin(step + 1)
        result = train_step(
            parts.model, parts.optimizer, parts.objective, batches, reduce=world, precision=parts.precision
        )
        steps.append(result.metrics | {"grad_norm": result.grad_norm, "tokens": result.tokens})
    state = state_bytes(parts)
    validation = parts.data.validation
    assert validation is not None
    batches = (validation.at(n, *sizes, **share) for n in range(1))
    figures = evaluate(parts.model, parts.objective, batches, reduce=world, precision=parts.precision)
    release(parts.model)
    held = sum(local(p).numel() for p in parts.model.parameters())
    weights = {name: whole(p.detach()) for name, p in parts.model.named_parameters()}
    return {
        "steps": steps,
        "validation": figures,
        "weights": weights,
        "rows": rows,
        "memory": parts.objective.state_dict(),
        "held": held,
        "state_bytes": state,
    }


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        leave(1)
        raise
    leave(0)
