"""The sandbox for generated programs: speed beside fresh interpreters, agreement with known solutions, endurance.

    python benchmarks/sandbox.py --data DATA --rounds 5 --agreement --soak 1000 --load --json sandbox.json

DATA holds `humaneval/HumanEval.jsonl.gz` and `mbpp/mbpp.jsonl`; without it the speed is that of a few small programs.
Speed: every isolation level that the machine has, and one fresh, unprotected `python -I -c` per program, take turns in
rounds, each with the same programs and as many at a time. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from wmtp.evaluation import FunctionTests, Job, Limits, Sandbox, Verdict

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
WITHOUT: dict[str, tuple[str, ...]] = {
    "level 3": (),
    "level 2": ("namespaces",),
    "level 1": ("namespaces", "Landlock"),
    "level 0": ("namespaces", "Landlock", "seccomp"),
}
FRESH = "fresh interpreter"
SMALL = {
    "add": ("def f(a, b):\n    return a + b", "assert f(2, 3) == 5"),
    "factors": ("def f(n):\n    return [p for p in range(2, n) if n % p == 0]", "assert f(12) == [2, 3, 4, 6]"),
    "words": ("import re\ndef f(s):\n    return re.findall(r'\\w+', s)", "assert f('a b') == ['a', 'b']"),
    "count": ("from collections import Counter\ndef f(s):\n    return dict(Counter(s))", "assert f('aa') == {'a': 2}"),
}  # fmt: skip
HOSTILE = {
    "computes without end": "def f(*a):\n    while True: pass",
    "forks": "import os\ndef f(*a):\n    while True: os.fork()",
    "takes all memory": "def f(*a):\n    kept = []\n    while True: kept.append(bytearray(2**24))",
    "exits": "import os\ndef f(*a): os._exit(0)",
    "starts threads": "from threading import Timer\ndef f(*a):\n    for _ in range(9): Timer(99, print).start()",
    "opens descriptors": "import os\ndef f(*a):\n    while True: os.pipe()",
    "writes files": "def f(*a):\n    for n in range(99): open(f'/tmp/wmtp-soak-{n}', 'w')",
    "crashes": "import ctypes\ndef f(*a): ctypes.string_at(8)",
    "opens sockets": "import socket\ndef f(*a): socket.socket()",
    "signals its parent": "import os\ndef f(*a): os.kill(os.getppid(), 9)",
    "returns too much": "def f(*a): return 'x' * 10**8",
    "leaves shared memory": "import ctypes\ndef f(*a): return ctypes.CDLL(None).shmget(0, 4096, 0o1600)",
    "is equal to everything": "class E:\n    def __eq__(self, o): return True\ndef f(*a): return E()",
}  # fmt: skip


# --- Data -------------------------------------------------------------------------------------------------------------


def humaneval(data: Path) -> list[Job]:
    """The canonical solutions; helpers that the tests use come from the prompt."""
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Job(
            row["prompt"] + row["canonical_solution"],
            FunctionTests([row["test"]], setup=row["prompt"], entry_point=row["entry_point"]),
            id=row["task_id"],
        )
        for row in rows
    ]


def mbpp(data: Path) -> list[Job]:
    """The reference solutions."""
    with open(data / "mbpp" / "mbpp.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Job(row["code"], FunctionTests(row["test_list"], setup=row["test_setup_code"]), id=f"MBPP/{row['task_id']}")
        for row in rows
    ]


def small() -> list[Job]:
    """A few programs of our own."""
    return [Job(source, FunctionTests([test]), id=name) for name, (source, test) in SMALL.items()]


def plain(job: Job) -> str:
    """Program and tests as one script, for an interpreter that protects nothing."""
    tests = job.tests
    assert isinstance(tests, FunctionTests)
    parts = [job.source, tests.setup if tests.entry_point is None else "", *tests.tests]
    if tests.entry_point is not None:
        parts.append(f"check({tests.entry_point})")
    return "\n".join(parts)


def spoiled(job: Job) -> Iterator[Job]:
    """The same tests with programs that cannot be right."""
    tree = ast.parse(job.source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [ast.Pass()]
    half = job.source[: len(job.source) // 2]
    for kind, source in (("empty", ""), ("broken", f"{half}\n)("), ("pass", ast.unparse(tree))):
        yield Job(source, job.tests, job.limits, id=(kind, job.id))


# --- Measurements -----------------------------------------------------------------------------------------------------


def throughput(jobs: Sequence[Job], rounds: int, workers: int) -> dict[str, Any]:
    """Programs per second of each variant, and its ratio to fresh interpreters, per round."""
    scripts = [plain(job) for job in jobs]

    def fresh() -> int:
        with ThreadPoolExecutor(workers) as pool:
            command = [sys.executable, "-I", "-c"]
            ends = pool.map(lambda text: subprocess.run([*command, text], stdin=-3, stdout=-3, stderr=-3), scripts)
            return sum(end.returncode == 0 for end in ends)

    with ExitStack() as stack:
        runs: dict[str, Callable[[], int]] = {FRESH: fresh}
        for name, without in WITHOUT.items():
            sandbox = stack.enter_context(Sandbox(workers=workers, without=without, limits=Limits(cpu_s=30)))
            if f"level {sandbox.isolation.level}" == name:
                runs[name] = partial(passing, sandbox, jobs)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                passed = run()
                if turn:  # the first round warms up
                    rates[name].append(len(jobs) / (time.perf_counter() - start))
                if passed != len(jobs):
                    raise SystemExit(f"{name}: {len(jobs) - passed} of {len(jobs)} programs failed that should pass")
    return {
        name: {"programs_per_s": values, "median": median(values), "to_fresh": spread(values, rates[FRESH])}
        for name, values in rates.items()
    }


def passing(sandbox: Sandbox, jobs: Sequence[Job]) -> int:
    """How many programs pass."""
    return sum(verdict.passed for _, verdict in sandbox.map(jobs))


def spread(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Median, lowest and highest of the ratios within rounds."""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    return [median(ratios), min(ratios), max(ratios)]


