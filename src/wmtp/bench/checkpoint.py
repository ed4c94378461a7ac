"""How long training stands still for a checkpoint: saved in the background beside saved at once.

    wmtp bench checkpoint --json checkpoint.json

State: `--parameters` fp32 weights and AdamW's two moments of each, in tensors of 4M values, in the memory of
`--device`. Both variants write the same files, synced to the disk, into a folder that is removed afterwards.

    at_once       `wmtp.checkpoint.save`: until the checkpoint is on the disk
    background    `wmtp.checkpoint.Saver.save`: until the tensors may change again. The rest is waited for, untimed, so
                  that the next round begins with an idle disk

The stall is the ratio of the two within a round. What the writing thread takes from a busy CPU is not in it.
benchmarks/README.md in the repository says how to read the figures.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from wmtp.bench import measuring
from wmtp.checkpoint import Saver, State, save

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
VARIANTS = ("at_once", "background")
_TENSOR = 1 << 22
FACTS = {"benchmark": "checkpoint"}


def state_of(parameters: int, device: torch.device) -> dict[str, State]:
    """Weights and moments with so many parameters."""
    sizes = [_TENSOR] * (parameters // _TENSOR) + ([parameters % _TENSOR] if parameters % _TENSOR else [])
    generator = torch.Generator().manual_seed(0)
    model = {f"layers.{i}": torch.randn(size, generator=generator).to(device) for i, size in enumerate(sizes)}
    moments = {
        name: {"step": torch.tensor(1.0), "exp_avg": weight * 0.1, "exp_avg_sq": weight.square()}
        for name, weight in model.items()
    }
    return {"model": model, "optimizer": {"state": moments, "param_groups": [{"params": list(model), "lr": 1e-4}]}}


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """The document that `--json` writes."""
    parts = state_of(settings.parameters, settings.device)
    folder = Path(tempfile.mkdtemp(prefix="wmtp-bench-", dir=settings.folder))
    steps = itertools.count(1)
    try:
        with Saver(folder / "background", keep_last=1) as saver:
            runs: dict[str, Callable[[], object]] = {
                "at_once": lambda: save(folder / "at_once", next(steps), parts, FACTS, keep_last=1),
                "background": lambda: saver.save(next(steps), parts, FACTS),
            }
            seconds = measuring.interleaved(runs, settings.repeat, settings.device, lambda _: saver.wait())
        written = sum(file.stat().st_size for file in (folder / "background").rglob("*") if file.is_file())
    finally:
        shutil.rmtree(folder)
    return {
        "benchmark": "checkpoint",
        "version": VERSION,
        "machine": measuring.machine(settings.device, "float32"),
        "settings": {"parameters": settings.parameters, "repeat": settings.repeat},
        "checkpoint_bytes": written,
        "seconds": seconds,
        "median_seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "stall": measuring.ratio(seconds["background"], seconds["at_once"]),
    }


def show(result: dict[str, Any]) -> None:
    """A table for people."""
    print(f"{measuring.mebibytes(result['checkpoint_bytes'])} MiB a checkpoint\n")
    lines: list[Sequence[str]] = [("variant", "seconds until training goes on")]
    lines += [(name, f"{median:.3f}") for name, median in result["median_seconds"].items()]
    print(measuring.aligned(lines))
    print(f"\nstall, background to at_once: {measuring.spread(result['stall'])}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = measuring.parser("checkpoint", __doc__)
    parser.add_argument("--device", type=measuring.device, default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--parameters", type=measuring.positive, default=100_000_000, help="of 12 bytes each")
    parser.add_argument(
        "--folder", type=measuring.folder, metavar="FOLDER", help="on the disk to measure; default: temporary"
    )
    parser.add_argument("--repeat", type=measuring.positive, default=5, help="rounds after the warm-up")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    settings = parse(arguments)
    measuring.tell(measure(settings), show, settings.json)
    return 0
