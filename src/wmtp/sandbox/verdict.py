"""What goes into a run and what comes out: limits, tests, verdicts, and what isolation there was."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from wmtp.errors import DataError, UsageError, WmtpError

Requirement: TypeAlias = Literal["strong", "best", "none"]
Status: TypeAlias = Literal["passed", "wrong", "error", "timeout", "memory", "forbidden", "bad_tests", "sandbox_error"]
Trust: TypeAlias = Literal["strong", "weak"]

UNDECIDED = ("bad_tests", "sandbox_error")
"""Statuses that say nothing about the program."""
REASON = 400
"""Characters of a reason."""


class SandboxError(WmtpError):
    """The machine cannot give the isolation that was required, or the sandbox cannot be started or used."""


@dataclass(frozen=True)
class Limits:
    """What one program may use; for tests of standard output, what each single test may use.

    Attributes:
        cpu_s: CPU seconds. This decides: it means the same on an idle and on a loaded machine.
        asleep_s: Seconds in which a program and its tests may use no CPU at all; None for cpu_s, at least 1. Waiting
            for a processor is not being asleep.
        wall_s: Seconds by the clock, a backstop for what neither ends nor computes nor sleeps; None for 10 * cpu_s + 5.
        memory_bytes: Address space beyond the interpreter's own, per process.
        processes: Threads. A second process is never allowed where system calls are filtered; where they are not,
            this bounds both together.
        output_bytes: Of standard output, for tests that read it. Elsewhere what a program prints is thrown away.
        file_bytes: Size of one file; files can only be written where the sandbox has a scratch folder.

    Raises:
        UsageError: a limit is not a positive finite number.
    """

    cpu_s: float = 5.0
    asleep_s: float | None = None
    wall_s: float | None = None
    memory_bytes: int = 2**30
    processes: int = 64
    output_bytes: int = 8 * 2**20
    file_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise UsageError(f"the limit {name} must be a positive number, got {value!r}")

    @property
    def wall_or_default_s(self) -> float:
        """The backstop in seconds."""
        return self.wall_s if self.wall_s is not None else 10 * self.cpu_s + 5

    @property
    def asleep_or_default_s(self) -> float:
        """How long a program may sleep, in seconds."""
        return self.asleep_s if self.asleep_s is not None else max(1.0, self.cpu_s)


@dataclass(frozen=True)
class FunctionTests:
    """Tests that are Python code: assertions, or a program that defines `check(candidate)`.

    Attributes:
        tests: A text or several, run in order in one namespace; all must end without an exception.
        setup: Run before them; what it defines is the tests' own. For HumanEval give the prompt here: helpers that
            the tests use then come from the data set, not from the program.
        entry_point: The function under test, `f` or `Class.method`. With it, `check(candidate)` is called at the end.
        in_process: Run program and tests in one process, for tests that use the program's objects by more than their
            attributes. The program can then make any test agree, so the verdict's trust is weak. Without this such
            tests are `bad_tests`.

    Raises:
        DataError: there are no tests, or they are no text.
    """

    tests: Sequence[str]
    setup: str = ""
    entry_point: str | None = None
    in_process: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tests", (self.tests,) if isinstance(self.tests, str) else tuple(self.tests))
        if not all(isinstance(text, str) for text in (*self.tests, self.setup)):
            raise DataError(
                "tests and their setup must be Python text; for inputs and outputs use CallTests or StdinTests"
            )
        if not any(text.strip() for text in self.tests):
            raise DataError("there are no tests, so any program would pass them; give at least one")


@dataclass(frozen=True)
class CallTests:
    """Inputs and outputs of one function; the outputs never leave the grader.

    Attributes:
        name: The function, `f` or `Class.method` (a method of a new instance for each call).
        cases: (arguments, expected result) pairs, of the builtin types that JSON has, tuples, sets, bytes and a few.
        relative, absolute: Tolerance between numbers of which one is a float; 0 asks for equality.
        tuples_are_lists: For expected results that went through JSON, which has no tuples.

    Raises:
        DataError: there are no cases.
    """

    name: str
    cases: Sequence[tuple[Sequence[Any], Any]]
    relative: float = 1e-9
    absolute: float = 0.0
    tuples_are_lists: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", tuple((tuple(arguments), result) for arguments, result in self.cases))
        if not self.cases:
            raise DataError("there are no cases, so any program would pass them; give at least one")


@dataclass(frozen=True)
class StdinTests:
    """Standard input and output of a whole program, as in programming contests.

    Attributes:
        cases: (input, expected output) pairs of text.
        tolerance: Absolute or relative difference allowed between numbers of which one has a decimal point or an
            exponent. Outputs are compared word by word, letters without regard to case.

    Raises:
        DataError: there are no cases.
    """

    cases: Sequence[tuple[str, str]]
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", tuple((given, expected) for given, expected in self.cases))
        if not all(isinstance(text, str) for case in self.cases for text in case):
            raise DataError("inputs and outputs of scripts must be text")
        if not self.cases:
            raise DataError("there are no cases, so any program would pass them; give at least one")


Tests: TypeAlias = FunctionTests | CallTests | StdinTests


@dataclass(frozen=True)
class Job:
    """One program and its tests, for `Sandbox.map`. `id` is for the caller; nothing here looks at it."""

    source: str
    tests: Tests | str | Sequence[str]
    limits: Limits | None = None
    id: Hashable = None


@dataclass(frozen=True)
class Isolation:
    """What stood between a program and the machine, as found on start-up, not as hoped for.

    Attributes:
        level: What holds, in short; `held_back` has it in detail.
            3: as 2, and in namespaces of its own: other files, processes and networks are not forbidden but absent,
            all that a program started ends with it, and a scratch folder has a size.
            2: a system-call filter, and files confined: nothing can be written, sent, started or signalled, and no
            file be read but the standard library's. That a file exists, and its size, can still be asked.
            1: the filter only: as 2, but whatever this user may read can be read.
            0: limits, a clean environment and a process of its own, nothing more.
        mechanisms: What is active.
        missing: What is not, and why.
        held_back: Small attacks made on start-up, and whether each was contained.
        facts: Versions and ids, for the record.
    """

    level: int
    mechanisms: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    held_back: Mapping[str, bool] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def strong(self) -> bool:
        """Whether this is what `require="strong"` asks for: level 2 or 3."""
        return self.level >= 2

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, for result files."""
        return {
            "level": self.level,
            "strong": self.strong,
            "mechanisms": list(self.mechanisms),
            "missing": dict(self.missing),
            "held_back": dict(self.held_back),
            **self.facts,
        }


