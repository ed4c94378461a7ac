"""Rows of known data sets become records by their fields; evaluation data is not trained on by accident."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from wmtp.data.contests import LEVELS
from wmtp.data.kinds import Found, read_row
from wmtp.data.problem_files import read_problems
from wmtp.data.records import BadRow, Record, field_map, parse
from wmtp.data.sources import SourceReport, read_records, stream_records
from wmtp.errors import DataError, UsageError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")

HUMANEVAL = {
    "task_id": "HumanEval/7",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
CONTEST: dict[str, Any] = {
    "name": "1_A. Sum",
    "description": "Print the sum.\n",
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    "private_tests": {"input": ["5 5\n"], "output": ["10\n"]},
    "generated_tests": {"input": [], "output": []},
    "difficulty": 7,
    "time_limit": {"seconds": 2, "nanos": 500_000_000},
    "solutions": {"language": [2, 3, 1], "solution": ["int main(){}", "print(3)\r\n", "print 3"]},
    "incorrect_solutions": {"language": [3, 4], "solution": ["print(4)", "class A {}"]},
    "input_file": "",
}
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": "a + b"},
]


def listed(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose groups of fields are lists of objects instead of lists side by side."""
    return {
        name: [dict(zip(value, pair, strict=True)) for pair in zip(*value.values(), strict=True)]
        if isinstance(value, dict) and name != "time_limit"
        else value
        for name, value in row.items()
    }


@pytest.mark.parametrize("row", [CONTEST, listed(CONTEST)], ids=["columns", "objects"])
def test_every_python_3_solution_of_a_contest_is_a_record_and_the_others_are_counted(row: dict[str, Any]) -> None:
    found = read_row(row)
    common: dict[str, Any] = {
        "problem_id": "codecontests/1_A. Sum",
        "prompt": "Print the sum.",
        "difficulty": 7,
        "cases": (("1 2\n", "3\n"), ("5 5\n", "10\n")),
        "time_limit_s": 2.5,
        "source": "codecontests",
    }
    assert found.records == (
        Record(response="print(3)\n", is_correct=True, **common),
        Record(response="print(4)", is_correct=False, **common),
    )
    assert found.dropped == {f"solution in {name}, not PYTHON3": 1 for name in ("CPP", "PYTHON", "JAVA")}


def test_languages_and_difficulties_may_be_names() -> None:
    named = CONTEST | {"difficulty": "A", "solutions": {"language": ["PYTHON3"], "solution": ["print(3)"]}}
    assert read_row(named).records[0].difficulty == LEVELS.index("A") == 7
    assert read_row(CONTEST | {"difficulty": "EXTERNAL"}).records[0].difficulty == 0


def test_a_contest_that_reads_files_has_no_records() -> None:
    found = read_row(CONTEST | {"input_file": "input.txt"})
    assert found.records == ()
    assert found.dropped["solution of a problem that reads or writes files"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solutions": {"language": [3], "solution": []}}, "field 'solutions' must have as many language as solution"),
        ({"solutions": {"language": [3]}}, "field 'solutions' must have"),
        ({"solutions": {"language": [3], "solution": [5]}}, "field 'solutions' must have texts"),
        ({"solutions": 5}, "field 'solutions' must have"),
        ({"solutions": {"language": [9], "solution": ["x"]}}, "field 'language' must be one of"),
        ({"private_tests": 5}, "field 'private_tests' must have"),
        ({"difficulty": -1}, "field 'difficulty' must be one of"),
        ({"time_limit": 5}, "field 'time_limit' must be an object"),
        ({"name": 5}, "field 'name' must be a string"),
    ],
)
def test_a_bad_row_of_a_contest_says_which_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read_row(CONTEST | changes)


def test_humaneval_is_a_whole_program_with_its_own_tests() -> None:
    assert read_row(HUMANEVAL) == Found(
        (
            Record(
                problem_id="humaneval/7",
                prompt="def double(x):\n",
                response="def double(x):\n    return 2 * x\n",
                is_correct=True,
                tests=(HUMANEVAL["test"], "check(double)"),
                source="humaneval",
            ),
        ),
        "humaneval",
        "test",
    )


@pytest.mark.parametrize("derived", [False, True], ids=["published", "made from it"])
def test_training_on_humaneval_is_refused_unless_it_is_forced(tmp_path: Path, derived: bool) -> None:
    row = read_row(HUMANEVAL).records[0].row() if derived else HUMANEVAL
    path = write(tmp_path / "a", row)
    with pytest.raises(DataError, match="humaneval's test split is for evaluation") as caught:
        read_records(path)
    assert "data.train.split=test data.allow_evaluation_data=true" in str(caught.value)
    with pytest.raises(DataError, match="humaneval's test split is for evaluation"):
        read_records(path, split="test")
    assert len(read_records(path, split="test", allow_evaluation=True)[0]) == 1
    assert len(read_records(path, role="validation", split="test")[0]) == 1


def test_a_field_map_does_not_smuggle_humaneval_into_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a", HUMANEVAL)
    with pytest.raises(DataError, match="for evaluation"):
        read_records(path, fields={"prompt": "prompt", "response": "canonical_solution"})


