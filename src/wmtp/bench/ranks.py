"""Memory of a rank, predicted and measured; time of every strategy beside plain replicated training.

    wmtp bench ranks --ranks 2 4 --json ranks.json
    wmtp bench ranks --table

A random Llama with two heads is trained for a few steps by as many gloo processes, as `wmtp train` would, on rows that
are all `--length` tokens long. Memory: a job of its own for every strategy; the peak resident size of each rank above
what it had when it had imported everything and joined the others. The prediction is that of `wmtp train --dry-run
--ranks N`.

Time: one job holds the model once per strategy and once plainly replicated (`replicated`: backward pass, then one
all-reduce per gradient; written here, used nowhere else), and all take turns, step by step.

`--table` measures nothing: it prints what a rank needs at Llama-2-7B's shape with 4 heads on 4 GPUs, for every arm of
the recipes. benchmarks/README.md in the repository says how to read the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import nn

from wmtp import devices
from wmtp.bench import measuring, ranks_table
from wmtp.config import Config
from wmtp.data.batches import Batch
from wmtp.distributed import World, joined, local
from wmtp.errors import WmtpError
from wmtp.estimate import STRATEGIES, RankNeeds, estimate
from wmtp.memory import total
from wmtp.metrics import Meter
from wmtp.parts import Parts, build, sharding_of
from wmtp.step import train_step

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
    "12M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4},
    "37M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "112M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 13, "num_attention_heads": 12},
}
"""Llamas by their rough number of parameters, heads included."""
VOCABULARY = 8192
HEADS = 2
STEPS = 3
"""Of a memory run: the optimiser's moments are there from the second on."""
PLAIN = "replicated"


def config_of(size: str, strategy: str, ranks: int, settings: argparse.Namespace) -> Config:
    """The config of a run; the batch grows with the ranks, so that each does the same work."""
    rows = settings.rows * settings.micro_batches
    return Config.model_validate(
        {
            "device": "cpu",
            "precision": settings.precision,
            "num_threads": 1,
            "model": {
                "architecture": {
                    "model_type": "llama",
                    **SIZES[size],
                    "vocab_size": VOCABULARY,
                    "max_position_embeddings": 1024,
                    "bos_token_id": 0,
                    "eos_token_id": 1,
                    "pad_token_id": 2,
                },
                "tokenizer": "embedded://tiny-llama",
                "heads": {"num_heads": HEADS},
            },
            "data": {"train": {"path": settings.data}, "max_length": settings.length},
            "distributed": {"strategy": strategy, "cpu_offload": settings.cpu_offload},
            "train": {
                "steps": STEPS,
                "batch_size": rows * ranks,
                "micro_batch_size": settings.rows,
                "activation_checkpointing": settings.activation_checkpointing,
            },
        }
    )


# As one rank of several


