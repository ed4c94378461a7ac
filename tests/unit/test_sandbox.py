"""Programs that mean no harm are judged as they would be without a sandbox, by each kind of tests."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from wmtp.errors import DataError, UsageError
from wmtp.sandbox import CallTests, FunctionTests, Job, Limits, Sandbox, StdinTests, Verdict, _grade, run_program
from wmtp.sandbox._compare import agree, same_words
from wmtp.sandbox._exchange import Ended, Outcome
from wmtp.sandbox._grade import Runner, Trial, grade
from wmtp.sandbox._jail import plain, syscalls
from wmtp.sandbox._start import Plan
from wmtp.sandbox.verdict import printable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX system")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=2, limits=Limits(cpu_s=5)) as made:
        yield made


def _programs(section: str) -> list[Any]:
    """The cases of a section of sandbox_programs.txt: source, tests."""
    body = re.split(rf"^@@{section}\n", PROGRAMS, flags=re.MULTILINE)[1].partition("\n@@")[0]
    cases = []
    for block in re.split(r"^--- ", body, flags=re.MULTILINE)[1:]:
        name, *lines = block.rstrip().split("\n")
        source = "\n".join(line for line in lines if not line.startswith("test: "))
        tests = "\n".join(line[6:] for line in lines if line.startswith("test: "))
        cases.append(pytest.param(source, tests or "assert f(1) == 2", id=name))
    return cases


PROGRAMS = Path(__file__).with_name("sandbox_programs.txt").read_text("utf-8")


@pytest.mark.parametrize(("source", "tests"), _programs("pass"))
def test_ordinary_programs_pass(sandbox: Sandbox, source: str, tests: str) -> None:
    verdict = sandbox.run(source, tests)
    assert (verdict.status, verdict.trust) == ("passed", "strong"), verdict.reason


RESULTS = [
    "None", "True", "-7", "2**80", "1.5", "float('inf')", "1e-300", "1 + 2j", "'é\\n\\0'", "b'\\xff'",
    "bytearray(b'x')",
    "[1, [2]]", "(1, (2,))", "{1, 2}", "frozenset({1})", "{'a': [1], 2: None, (1,): {}}", "range(1, 9, 2)", "[]", "int",
    "__import__('collections').Counter('abca')", "__import__('collections').defaultdict(list, {1: [2]})",
    "__import__('collections').OrderedDict([(2, 1), (1, 2)])", "__import__('collections').deque([1], maxlen=3)",
    "__import__('fractions').Fraction(1, 3)", "__import__('decimal').Decimal('0.10')",
    "__import__('datetime').date(2020, 2, 29)", "__import__('datetime').timedelta(1, 2, 3)",
    "__import__('datetime').datetime(2020, 2, 29, 1, 2, 3, 4)", "__import__('datetime').time(1, 2)",
]  # fmt: skip


@pytest.mark.parametrize("value", RESULTS)
def test_values_arrive_as_they_were_sent(sandbox: Sandbox, value: str) -> None:
    tests = [f"expected = {value}\ngot = f(expected)\nassert got == expected and type(got) is type(expected), got"]
    verdict = sandbox.run("def f(x): return x", tests)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(("source", "tests"), _programs("ways"))
def test_tests_reach_a_program_in_many_ways_and_judge_it_from_outside(
    sandbox: Sandbox, source: str, tests: str
) -> None:
    verdict = sandbox.run(source, tests)
    assert (verdict.status, verdict.trust) == ("passed", "strong"), verdict.reason


@pytest.mark.parametrize(("source", "tests"), _programs("weak"))
def test_where_one_name_of_the_program_may_judge_another_the_verdict_is_weak(
    sandbox: Sandbox, source: str, tests: str
) -> None:
    verdict = sandbox.run(source, tests)
    assert (verdict.status, verdict.trust) == ("passed", "weak"), verdict.reason
    assert verdict.reason


@pytest.mark.parametrize(("source", "tests"), _programs("objects"))
def test_tests_that_need_the_programs_objects_must_say_so_and_are_judged_weakly(
    sandbox: Sandbox, source: str, tests: str
) -> None:
    verdict = sandbox.run(source, tests)
    assert (verdict.status, verdict.decided) == ("bad_tests", False)
    assert "in_process=True" in verdict.reason
    verdict = sandbox.run(source, FunctionTests(tests, in_process=True))
    assert (verdict.status, verdict.trust) == ("passed", "weak"), verdict.reason


def test_a_program_cannot_choose_to_be_left_undecided(sandbox: Sandbox) -> None:
    """Its objects are wrong results where the tests did not make them, whatever class it says its function is."""
    everything = "    __eq__ = __len__ = lambda *s: 1\n    def __getattr__(s, n): return lambda *a: True\n"
    source = f"class f:\n    def __init__(s, x): pass\n{everything}"
    pair = f"class Pair:\n{everything}\ndef g(pair): return pair"
    tests = ["assert f(1) == 5", "assert len(f(1)) == 1", "assert f(1).startswith('a')", "assert f(1)[0] == 1"]
    for test in tests:
        verdict = sandbox.run(source, test)
        assert (verdict.passed, verdict.decided, verdict.trust) == (False, True, "strong")
    named = source.replace("class f", "class F")
    for program, test in ((pair, "assert g(Pair()) == 5"), (named, "assert F(1) == 5")):
        verdict = sandbox.run(program, test)
        assert (verdict.status, verdict.trust) == ("wrong", "strong")


CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert abs(helper(candidate(3)) - 9) < 1e-6"


def test_check_style_tests_take_their_helpers_from_the_setup_not_from_the_program(sandbox: Sandbox) -> None:
    prompt = 'def helper(x):\n    return float(x)\n\ndef square(x):\n    """Squares."""\n'
    tests = FunctionTests([CHECK], setup=prompt, entry_point="square")
    right = sandbox.run(prompt + "    return x * x", tests)
    assert (right.status, right.trust) == ("passed", "strong"), right.reason
    forged = sandbox.run("def square(x): return 4\ndef helper(x): return 9.0", tests)
    assert forged.status == "wrong"
    without_setup = sandbox.run(prompt + "    return x * x", FunctionTests([CHECK], entry_point="square"))
    assert (without_setup.status, without_setup.trust) == ("passed", "weak")


def test_methods_can_be_entry_points(sandbox: Sandbox) -> None:
    source = "class Solution:\n    def twice(self, x): return 2 * x"
    assert sandbox.run(source, CallTests("Solution.twice", [([2], 4)])).passed
    assert sandbox.run(source, FunctionTests("def check(c): assert c(3) == 6", entry_point="Solution.twice")).passed


STATUSES = [
    ("def f(x): return 3", "wrong", "test 1, line 1: assert f(1) == 2"),
    ("def f(x): return 1 / 0", "error", "ZeroDivisionError: division by zero"),
    ("def g(x): return 2", "error", "NameError: name 'f' is not defined"),
    ("def f(x) return 2", "error", "SyntaxError"),
    ("", "error", "NameError"),
    ("def f(x): pass", "wrong", "assert f(1) == 2"),
    ("def f(x): raise MemoryError", "memory", "MemoryError"),
    ("def f(x): open('/nowhere/x', 'w')", ("error", "forbidden"), "/nowhere/x"),
    ("import socket\nsocket.socket()", ("forbidden", "error"), "Error"),
    ("import sys\nsys.exit(3)", "error", "SystemExit: 3"),
    ("def f(x): return 'a' * 10**8", "error", "16777216"),
]


@pytest.mark.parametrize(("source", "status", "reason"), STATUSES)
def test_failures_have_a_status_and_a_reason(
    sandbox: Sandbox, source: str, status: str | tuple[str, ...], reason: str
) -> None:
    verdict = sandbox.run(source, FunctionTests(["assert f(1) == 2"], setup="pass"))
    assert verdict.status in ((status,) if isinstance(status, str) else status)
    assert reason in verdict.reason
    assert verdict.decided
    assert not verdict.passed


def test_a_tests_own_mistake_says_nothing_about_the_program(sandbox: Sandbox) -> None:
    for text in ("assert f(1) ==", "assert 1 == 1"):
        verdict = sandbox.run("def f(x): return 2", text)
        assert (verdict.status, verdict.decided) == ("bad_tests", False)


# --- Tests that need not be run as code -------------------------------------------------------------------------------

PLAIN = [
    (["assert f(1, 'a') == [1, (2,)]", "assert f(-1, []) == {1: None}"], "", None, ["f", 2]),
    (
        ["METADATA = {'a': 1}\ndef check(candidate):\n    'doc'\n    assert True\n    assert candidate(1) == 2, 'no'"],
        "x = 1",
        "g",
        ["g", 1],
    ),
    (["assert f(1) == 2"], "x = 1", None, None),
    (["assert f(1) == 2", "assert g(1) == 2"], "", None, None),
    (["assert f(x) == 2"], "", None, None),
    (["assert f(1) == g(2)"], "", None, None),
    (["assert f(1) != 2"], "", None, None),
    (["assert f(1) == 2 == 2"], "", None, None),
    (["assert f(1, x=2) == 2"], "", None, None),
    (["assert f(*[1]) == 2"], "", None, None),
    (["assert sum([1]) == 1"], "", None, None),
    (["assert Pair(1) == 1"], "", None, ["Pair", 1]),
    (["assert f(1)"], "", None, None),
    (["import math", "assert f(1) == 2"], "", None, None),
    (["f = g", "assert f(1) == 2"], "", None, None),
    (["pass"], "", None, None),
    (["def check(candidate):\n    x = 1\n    assert candidate(1) == 2"], "", "g", None),
    (["def check(candidate, more=1):\n    assert candidate(1) == 2"], "", "g", None),
    (["@d\ndef check(candidate):\n    assert candidate(1) == 2"], "", "g", None),
    (["def check(candidate):\n    assert candidate(1) == 2", "check = print"], "", "g", None),
    (["assert f(1) == 2 +"], "", None, None),
    ([f"assert f({'(' * 110}1{',)' * 110}) == 2"], "", None, None),
]


@pytest.mark.parametrize(("tests", "setup", "entry_point", "found"), PLAIN)
def test_only_plain_assertions_are_read_as_data(
    tests: list[str], setup: str, entry_point: str | None, found: list[object] | None
) -> None:
    data = plain.read({"tests": tests, "setup": setup, "entry_point": entry_point})
    assert found == (None if data is None else [data["name"], len(data["expected"])])


@pytest.mark.parametrize(("source", "status"), [(source, status) for source, status, _ in STATUSES])
def test_tests_as_data_give_the_verdict_of_tests_as_code(
    sandbox: Sandbox, source: str, status: str | tuple[str, ...]
) -> None:
    assert sandbox.run("def f(x): return 2", ["assert f(1) == 2"]).passed
    verdict = sandbox.run(source, ["assert f(1) == 2"])
    assert verdict.status in ((status,) if isinstance(status, str) else status)
    assert verdict.trust == "strong"


def test_tests_that_are_data_are_compared_in_the_grader_from_the_first_program_on() -> None:
    with Sandbox(workers=1) as sandbox:
        tests = FunctionTests(["assert f([2, 1]) == [1, 2]"])
        assert "got [2, 1]" in sandbox.run("def f(x): return x", tests).reason
        assert sandbox.run("def f(x): x.sort(); return x", tests).passed
        objects = "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()"
        assert sandbox.run(objects, tests).status == "wrong"


@pytest.mark.parametrize("memory_bytes", [2**30, 2**10])
def test_tests_that_cannot_be_read_ahead_are_run_instead(monkeypatch: pytest.MonkeyPatch, memory_bytes: int) -> None:
    """Those of many jobs are read together; one too deep to be read, or a reader that dies, changes no verdict."""
    monkeypatch.setattr(_grade, "_READING", Limits(memory_bytes=memory_bytes))
    deep = "assert f(1) == " + "-" * 100_000 + "1"
    jobs = [Job(f"def f(x): return {n % 3}", [f"assert f({n}) == 1"]) for n in range(9)] + [Job("f = abs", [deep])]
    with Sandbox(workers=1) as sandbox:
        found = [verdict.status for _, verdict in sandbox.map(jobs)]
        assert (sandbox._as_data.get(FunctionTests(jobs[0].tests)) is None) == (memory_bytes == 2**10)  # type: ignore[arg-type]
    assert found == ["wrong", "passed", "wrong"] * 3 + ["bad_tests"]


# --- Data tests -------------------------------------------------------------------------------------------------------

CALLS = [
    ("def f(x): return x * 0.1", [([3], 0.3)], True),
    ("def f(x): return x * 0.1", [([3], 0.31)], False),
    ("def f(a, b): return {a: (b, [b])}", [([1, "x"], {1: ("x", ["x"])})], True),
    ("def f(a): return (1, 2)", [([0], [1, 2])], False),
    ("def f(a): return float('nan')", [([0], float("nan"))], True),
    ("def f(a): return [1, 2.0]", [([0], [1.0, 2])], True),
    ("def f(a): return a\ndef g(): return 1", [([1], 1), ([2], 3)], False),
]


@pytest.mark.parametrize(("source", "cases", "passes"), CALLS)
def test_calls_are_compared_in_the_grader(sandbox: Sandbox, source: str, cases: list[object], passes: bool) -> None:
    verdict = sandbox.run(source, CallTests("f", cases))  # type: ignore[arg-type]
    assert verdict.passed == passes, verdict.reason
    assert verdict.status in ("passed", "wrong")


def test_a_program_that_stops_after_some_cases_has_not_passed(sandbox: Sandbox) -> None:
    source = "import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x"
    verdict = sandbox.run(source, CallTests("f", [([1], 1), ([2], 2)]))
    assert verdict.status == "error"
    assert "1 of 2 cases" in verdict.reason
    assert sandbox.run("def f(x): return 1", CallTests("g", [([1], 1)])).status == "error"


def test_a_result_that_is_small_as_text_and_large_as_objects_is_not_built(sandbox: Sandbox) -> None:
    source = (
        "import os\nfor body in (b'{\"ready\": {}}', b'{\"value\": [' + b'[],' * (3 * 2**20) + b'0]}'):\n"
        "    rest = memoryview(len(body).to_bytes(4, 'big') + body)\n"
        "    while rest: rest = rest[os.write(3, rest):]"
    )
    verdict = sandbox.run(source, CallTests("f", [([1], 1)]))
    assert verdict.status == "error"
    assert "parts" in verdict.reason


SCRIPTS = [
    ("print(int(input()) + 1)", "1\n", "2", "passed"),
    ("import sys\nfor line in sys.stdin: print(line.strip()[::-1], end=' ')", "ab\ncd\n", "ba\ndc\n", "passed"),
    ("import sys\nsys.stdout.write(sys.stdin.read().upper())", "é\n", "É", "passed"),
    ("import sys\ndata = sys.stdin.buffer.read().split()\nprint(len(data))", "1 2 3", "3", "passed"),
    ("print('%.9f' % (1 / 3))", "", "0.3333333", "passed"),
    ("print(2**53 + 1)", "", str(2**53), "wrong"),
    ("print('Yes')", "", "YES", "passed"),
    ("print('1 2')", "", "1 2 3", "wrong"),
    ("import sys\nprint(1)\nsys.exit(0)", "", "1", "passed"),
    ("import os\nprint(1, flush=True)\nos._exit(0)", "", "1", "passed"),
    ("import sys\nprint(1)\nsys.exit(1)", "", "1", "error"),
    ("print(1)\nraise ValueError('x')", "", "1", "error"),
    ("import threading\nthreading.Thread(target=lambda: print(1)).start()", "", "1", "passed"),
    ("import atexit\natexit.register(print, 1)", "", "1", "passed"),
    ("if __name__ == '__main__':\n    print(1)", "", "1", "passed"),
    ("print(1)", "x" * 10**6, "1", "passed"),
    ("print(len(input()))", "x" * 10**6, str(10**6), "passed"),
]


@pytest.mark.parametrize(("source", "given", "expected", "status"), SCRIPTS)
def test_scripts_are_judged_by_what_they_print(
    sandbox: Sandbox, source: str, given: str, expected: str, status: str
) -> None:
    verdict = sandbox.run(source, StdinTests([(given, expected)]))
    assert verdict.status == status, verdict.reason


def test_an_input_that_is_no_text_is_an_error_of_its_caller(sandbox: Sandbox) -> None:
    with pytest.raises(DataError, match="input of case 2 must be text in UTF-8"):
        sandbox.run("print(1)", StdinTests([("1", "1"), ("\ud800", "1")]))


def test_each_case_of_a_script_has_its_own_time(sandbox: Sandbox) -> None:
    source = "n = int(input())\nwhile n: n -= 1\nprint(0)"
    verdict = sandbox.run(source, StdinTests([("2000000", "0")] * 4), Limits(cpu_s=2.5))
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (1, True, True), (0.1 + 0.2, 0.3, True), (10**400, 1.0, False), ((1,), [1], False), ({1: 2.0}, {1: 2}, True),
        ({1, 2}, {2, 1}, True), ("a", "a", True), ("1", 1, False), (None, 0, False), (1 + 1e-12j, 1, True),
        ([1], [1, 2], False),
    ],
)  # fmt: skip
def test_values_agree_within_tolerance(got: object, expected: object, same: bool) -> None:
    assert agree(got, expected, 1e-9, 1e-9, tuples_are_lists=False) == same


def test_tuples_agree_with_lists_only_if_asked() -> None:
    assert agree([(1, 2)], [[1, 2]], 0, 0, tuples_are_lists=True)
    assert not agree([(1, 2)], [[1, 2]], 0, 0, tuples_are_lists=False)


def test_words_are_compared_as_contests_do() -> None:
    assert same_words(" 1\n2.0000001\tYES", "1 2 yes", 1e-5)
    assert not same_words("1.1", "1.2", 1e-5)
    assert not same_words("nan", "inf", 1e-5)
    assert not same_words("9" * 2000, "9" * 1999 + "8", 1e-5)


# --- The pool ---------------------------------------------------------------------------------------------------------


def jobs(number: int) -> Iterator[Job]:
    for n in range(number):
        yield Job(f"def f(x): return x + {n % 2}", ["assert f(1) == 2"], id=n)


def test_map_keeps_the_order_or_gives_the_ids(sandbox: Sandbox) -> None:
    ordered = list(sandbox.map(jobs(20)))
    assert [job.id for job, _ in ordered] == list(range(20))
    assert all(verdict.passed == bool(job.id % 2) for job, verdict in ordered)  # type: ignore[operator]
    as_done = list(sandbox.map(jobs(20), ordered=False))
    assert sorted((job.id, verdict.passed) for job, verdict in as_done) == [(n, bool(n % 2)) for n in range(20)]


def test_map_reads_a_bounded_number_of_jobs_ahead(sandbox: Sandbox) -> None:
    read: list[int] = []

    def endless() -> Iterator[Job]:
        for n in count():
            read.append(n)
            yield Job("def f(x): return 2", ["assert f(1) == 2"], id=n)

    taken = list(islice(sandbox.map(endless()), 5))
    assert len(taken) == 5
    assert len(read) <= 5 + 2 * 16


def test_a_bad_job_is_an_error_of_its_caller(sandbox: Sandbox) -> None:
    with pytest.raises(DataError, match="no tests"):
        list(sandbox.map([Job("x", [])]))
    assert sandbox.run("def f(x): return 2", ["assert f(1) == 2"]).passed


def test_one_program_by_itself() -> None:
    verdict = run_program("def f(x): return 2", ["assert f(1) == 2"])
    assert verdict.passed
    assert verdict.isolation is not None
    document = json.loads(json.dumps(verdict.isolation.to_dict()))
    assert document["level"] == verdict.isolation.level
    assert verdict.cpu_s > 0


def test_without_a_requirement_nothing_is_confined_and_it_says_so() -> None:
    with Sandbox(require="none", workers=1) as sandbox:
        assert (sandbox.isolation.level, sandbox.isolation.strong) == (0, False)
        assert sandbox.run("def f(x): return 2", ["assert f(1) == 2"]).passed


def test_a_scratch_folder_can_be_written_to_and_is_empty_for_the_next_program() -> None:
    source = (
        "import os, tempfile\ndef f(x):\n    names = os.listdir('.')\n    os.makedirs('a/b', exist_ok=True)\n"
        "    open('a/b/c', 'w').write('x')\n"
        "    with tempfile.TemporaryDirectory(dir='.') as d: open(d + '/y', 'w').close()\n"
        "    return names, open('a/b/c').read()"
    )
    with Sandbox(workers=1, scratch_bytes=2**20) as sandbox:
        for _ in range(2):
            verdict = sandbox.run(source, ["assert f(1) == ([], 'x')"])
            assert verdict.passed, verdict.reason
        large = sandbox.run("def f(x):\n    open('x', 'wb').write(b'x' * 2**26)\n    return 2", ["assert f(1) == 2"])
        assert large.status == "error", large.reason


def test_the_order_of_sets_is_repeatable_and_another_hash_seed_gives_another() -> None:
    def order(seed: int) -> str:
        with Sandbox(workers=1, hash_seed=seed) as sandbox:
            return sandbox.run("def f():\n    return list({*'abcdefgh'})", "assert f() == []").reason

    assert order(1) == order(1) != order(2)
    with pytest.raises(UsageError, match="hash_seed must be from 0"):
        Sandbox(hash_seed=-1)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root's programs get an id of their own"
)
def test_programs_of_two_sandboxes_of_root_have_users_of_their_own() -> None:
    with Sandbox(workers=1) as one, Sandbox(workers=1) as other:
        assert 0 != one.isolation.facts["uid"] != other.isolation.facts["uid"] != 0


def test_installed_packages_can_be_given_to_programs() -> None:
    pytest.importorskip("numpy")
    with Sandbox(workers=1, packages=["numpy"]) as sandbox:
        verdict = sandbox.run(
            "import numpy as np\ndef f(x): return float(np.linalg.norm([3, x]))", ["assert f(4) == 5"]
        )
        assert verdict.passed, verdict.reason
        assert sandbox.run("import torch", ["assert f(4) == 5"]).status == "error"
    with pytest.raises(UsageError, match="not installed"):
        Sandbox(packages=["no_such_package"])


def test_of_the_packages_beside_the_standard_library_a_program_has_those_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the root is private the library's folder is there as a whole, with a cover on what is installed in it."""
    folder = Path(os.__file__).parent / "site-packages"
    if not (folder / "pip").is_dir():
        pytest.skip("pip is not installed beside this interpreter's standard library")
    found = [{"name": "pip", "folder": str(folder), "paths": [str(folder / "pip")]}]
    monkeypatch.setattr(Plan, "found_packages", lambda _: found)
    source = f"import os, pip\ndef f(): return os.listdir({str(folder)!r})"
    with Sandbox(workers=1) as sandbox:
        if sandbox.isolation.level < 3:
            pytest.skip(f"this machine has no level 3: {dict(sandbox.isolation.missing)}")
        verdict = sandbox.run(source, "assert f() == ['pip']")
    assert verdict.passed, verdict.reason


