"""Samples become verdicts, each program once, and verdicts become figures that leave nothing out in silence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from wmtp.data.records import Record
from wmtp.errors import DataError, UsageError, WmtpError
from wmtp.evaluation.judging import Judged, figures, fingerprint, judge, read_verdicts
from wmtp.evaluation.problems import Problem, Suite
from wmtp.evaluation.samples import Sample
from wmtp.sandbox import FunctionTests, Isolation, Job, Verdict


class FakeSandbox:
    """Judges by the program's text: `good` passes, `half` passes only `base`, any other is its own status."""

    def __init__(self, level: int = 2) -> None:
        self.isolation = Isolation(level, ("fake",))
        self.ran: list[Any] = []

    def map(self, jobs: Iterable[Job], *, ordered: bool = True) -> Iterator[tuple[Job, Verdict]]:
        for job in jobs:
            self.ran.append(job.id)
            suite = job.id[2]  # type: ignore[index]
            status: Any = job.source
            if job.source in ("good", "good too"):
                status = "passed"
            if job.source == "half":
                status = "passed" if suite == "base" else "wrong"
            yield job, Verdict(status, "because", isolation=self.isolation)


def problem(name: str, suites: tuple[str, ...] = ("base", "plus"), reference: str | None = "good") -> Problem:
    tests = FunctionTests(["assert True"])
    record = Record(name, "Add.", "pass")
    return Problem(name, "", record, tuple(Suite(suite, tests) for suite in suites), reference=reference)


def run(samples: dict[str, list[str]], known: Any = None, sandbox: Any = None, **options: Any) -> tuple[Any, Any, Any]:
    problems = [problem(name, **options) for name in samples]
    grouped = {name: [Sample(name, text, temperature=0.5) for text in texts] for name, texts in samples.items()}
    sandbox = sandbox or FakeSandbox()
    verdicts = dict(known or {}) | {judged.key: judged for judged in judge(grouped, problems, sandbox, known)}
    return grouped, problems, verdicts


def test_a_suite_is_run_on_what_passed_the_one_before() -> None:
    sandbox = FakeSandbox()
    run({"a": ["good", "half", "wrong"]}, sandbox=sandbox)
    assert [(program, suite) for _, program, suite in sandbox.ran] == [
        *((fingerprint(text), "base") for text in ("good", "half", "wrong")),
        *((fingerprint(text), "plus") for text in ("good", "half")),
    ]


def test_equal_programs_are_judged_once_and_counted_each() -> None:
    sandbox = FakeSandbox()
    grouped, problems, verdicts = run({"a": ["good", "good", "wrong"]}, sandbox=sandbox)
    assert len(sandbox.ran) == 3
    base, plus = figures(grouped, problems, verdicts, [1])
    assert base["samples"] == 3
    assert base["pass_at_k"]["1"]["mean"] == pytest.approx(2 / 3)
    assert plus["statuses"] == {"passed": 2, "wrong": 1}


def test_a_later_suite_counts_only_what_passed_both() -> None:
    grouped, problems, verdicts = run({"a": ["good", "half"], "b": ["half", "half"]})
    base, plus = figures(grouped, problems, verdicts, [1, 2])
    assert [base["pass_at_k"][k]["mean"] for k in ("1", "2")] == [1.0, 1.0]
    assert [plus["pass_at_k"][k]["mean"] for k in ("1", "2")] == [0.25, 0.5]


def test_what_is_known_is_not_judged_again_unless_it_was_less_isolated() -> None:
    _, _, known = run({"a": ["good"]})
    for level, again in ((1, 0), (2, 0), (3, 2)):
        sandbox = FakeSandbox(level)
        run({"a": ["good"]}, known=known, sandbox=sandbox)
        assert len(sandbox.ran) == again


def test_a_fault_of_the_machinery_is_no_verdict_and_is_told_at_the_end() -> None:
    problems = [problem("a"), problem("b")]
    grouped = {"a": [Sample("a", "sandbox_error")], "b": [Sample("b", "good")]}
    found: list[Judged] = []
    with pytest.raises(WmtpError, match="1 program could not be judged, the first: a: because"):
        found.extend(judge(grouped, problems, FakeSandbox()))  # type: ignore[arg-type]
    assert {judged.task_id for judged in found} == {"b"}


def test_a_problem_whose_tests_cannot_judge_is_left_out_and_named() -> None:
    grouped, problems, verdicts = run({"a": ["bad_tests"], "b": ["good"]}, suites=("base",))
    [base] = figures(grouped, problems, verdicts, [1])
    assert base["tests_that_cannot_judge"] == ["a"]
    assert base["pass_at_k"]["1"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "problems": 1}


def test_too_few_samples_for_a_k_is_an_error_that_names_the_problem() -> None:
    grouped, problems, verdicts = run({"a": ["good", "wrong"], "b": ["good"]})
    with pytest.raises(UsageError, match=r"pass@2 needs 2 samples .*; b has 1"):
        figures(grouped, problems, verdicts, [2])


def test_temperatures_are_scored_apart() -> None:
    problems = [problem("a", suites=("base",))]
    grouped = {"a": [Sample("a", "good", temperature=0.0), Sample("a", "wrong", temperature=0.8)]}
    verdicts = {judged.key: judged for judged in judge(grouped, problems, FakeSandbox())}  # type: ignore[arg-type]
    found = figures(grouped, problems, verdicts, [1])
    assert [(row["temperature"], row["pass_at_k"]["1"]["mean"]) for row in found] == [(0.0, 1.0), (0.8, 0.0)]


def test_greedy_answers_are_one_sample_and_have_pass_at_1_only() -> None:
    problems = [problem("a", suites=("base",))]
    grouped = {"a": [Sample("a", "good", temperature=0.0), *[Sample("a", "wrong", temperature=0.8)] * 3]}
    verdicts = {judged.key: judged for judged in judge(grouped, problems, FakeSandbox())}  # type: ignore[arg-type]
    greedy, warm = figures(grouped, problems, verdicts, [1, 3])
    assert list(greedy["pass_at_k"]) == ["1"]
    assert list(warm["pass_at_k"]) == ["1", "3"]


def test_exact_match_looks_past_blank_lines_and_trailing_space() -> None:
    grouped, problems, verdicts = run({"a": ["good", "good too"]}, reference="good  \n\n")
    base, _ = figures(grouped, problems, verdicts, [1])
    assert base["exact_match"]["mean"] == 0.5


def test_verdicts_are_read_as_they_were_written(tmp_path: Path) -> None:
    judged = Judged("a", "0123", "base", "wrong", "é", "strong", 0.5, 2)
    path = tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps(asdict(judged)) + "\n")
    assert read_verdicts(path) == {judged.key: judged}
    path.write_text('{"task_id": "a"}\n')
    with pytest.raises(DataError, match=":1: not a verdict of this version"):
        read_verdicts(path)