def hosts(world: World, strategy: str) -> World:
    """HYBRID_SHARD takes the ranks for two hosts with half of them each."""
    return replace(world, local_size=world.size // 2) if strategy == "HYBRID_SHARD" else world


def as_rank(job: dict[str, Any]) -> None:
    """One rank of a job; writes its figures."""
    settings = argparse.Namespace(**job["settings"])
    with joined(torch.device("cpu"), timeout_s=600) as world:
        find = rank_memory if job["kind"] == "memory" else rank_times
        found = world.together(lambda: find(job, settings, world))
        (Path(job["folder"]) / f"rank_{world.rank}.json").write_text(json.dumps(found))


def rank_memory(job: dict[str, Any], settings: argparse.Namespace, world: World) -> dict[str, Any]:
    """Peak of some steps above an empty process, and bytes of weights, gradients and optimiser, tensor by tensor."""
    device = torch.device("cpu")
    build(config_of("tiny", "NO_SHARD", 1, settings))  # imports what a model needs
    gc.collect()
    before = devices.resident_memory() or 0
    config = config_of(job["size"], job["strategy"], world.size, settings)
    here = hosts(world, job["strategy"])
    parts = build(config, here, sharding_of(config, here))
    steps = [batches_of(parts, number, world) for number in range(STEPS)]
    for number, batches in enumerate(steps):
        if number == 1:
            devices.reset_peak_memory(device)
        train_step(parts.model, parts.optimizer, parts.objective, batches, reduce=world, precision=parts.precision)
    return {"before": before, "peak": devices.peak_memory(device) - before, "state": state_bytes(parts)}


def state_bytes(parts: Parts) -> int:
    """Weights, gradients and moments that this rank holds, counted from the tensors."""
    held: list[torch.Tensor] = []
    for parameter in parts.model.parameters():
        moments = parts.optimizer.state.get(parameter, {})
        held += [parameter.detach(), *(moments[name] for name in ("exp_avg", "exp_avg_sq") if name in moments)]
        held += [] if parameter.grad is None else [parameter.grad]
    return sum(local(tensor).numel() * tensor.element_size() for tensor in held)


def batches_of(parts: Parts, number: int, world: World) -> list[Batch]:
    """This rank's micro-batches of a step."""
    train = parts.config.train
    return parts.data.train.at(number, train.micro_batch_size, None, rank=world.rank, ranks=world.size)


class Replicated:
    """An objective whose gradients are added up over ranks after the last backward pass of a step, one by one."""

    def __init__(self, objective: Any, world: World) -> None:
        self.objective, self.world = objective, world

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def backward(self, model: nn.Module, *arguments: Any, last: bool = True) -> Meter:
        """As the objective's own, then the all-reduces."""
        meter: Meter = self.objective.backward(model, *arguments, last=last)
        if last and self.world.size > 1:
            works = [dist.all_reduce(p.grad, async_op=True) for p in model.parameters() if p.grad is not None]
            for work in works:
                work.wait()
        return meter


def rank_times(job: dict[str, Any], settings: argparse.Namespace, world: World) -> dict[str, list[float]]:
    """Seconds of a step per strategy, taking turns."""
    runs = {}
    for strategy in (PLAIN, *job["strategies"]):
        config = config_of(job["size"], "NO_SHARD" if strategy == PLAIN else strategy, world.size, settings)
        here = hosts(world, strategy)
        parts = build(config, here, None if strategy == PLAIN else sharding_of(config, here))
        batches = batches_of(parts, 0, world)
        objective = Replicated(parts.objective, world) if strategy == PLAIN else parts.objective
        runs[strategy] = lambda p=parts, o=objective, b=batches: train_step(
            p.model, p.optimizer, o, b, reduce=world, precision=p.precision
        )
    return measuring.interleaved(runs, settings.repeat, torch.device("cpu"), lambda _: dist.barrier())


# The jobs


def launch(kind: str, size: str, ranks: int, settings: argparse.Namespace, **more: Any) -> list[dict[str, Any]]:
    """What every rank of a job found.

    Raises:
        WmtpError: the job failed.
    """
    kept = ("data", "rows", "length", "micro_batches", "precision", "cpu_offload", "activation_checkpointing", "repeat")
    with tempfile.TemporaryDirectory(prefix="wmtp-ranks-") as folder:
        job = {
            "kind": kind,
            "size": size,
            "folder": folder,
            "settings": {k: getattr(settings, k) for k in kept},
            **more,
        }
        worker = measuring.command("ranks", ["--job", json.dumps(job)])
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
        command = [sys.executable, *torchrun, *worker] if ranks > 1 else worker
        environment = os.environ | measuring.MALLOC | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WmtpError(f"the job {json.dumps(job)} failed:\n{done.stderr[-4000:]}")
        return [json.loads((Path(folder) / f"rank_{rank}.json").read_text()) for rank in range(ranks)]


def predicted(size: str, strategy: str, ranks: int, settings: argparse.Namespace) -> RankNeeds:
    """What `--dry-run` says of a rank; for HYBRID_SHARD of one of the two hosts that share the ranks."""
    config = config_of(size, strategy, ranks, settings)
    parts = build(config, weights=False)
    on_host = ranks // 2 if strategy == "HYBRID_SHARD" else ranks
    if on_host != ranks:
        config = config_of(size, strategy, on_host, settings)
        parts = build(config, weights=False)
    needs = estimate(parts, on_host).needs
    return next(found for found in needs if found.strategy == strategy or ranks == 1)


def memory_case(size: str, strategy: str, ranks: int, settings: argparse.Namespace) -> dict[str, Any]:
    """One line of the memory table: the rank that needed most."""
    expected = predicted(size, strategy, ranks, settings)
    found = launch("memory", size, ranks, settings, strategy=strategy)
    peak, state = max(rank["peak"] for rank in found), max(rank["state"] for rank in found)
    return {
        "size": size,
        "ranks": ranks,
        "strategy": strategy if ranks > 1 else "one process",
        "predicted_bytes": total(expected.bytes),
        "predicted_parts": expected.bytes,
        "measured_bytes": peak,
        "ratio": total(expected.bytes) / peak,
        "process_bytes": max(rank["before"] for rank in found),
        "predicted_state_bytes": expected.state_bytes,
        "state_bytes": state,
    }


def time_case(size: str, ranks: int, settings: argparse.Namespace) -> dict[str, Any]:
    """One line of the time table per strategy: the slowest rank's."""
    strategies = possible(settings.strategies, ranks)
    found = launch("time", size, ranks, settings, strategies=strategies)
    seconds = {name: [max(each) for each in zip(*(rank[name] for rank in found), strict=True)] for name in found[0]}
    return {
        "size": size,
        "ranks": ranks,
        "seconds": seconds,
        "median_seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "to_replicated": {name: measuring.ratio(taken, seconds[PLAIN]) for name, taken in seconds.items()},
    }


def possible(strategies: Sequence[str], ranks: int) -> list[str]:
    """Those that so many ranks can have: hosts of two are the least that HYBRID_SHARD shards on."""
    return [name for name in strategies if name != "HYBRID_SHARD" or ranks >= 4]


def write_rows(file: Path, length: int) -> str:
    """Rows that are cut to `length` tokens; the file's path."""
    words = " ".join(str(number) for number in range(length))
    file.write_text("".join(json.dumps({"prompt": f"{row}", "response": words}) + "\n" for row in range(256)))
    return str(file)


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """The document that `--json` writes."""
    with tempfile.TemporaryDirectory(prefix="wmtp-ranks-") as folder:
        settings.data = write_rows(Path(folder) / "rows.jsonl", settings.length)
        return _measure(settings)


def _measure(settings: argparse.Namespace) -> dict[str, Any]:
    memory = []
    if settings.memory:
        for size in settings.sizes:
            for ranks in settings.ranks:
                for strategy in possible(settings.strategies, ranks) if ranks > 1 else ["NO_SHARD"]:
                    memory.append(memory_case(size, strategy, ranks, settings))
                    print(_memory_line(memory[-1]), file=sys.stderr, flush=True)
    several = [ranks for ranks in settings.ranks if ranks > 1]
    times = [time_case(size, ranks, settings) for size in settings.sizes for ranks in several if settings.repeat]
    kept = ("sizes", "ranks", "rows", "length", "micro_batches", "precision", "repeat")
    return {
        "version": VERSION,
        "benchmark": "ranks",
        "machine": measuring.machine(torch.device("cpu"), settings.precision),
        "settings": {name: getattr(settings, name) for name in kept},
        "memory_cases": memory,
        "time_cases": times,
    }


MEMORY_COLUMNS = ("size", "ranks", "strategy", "predicted MiB", "measured MiB", "ratio", "state MiB", "state to one")


def _memory_line(case: dict[str, Any]) -> str:
    figures = (measuring.mebibytes(case[name]) for name in ("predicted_bytes", "measured_bytes"))
    return f"{case['size']} {case['ranks']} {case['strategy']}: {' predicted, '.join(figures)} MiB measured"


def show(result: dict[str, Any]) -> None:
    """Tables for people."""
    whole = {case["size"]: case["predicted_state_bytes"] for case in result["memory_cases"] if case["ranks"] == 1}
    lines: list[Sequence[str]] = [MEMORY_COLUMNS]
    for case in result["memory_cases"]:
        of_one = case["state_bytes"] / whole[case["size"]] if case["size"] in whole else None
        lines.append(
            (
                case["size"],
                str(case["ranks"]),
                case["strategy"],
                measuring.mebibytes(case["predicted_bytes"]),
                measuring.mebibytes(case["measured_bytes"]),
                f"{case['ratio']:.3f}",
                measuring.mebibytes(case["state_bytes"]),
                "-" if of_one is None else f"{of_one:.3f}",
            )
        )
    if len(lines) > 1:
        print(measuring.aligned(lines) + "\n")
    lines = [("size", "ranks", "variant", "seconds", f"time to {PLAIN}")]
    for case in result["time_cases"]:
        for name, median in case["median_seconds"].items():
            spread = measuring.spread(case["to_replicated"][name])
            lines.append((case["size"], str(case["ranks"]), name, f"{median:.3f}", spread))
    if len(lines) > 1:
        print(measuring.aligned(lines))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = measuring.parser("ranks", __doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["12M", "37M", "112M"])
    parser.add_argument("--ranks", nargs="+", type=measuring.positive, default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--rows", type=measuring.positive, default=2, help="of a rank's micro-batch (default: 2)")
    parser.add_argument("--length", type=measuring.positive, default=64, help="of the rows, in tokens (default: 64)")
    parser.add_argument("--micro-batches", type=measuring.positive, default=1, help="of a rank in a step (default: 1)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--cpu-offload", action="store_true", help="distributed.cpu_offload")
    parser.add_argument("--activation-checkpointing", action="store_true", help="train.activation_checkpointing")
    parser.add_argument("--repeat", type=measuring.count, default=5, help="rounds of the times; 0: memory only")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="times only")
    parser.add_argument("--table", action="store_true", help="print what 6.7B parameters need on 4 GPUs, and end")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    settings = parse(arguments)
    transformers.logging.set_verbosity_error()  # rows are longer than the small tokenizer likes
    if settings.job is not None:
        as_rank(settings.job)
        return 0
    if settings.table:
        lines = ranks_table.table()
        ranks_table.show(lines)
        measuring.write({"version": VERSION, "benchmark": "ranks", "table": lines}, settings.json)
        return 0
    measuring.tell(measure(settings), show, settings.json)
    return 0
