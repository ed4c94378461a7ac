"""From what happened in the children to a verdict, for each kind of tests.

Only three sources count: how the kernel says a process ended, the tester's message for tests that are code, and values
or output compared here for tests that are data. What the program itself says can make it fail, never pass.
"""

from __future__ import annotations

import operator
import os
import reprlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from wmtp.errors import DataError
from wmtp.sandbox._compare import agree, same_words
from wmtp.sandbox._exchange import Child, Ended, OnMessage, Outcome
from wmtp.sandbox._jail import codec
from wmtp.sandbox.verdict import CallTests, FunctionTests, Limits, Status, StdinTests, Tests, Trust, printable


class Runner(Protocol):
    """What grading needs of a worker."""

    def exchange(self, children: list[Child], limits: Limits, on_message: OnMessage | None = None) -> Outcome:
        """As `Worker.exchange`."""


@dataclass(frozen=True)
class Trial:
    """One attempt at a verdict."""

    status: Status
    reason: str = ""
    trust: Trust = "strong"
    cpu_s: float = 0.0
    wall_s: float = 0.0
    borderline: bool = False
    """Whether the load of the machine may have decided: it is to be tried again alone."""


@dataclass(frozen=True)
class Plain:
    """Tests as data: what `CallTests` become, and what tests are that are written as code but need not be run."""

    name: str
    inputs: list[list[Any]]
    """Encoded."""
    expected: list[Any]
    same: Callable[[Any, Any], bool] = operator.eq


def grade(runner: Runner, source: str, tests: Tests, limits: Limits, plain: Plain | None = None) -> Trial:
    """Runs one program against its tests, or against `plain`, which `read` found to be the same.

    Raises:
        WorkerLost: the runner failed.
        DataError: a test cannot be carried to the program.
    """
    if isinstance(tests, StdinTests):
        return _grade_output(runner, source, tests, limits)
    if isinstance(tests, CallTests):
        return _grade_calls(runner, source, _plain(tests), limits)
    if tests.in_process:
        return _grade_together(runner, source, tests, limits)
    if plain is not None:
        return _grade_calls(runner, source, plain, limits)
    return _grade_functions(runner, source, tests, limits)


# --- Tests that are code ----------------------------------------------------------------------------------------------


def _grade_functions(runner: Runner, source: str, tests: FunctionTests, limits: Limits) -> Trial:
    program = Child({"role": "serve", "source": source}, limits, paired=True)
    tester = Child({"role": "test", **_texts(tests)}, limits, paired=True)
    outcome = runner.exchange([program, tester], limits)
    served, tested = outcome.children
    report = tested.messages[0] if tested.messages and type(tested.messages[0]) is dict else {}
    status, reason = _from_report(report, served, tested)
    provided = report.get("provided")
    weak = status == "passed" and not (type(provided) is list and len(provided) <= 1)
    if weak:
        reason = f"the tests use several names of the program, of which one may judge another: {provided}"
    return _judged(outcome, limits, status, reason, "weak" if weak else "strong")


def read(runner: Runner, sets: Sequence[FunctionTests]) -> list[Plain | None]:
    """What each of several sets of tests is as data, or None for one that has to be run. One process reads them all.

    One that ends it, or that is too large, spoils the others: then none is data, which costs time and nothing else.

    Raises:
        WorkerLost: the runner failed.
    """
    try:
        outcome = runner.exchange(
            [Child({"role": "read", "sets": [_texts(tests) for tests in sets]}, _READING)], _READING
        )
    except DataError:
        return [None] * len(sets)
    [ended] = outcome.children
    found = ended.messages[0] if ended.messages else []
    if type(found) is not list or len(found) != len(sets):
        return [None] * len(sets)
    return [_read(data) for data in found]


def _read(data: Any) -> Plain | None:
    if type(data) is not dict:
        return None
    try:
        return Plain(data["name"], data["inputs"], [codec.decode(value) for value in data["expected"]])
    except (codec.CodecError, KeyError, TypeError):
        return None


_READING = Limits(cpu_s=2, wall_s=10, memory_bytes=2**30)
"""For the process that reads tests."""


def _texts(tests: FunctionTests) -> dict[str, Any]:
    return {"setup": tests.setup, "tests": list(tests.tests), "entry_point": tests.entry_point}


