"""Runs generated Python against tests, in processes that can do nothing else.

    with Sandbox(require="strong") as sandbox:
        verdict = sandbox.run("def add(a, b): return a + b", ["assert add(1, 2) == 3"])

A zygote is started once per worker: an interpreter of its own, with a clean environment, confined by whatever the
machine allows (see `Isolation.level`), and then forked for every program. Tests run in a second fork and reach the
program only by calls that carry plain data, so a program can neither see what is expected of it nor say that it
passed. No privilege is needed, no binary, no service. What is active is tried out on start-up, never assumed.

Where this differs from common harnesses: they run program and tests in one process and believe its exit; they judge
by the clock, so that a busy machine turns right programs into wrong ones; and they count a failure of their own as
one of the program. What it does not protect from are bugs of the kernel in the calls that stay allowed: for programs
written by an enemy rather than a model, run it inside a virtual machine.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from typing import get_args

from wmtp.errors import DataError, UsageError
from wmtp.sandbox._grade import Plain, Trial, grade, read
from wmtp.sandbox._pool import Pool
from wmtp.sandbox._start import Plan
from wmtp.sandbox._worker import Worker, WorkerLost
from wmtp.sandbox.verdict import (
    FunctionTests,
    Isolation,
    Job,
    Limits,
    Requirement,
    SandboxError,
    Tests,
    Verdict,
    as_tests,
    printable,
)

_AHEAD = 16
"""Jobs per worker that `map` reads ahead and keeps results of."""
_REMEMBERED = 4096
"""Sets of tests that are known to be data, or to be none."""
_LARGE = 2**17
"""Characters of tests that are not read together with others."""
_CONFINING = frozenset({"namespaces", "Landlock", "seccomp"})


class Sandbox:
    """A pool of confined interpreters; a context manager.

    Args:
        require: `strong` refuses to start where files and system calls cannot be confined (below level 2). `best`
            takes what the machine has and reports it. `none` confines nothing beyond limits, environment and a
            process of its own: for comparison, and for programs that are trusted.
        workers: Programs at a time; by default one more than the processors this process may use, since a program's
            processes hand over to one another. More changes no verdict, CPU time decides, but gains nothing.
        limits: For jobs that bring none.
        packages: Installed packages that programs may import beside the standard library, for example `numpy`;
            they are imported once, before any program.
        scratch_bytes: Size of a folder that a program may write to, its working folder, emptied after it. By default
            there is nothing it may write to. The size is enforced where there are namespaces; elsewhere only that of
            each file, by `Limits.file_bytes`.
        without: Mechanisms not to use: `namespaces`, `Landlock`, `seccomp`, `unprivileged user`.
        hash_seed: Python's, on which the order of sets depends: all programs have the same, so that a verdict is
            repeatable. Other seeds show whether it hangs on that order.

    Raises:
        SandboxError: the machine cannot give what is required; the message says what is missing and why.
        UsageError: an argument is wrong.
    """

    def __init__(
        self,
        *,
        require: Requirement = "best",
        workers: int | None = None,
        limits: Limits | None = None,
        packages: Sequence[str] = (),
        scratch_bytes: int = 0,
        without: Iterable[str] = (),
        hash_seed: int = 0,
    ) -> None:
        if require not in get_args(Requirement):
            raise UsageError(f"require must be one of {', '.join(get_args(Requirement))}, got {require!r}")
        count = _processors() + 1 if workers is None else workers
        if count < 1:
            raise UsageError(f"workers must be at least 1, got {workers}")
        self._require, self._limits = require, limits or Limits()
        self._as_data = _Remembered()
        skipped = frozenset(without) | (_CONFINING if require == "none" else frozenset())
        self._pool = Pool(Plan(skipped, tuple(packages), scratch_bytes, hash_seed), count)
        try:
            self.isolation = self._first()
        except BaseException:  # raised again: an interrupt too must leave no process behind
            self._pool.close()
            raise

    def _first(self) -> Isolation:
        """What the first zygote is worth; all others must be worth as much."""
        try:
            with self._pool.borrow() as started:
                self._check(started.isolation)
                return started.isolation
        except WorkerLost as error:
            raise SandboxError(f"the sandbox cannot be started: {error}") from error

    def _check(self, isolation: Isolation) -> None:
        if self._require == "strong" and not isolation.strong:
            missing = "; ".join(f"{name}: {reason}" for name, reason in isolation.missing.items())
            raise SandboxError(
                f"require='strong' needs isolation level 2 and this machine gives level {isolation.level}. "
                f"Missing: {missing}. Use Linux 5.13 or newer with Landlock and seccomp, or accept less with "
                "require='best'"
            )

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes and waits for them; runs in progress end with SandboxError."""
        self._pool.close()

    def run(self, source: str, tests: Tests | str | Sequence[str], limits: Limits | None = None) -> Verdict:
        """One program's verdict. Any number of threads may call this.

        Args:
            source: The program.
            tests: `FunctionTests`, `CallTests`, `StdinTests`; text or a list of texts is FunctionTests.
            limits: In place of the sandbox's own.

        Raises:
            DataError: there are no tests, or they cannot be carried to a process.
            SandboxError: the sandbox is closed, or a replaced zygote is weaker than is required.
        """
        if not isinstance(source, str):
            raise DataError(f"a program must be text, got {source!r:.60}")
        checked, limits = as_tests(tests), limits or self._limits
        trial, isolation = self._tried(source, checked, limits, alone=False)
        if trial.borderline:  # a timeout that the machine's load may have caused: alone, and that counts
            trial, isolation = self._tried(source, checked, limits, alone=True)
        return Verdict(trial.status, trial.reason, trial.trust, isolation, trial.cpu_s, trial.wall_s)

    def _tried(self, source: str, tests: Tests, limits: Limits, alone: bool) -> tuple[Trial, Isolation | None]:
        """A second time, with a new zygote, where the first failed through no fault of the program."""
        trial, isolation = Trial("sandbox_error"), None
        for _ in range(2):
            try:
                with self._pool.borrow(alone) as started:
                    isolation = started.isolation
                    self._check(isolation)
                    plain = self._read(started.worker, tests)
                    trial = grade(started.worker, source, tests, limits, plain)
                    if trial.status == "sandbox_error":
                        raise WorkerLost(trial.reason)
                    return trial, isolation
            except WorkerLost as error:
                if self._pool.closed:
                    raise SandboxError("the sandbox was closed during a run") from error
                trial = Trial("sandbox_error", printable(str(error)))
        return trial, isolation

    def _read(self, worker: Worker, tests: Tests) -> Plain | None:
        """The tests as data, if they can be that."""
        missing = self._as_data.missing([tests])
        if missing:
            self._as_data.put(missing, read(worker, missing))
        return self._as_data.get(tests)

    def _read_ahead(self, jobs: Sequence[Job]) -> None:
        """One process for the tests of many jobs. What goes wrong here goes wrong again where it is reported."""
        missing = self._as_data.missing(_short_code(jobs))
        if len(missing) > 1:
            with suppress(WorkerLost), self._pool.borrow() as started:
                self._as_data.put(missing, read(started.worker, missing))

    def map(self, jobs: Iterable[Job], *, ordered: bool = True) -> Iterator[tuple[Job, Verdict]]:
        """Each job with its verdict, in the order of the jobs or, with `ordered=False`, as they are done.

        Reads a bounded number of jobs ahead, so `jobs` may be endless.

        Raises:
            DataError, SandboxError: as `run`.
        """
        source, room = iter(jobs), self._pool.size * _AHEAD
        waiting: deque[tuple[Job, Future[Verdict]]] = deque()
        executor = ThreadPoolExecutor(self._pool.size, thread_name_prefix="wmtp-sandbox-map")
        try:
            while True:
                if len(waiting) <= room // 2:
                    ahead = list(islice(source, room - len(waiting)))
                    self._read_ahead(ahead)
                    waiting += [(job, executor.submit(self.run, job.source, job.tests, job.limits)) for job in ahead]
                if not waiting:
                    return
                if not ordered:
                    wait([future for _, future in waiting], return_when=FIRST_COMPLETED)
                    at = next(at for at, (_, future) in enumerate(waiting) if future.done())
                    waiting.rotate(-at)
                job, future = waiting.popleft()
                yield job, future.result()
        finally:
            executor.shutdown(cancel_futures=True)