def agreement(jobs: Sequence[Job], workers: int, cpu_s: float) -> dict[str, Any]:
    """Known solutions must pass and spoiled ones fail; every exception is listed."""
    expected = [(job, True) for job in jobs] + [(bad, False) for job in jobs for bad in spoiled(job)]
    counts: Counter[str] = Counter()
    exceptions = []
    with Sandbox(workers=workers, limits=Limits(cpu_s=cpu_s)) as sandbox:
        verdicts = sandbox.map(job for job, _ in expected)
        for (job, passes), (_, verdict) in zip(expected, verdicts, strict=True):
            kind = "canonical" if passes else job.id[0]  # type: ignore[index]
            counts[f"{kind}: {verdict.status}, {verdict.trust}"] += 1
            if verdict.passed != passes or not verdict.decided or verdict.trust != "strong":
                exceptions.append(
                    {"id": job.id, "status": verdict.status, "reason": verdict.reason, "cpu_s": verdict.cpu_s}
                )
        isolation = sandbox.isolation.to_dict()
    return {"counts": dict(sorted(counts.items())), "exceptions": exceptions, "isolation": isolation}


def state() -> dict[str, Any]:
    """What hostile programs could leave behind."""
    return {
        "processes": len(zygotes()),
        "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")],
        "files": sorted(path.name for path in Path(tempfile.gettempdir()).glob("wmtp-s*")),
        "shared memory": Path("/proc/sysvipc/shm").read_text() if os.path.exists("/proc/sysvipc/shm") else "",
    }  # fmt: skip


def zygotes() -> list[str]:
    """Processes that are a zygote or come from one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"_jail.boot" in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue  # ended meanwhile
    return found


def soak(number: int, workers: int) -> dict[str, Any]:
    """Hostile programs, one after another; nothing may be left, and a right one must still pass at the end."""
    before = state()
    jobs = (Job(source, FunctionTests(["assert f(1) == 2"]), id=name) for name, source in cycle(HOSTILE.items()))
    counts: Counter[str] = Counter()
    limits = Limits(cpu_s=0.2, memory_bytes=2**28)
    with Sandbox(workers=workers, limits=limits) as sandbox:
        start = time.perf_counter()
        for job, verdict in sandbox.map(islice(jobs, number)):
            counts[f"{job.id}: {verdict.status}"] += 1
        seconds = time.perf_counter() - start
        alive = sandbox.run("def f(x): return 2", ["assert f(1) == 2"], Limits()).passed
    after = state()
    left = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
    return {
        "programs": number,
        "seconds": seconds,
        "statuses": dict(sorted(counts.items())),
        "left": left,
        "alive": alive,
    }


@contextmanager
def load(processes: int) -> Iterator[None]:
    """So many busy loops beside us."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def label_flips(jobs: Sequence[Job], workers: int, busy: int) -> dict[str, Any]:
    """The same programs judged on the machine as it is and beside busy loops."""
    mixed = [
        *jobs,
        *(bad for job in jobs[::4] for bad in spoiled(job)),
        Job(HOSTILE["computes without end"], "assert f(1)"),
    ]

    def labels() -> list[Verdict]:
        with Sandbox(workers=workers) as sandbox:
            return [verdict for _, verdict in sandbox.map(mixed)]

    quiet = labels()
    with load(busy):
        loaded = labels()
    pairs = list(zip(mixed, quiet, loaded, strict=True))
    flips = [[str(job.id), one.status, other.status] for job, one, other in pairs if one.status != other.status]
    return {
        "programs": len(mixed), "busy_loops": busy, "flips": flips,
        "wall_s": [sum(v.wall_s for v in quiet), sum(v.wall_s for v in loaded)],
        "cpu_s": [sum(v.cpu_s for v in quiet), sum(v.cpu_s for v in loaded)],
    }  # fmt: skip


