"""The known solutions of public data sets pass, and what cannot be right fails, judged from outside the program.

A share of each data set runs always; all of it is `exhaustive`. Without the data the tests skip.
"""

from __future__ import annotations

import ast
import gzip
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from ordinary import run_as_ordinary_user

from wmtp.sandbox import FunctionTests, Job, Limits, Sandbox

pytestmark = [pytest.mark.fault, pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX system")]
DATA = Path(__file__).parents[3] / "shared" / "data"
LIMITS = Limits(cpu_s=30)
"""MBPP/123 sums the divisors of every number up to 10,000 one by one, which takes more than 5 s."""


def humaneval() -> list[Job]:
    """Helpers that the tests use come from the prompt: the data set's own, not the program's."""
    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Job(
            row["prompt"] + row["canonical_solution"],
            FunctionTests([row["test"]], setup=row["prompt"], entry_point=row["entry_point"]),
            id=row["task_id"],
        )
        for row in rows
    ]


def mbpp() -> list[Job]:
    """The full set, with its set-up code between program and tests."""
    rows = [json.loads(line) for line in (DATA / "mbpp" / "mbpp.jsonl").read_text("utf-8").splitlines()]
    return [
        Job(row["code"], FunctionTests(row["test_list"], setup=row["test_setup_code"]), id=row["task_id"])
        for row in rows
    ]


def sanitized() -> list[Job]:
    """The part of MBPP that people have checked."""
    rows = json.loads((DATA / "mbpp" / "sanitized-mbpp.json").read_text("utf-8"))
    return [
        Job(row["code"], FunctionTests(row["test_list"], setup="\n".join(row["test_imports"])), id=row["task_id"])
        for row in rows
    ]


SETS = {"humaneval": (humaneval, 164), "mbpp": (mbpp, 974), "sanitized": (sanitized, 427)}
SHARES = [pytest.param(20, id="a share"), pytest.param(1, id="all", marks=pytest.mark.exhaustive)]


def spoiled(job: Job) -> Iterator[Job]:
    """The same tests with programs that cannot be right: none at all, half of one, one that only passes."""
    with warnings.catch_warnings(action="ignore"):  # some solutions have invalid escapes
        tree = ast.parse(job.source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [ast.Pass()]
    broken = job.source[: len(job.source) // 2] + "\n)("
    for source in ("", broken, ast.unparse(tree)):
        yield Job(source, job.tests, id=job.id)


def jobs_of(name: str, every: int) -> list[tuple[Job, bool]]:
    """Each program of a share with whether it is right."""
    if not DATA.is_dir():
        pytest.skip(f"the data sets are not in {DATA}")
    load, number = SETS[name]
    jobs = load()
    assert len(jobs) == number
    return [(job, True) for job in jobs[::every]] + [(bad, False) for job in jobs[::every] for bad in spoiled(job)]


@pytest.mark.parametrize("every", SHARES)
@pytest.mark.parametrize("name", SETS)
def test_known_solutions_pass_and_spoiled_ones_fail(name: str, every: int) -> None:
    """Every verdict is about the program, and reached without the program's help."""
    jobs = jobs_of(name, every)
    with Sandbox(limits=LIMITS) as sandbox:
        verdicts = [verdict for _, verdict in sandbox.map(job for job, _ in jobs)]
    exceptions = [
        (job.id, verdict.status, verdict.trust, verdict.reason)
        for (job, right), verdict in zip(jobs, verdicts, strict=True)
        if (verdict.passed, verdict.decided, verdict.trust) != (right, True, "strong")
    ]
    assert exceptions == []


ORDINARY = """
import json, os
from wmtp.sandbox import FunctionTests, Job, Limits, Sandbox
rows = json.load(open("jobs.json"))
jobs = (Job(source, FunctionTests(tests, setup, entry)) for _, _, source, tests, setup, entry in rows)
bad = []
with Sandbox(limits=Limits(cpu_s=30)) as sandbox:
    for (name, right, *_), (_, verdict) in zip(rows, sandbox.map(jobs)):
        if (verdict.passed, verdict.decided, verdict.trust) != (right, True, "strong"):
            bad.append([name, verdict.status, verdict.reason])
    print(json.dumps({"uid": os.geteuid(), "strong": sandbox.isolation.strong, "bad": bad}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="isolation is Linux's")
@pytest.mark.parametrize("every", SHARES)
def test_an_ordinary_user_gets_the_same_verdicts(every: int) -> None:
    """With the strongest isolation that such a user can have."""
    jobs = [(job, right) for name in SETS for job, right in jobs_of(name, every)]
    rows = [
        [str(job.id), right, job.source, job.tests.tests, job.tests.setup, job.tests.entry_point]  # type: ignore[union-attr]
        for job, right in jobs
    ]
    found = run_as_ordinary_user(ORDINARY, {"jobs.json": json.dumps(rows)})
    assert found["bad"] == []
    assert found["strong"]