def test_instructions_and_their_input_are_the_prompt() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "text": "ignored"}
    assert read_row(row).records == (Record(problem_id="Add.\n\n1 2", prompt="Add.\n\n1 2", response="3"),)
    assert read_row(row | {"input": ""}).records[0].prompt == "Add."


def test_of_a_conversation_the_last_message_is_the_response() -> None:
    [record] = read_row({"messages": TALK}).records
    assert (record.prompt, record.response) == ("Be short.\n\nAdd.", "a + b")
    assert record.messages == (TALK[0], TALK[1])
    assert parse(record.row()) == record


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (TALK[:2], "the last message must be the assistant's, got one of 'user'"),
        (TALK[2:], "must be a list of two or more"),
        ("hello", "must be a list of two or more"),
        ([TALK[1], {"role": "assistant", "content": None}], "field 'response' must be a string"),
        ([{"role": "user", "content": [1]}, TALK[2]], "role and content texts"),
    ],
)
def test_a_bad_conversation_says_what_is_wrong(messages: Any, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read_row({"messages": messages})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"cases": [["1"]]}, "field 'cases' must be a list of"),
        ({"cases": "1"}, "field 'cases' must be a list of"),
        ({"cases": [["1", 2]]}, "field 'cases' must be a list of"),
        ({"cases": [["1", "2"]], "tests": ["f()"]}, "not both"),
        ({"time_limit_s": -1}, "field 'time_limit_s' must be a number >= 0"),
        ({"time_limit_s": "2"}, "field 'time_limit_s' must be a number >= 0"),
        ({"time_limit_s": float("nan")}, "field 'time_limit_s' must be a number >= 0"),
    ],
)
def test_a_bad_field_of_a_record_is_told(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        parse({"prompt": "p", "response": "r"} | row)


# problems in a file of their own


def write(path: Path, *found: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_problems_complete_the_records_of_their_id(tmp_path: Path) -> None:
    problems = read_problems(write(tmp_path / "p", {"problem_id": "a", "prompt": "Add.", "cases": [["1", "2"]]}))
    fields = {"problem_id": "task", "response": "code"}
    assert read_row({"task": "a", "code": "x"}, fields, problems).records == (
        Record(problem_id="a", prompt="Add.", response="x", cases=(("1", "2"),)),
    )
    with pytest.raises(BadRow, match="the problem 'b' is not in the file of problems"):
        read_row({"task": "b", "code": "x"}, fields, problems)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([{"prompt": "p"}], ":1: field 'problem_id' is missing"),
        ([{"problem_id": "a"}, {"problem_id": "a"}], ":2: the problem 'a' is there twice"),
        ([{"problem_id": "a", "tets": []}], ":1: unknown field 'tets'"),
        ([5], ":1: expected a JSON object"),
    ],
)
def test_a_bad_file_of_problems_is_named_with_its_row(tmp_path: Path, found: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_problems(write(tmp_path / "p", *found))


def test_refactorys_tests_are_its_assignments(tmp_path: Path) -> None:
    case = {"i": "add(1, 2)\n", "o": "3\n"}
    (tmp_path / "tests.json").write_text(
        json.dumps({"1": {"globals": "", "description": "Task: Add\n", "cases": [case]}}, indent=0)
    )
    row = {"question": 1, "label": "fail", "sub": "wrong_1_001.py", "code": "def add(a, b): return a - b\r\n"}
    with pytest.raises(BadRow, match="name its tests"):
        read_row(row)
    [record] = read_row(row, problems=read_problems(tmp_path / "tests.json")).records
    assert (record.problem_id, record.prompt, record.is_correct) == ("refactory/1", "Add", False)
    assert record.tests == ("assert add(1, 2) == 3",)


def test_a_field_map_is_written_as_pairs() -> None:
    assert field_map(["prompt=question", "response=a=b"]) == {"prompt": "question", "response": "a=b"}
    for wrong in ("prompt", "prompt=", "promt=x"):
        with pytest.raises(UsageError, match="expected OURS=THEIRS"):
            field_map([wrong])


# the real programs


@needs_data
@pytest.mark.parametrize(
    ("name", "records", "problems"),
    [
        ("mbpp/mbpp.jsonl", {True: 974}, 974),
        ("humaneval/HumanEval.jsonl.gz", {True: 164}, 164),
        ("humaneval_plus/HumanEvalPlus-Mini.jsonl.gz", {True: 164}, 164),
        ("mbpp_plus/MbppPlus.jsonl.gz", {True: 378}, 378),
        ("condefects/condefects_python_60.jsonl.gz", {True: 1766, False: 1766}, 613),
        ("refactory/refactory.jsonl.gz", {True: 2447, False: 1946}, 5),
    ],
)
def test_the_real_files_are_read_whole(name: str, records: dict[bool, int], problems: int) -> None:
    given = read_problems(DATA / "refactory" / "tests.json") if "refactory" in name else None
    found = list(stream_records(DATA / name, SourceReport(name), problems=given))
    assert Counter(record.is_correct for record in found) == records
    assert len({record.problem_id for record in found}) == problems
