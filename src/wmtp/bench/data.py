"""Pairs drawn from a large records file through its index, beside reading the whole file.

    wmtp bench data --json data.json

`--records` records are written to a folder that is removed afterwards, and indexed once. Then, turn by turn, each in a
process of its own:

    json      `json.loads` of every line, kept in a list
    index     open the index, draw `--pairs` unique pairs (correct, incorrect) of one problem, read their records

Seconds, on the clock and of the CPU, are inside the process, after its imports and a garbage collection of what they
made; memory is its peak above what it had then. The file was just written, so both find it in the system's cache.
benchmarks/README.md in the repository says how to read the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmtp.bench import measuring
from wmtp.data.index import Index, build_index, default_folder
from wmtp.data.sampling import ORDER, Selection, generator

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
CPU = torch.device("cpu")
FIGURES = {"time_to_json": "seconds", "cpu_to_json": "cpu_seconds", "memory_to_json": "extra_bytes"}
CLAIMS = {"time_to_json": 1 / 20, "cpu_to_json": 1 / 20, "memory_to_json": 1 / 10}
RESPONSES = 8
"""Of each problem, half of them correct."""


def write_records(path: Path, count: int) -> None:
    """Records of different lengths, as programs have; the same for every run."""
    drawn = random.Random(0)
    lines = [f"    value_{i} = (value_{i // 2} * {i} + offset) % modulus" for i in range(30)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            problem = i // RESPONSES
            row = {
                "problem_id": f"problem-{problem}",
                "prompt": f"Write a function `solve_{problem}(offset, modulus)` that follows the recurrence below.",
                "response": "\n".join([f"def solve_{problem}(offset, modulus):", *lines[: drawn.randint(4, 30)]]),
                "is_correct": i % 2 == 0,
                "difficulty": problem % 6,
            }
            file.write(json.dumps(row) + "\n")


def read_all(path: Path, pairs: int) -> Any:
    """Every record of the file."""
    with path.open("rb") as file:
        return [json.loads(line) for line in file]


def read_pairs(path: Path, pairs: int) -> Any:
    """So many pairs in a random order, and their records."""
    with Index(path) as index:
        items = Selection(index.facts, "unique").items(0)
        drawn = items[generator(ORDER, 0, 0).permutation(len(items))[:pairs]]
        return list(index.read(np.sort(drawn.ravel())))


VARIANTS: dict[str, Callable[[Path, int], Any]] = {"json": read_all, "index": read_pairs}


def of_child(variant: str, path: Path, pairs: int) -> dict[str, Any]:
    """What one process measures."""
    clocks = {"seconds": measuring.CLOCKS["wall"], "cpu_seconds": measuring.CLOCKS["cpu"]}
    taken: dict[str, float] = {}

    def work() -> None:
        started = {name: clock() for name, clock in clocks.items()}
        found = VARIANTS[variant](path, pairs)
        taken.update({name: clock() - started[name] for name, clock in clocks.items()})
        if not found:
            raise AssertionError("nothing was read")

    gc.collect()  # going through what the imports made, torch's half a million objects, belongs to them
    return {"extra_bytes": measuring.growth(work, CPU), **taken}


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """The document that `--json` writes."""
    folder = Path(tempfile.mkdtemp(prefix="wmtp-bench-", dir=settings.folder))
    path = folder / "records.jsonl"
    machine = measuring.machine(CPU, "none")
    try:
        write_records(path, settings.records)
        index_seconds = measuring.seconds(lambda: build_index(path, default_folder(path)), CPU)
        sizes = path.stat().st_size, sum(file.stat().st_size for file in default_folder(path).iterdir())
        rounds = [
            {name: measuring.in_child("data", ["--child", name, str(path), str(settings.pairs)]) for name in VARIANTS}
            for _ in range(settings.repeat)
        ]
    finally:
        shutil.rmtree(folder)
    found = {name: {what: [one[name][what] for one in rounds] for what in FIGURES.values()} for name in VARIANTS}
    ratios = {name: measuring.ratio(found["index"][what], found["json"][what]) for name, what in FIGURES.items()}
    return {
        "benchmark": "data",
        "version": VERSION,
        "machine": machine,
        "settings": {"records": settings.records, "pairs": settings.pairs, "repeat": settings.repeat},
        "file_bytes": sizes[0],
        "index_bytes": sizes[1],
        "index_seconds": index_seconds,
        "cases": [
            {
                "variant": name,
                "seconds": values["seconds"],
                "cpu_seconds": values["cpu_seconds"],
                "median_seconds": statistics.median(values["seconds"]),
                "extra_bytes": max(values["extra_bytes"]),
            }
            for name, values in found.items()
        ],
        **ratios,
        "met": {name: (ratio := ratios[name]) is not None and ratio[0] <= most for name, most in CLAIMS.items()},
    }


def show(result: dict[str, Any]) -> None:
    """A table for people."""
    file, index = measuring.mebibytes(result["file_bytes"]), measuring.mebibytes(result["index_bytes"])
    print(f"file {file} MiB, index {index} MiB, made in {result['index_seconds']:.1f} s\n")
    lines: list[Sequence[str]] = [("variant", "seconds", "peak MiB")]
    for case in result["cases"]:
        lines.append((case["variant"], f"{case['median_seconds']:.3f}", measuring.mebibytes(case["extra_bytes"])))
    print(measuring.aligned(lines) + "\n")
    for name, most in CLAIMS.items():
        print(f"{name}: {_small(result[name])}, at most {most:.3f}: {'yes' if result['met'][name] else 'NO'}")


def _small(value: Sequence[float]) -> str:
    return f"{value[0]:.4f} ({value[1]:.4f}-{value[2]:.4f})"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = measuring.parser("data", __doc__)
    parser.add_argument("--records", type=measuring.positive, default=1_000_000)
    parser.add_argument("--pairs", type=measuring.positive, default=10_000)
    parser.add_argument("--folder", type=measuring.folder, metavar="FOLDER", help="default: temporary")
    parser.add_argument("--repeat", type=measuring.positive, default=3, help="rounds")
    parser.add_argument("--child", nargs=3, metavar=("VARIANT", "FILE", "PAIRS"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    settings = parse(arguments)
    if settings.child is not None:
        variant, path, pairs = settings.child
        print(json.dumps(of_child(variant, Path(path), int(pairs))))
        return 0
    measuring.tell(measure(settings), show, settings.json)
    return 0