def _from_report(report: dict[str, Any], served: Ended, tested: Ended) -> tuple[Status, str]:
    """The tester's word, where it has one; otherwise how the processes ended."""
    kind = report.get("outcome")
    at = f"{report.get('at')}: " if report.get("at") else ""
    if kind == "passed":
        return ("passed", "") if report.get("asked") else ("bad_tests", "the tests never asked the program anything")
    if kind == "wrong":
        return "wrong", f"{at}{report.get('text') or 'not so'}"
    if kind == "raised":
        return _from_exception([report.get("builtin"), report.get("type"), report.get("text")], at)
    if kind == "uncarried":
        return "error", f"{at}{report.get('text')}"
    if kind == "bad_tests":
        return "bad_tests", f"the tests do not compile: {report.get('text')}"
    if kind == "needs_objects":
        return "bad_tests", f"{at}{report.get('text')}; FunctionTests(in_process=True) can run this, and trusts it"
    if kind == "gone":
        return _from_end(served, "the program")
    if served.messages or served.overflow:
        return "error", "the program spoke where it has nothing to say"
    status, reason = _from_end(tested, "the tests")
    return (status, reason) if status in ("timeout", "sandbox_error") else ("bad_tests", reason)


def _grade_together(runner: Runner, source: str, tests: FunctionTests, limits: Limits) -> Trial:
    """Program and tests in one process: its word has to do."""
    child = Child({"role": "in_process", "source": source, **_texts(tests)}, limits)
    outcome = runner.exchange([child], limits)
    [ended] = outcome.children
    message = ended.messages[0] if ended.messages and type(ended.messages[0]) is dict else {}
    if message.get("passed") is True:
        return _judged(outcome, limits, "passed", "judged by its own process, as the tests asked", "weak")
    return _judged(outcome, limits, *_from_word(message, ended, ""), "weak")


# --- Tests that are data ----------------------------------------------------------------------------------------------


def _plain(tests: CallTests) -> Plain:
    same = partial(agree, relative=tests.relative, absolute=tests.absolute, tuples_are_lists=tests.tuples_are_lists)
    try:
        inputs = [[codec.encode(argument) for argument in arguments] for arguments, _ in tests.cases]
        return Plain(tests.name, inputs, [codec.decode(codec.encode(result)) for _, result in tests.cases], same)
    except codec.CodecError as error:
        raise DataError(f"a case for {tests.name} cannot be carried to the program: {error}; leave it out") from error


def _grade_calls(runner: Runner, source: str, tests: Plain, limits: Limits) -> Trial:
    found: list[tuple[Status, str]] = []
    loaded: list[bool] = []

    def on_message(message: Any) -> bool:
        if type(message) is not dict:
            return False
        if not loaded:
            loaded.append("ready" in message)
            return loaded[0] or _note(_from_word(message, None, ""))
        case = len(found)
        if "value" not in message:
            return _note(_from_word(message, None, f"case {case + 1}: "))
        return _note(_compared(message["value"], case, tests)) and len(found) < len(tests.expected)

    def _note(result: tuple[Status, str]) -> bool:
        found.append(result)
        return result[0] == "passed"

    child = Child({"role": "calls", "source": source, "name": tests.name, "inputs": tests.inputs}, limits)
    outcome = runner.exchange([child], limits, on_message)
    [ended] = outcome.children
    if found and (found[-1][0] != "passed" or len(found) == len(tests.expected)):
        status, reason = found[-1]
    else:
        status, reason = _from_end(ended, f"the program, after {len(found)} of {len(tests.expected)} cases,")
    return _judged(outcome, limits, status, reason)


class _Object:
    """Stands for a result that is no plain data, and is equal to nothing."""

    def __repr__(self) -> str:
        return "an object"


def _compared(data: Any, case: int, tests: Plain) -> tuple[Status, str]:
    expected = tests.expected[case]
    try:
        got = codec.decode(data, lambda _: _Object())
    except codec.CodecError as error:
        return "error", f"case {case + 1}: {error}"
    try:
        same = tests.same(got, expected)
    except Exception as error:  # noqa: BLE001 as where the comparison is run as a test: signalling NaNs, deep values
        return "error", f"case {case + 1}: {type(error).__name__}: {error}"
    if same:
        return "passed", ""
    return "wrong", f"case {case + 1}: got {_short(got)}, expected {_short(expected)}"


def _short(value: Any) -> str:
    """A bounded repr; a large integer has none that Python would make."""
    try:
        return reprlib.repr(value)[:80]
    except ValueError:
        return "a large number"


