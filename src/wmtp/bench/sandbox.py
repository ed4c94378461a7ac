"""Programs judged in the sandbox beside one fresh, unprotected interpreter for each; and verdicts under load.

    wmtp bench sandbox --rounds 5 --json sandbox.json

Every isolation level that this machine has and the fresh interpreters (`python -I -c`, program and assertions as one
script, its exit believed) take turns in rounds, with the same right programs and as many at a time. A sandbox is new
in each round, so its start counts; what a program costs in CPU time, children and grader, is taken from the same runs.
Then right and wrong programs and an endless one are judged twice, on the machine as it is and beside busy loops.

Exit code 1 if a right program fails anywhere or a verdict depends on the load. benchmarks/README.md in the repository
says how to read the figures.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import Any

from wmtp.bench import measuring
from wmtp.data.records import Record
from wmtp.data.sources import read_records
from wmtp.errors import WmtpError
from wmtp.sandbox import Job, Limits, Sandbox
from wmtp.storage import resolve

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
WITHOUT: dict[str, tuple[str, ...]] = {
    "level 3": (),
    "level 2": ("namespaces",),
    "level 1": ("namespaces", "Landlock"),
    "level 0": ("namespaces", "Landlock", "seccomp"),
}
"""The mechanisms that are switched off for a level."""
FRESH = "fresh interpreter"
ENDLESS = Job("def f(x):\n    while True: pass", ["assert f(1)"], Limits(cpu_s=1))
LOOPS_PER_CORE = 4
LIMITS = Limits(cpu_s=20)
"""One reference solution of MBPP takes more than 5 s."""


def job(record: Record) -> Job:
    """For the sandbox."""
    return Job(record.response, record.tests, LIMITS)


def script(record: Record) -> str:
    """For an interpreter that protects nothing."""
    return "\n".join([record.response, *record.tests])


# Speed.


def in_sandbox(records: Sequence[Record], workers: int, without: tuple[str, ...]) -> int:
    """How many programs pass in a new sandbox."""
    with Sandbox(workers=workers, without=without) as sandbox:
        return sum(verdict.passed for _, verdict in sandbox.map(job(record) for record in records))


def in_fresh_interpreters(records: Sequence[Record], workers: int) -> int:
    """How many programs end well, each in an interpreter of its own."""

    def passes(record: Record) -> bool:
        command = [sys.executable, "-I", "-c", script(record)]
        return subprocess.run(command, stdin=-3, stdout=-3, stderr=-3, check=False).returncode == 0

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(passes, records))


def levels(wanted: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Those of `wanted` that this machine has."""
    for name, without in wanted.items():
        with Sandbox(workers=1, without=without) as sandbox:
            if f"level {sandbox.isolation.level}" == name:
                yield name, without


def cpu_seconds() -> float:
    """Of this process and of all that came from it and has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def speed(records: Sequence[Record], rounds: int, workers: int) -> list[dict[str, Any]]:
    """One case per variant.

    Raises:
        WmtpError: a right program failed.
    """
    cpu_s: dict[str, list[float]] = {}

    def counted(name: str, run: Callable[[], int]) -> None:
        before = cpu_seconds()
        if (passed := run()) != len(records):
            raise WmtpError(f"{name}: {len(records) - passed} of {len(records)} right programs failed")
        cpu_s.setdefault(name, []).append(cpu_seconds() - before)

    runs: dict[str, Callable[[], int]] = {
        FRESH: partial(in_fresh_interpreters, records, workers),
        **{name: partial(in_sandbox, records, workers, without) for name, without in levels(WITHOUT)},
    }
    taken = measuring.interleaved(
        {name: partial(counted, name, run) for name, run in runs.items()}, rounds, measuring.device("cpu")
    )
    return [
        {
            "variant": name,
            "seconds": seconds,
            "programs_per_s": len(records) / median(seconds),
            "to_fresh": measuring.ratio(taken[FRESH], seconds),
            "cpu_ms": 1000 * median(cpu_s[name]) / len(records),
        }
        for name, seconds in taken.items()
    ]


# Load.


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many endless computations beside us."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for loop in running:
            loop.kill()
            loop.wait()


def under_load(records: Sequence[Record], workers: int, loops: int) -> dict[str, Any]:
    """The verdicts as it is, beside busy loops, and where they differ."""

    def statuses() -> list[str]:
        jobs = [*(job(record) for record in records), ENDLESS]
        with Sandbox(workers=workers) as sandbox:
            return [verdict.status for _, verdict in sandbox.map(jobs)]

    quiet = statuses()
    with busy(loops):
        loaded = statuses()
    flips = [[at, *pair] for at, pair in enumerate(zip(quiet, loaded, strict=True)) if pair[0] != pair[1]]
    pairs = zip(records, quiet[:-1], strict=True)
    return {
        "programs": len(quiet),
        "busy_loops": loops,
        "statuses": {status: quiet.count(status) for status in sorted(set(quiet))},
        "flips": flips,
        "unlike_labels": sum((status == "passed") != record.is_correct for record, status in pairs),
    }


# Report.


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    records, _ = read_records(resolve(options.data))
    records = [record for record in records if record.tests and record.is_correct is not None]
    right = [record for record in records if record.is_correct]
    if not right:
        raise WmtpError(f"{options.data} holds no program that is right and has tests; give other --data")
    with Sandbox(workers=1) as sandbox:
        isolation = sandbox.isolation.to_dict()
    return {
        "version": VERSION,
        "benchmark": "sandbox",
        "machine": measuring.machine(measuring.device("cpu"), "float32"),
        "settings": {name: getattr(options, name) for name in ("data", "programs", "rounds", "workers")},
        "isolation": isolation,
        "cases": speed(list(islice(cycle(right), options.programs)), options.rounds, options.workers),
        "load": under_load(records[: options.programs], options.workers, LOOPS_PER_CORE * (os.cpu_count() or 1)),
    }


def show(document: dict[str, Any]) -> None:
    """The tables."""
    load = document["load"]
    lines = [("", "programs/s", "times fresh", "CPU ms per program")]
    for case in document["cases"]:
        figures = f"{case['programs_per_s']:.0f}", measuring.spread(case["to_fresh"]), f"{case['cpu_ms']:.1f}"
        lines.append((case["variant"], *figures))
    print(measuring.aligned(lines))
    print(f"\n{load['programs']} verdicts, as it is and beside {load['busy_loops']} busy loops:")
    print(f"{len(load['flips'])} differ; {load['unlike_labels']} are not the data's labels; {load['statuses']}")
    for at, quiet, loaded in load["flips"]:
        print(f"program {at}: {quiet}, then {loaded}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = measuring.parser("sandbox", __doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    train = "embedded://problems_train.jsonl"
    parser.add_argument("--data", default=train, help=f"records or mbpp.jsonl, with tests (default: {train})")
    parser.add_argument("--programs", type=measuring.positive, default=400, help="of a round (default: 400)")
    parser.add_argument("--rounds", type=measuring.positive, default=3, help="beside a warm-up (default: 3)")
    parser.add_argument(
        "--workers", type=measuring.positive, default=cores + 1, help=f"programs at a time (default: {cores + 1})"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; 1 if a verdict depends on the load."""
    options = parse(arguments)
    document = measure(options)
    measuring.tell(document, show, options.json)
    return 1 if document["load"]["flips"] else 0