# --- Report -----------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="folder with humaneval/ and mbpp/")
    parser.add_argument("--programs", type=int, default=80, help="of the speed measurement without --data (default 80)")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed measurement; 0 leaves it out (default 3)")
    parser.add_argument(
        "--workers", type=int, default=processors() + 1, help="programs at a time (default: processors + 1)"
    )
    parser.add_argument(
        "--agreement", action="store_true", help="judge all known solutions in --data, and spoiled ones"
    )
    parser.add_argument("--cpu-s", type=float, default=30.0, help="CPU limit of --agreement in seconds (default 30)")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="run N hostile programs")
    parser.add_argument("--load", action="store_true", help="compare verdicts with and without load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    if options.agreement and options.data is None:
        parser.error("--agreement needs --data")
    return options


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def show(text: str) -> None:
    """One line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the options ask for; 1 if something is not as it must be."""
    options = parse(arguments)
    speed_jobs = humaneval(options.data) if options.data else list(islice(cycle(small()), options.programs))
    report: dict[str, Any] = {
        "version": VERSION, "benchmark": "sandbox", "python": platform.python_version(), "system": platform.platform(),
        "workers": options.workers, "uid": os.geteuid(), "load": os.getloadavg(),
    }  # fmt: skip
    good = True
    if options.rounds:
        report["throughput"] = throughput(speed_jobs, options.rounds, options.workers)
        show(f"{len(speed_jobs)} programs, {options.workers} at a time       programs/s   to fresh interpreters")
        for name, row in report["throughput"].items():
            middle, low, high = row["to_fresh"]
            show(f"  {name:<32} {row['median']:9.1f}   {middle:.2f} ({low:.2f}-{high:.2f})")
    if options.agreement:
        jobs = humaneval(options.data) + mbpp(options.data)
        report["agreement"] = found = agreement(jobs, options.workers, options.cpu_s)
        show(f"agreement, {len(jobs)} tasks, isolation level {found['isolation']['level']}")
        for name, number in found["counts"].items():
            show(f"  {name:<32} {number:5}")
        for exception in found["exceptions"]:
            show(f"  exception: {exception}")
        good &= not found["exceptions"]
    if options.soak:
        report["soak"] = found = soak(options.soak, options.workers)
        show(
            f"soak: {found['programs']} hostile programs in {found['seconds']:.1f} s, "
            f"left behind: {found['left'] or 'nothing'}, still works: {found['alive']}"
        )
        for name, number in found["statuses"].items():
            show(f"  {name:<40} {number:5}")
        good &= not found["left"] and found["alive"] and not any(": passed" in name for name in found["statuses"])
    if options.load:
        report["load_test"] = found = label_flips(speed_jobs, options.workers, 4 * (os.cpu_count() or 1))
        show(
            f"load: {found['programs']} programs, without and with {found['busy_loops']} busy loops, "
            f"{len(found['flips'])} labels changed"
        )
        show(
            f"  CPU {found['cpu_s'][0]:.1f} and {found['cpu_s'][1]:.1f} s, "
            f"wall {found['wall_s'][0]:.1f} and {found['wall_s'][1]:.1f} s"
        )
        for flip in found["flips"]:
            show(f"  changed: {flip}")
        good &= not found["flips"]
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