def _grade_output(runner: Runner, source: str, tests: StdinTests, limits: Limits) -> Trial:
    """Each case in a process of its own; the first that fails decides."""
    cpu_s = wall_s = 0.0
    for number, (given, expected) in enumerate(tests.cases, 1):
        child = Child({"role": "script", "source": source}, limits, stdin=_as_input(given, number))
        outcome = runner.exchange([child], limits)
        [ended] = outcome.children
        printed = ended.output.decode("utf-8", "replace")
        status: Status
        if ended.messages or ended.overflow or ended.killed or ended.signal or ended.code:
            message = ended.messages[0] if ended.messages and type(ended.messages[0]) is dict else {}
            status, reason = _from_word(message, ended, f"case {number}: ")
        elif same_words(printed, expected, tests.tolerance):
            status, reason = "passed", ""
        else:
            status, reason = "wrong", f"case {number}: printed {printed[:80]!r}, expected {expected[:80]!r}"
        trial = _judged(outcome, limits, status, reason)
        cpu_s, wall_s = cpu_s + trial.cpu_s, wall_s + trial.wall_s
        if trial.status != "passed" or trial.borderline:
            break
    return Trial(trial.status, trial.reason, trial.trust, cpu_s, wall_s, trial.borderline)


def _as_input(given: str, number: int) -> bytes:
    try:
        return given.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise DataError(f"the input of case {number} must be text in UTF-8: {error.reason}") from error


# --- Ends -------------------------------------------------------------------------------------------------------------


def _from_word(message: dict[str, Any], ended: Ended | None, at: str) -> tuple[Status, str]:
    """A failure that the program itself reports, or how it ended if it does not."""
    if "raise" in message:
        return _from_exception(message["raise"], at)
    if "uncarried" in message:
        return "error", f"{at}{_said(message['uncarried'])}"
    if ended is None:
        return "error", f"{at}the program sent no result"
    status, reason = _from_end(ended, "the program")
    return status, f"{at}{reason}"


def _from_exception(said: Any, at: str) -> tuple[Status, str]:
    builtin, name, text = said if type(said) is list and len(said) == 3 else ("Exception", "an unknown exception", "")
    named = {"MemoryError": "memory", "PermissionError": "forbidden"}
    status: Status = named.get(_said(builtin), "error")  # type: ignore[assignment]
    return status, f"{at}{_said(name)}: {_said(text)}"


def _said(text: Any) -> str:
    """A text that a program or its tests sent. What they sent in its place has no text: to make one of lists in lists
    takes more stack than to read them."""
    return text if type(text) is str else f"<{type(text).__name__}>"


def _from_end(ended: Ended, who: str) -> tuple[Status, str]:
    """A process that ended without saying how it went."""
    if ended.overflow:
        return "error", f"{who} gave {ended.overflow}"
    if ended.killed in ("cpu", "wall", "asleep"):
        return "timeout", ""
    if ended.signal == signal.SIGSYS:
        return "forbidden", f"{who} made a system call of another architecture"
    if ended.signal == signal.SIGKILL and ended.killed is None and ended.filtered:  # nor can it do that itself
        return "sandbox_error", f"{who} was killed from outside, perhaps for want of memory"
    if ended.signal and ended.killed is None:
        return "error", f"{who} died of signal {ended.signal} ({signal.strsignal(ended.signal)})"
    return "error", f"{who} ended with exit code {ended.code}" if ended.code > 0 else f"{who} ended without a result"


def _judged(outcome: Outcome, limits: Limits, status: Status, reason: str, trust: Trust = "strong") -> Trial:
    """The limits over everything else: what took too long has not passed, whatever it said in the end."""
    used = max(ended.cpu_s for ended in outcome.children)
    killed = {ended.killed for ended in outcome.children}
    borderline = False
    if "cpu" in killed or used > limits.cpu_s:
        borderline = "cpu" not in killed and status == "passed"
        status, reason = "timeout", f"more than {limits.cpu_s:g} s of CPU"
    elif "wall" in killed:
        borderline = _overloaded()
        status, reason = "timeout", f"not done after {limits.wall_or_default_s:g} s, with {used:.2f} s of CPU used"
    elif "asleep" in killed:
        borderline = _overloaded()
        status, reason = "timeout", f"asleep for {limits.asleep_or_default_s:g} s"
    cpu_s = outcome.children[0].cpu_s
    return Trial(status, printable(reason), trust, cpu_s, outcome.wall_s, borderline)


def _overloaded() -> bool:
    """Whether so much runs on this machine that a program might have waited for a processor all the time."""
    return os.getloadavg()[0] > 4 * (os.cpu_count() or 1)