# --- Limits and labels ------------------------------------------------------------------------------------------------


class Scripted:
    """A worker that gives the outcomes it was told to."""

    def __init__(self, *outcomes: tuple[float, str | None]) -> None:
        self._outcomes = list(outcomes)

    def exchange(self, *_: object) -> Outcome:
        cpu_s, killed = self._outcomes.pop(0)
        ended = Ended(9 if killed else 0, cpu_s, killed, messages=[] if killed else [{"passed": True}])
        return Outcome([ended], cpu_s)


@pytest.mark.parametrize(
    ("cpu_s", "killed", "load", "status", "borderline"),
    [
        (0.99, None, 0, "passed", False),
        (1.2, None, 0, "timeout", True),
        (1.5, "cpu", 99_999, "timeout", False),
        (0.5, "wall", 0, "timeout", False),
        (0.5, "wall", 99_999, "timeout", True),
        (0.0, "asleep", 0, "timeout", False),
        (0.0, "asleep", 99_999, "timeout", True),
    ],
)
def test_cpu_time_decides_and_what_the_load_may_have_decided_is_tried_again_alone(
    cpu_s: float, killed: str | None, load: float, status: str, borderline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0))
    runner: Runner = Scripted((cpu_s, killed))
    trial: Trial = grade(runner, "", FunctionTests("x", in_process=True), Limits(cpu_s=1))
    assert (trial.status, trial.borderline) == (status, borderline)


