"""Benchmark files become problems by what their rows say; a broken file is named with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from wmtp.errors import DataError
from wmtp.evaluation.problems import read_benchmark
from wmtp.evaluation.samples import Sample, by_problem, from_answer, read_samples, write_rows
from wmtp.sandbox import FunctionTests, Limits, Sandbox, StdinTests

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
PLUS = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "base_input": [[2]],
    "plus_input": [[0], [1.5]],
    "atol": 0,
    "contract": "",
}
CONTEST = {
    "name": "1_A. Sum",
    "description": "Print the sum.",
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    "private_tests": {"input": ["5 5\n"], "output": ["10\n"]},
    "generated_tests": {"input": [], "output": []},
    "time_limit": {"seconds": 2, "nanos": 500_000_000},
    "memory_limit_bytes": 256_000_000,
    "solutions": {"language": [2, 3], "solution": ["int main(){}", "print(sum(map(int, input().split())))"]},
}


def mbpp(task: int, **changes: Any) -> dict[str, Any]:
    return {
        "task_id": task,
        "text": f"Write function f{task}.",
        "code": f"def f{task}():\r\n    return {task}",
        "test_list": [f"assert f{task}() == {task}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    } | changes


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_humaneval_is_continued_where_its_prompt_ends(tmp_path: Path) -> None:
    found = read_benchmark(write(tmp_path / "a", HUMANEVAL))
    [problem] = found.problems
    assert (found.name, problem.id, problem.prompt) == ("humaneval", "HumanEval/0", HUMANEVAL["prompt"])
    assert problem.program("    return x + x") == "def double(x):\n    return x + x"
    assert problem.suites[0].tests == FunctionTests(
        [HUMANEVAL["test"]], setup=HUMANEVAL["prompt"], entry_point="double"
    )


def test_evalplus_has_two_suites(tmp_path: Path) -> None:
    found = read_benchmark(write(tmp_path / "a", PLUS))
    assert found.name == "humaneval_plus"
    assert [suite.name for suite in found.problems[0].suites] == ["base", "plus"]


def test_mbpp_is_asked_as_in_its_paper(tmp_path: Path) -> None:
    """Three solved tasks, then this one; the test split unless another is named."""
    path = write(tmp_path / "a", *(mbpp(task) for task in (2, 3, 4, 11, 600, 700)))
    found = read_benchmark(path)
    assert [problem.id for problem in found.problems] == ["MBPP/11"]
    assert found.split == "test"
    prompt = found.problems[0].prompt
    assert prompt.count("[BEGIN]\n") == 4
    assert prompt.count("[DONE]") == 3
    assert "\ndef f2():\n    return 2\n[DONE]\n\nYou are an expert Python programmer" in prompt
    assert prompt.endswith("should pass these tests:\n\nassert f11() == 11\n[BEGIN]\n")
    assert [p.id for p in read_benchmark(path, split="train").problems] == ["MBPP/700"]
    assert len(read_benchmark(path, split="all").problems) == 6


def test_mbpp_has_its_statement_as_training_records_have_it(tmp_path: Path) -> None:
    found = read_benchmark(write(tmp_path / "a", mbpp(11)))
    assert found.problems[0].record.prompt == "Write function f11.\nassert f11() == 11"


def test_an_example_is_never_shown_its_own_solution(tmp_path: Path) -> None:
    found = read_benchmark(write(tmp_path / "a", mbpp(2), mbpp(3), mbpp(4)), split="prompt")
    assert "def f2" not in found.problems[0].prompt


def test_codecontests_has_all_its_tests_and_the_contests_limits(tmp_path: Path) -> None:
    found = read_benchmark(write(tmp_path / "a", CONTEST))
    [suite] = found.problems[0].suites
    assert found.name == "codecontests"
    assert suite.tests == StdinTests([("1 2\n", "3\n"), ("5 5\n", "10\n")])
    assert suite.limits is not None
    assert (suite.limits.cpu_s, suite.limits.memory_bytes) == (2.5, 256_000_000)
    assert found.problems[0].reference == "print(sum(map(int, input().split())))"


def test_codecontests_is_read_from_parquet_as_from_json(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([CONTEST]), tmp_path / "a")
    assert read_benchmark(tmp_path / "a").problems == read_benchmark(write(tmp_path / "b", CONTEST)).problems


def test_a_record_with_cases_is_a_problem_with_its_own_time(tmp_path: Path) -> None:
    row = {"problem_id": "p", "prompt": "Add.", "cases": [["1 2", "3"]], "time_limit_s": 0.5}
    [problem] = read_benchmark(write(tmp_path / "a", row)).problems
    assert problem.suites[0].tests == StdinTests([("1 2", "3")])
    assert problem.suites[0].limits == Limits(cpu_s=0.5)


def test_records_of_one_problem_are_one_problem(tmp_path: Path) -> None:
    row = {"problem_id": "p", "prompt": "Write f.", "tests": ["assert f() == 1"]}
    wrong = row | {"response": "def f(): return 2", "is_correct": False}
    right = row | {"response": "def f(): return 1", "is_correct": True}
    found = read_benchmark(write(tmp_path / "a", wrong, right, row | {"problem_id": "q"}))
    assert [(p.id, p.reference) for p in found.problems] == [("p", "def f(): return 1"), ("q", None)]


def test_a_file_may_be_compressed_or_one_array(tmp_path: Path) -> None:
    packed, array = tmp_path / "packed", tmp_path / "array"
    packed.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    array.write_text(json.dumps([HUMANEVAL]))
    assert read_benchmark(packed).problems == read_benchmark(array).problems


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}], r":1: a row with the fields a is of no known benchmark"),
        ([HUMANEVAL, mbpp(11)], r":2: this is a row of mbpp, the rows before it are of humaneval"),
        ([HUMANEVAL, HUMANEVAL], "'HumanEval/0' is there twice"),
        ([HUMANEVAL | {"test": " "}], ":1: there are no tests"),
        ([HUMANEVAL | {"prompt": 3}], ":1: field 'prompt' must be a string, got 3"),
        ([PLUS | {"base_input": 3}], ":1: field 'base_input' must be a list of lists"),
        ([CONTEST | {"public_tests": {"input": ["1"], "output": []}}], ":1: field 'public_tests' must have as many"),
        ([CONTEST | {"time_limit": "2"}], ":1: field 'time_limit' must be an object"),
        ([mbpp(11, test_list=[])], ":1: field 'test_list' must be a non-empty list"),
        ([mbpp(0)], ":1: MBPP task_id must be an integer from 1 to 974"),
        ([mbpp(1), mbpp(700)], "no problem of the split 'test'; set --split to prompt or train, or to all"),
        ([3], ":1: expected a JSON object"),
        ([], "has no rows"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_benchmark(write(tmp_path / "a", *rows))


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode())[:-12])
    with pytest.raises(DataError, match=r"a\.gz is broken after row 0"):
        read_benchmark(path)


def test_a_file_of_another_kind_or_a_split_where_there_is_none_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", HUMANEVAL)
    with pytest.raises(DataError, match="holds humaneval problems, mbpp was asked for"):
        read_benchmark(path, "mbpp")
    with pytest.raises(DataError, match="no official splits"):
        read_benchmark(path, split="test")
    with pytest.raises(DataError, match="the split of MBPP must be"):
        read_benchmark(write(tmp_path / "b", mbpp(11)), split="tset")


# --- Samples ----------------------------------------------------------------------------------------------------------


def test_an_answer_ends_before_the_first_stop(tmp_path: Path) -> None:
    [problem] = read_benchmark(write(tmp_path / "a", HUMANEVAL)).problems
    sample = from_answer(problem, "    return 2 * x\n\nprint(double(3))\ndef more(): pass", 0.5)
    assert sample == Sample("HumanEval/0", "    return 2 * x\n", whole=False, temperature=0.5)
    assert sample.program(problem) == "def double(x):\n    return 2 * x\n"


@pytest.mark.parametrize("fence", ["```python", "```", "```py", "```Python3"])
def test_fenced_code_is_a_whole_program(tmp_path: Path, fence: str) -> None:
    [problem] = read_benchmark(write(tmp_path / "a", HUMANEVAL)).problems
    sample = from_answer(problem, f"Sure:\n{fence}\ndef double(x):\n    return x * 2\n```\nIt doubles.", 0.0)
    assert sample.program(problem) == "def double(x):\n    return x * 2"


def test_fenced_code_that_goes_on_where_the_prompt_ended_stays_a_continuation(tmp_path: Path) -> None:
    [problem] = read_benchmark(write(tmp_path / "a", HUMANEVAL)).problems
    assert from_answer(problem, "```python\n    return x * 2\n```", 0.0).program(problem) == (
        "def double(x):\n    return x * 2"
    )


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = [Sample("a", "x = 'é'\n", temperature=0.2), Sample("b", "y", whole=True, temperature=0.0)]
    path = tmp_path / "samples.jsonl"
    write_rows(path, (sample.row() for sample in samples))
    assert read_samples(path) == samples


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": "a"}, "either completion or solution; this row has task_id"),
        ({"task_id": "a", "completion": "x", "solution": "y"}, "either completion or solution"),
        ({"task_id": 3, "completion": "x"}, "must be strings"),
        ({"task_id": "a", "completion": "x", "temperature": "hot"}, "'temperature' must be a number"),
        ([1], "expected a JSON object"),
    ],
)
def test_a_broken_sample_is_named_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=f":2: .*{message}"):
        read_samples(write(tmp_path / "a", Sample("a", "x").row(), row))


def test_a_sample_of_no_problem_is_an_error(tmp_path: Path) -> None:
    problems = read_benchmark(write(tmp_path / "a", HUMANEVAL)).problems
    with pytest.raises(DataError, match="'HumanEval/9', which is no problem"):
        by_problem([Sample("HumanEval/9", "x")], problems)


# --- EvalPlus' comparison ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "entry", "given", "solution", "others"),
    [
        (
            "HumanEval/9",
            "f",
            [[3]],
            "return [x / 3, 1.0]",
            {"return [x / 3 + 1e-7, 1.0]": True, "return (1.0, 1.0)": False},
        ),
        (
            "HumanEval/9",
            "f",
            [[1]],
            "return float('inf')",
            {"return -float('inf')": False, "return float('inf')": True},
        ),
        ("HumanEval/9", "f", [[1]], "return 10**6", {"return 10**6 + 1e-9": False, "return 1e6": True}),
        ("HumanEval/9", "f", [[1]], "return [1, 2]", {"return (1, 2)": False}),
        ("HumanEval/32", "find_zero", [[[-4, 2]]], "return 2.0", {"return 2.00000001": True, "return 2.1": False}),
        (
            "Mbpp/2",
            "similar_elements",
            [[[1, 2], [2, 1]]],
            "return (1, 2)",
            {"return [2, 1]": True, "return (1,)": False},
        ),
        (
            "Mbpp/3",
            "check_str",
            [["a"]],
            "return 'a match'",
            {"return 5": True, "return None": False, "return True": True},
        ),
        ("Mbpp/295", "sum_div", [[8]], "return 7", {"return 0": True, "return 6": False}),
        ("Mbpp/558", "digit_distance_nums", [[23, 156]], "return 1", {"return 1 + 3 + 3": True, "return 6": False}),
        ("Mbpp/581", "surface_Area", [[3, 4]], "return 33", {"return 35": True, "return 34": False}),
    ],
)
def test_answers_are_compared_by_evalplus_rules(
    tmp_path: Path, task: str, entry: str, given: list[Any], solution: str, others: dict[str, bool]
) -> None:
    row = PLUS | {"task_id": task, "entry_point": entry, "base_input": given, "plus_input": []}
    arguments = "x, y=None"
    row |= {
        "atol": 1e-4 if entry == "find_zero" else 0,
        "prompt": "",
        "canonical_solution": f"def {entry}({arguments}):\n    {solution}\n",
    }
    [problem] = read_benchmark(write(tmp_path / "a", row)).problems
    [suite] = problem.suites
    assert suite.name == "base"
    with Sandbox(workers=1) as sandbox:
        for answer, passes in {solution: True, **others}.items():
            verdict = sandbox.run(f"def {entry}({arguments}):\n    {answer}\n", suite.tests, suite.limits)
            assert verdict.passed is passes, (answer, verdict.reason)
