"""`wmtp data prepare`: from any files to one file of records, whole or not at all, and hostile input is told."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from wmtp.curation.prepare import Plan, prepare
from wmtp.data.records import parse
from wmtp.data.sources import read_records, stream_records
from wmtp.errors import DataError, UsageError

Command = Callable[..., tuple[int, str, str]]

GOOD = {"problem_id": "double", "prompt": "Double x.", "response": "def double(x):\n    return 2 * x"}
ROWS = [
    GOOD | {"is_correct": True},
    GOOD | {"response": "def double(x):\n    return x * x", "is_correct": False},
    GOOD | {"is_correct": True, "response": GOOD["response"] + "  \n\n"},
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    return [json.loads(line) for line in text.decode().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", ROWS)


def test_every_kind_of_row_becomes_a_record_and_the_report_says_what_went_and_why(
    source: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    code, out, err = wmtp_command("data", "prepare", source, "--out", tmp_path / "out.jsonl", "--json")
    assert code == 0, err
    records = [parse(row) for row in read(tmp_path / "out.jsonl")]
    assert [record.response for record in records] == [*(row["response"] for row in ROWS[:2]), "Red.", "Yes."]
    assert records[3].messages == ({"role": "user", "content": "Hello?"},)
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert (report["input_rows"], report["rows"], report["dropped"]) == (5, 4, {"exact duplicate": 1})
    assert report["dropped_examples"] == {"exact duplicate": ["double"]}
    assert report["sources"][0]["records"] == 5
    assert (report["problems"], report["problems_with_both_verdicts"]) == (3, 1)
    assert report["labels"] == {"correct": 1, "incorrect": 1, "unlabelled": 2}
    assert report["characters"]["response"]["max"] == len(ROWS[1]["response"])


def test_the_same_in_words(source: Path, tmp_path: Path, wmtp_command: Command) -> None:
    code, out, _ = wmtp_command("data", "prepare", source, "--out", tmp_path / "out.jsonl")
    assert code == 0
    assert "4 records written" in out
    assert "dropped, exact duplicate: 1" in out


def test_near_duplicates_benchmarks_and_further_solutions_are_left_out_when_asked(tmp_path: Path) -> None:
    words = " ".join(f"w{i}" for i in range(100))
    problem = {"problem_id": "a", "prompt": "Say it.", "is_correct": True}
    rows = [
        problem | {"response": words},
        problem | {"response": words.replace("w50", "x")},
        problem | {"response": "one"},
        problem | {"response": "two"},
        {"prompt": "Write the sum of all the even numbers of a list, please.", "response": "sum"},
        {"prompt": "p", "response": "r", "cases": [["1", "1"], ["2", "2"], ["3", "3"]]},
    ]
    shown = {"problem_id": "b", "prompt": "the sum of all the even numbers of a list", "response": "x"}
    plan = Plan(against=[write(tmp_path / "bench.jsonl", [shown])], near=0.8, max_solutions=2, max_cases=2)
    report = prepare([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out.jsonl", plan)
    assert report["dropped"] == {
        "near duplicate": 1,
        "more than 2 responses of one verdict to its problem": 1,
        "shares an n-gram of words with a benchmark": 1,
    }
    assert report["dropped_examples"]["near duplicate"] == ["a as a"]
    assert report["dropped_examples"]["shares an n-gram of words with a benchmark"][0].endswith(" as b")
    assert report["cases_left_out"] == 1
    assert read(tmp_path / "out.jsonl")[-1]["cases"] == [["1", "1"], ["2", "2"]]


def test_of_a_benchmark_with_splits_only_the_test_split_counts(tmp_path: Path) -> None:
    words = [f"{name}{i}" for name in "ab" for i in range(9)]
    tasks = [
        {"task_id": task, "text": " ".join(text), "code": "pass", "test_list": ["f()"]}
        for task, text in ((700, words[:9]), (11, words[9:]))
    ]
    plan = Plan(against=[write(tmp_path / "mbpp.jsonl", tasks)])
    rows = [{"prompt": " ".join([*text, "f"]), "response": "r"} for text in (words[:9], words[9:])]
    report = prepare([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out.jsonl", plan)
    assert (report["rows"], sum(report["dropped"].values())) == (1, 1)


def test_one_file_is_made_of_several_and_may_be_compressed(source: Path, tmp_path: Path, wmtp_command: Command) -> None:
    array = tmp_path / "array"
    array.write_text(json.dumps([GOOD | {"response": "new"}, GOOD]))
    arguments = ("data", "prepare", array, source, "--out", tmp_path / "out.jsonl.gz", "--json")
    code, out, err = wmtp_command(*arguments)
    assert code == 0, err
    assert len(read_records(tmp_path / "out.jsonl.gz")[0]) == 5
    assert json.loads(out)["dropped"] == {"exact duplicate with another is_correct": 2}
    first = (tmp_path / "out.jsonl.gz").read_bytes()
    (tmp_path / "out.jsonl.gz").unlink()
    assert wmtp_command(*arguments)[0] == 0
    assert (tmp_path / "out.jsonl.gz").read_bytes() == first


def test_a_field_map_and_a_file_of_problems(tmp_path: Path, wmtp_command: Command) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"task": 7, "code": "print(1)", "ok": True, "more": 1}])
    problems = write(tmp_path / "problems.jsonl", [{"problem_id": "7", "prompt": "Print 1.", "cases": [["", "1"]]}])
    pairs = ("--field", "problem_id=task", "--field", "response=code", "--field", "is_correct=ok")
    code, _, err = wmtp_command(
        "data", "prepare", rows, *pairs, "--problems", problems, "--out", tmp_path / "out.jsonl"
    )
    assert code == 0, err
    assert read(tmp_path / "out.jsonl") == [
        {"problem_id": "7", "prompt": "Print 1.", "response": "print(1)", "is_correct": True, "cases": [["", "1"]]}
    ]


@pytest.mark.parametrize("after", [1, 6, 11])
def test_what_was_interrupted_goes_on_to_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Also what is a duplicate of something written before, or is one too many."""
    problem = {"problem_id": "a", "prompt": "p"}
    rows = [problem | {"response": f"r{i % 7}", "is_correct": i % 2 == 0} for i in range(20)]
    source, plan = write(tmp_path / "rows.jsonl", rows), Plan(max_solutions=3)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    report = prepare([source], whole, plan)

    def broken(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from islice(stream_records(*arguments, **options), after)
        raise DataError("cut off")

    monkeypatch.setattr("wmtp.curation.prepare.stream_records", broken)
    with pytest.raises(DataError, match="cut off"):
        prepare([source], cut, plan)
    monkeypatch.undo()
    assert not cut.exists()
    assert len(Path(f"{cut}.part").read_text().splitlines()) == after
    assert prepare([source], cut, plan) == report
    assert cut.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("cut*.part*"))