def test_a_timeout_by_load_is_decided_by_the_second_run(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    alone: list[bool] = []
    trials = [Trial("timeout", borderline=True), Trial("passed")]

    def tried(*_: object, alone: bool, seen: list[bool] = alone) -> tuple[Trial, None]:
        seen.append(alone)
        return trials.pop(0), None

    monkeypatch.setattr(sandbox, "_tried", tried)
    assert sandbox.run("", "x").passed
    assert alone == [False, True]


def test_limits_are_checked() -> None:
    for name in (field.name for field in dataclasses.fields(Limits)):
        with pytest.raises(UsageError, match=name):
            Limits(**{name: 0})
    assert Limits(cpu_s=2).wall_or_default_s == 25
    with pytest.raises(UsageError, match="require must be one of strong, best, none"):
        Sandbox(require="most")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown mechanisms"):
        Sandbox(without=["magic"])


def test_reasons_are_safe_to_print() -> None:
    assert printable("a\x1b[2J\n\u202eé\ud800") == r"a\x1b[2J\n\u202eé\ud800"
    assert len(printable("\0" * 1000)) == 400


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, wmtp.sandbox\nassert not {'torch', 'numpy'} & set(sys.modules)\nprint('light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "light\n", done.stderr


def test_a_verdict_knows_what_it_is_about() -> None:
    assert Verdict("passed").passed
    assert not Verdict("sandbox_error").decided
    assert Verdict("timeout").decided


# --- The filter -------------------------------------------------------------------------------------------------------


def decide(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a BPF program answers: an interpreter of the few instructions that ours have."""
    words = [word & (2**64 - 1) for word in (*arguments, *[0] * (6 - len(arguments)))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *words)
    steps = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        operation, if_true, if_false, operand = steps[at]
        at += 1
        if operation == 0x06:
            return int(operand)
        if operation == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
        elif operation == 0x05:
            at += operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
            at += if_true if holds else if_false


def filled(code: syscalls.Code, pid: int) -> bytes:
    """With the process's id where it belongs."""
    program = bytearray(code.program)
    for offset in code.holes:
        struct.pack_into("=I", program, offset, pid)
    return bytes(program)


ALLOW, REFUSE, ABSENT, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("writable", [False, True])
def test_the_filter_allows_exactly_its_table(machine: str, writable: bool) -> None:
    code = filled(syscalls.build(writable=writable, read_only_opens=False, machine=machine), 77)
    table = syscalls._ANY + (syscalls._SCRATCH if writable else "")
    allowed = set(syscalls.numbers(table, machine).values())
    checked = set(syscalls.numbers(syscalls._CHECKED + syscalls._ABSENT, machine).values())
    for number in set(range(700)) - checked:
        assert (decide(code, MACHINES[machine], number) == ALLOW) == (number in allowed), number
    assert decide(code, 0x40000003, 1) == KILL
    assert machine != "x86_64" or decide(code, MACHINES[machine], 0x40000001) == KILL


CHECKED = [
    ("kill", (77, 15), ALLOW), ("kill", (78, 15), REFUSE), ("kill", (77, 9), REFUSE), ("kill", (-1, 0), REFUSE),
    ("tgkill", (77, 80, 6), ALLOW), ("tgkill", (78, 78, 6), REFUSE), ("tgkill", (77, 77, 19), REFUSE),
    ("clone", (0x3D0F00,), ALLOW), ("clone", (17,), REFUSE), ("clone", (0x3D0F00 | 0x10000000,), REFUSE),
    ("clone3", (0, 0), ABSENT), ("openat2", (0, 0), ABSENT), ("fcntl", (3, 4, 0), ALLOW), ("fcntl", (3, 8, 1), REFUSE),
    ("prlimit64", (0, 7, 0), ALLOW), ("prlimit64", (0, 7, 1), REFUSE), ("prlimit64", (0, 7, 1 << 32), REFUSE),
    ("prlimit64", (1, 7, 0), REFUSE), ("sendto", (3, 1, 1, 0, 0), ALLOW), ("sendto", (3, 1, 1, 0, 1 << 40), REFUSE),
    ("socketpair", (1, 1 | 0o2000000), ALLOW), ("socketpair", (1, 2), REFUSE), ("socketpair", (2, 1), REFUSE),
    ("ioctl", (0, 0x5401), ALLOW), ("ioctl", (0, 0x5412), REFUSE), ("prctl", (15,), ALLOW), ("prctl", (4, 1), REFUSE),
    ("openat", (0, 0, 0), ALLOW), ("openat", (0, 0, 0o2000000), ALLOW), ("openat", (0, 0, 1), REFUSE),
    ("openat", (0, 0, 0o1000), REFUSE), ("openat", (0, 0, 0o100), REFUSE),
]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "arguments", "answer"), CHECKED)
def test_the_filter_looks_at_arguments(machine: str, name: str, arguments: tuple[int, ...], answer: int) -> None:
    code = filled(syscalls.build(writable=False, read_only_opens=True, machine=machine), 77)
    number = syscalls.numbers(syscalls._CHECKED + syscalls._ABSENT, machine)[name]
    assert decide(code, MACHINES[machine], number, *arguments) == answer