@dataclass(frozen=True)
class Verdict:
    """How a program did.

    Attributes:
        status: `passed`; `wrong`, a test disagreed; `error`, it ended by an exception, an exit or a signal before it
            was done, or gave more than is carried; `timeout`; `memory`; `forbidden`, it ended on an operation that was
            refused. Two say nothing about the program and must not count as failures: `bad_tests`, the tests cannot
            judge any program; `sandbox_error`, the machinery failed twice.
        reason: For people; without control characters, at most 400 characters.
        trust: `weak` where the program had a hand in judging itself: tests that asked for `in_process`, or that use
            several of its names, of which one may judge another.
        isolation: What was active while it ran; None if nothing ran.
        cpu_s, wall_s: Seconds that the program used, and that the run took.
    """

    status: Status
    reason: str = ""
    trust: Trust = "strong"
    isolation: Isolation | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every test agreed."""
        return self.status == "passed"

    @property
    def decided(self) -> bool:
        """Whether the verdict is about the program at all."""
        return self.status not in UNDECIDED


def as_tests(tests: Tests | str | Sequence[str]) -> Tests:
    """Text or a list of assertions as FunctionTests; the others as they are.

    Raises:
        DataError: something else, or empty.
    """
    if isinstance(tests, (FunctionTests, CallTests, StdinTests)):
        return tests
    if isinstance(tests, (str, list, tuple)):
        return FunctionTests(tests)
    raise DataError(f"tests must be FunctionTests, CallTests, StdinTests or text, got {tests!r:.60}")


def printable(text: str, limit: int = REASON) -> str:
    """`text` as safe for a terminal or a page: control, bidirectional and unprintable characters escaped, shortened."""
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text[:limit]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
