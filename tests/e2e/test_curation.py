"""`wmtp data label` and `wmtp data mutate`: what the tests say, in the order of the rows, whatever interrupts them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.curation.mutate import changed_span
from wmtp.data.mutate import OPERATORS
from wmtp.data.records import parse
from wmtp.data.sources import read_records
from wmtp.errors import DataError

Command = Callable[..., tuple[int, str, str]]

DOUBLE = {"problem_id": "double", "prompt": "Double x.", "tests": ["assert double(3) == 6", "assert double(0) == 0"]}
LARGEST = {"problem_id": "largest", "prompt": "Largest.", "tests": ["assert largest([1, 3, 2]) == 3"]}
LOOP = "def largest(xs):\n    b = xs[0]\n    for x in xs:\n        if x > b:\n            b = x\n    return b"
ROWS = [
    DOUBLE | {"response": "def double(x):\n    return 2 * x"},
    DOUBLE | {"response": "def double(x):\n    return x * x", "is_correct": True, "about": {"from": "me"}},
    LARGEST | {"response": LOOP},
    {"problem_id": "talk", "prompt": "Say hello.", "response": "Hello.", "is_correct": True},
    LARGEST | {"response": "def largest(xs):\n    return xs[-1", "is_correct": False},
    LARGEST | {"response": "def largest(xs):\n    return max(xs)", "tests": ["assert largest( == 3"]},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", ROWS)


def test_labels_are_what_the_tests_say_and_the_rest_of_a_row_stays(
    source: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    code, out, err = wmtp_command("data", "label", "--data", source, "--out", tmp_path / "out.jsonl", "--json")
    assert code == 0, err
    rows = read(tmp_path / "out.jsonl")
    assert [row["response"] for row in rows] == [row["response"] for row in ROWS]
    assert [row.get("is_correct") for row in rows] == [True, False, True, True, False, None]
    assert [row.get("about", {}).get("verdict", {}).get("status") for row in rows] == [
        "passed", "wrong", "passed", None, "error", "bad_tests",
    ]  # fmt: skip
    assert rows[1]["about"]["from"] == "me"
    assert rows[1]["about"]["verdict"]["label_before"] == "True"
    report = json.loads(out)
    assert (report["input_rows"], report["rows"], report["verdict_differs_from_label"]) == (6, 6, 1)
    assert report == json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert read_records(tmp_path / "out.jsonl")[0][1].is_correct is False


def test_mutants_are_wrong_by_their_tests_and_say_where(source: Path, tmp_path: Path, wmtp_command: Command) -> None:
    options = ("data", "mutate", "--data", source, "--out", tmp_path / "out.jsonl", "--variants", 4, "--json")
    code, out, err = wmtp_command(*options)
    assert code == 0, err
    rows = [parse(row) for row in read(tmp_path / "out.jsonl")]
    report = json.loads(out)
    assert report["dropped"] == {
        "does not pass its own tests (wrong)": 1, "no tests": 1, "labelled wrong": 1,
        "does not pass its own tests (bad_tests)": 1,
    }  # fmt: skip
    assert sum(counts["run"] for counts in report["operators"].values()) >= len(rows) - 2
    correct: dict[str, str] = {}
    for row in rows:
        if row.is_correct:
            correct[row.problem_id] = row.response
            continue
        mutation = row.about["mutation"]
        start, end = mutation["span"]
        before = correct[row.problem_id]
        assert mutation["operator"] in OPERATORS
        assert row.response[:start] == before[:start]
        assert row.response[end:] == before[len(before) - len(row.response[end:]) :]
    assert set(correct) == {"double", "largest"}
    code, out, _ = wmtp_command(
        "data", "label", "--data", tmp_path / "out.jsonl", "--out", tmp_path / "l.jsonl", "--json"
    )
    assert json.loads(out)["verdict_differs_from_label"] == 0


@pytest.mark.parametrize("command", ["label", "mutate"])
def test_rows_none_of_which_has_tests_are_refused_and_nothing_is_written(
    command: str, tmp_path: Path, wmtp_command: Command
) -> None:
    source = write(tmp_path / "rows.jsonl", [{"prompt": "p", "response": "r"}] * 3)
    code, _, err = wmtp_command("data", command, "--data", source, "--out", tmp_path / "out.jsonl")
    assert (code, f"no row of {source} has tests" in err) == (2, True)
    assert list(tmp_path.iterdir()) == [source]


ADD = {
    "problem_id": "add",
    "prompt": "Print the sum of two numbers.",
    "cases": [["1 2\n", "3\n"], ["5 5\n", "10"]],
    "time_limit_s": 0.5,
}
PROGRAMS = {
    "a, b = map(int, input().split())\nprint(a + b)": "passed",
    "a, b = map(int, input().split())\nprint(a * b)": "wrong",
    "while True: pass": "timeout",
    "print(int('x'))": "error",
}


def test_programs_that_read_and_print_are_judged_by_their_cases_within_their_own_limit(
    tmp_path: Path, wmtp_command: Command
) -> None:
    source = write(tmp_path / "rows.jsonl", [ADD | {"response": program} for program in PROGRAMS])
    code, _, err = wmtp_command("data", "label", "--data", source, "--out", tmp_path / "out.jsonl")
    assert code == 0, err
    rows = read(tmp_path / "out.jsonl")
    assert [row["about"]["verdict"]["status"] for row in rows] == list(PROGRAMS.values())
    assert [row["is_correct"] for row in rows] == [True, False, False, False]
    assert "0.5 s" in rows[2]["about"]["verdict"]["reason"]
    assert all(row["cases"] == ADD["cases"] for row in rows)


def test_a_published_contest_can_be_judged_as_it_is_and_what_is_no_python_is_counted(
    tmp_path: Path, wmtp_command: Command
) -> None:
    solutions = {"language": [2, 3, 3], "solution": ["int main(){}", *list(PROGRAMS)[:2]]}
    row = {"name": "1_A", "description": "Print the sum.", "solutions": solutions, "private_tests": None}
    tests = {"input": ["1 2\n"], "output": ["3\n"]}
    source = write(tmp_path / "rows.jsonl", [row | {"public_tests": tests, "generated_tests": None}])
    code, out, err = wmtp_command("data", "label", "--data", source, "--out", tmp_path / "out.jsonl", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["statuses"], report["verdict_differs_from_label"]) == ({"passed": 1, "wrong": 1}, 1)
    assert report["sources"][0]["dropped"] == {"solution in CPP, not PYTHON3": 1}


def test_programs_that_read_and_print_have_wrong_variants_too(tmp_path: Path, wmtp_command: Command) -> None:
    source = write(tmp_path / "rows.jsonl", [ADD | {"response": program} for program in PROGRAMS])
    code, out, err = wmtp_command(
        "data", "mutate", "--data", source, "--out", tmp_path / "out.jsonl", "--variants", 2, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["solutions_with_all_variants"] == 1
    assert [row["is_correct"] for row in read(tmp_path / "out.jsonl")] == [True, False, False]


@pytest.mark.parametrize("command", ["label", "mutate"])
def test_a_file_that_was_cut_off_is_gone_on_with_to_the_same_end(
    source: Path, tmp_path: Path, wmtp_command: Command, command: str
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert wmtp_command("data", command, "--data", source, "--out", whole)[0] == 0
    broken = write(tmp_path / "broken.jsonl", [*ROWS[:3], {"prompt": 3}])
    code, _, err = wmtp_command("data", command, "--data", broken, "--out", cut)
    assert code == 2
    assert "broken.jsonl:4: " in err
    part = tmp_path / "cut.jsonl.part"
    assert not cut.exists()
    assert len(part.read_text().splitlines()) == 3
    code, _, err = wmtp_command("data", command, "--data", source, "--out", cut)
    assert code == 2
    assert "was begun from something else (source_sha256)" in err
    part.write_text(part.read_text()[:-20])
    broken.write_bytes(source.read_bytes())
    note = tmp_path / "cut.jsonl.part.about"
    about = json.loads(note.read_text())
    from wmtp.storage import sha256_file

    note.write_text(json.dumps(about | {"source_sha256": sha256_file(source)}))
    assert wmtp_command("data", command, "--data", source, "--out", cut)[0] == 0
    assert cut.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part*"))


def test_a_file_that_is_there_is_never_written_over(source: Path, tmp_path: Path, wmtp_command: Command) -> None:
    out = write(tmp_path / "out.jsonl", ROWS[:1])
    code, _, err = wmtp_command("data", "label", "--data", source, "--out", out)
    assert code == 2
    assert "is there already" in err
    assert read(out) == ROWS[:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["label", "--require", "some"], "--require must be one of"),
        (["label", "--cpu-s", "0"], "cpu_s must be a positive number"),
        (["mutate", "--variants", "0"], "variants must be at least 1"),
        (["mutate", "--split", "test"], "has no official splits"),
        (["label", "--data", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
    ],
)
def test_wrong_usage_is_told(
    source: Path, tmp_path: Path, wmtp_command: Command, options: list[str], message: str
) -> None:
    code, _, err = wmtp_command("data", options[0], "--data", source, "--out", tmp_path / "out.jsonl", *options[1:])
    assert code == 2, err
    assert message in err


def test_the_data_commands_load_no_torch(source: Path, tmp_path: Path) -> None:
    made = str(tmp_path / "made.jsonl")
    commands = [
        ["data", "prepare", str(source), "--out", made],
        ["data", "label", "--data", str(source), "--out", str(tmp_path / "labelled.jsonl")],
        ["data", "index", made],
    ]
    code = (
        "import json, sys\nfrom wmtp.cli import run_command\n"
        "assert [run_command(command) for command in json.loads(sys.argv[1])] == [0, 0, 0]\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_was_made_from_mbpps_test_split_is_not_trained_on(tmp_path: Path) -> None:
    row = {"problem_id": "mbpp/11", "prompt": "p", "response": "r", "source": "mbpp"}
    path = write(tmp_path / "a.jsonl", [row, row | {"problem_id": "mbpp/700"}])
    records, report = read_records(path, role="train")
    assert [record.problem_id for record in records] == ["mbpp/700"]
    assert report.other_splits == {"test": 1}
    with pytest.raises(DataError, match="test split is for evaluation"):
        read_records(path, role="train", split="test")


@given(st.text("ab\n", min_size=1, max_size=12), st.text("ab\n", min_size=1, max_size=12))
def test_the_changed_span_holds_every_difference(before: str, after: str) -> None:
    start, end = changed_span(before, after)
    assert 0 <= start <= end <= len(after)
    assert before[:start] == after[:start]
    tail = after[end:]
    assert before.endswith(tail) or not tail