def _short_code(jobs: Iterable[Job]) -> Iterator[FunctionTests]:
    """Those tests of jobs that are code and not too long; a fault in one is reported when its job is run."""
    for job in jobs:
        with suppress(DataError):
            tests = as_tests(job.tests)
            if isinstance(tests, FunctionTests) and sum(map(len, tests.tests)) <= _LARGE:
                yield tests


class _Remembered:
    """What tests that are code are as data, or that they are none, so that each set is read once.

    A data set's tests are put to many programs. As data they need one process and not two, and no parsing.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[FunctionTests, Plain | None] = OrderedDict()
        self._lock = threading.Lock()

    def missing(self, sets: Iterable[Tests]) -> list[FunctionTests]:
        """Those that have not been read and may be data, each once."""
        with self._lock:
            wanted = (one for one in sets if isinstance(one, FunctionTests) and not one.in_process)
            return list(dict.fromkeys(one for one in wanted if one not in self._known))

    def get(self, tests: Tests) -> Plain | None:
        with self._lock:
            return self._known.get(tests) if isinstance(tests, FunctionTests) else None

    def put(self, sets: Sequence[FunctionTests], read: Sequence[Plain | None]) -> None:
        with self._lock:
            self._known.update(zip(sets, read, strict=True))
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)


def run_program(
    source: str, tests: Tests | str | Sequence[str], limits: Limits | None = None, *, require: Requirement = "best"
) -> Verdict:
    """One program's verdict, from a sandbox of its own; nothing of it remains. For many programs use `Sandbox`.

    Raises:
        DataError, SandboxError, UsageError: as `Sandbox` and `Sandbox.run`.
    """
    with Sandbox(require=require, workers=1, limits=limits) as sandbox:
        return sandbox.run(source, tests)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