def test_a_part_that_was_begun_from_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [GOOD, {"prompt": 5}])
    with pytest.raises(DataError):
        prepare([source], tmp_path / "out.jsonl", Plan())
    with pytest.raises(UsageError, match=r"begun from something else \(near\)"):
        prepare([source], tmp_path / "out.jsonl", Plan(near=0.8))


def test_what_ended_at_a_bad_row_goes_on_when_such_rows_are_to_be_skipped(tmp_path: Path) -> None:
    source, out = (
        write(tmp_path / "rows.jsonl", [GOOD, {"prompt": 5}, GOOD | {"response": "r"}]),
        tmp_path / "out.jsonl",
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:2: "):
        prepare([source], out, Plan())
    assert prepare([source], out, Plan(on_bad_row="skip"))["rows"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--near", "0.1"], "from 0.7 to 1"),
        (["--max-solutions", "0"], "max_solutions must be at least 1"),
        (["--max-cases", "0"], "max_cases must be at least 1"),
        (["--on-bad-row", "ignore"], "on_bad_row must be error or skip"),
        (["--field", "promt=x"], "expected OURS=THEIRS"),
        (["--split", "test"], "has no official splits"),
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["--against", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--problems", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_usage_is_told(
    source: Path, tmp_path: Path, wmtp_command: Command, options: list[str], message: str
) -> None:
    code, _, err = wmtp_command("data", "prepare", source, "--out", tmp_path / "out.jsonl", *options)
    assert code == 2, err
    assert message in err
    assert not (tmp_path / "out.jsonl").exists()


LINE = json.dumps(GOOD).encode() + b"\n"
HOSTILE = {
    "broken UTF-8": (LINE + b'{"prompt": "caf\xe9"}\n', ":2: broken UTF-8"),
    "a NUL byte": (LINE + b'{"prompt": "a\x00b", "response": "r"}\n', ":2: not valid JSON"),
    "NUL bytes": (LINE + b"\x00" * 10**6, ":2: not valid JSON"),
    "a line of 50 MB": (LINE + b"x" * 50_000_000, ":2: not valid JSON"),
    "a missing field": (LINE + b'{"prompt": "p"}\n', ":2: field 'response' is missing"),
    "a wrong type": (LINE + b'{"prompt": 5, "response": "r"}\n', ":2: field 'prompt' must be a string, got 5"),
    "no object": (LINE + b"[1]\n", ":2: expected a JSON object"),
    "an id used twice": (
        LINE + LINE.replace(b"Double x.", b"Treble x."),
        ":2: the problem 'double' has another prompt",
    ),
    "nested brackets": (LINE + b'{"prompt": ' + b"[" * 10**5, ":2: brackets nested too deeply"),
    "an empty file": (b"", "no usable rows"),
    "a truncated gzip file": (gzip.compress(LINE * 1000)[:-9], "is broken after row "),
    "a truncated Parquet file": (None, "is broken after row 0"),
    "a truncated Zstandard file": (None, "is broken after row "),
}


def content_of(name: str, path: Path) -> bytes:
    content = HOSTILE[name][0]
    if content is None and "Parquet" in name:
        pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").Table.from_pylist([GOOD] * 50), path
        )
    elif content is None:
        with pytest.importorskip("pyarrow").CompressedOutputStream(str(path), "zstd") as file:
            file.write(LINE * 1000)
    return path.read_bytes()[:-9] if content is None else content


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_told_with_file_and_row_and_no_file_is_made(
    tmp_path: Path, wmtp_command: Command, name: str
) -> None:
    path, out = tmp_path / "rows", tmp_path / "out.jsonl"
    path.write_bytes(content_of(name, path))
    code, _, err = wmtp_command("data", "prepare", path, "--out", out)
    assert code == 2
    assert str(path) in err
    assert HOSTILE[name][1] in err
    assert "Traceback" not in err
    assert len(err) < 1000
    assert not out.exists()


@pytest.mark.parametrize("name", [name for name, (content, told) in HOSTILE.items() if content and ":2: " in told])
def test_skipping_bad_rows_loses_nothing_else(tmp_path: Path, wmtp_command: Command, name: str) -> None:
    path, out = tmp_path / "rows", tmp_path / "out.jsonl"
    path.write_bytes(content_of(name, path).rstrip(b"\n") + b"\n" + json.dumps(GOOD | {"response": "r"}).encode())
    code, printed, err = wmtp_command("data", "prepare", path, "--out", out, "--on-bad-row", "skip", "--json")
    assert code == 0, err
    assert [row["response"] for row in read(out)] == [GOOD["response"], "r"]
    [source] = json.loads(printed)["sources"]
    assert (source["rows"], source["records"], source["bad_rows"]) == (3, 2, 1)
    assert source["bad_rows_examples"][0].startswith(f"{path}{HOSTILE[name][1]}")


def test_a_record_that_no_line_can_hold_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmtp.curation.prepare.LONGEST", 1000)
    source = write(tmp_path / "rows.jsonl", [GOOD, GOOD | {"response": "x" * 2000}])
    report = prepare([source], tmp_path / "out.jsonl", Plan())
    assert report["dropped"] == {"longer than 1,000 bytes": 1}


def test_what_is_left_out_by_itself_makes_no_duplicate_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One response too many, one that is too long: the same text comes again where it may stay."""
    monkeypatch.setattr("wmtp.curation.prepare.LONGEST", 1000)
    words = " ".join(f"w{i}" for i in range(60))
    one, other = {"problem_id": "a", "prompt": "Say it."}, {"problem_id": "b", "prompt": "Say it."}
    rows = [one | {"response": "first"}, one | {"response": words}, other | {"response": words}]
    report = prepare([write(tmp_path / "a.jsonl", rows)], tmp_path / "a.out.jsonl", Plan(max_solutions=1, near=0.8))
    assert (report["dropped"], report["problems"]) == ({"more than 1 responses of one verdict to its problem": 1}, 2)
    long = one | {"response": words, "cases": [["1", "x" * 2000]]}
    rows = [long, other | {"response": words}]
    report = prepare([write(tmp_path / "b.jsonl", rows)], tmp_path / "b.out.jsonl", Plan(near=0.8))
    assert (report["dropped"], report["problems"]) == ({"longer than 1,000 bytes": 1}, 1)


def test_a_record_takes_less_than_a_thousand_bytes_of_memory(tmp_path: Path) -> None:
    """Whatever their length: hashes are held, not texts."""

    def peak(count: int) -> int:
        rows = [GOOD | {"problem_id": str(i), "prompt": f"{i} {'x' * 3000}"} for i in range(count)]
        source = write(tmp_path / f"{count}.jsonl", rows)
        tracemalloc.start()
        prepare([source], tmp_path / f"out{count}.jsonl", Plan())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(600) - peak(100) < 500 * 1000
