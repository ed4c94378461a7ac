"""Compare two runs: every metric that is not a time or a memory figure, and every weight of the final models.

    python scripts/compare_runs.py runs/a runs/b        exit 0: the same to the last bit; 1: not

What an interrupted and resumed run should be, beside an undisturbed one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

SKIPPED = ("time/", "mem/")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The journal without what cannot repeat."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(SKIPPED)} for line in lines]


def compare(one: Path, other: Path) -> bool:
    """Print what was compared; whether all of it is equal."""
    ours, theirs = metrics(one), metrics(other)
    values = sum(len(line) for line in ours)
    same = ours == theirs
    first = next((a for a, b in zip(ours, theirs, strict=False) if a != b), None)
    print(f"metrics: {len(ours)} lines, {values} values: {'equal' if same else f'different, first in {first}'}")
    train = [line for line in ours if line["split"] == "train"]
    for line in (train[0], train[-1]):
        print(f"nll at step {line['step']}: {line['loss/nll']:.4f}")
    for file in sorted((one / "final").glob("*.safetensors")):
        a, b = load_file(file), load_file(other / "final" / file.name)
        equal = a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
        print(f"final/{file.name}: {sum(t.numel() for t in a.values()):,} weights: {'equal' if equal else 'different'}")
        same = same and equal
    return same


if __name__ == "__main__":
    sys.exit(0 if compare(Path(sys.argv[1]), Path(sys.argv[2])) else 1)
