"""Measurements beside peers: `wmtp bench`. benchmarks/README.md in the repository says how to read them.

Nothing is imported before a benchmark runs, so that the command line can list them at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

BENCHMARKS = {
    "loss": "Time and memory of the weighted multi-token loss beside other ways to compute it.",
    "step": "The whole optimiser step beside a plain transformers loop with the same heads.",
    "backends": "The loss on every device of this machine, in one table.",
    "checkpoint": "How long training stands still for a checkpoint, in the background and at once.",
    "data": "Pairs drawn from a large file through its index, beside reading the whole file.",
    "decoding": "Decoding with the heads beside plain decoding and transformers' own ways.",
    "packing": "Micro-batches by token budget beside packed rows and padded ones.",
    "ranks": "Memory of a rank, predicted and measured; time of every strategy beside plain replicated training.",
    "sandbox": "Programs per second in the sandbox beside fresh interpreters, and verdicts under load.",
    "scores": "Steps that read stored scores beside the baseline's; scoring beside bare forward passes.",
    "storage": "Weights out of an object store beside the bare download of the same bytes and beside the whole object.",
    "tracking": "Steps of a tracked run, whatever becomes of the server, beside those of one that is not tracked.",
    "faults": "A supervised training that is killed again and again, beside one that is not.",
}
"""Every benchmark: the module of this package, and what it measures."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Run one of `BENCHMARKS`; its exit code.

    Raises:
        SystemExit: 2 where the arguments are wrong, after a message on stderr; 0 after `--help`.
        WmtpError: the work failed.
    """
    return int(import_module(f"{__name__}.{name}").main(arguments))
