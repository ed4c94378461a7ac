"""From bytes to records: whatever a file holds, the answer is records or a message with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmtp.data.kinds import MBPP_SPLITS
from wmtp.data.records import Record
from wmtp.data.sources import SourceReport, read_records, stream_records
from wmtp.errors import DataError

GOOD = b'{"prompt": "p", "response": "r"}'
MBPP_ROW = {
    "task_id": 700,
    "text": "Write f.",
    "code": "def f():\r\n    pass",
    "test_list": ["assert f() is None", "f()"],
}
MBPP = Path(__file__).parents[2].parent / "shared" / "data" / "mbpp"
needs_mbpp = pytest.mark.skipif(not MBPP.is_dir(), reason=f"MBPP is not at {MBPP}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def read(path: Path, content: bytes | None = None, **options: Any) -> tuple[list[Record], SourceReport]:
    if content is not None:
        path.write_bytes(content)
    return read_records(path, **options)


def refused(path: Path, content: bytes | None = None, **options: Any) -> str:
    """The message that a file is refused with."""
    with pytest.raises(DataError) as caught:
        read(path, content, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


# bad rows


BAD_ROWS = [
    (b"[1, 2]", "expected a JSON object, got [1, 2]"),
    (b"5", "expected a JSON object, got 5"),
    (b'{"prompt": "p"}', "field 'response' is missing"),
    (b'{"prompt": "p", "response": "r", "iscorrect": true}', "unknown field 'iscorrect'"),
    (b'{"prompt": " ", "response": "r"}', "field 'prompt' is blank"),
    (b'{"prompt": "p", "response": "r", "is_correct": "yes"}', "field 'is_correct' must be true, false or null"),
    (b'{"prompt": "p", "response": "r", "prompt": "q"}', "field 'prompt' appears twice"),
    (b'{"prompt": "p", "response": {"a": 1, "a": 2}}', "field 'a' appears twice"),
    (b'{"prompt": "p", "response": "r"', "not valid JSON"),
    (b"{'prompt': 'p'}", "not valid JSON"),
    (GOOD + b" " + GOOD, "not valid JSON: Extra data at column 34"),
    (b'{"prompt": ', "not valid JSON: Expecting value at column 11"),
    (b'{"prompt": "a\x00b", "response": "r"}', "not valid JSON"),
    (b"\x00\x00\x00\x00", "not valid JSON"),
    (b'{"prompt": "caf\xe9", "response": "r"}', "broken UTF-8 at byte 15"),
    (b'{"prompt": "\xed\xa0\x80", "response": "r"}', "broken UTF-8"),
    (b'{"prompt": "\\ud800", "response": "r"}', "surrogate"),
    (b'{"prompt": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "brackets nested too deeply"),
    (b'{"prompt": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}", "brackets nested too deeply"),
    (b'{"prompt": "p", "response": "r", "difficulty": ' + b"9" * 10**4 + b"}", "too many digits"),
    (b'{"prompt": "p", "response": "r", "difficulty": -1e999}', "must be an integer >= 0"),
    (b'{"prompt": "p", "response": ' + b'"x",' * 10**5 + b"}", "not valid JSON"),
]
IDS = [message[:40] + str(i) for i, (_, message) in enumerate(BAD_ROWS)]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=IDS)
def test_a_bad_row_is_an_error_with_file_line_and_reason(file: Path, row: bytes, message: str) -> None:
    told = refused(file, GOOD + b"\n\n" + row + b"\n" + GOOD)
    assert told.startswith(f"{file}:3: ")
    assert message in told
    assert told.endswith("(mend the row)")
    assert len(told) < 500


@pytest.mark.parametrize("skip", ["data.on_bad_row=skip", "--on-bad-row skip"])
def test_bad_rows_can_be_left_out_in_the_words_of_the_command(skip: str) -> None:
    with pytest.raises(DataError, match=f"or {skip} leaves such rows out"):
        SourceReport("rows.jsonl", skip=skip).bad_row("it is bad", "error")


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=IDS)
def test_skipping_leaves_a_bad_row_out_and_counts_it(file: Path, row: bytes, message: str) -> None:
    records, report = read(file, GOOD + b"\n" + row + b"\n" + GOOD, on_bad_row="skip")
    assert len(records) == 2
    assert (report.rows, report.kept, report.num_bad) == (3, 2, 1)
    assert report.bad[0].startswith(f"{file}:2: ")
    assert message in report.bad[0]
    assert "2 records of 3 rows; 1 bad row skipped, the first: " in report.summary()


def test_twenty_messages_are_kept_and_every_bad_row_is_counted(file: Path) -> None:
    _, report = read(file, GOOD + b"\n" + b"nonsense\n" * 50, on_bad_row="skip")
    assert (report.num_bad, len(report.bad)) == (50, 20)


def test_a_file_of_nothing_but_bad_rows_is_an_error_even_when_they_are_skipped(file: Path) -> None:
    told = refused(file, b"nonsense\n", on_bad_row="skip")
    assert "no usable rows" in told
    assert f"{file}:1: not valid JSON" in told


def test_a_repeated_field_among_a_hundred_thousand_is_found_at_once(file: Path) -> None:
    row = b"{" + b",".join(b'"k%d":0' % i for i in range(10**5)) + b',"k99999":1}'
    assert "'k99999' appears twice" in refused(file, row)


# bytes


def test_byte_order_mark_crlf_and_a_missing_last_newline_do_no_harm(file: Path) -> None:
    plain = [json.loads(GOOD), {"prompt": "ü\u2028", "response": "a\r\nb"}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in plain)
    records, _ = read(file, b"\xef\xbb\xbf" + text.encode())
    assert [(r.prompt, r.response) for r in records] == [("p", "r"), ("ü\u2028", "a\r\nb")]


def test_blank_lines_are_no_rows_but_count_as_lines(file: Path) -> None:
    _, report = read(file, b"\n  \n\t\r\n" + GOOD + b"\n\n")
    assert report.rows == 1
    assert f"{file}:4:" in refused(file, b"\n  \n\t\r\nnonsense\n")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  ", b"[]", b"[ ]\n"])
def test_a_file_without_rows_is_an_error(file: Path, content: bytes) -> None:
    told = refused(file, content)
    assert "no usable rows" in told
    assert str(file) in told


def test_a_file_of_a_lonely_byte_order_mark_is_an_error(file: Path) -> None:
    assert str(file) in refused(file, b"\xef\xbb\xbf")


def test_another_encoding_is_told_as_broken_utf_8(file: Path) -> None:
    assert f"{file}:1: broken UTF-8 at byte 0" in refused(file, GOOD.decode().encode("utf-16"))


def test_a_line_of_a_megabyte_is_a_row_like_any_other(file: Path) -> None:
    long = "x" * 2**20
    records, _ = read(file, json.dumps({"prompt": "p", "response": long}).encode() + b"\n" + GOOD)
    assert records[0].response == long
    assert len(records) == 2


def test_an_endless_line_is_refused_and_not_read_into_memory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmtp.data.containers.MAX_LINE_BYTES", 1000)
    told = refused(file, GOOD + b"\n" + b"x" * 5000)
    assert f"{file}:2: a line longer than 1,000 bytes" in told


@given(st.one_of(st.binary(max_size=60), st.text(alphabet='[]{}",:0123pr \n', max_size=60).map(str.encode)))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_records_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    for policy in ("error", "skip"):
        told = answer(tmp_path / "any", content, policy)
        assert told is None or str(tmp_path / "any") in told


def answer(path: Path, content: bytes, policy: str) -> str | None:
    """What is wrong with a file, if anything is."""
    try:
        read(path, content, on_bad_row=policy)
    except DataError as problem:
        return str(problem)
    return None


# places


def test_a_directory_a_missing_file_and_a_path_through_a_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(GOOD)
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "nowhere.jsonl", "No such file"),
        (tmp_path / "file" / "below", "Not a directory"),
    ):
        told = refused(path)
        assert message in told
        assert str(path) in told


def test_the_name_of_a_file_decides_nothing(tmp_path: Path) -> None:
    for name in ("mbpp.jsonl", "rows.txt", "x", "train.json.gz"):
        assert len(read(tmp_path / name, GOOD)[0]) == 1


# arrays


def test_rows_of_an_array_count_from_1(file: Path) -> None:
    assert len(read(file, b" \n[" + GOOD + b",\n" + GOOD + b"]\n")[0]) == 2
    assert f"{file}:2: field 'response' is missing" in refused(file, b"[" + GOOD + b', {"prompt": "p"}]')
    _, report = read(file, b"\xef\xbb\xbf[" + GOOD + b", 5, null]", on_bad_row="skip")
    assert (report.rows, report.num_bad) == (3, 2)


def test_a_broken_array_is_an_error_with_the_line_whatever_the_policy(file: Path) -> None:
    for policy in ("error", "skip"):
        told = refused(file, b"[\n" + GOOD + b",\n{]", on_bad_row=policy)
        assert told.startswith(f"{file}:2: not valid JSON")
        assert "line 3" in told
        assert str(file) in refused(file, b"[" * 10**5, on_bad_row=policy)
        assert str(file) in refused(file, b"[" + GOOD + b", 1" + b"0" * 10**4 + b"]", on_bad_row=policy)


# field maps


def test_a_field_map_renames_and_leaves_the_rest_out(file: Path) -> None:
    row = b'{"question": "p", "answer": "r", "ok": true, "other": [1]}'
    fields = {"prompt": "question", "response": "answer", "is_correct": "ok"}
    (record,), _ = read(file, row, fields=fields)
    assert (record.prompt, record.response, record.is_correct) == ("p", "r", True)


def test_a_mapped_field_that_a_row_lacks_is_named_with_what_it_has(file: Path) -> None:
    told = refused(file, b'{"question": "p", "reply": "r"}', fields={"prompt": "question", "response": "answer"})
    assert f"{file}:1: field 'answer' (from the field map) is missing; the row has question, reply" in told


def test_a_mapped_value_is_checked_like_any_other(file: Path) -> None:
    told = refused(file, b'{"question": 5, "answer": "r"}', fields={"prompt": "question", "response": "answer"})
    assert "'prompt' must be a string, got 5" in told


def test_a_row_that_is_no_object_cannot_be_mapped(file: Path) -> None:
    assert "expected a JSON object, got [1]" in refused(
        file, GOOD + b"\n[1]", fields={"prompt": "prompt"} | {"response": "response"}
    )


# MBPP's schema


def mbpp(**changes: Any) -> bytes:
    row = {**MBPP_ROW, **changes}
    return json.dumps({k: v for k, v in row.items() if v is not ...}).encode()


def test_an_mbpp_row_is_told_by_its_fields(file: Path) -> None:
    code = "def f():\r\n    pass\r"  # four rows of the published file end in a lone carriage return
    (record,), report = read(file, mbpp(code=code, test_setup_code="import re", challenge_test_list=[]))
    assert record == Record(
        problem_id="mbpp/700",
        prompt="Write f.\nassert f() is None",
        response="def f():\n    pass\n",
        is_correct=True,
        tests=("import re", "assert f() is None", "f()"),
        source="mbpp",
    )
    assert report.kept == 1


def test_the_sanitized_schema_has_a_prompt_and_imports(file: Path) -> None:
    (record,), _ = read(file, mbpp(text=..., prompt="Write f.", test_imports=["import re", "import os"]))
    assert record.prompt == "Write f.\nassert f() is None"
    assert record.tests[0] == "import re\nimport os"


def test_a_row_with_both_schemas_fields_mixed_up_is_still_mbpp_and_ours_is_ours(file: Path) -> None:
    two = json.dumps({"prompt": "p", "response": "r"}).encode() + b"\n" + mbpp()
    records, _ = read(file, two)
    assert [r.source for r in records] == ["", "mbpp"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_id": 0}, "task_id must be an integer from 1 to 974, got 0"),
        ({"task_id": 975}, "task_id must be an integer from 1 to 974, got 975"),
        ({"task_id": "700"}, "task_id must be an integer from 1 to 974, got '700'"),
        ({"task_id": True}, "task_id must be an integer from 1 to 974, got True"),
        ({"task_id": None}, "task_id must be an integer from 1 to 974, got None"),
        ({"test_list": []}, "'test_list' must be a non-empty list of strings"),
        ({"test_list": "assert 1"}, "'test_list' must be a non-empty list of strings"),
        ({"test_list": [5]}, "'test_list' must be a non-empty list of strings"),
        ({"test_list": ["assert 1", 5]}, "must be a list of strings"),
        ({"test_setup_code": 5}, "must be a list of strings"),
        ({"test_imports": 5}, "'test_imports' must be a list of strings, got 5"),
        ({"test_imports": [5]}, "'test_imports' must be a list of strings"),
        ({"test_imports": "import re"}, "'test_imports' must be a list of strings"),
        ({"text": ...}, "'text' \\(or 'prompt'\\) is missing"),
        ({"text": ""}, "'prompt' must be a string, got None"),
        ({"text": 5}, "'prompt' must be a string, got 5"),
        ({"code": 5}, "'response' must be a string, got 5"),
        ({"code": " "}, "'response' is blank"),
    ],
)
def test_a_bad_mbpp_row_is_an_error_with_file_and_line(file: Path, changes: dict[str, Any], message: str) -> None:
    file.write_bytes(mbpp() + b"\n" + mbpp(**changes))
    with pytest.raises(DataError, match=message) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}:2: ")


# splits


def test_every_task_belongs_to_exactly_one_official_split() -> None:
    tasks = [task for low, high in MBPP_SPLITS.values() for task in range(low, high + 1)]
    assert sorted(tasks) == list(range(1, 975))


def test_a_split_is_an_error_where_the_data_set_has_none(file: Path) -> None:
    told = refused(file, GOOD, split="test", role="validation")
    assert "data.validation.split is 'test', but this row's data set has no official splits" in told


def test_an_unknown_split_is_refused_with_the_choices(file: Path) -> None:
    assert "must be one of prompt, test, validation, train, got 'dev'" in refused(file, mbpp(), split="dev")


def test_training_on_mbpps_test_split_is_refused(file: Path) -> None:
    for policy in ("error", "skip"):
        told = refused(file, mbpp(task_id=11), split="test", on_bad_row=policy)
        assert "mbpp's test split is for evaluation" in told
    records, _ = read(file, mbpp(task_id=11), split="test", role="validation")
    assert len(records) == 1


def test_rows_of_another_split_are_left_out_and_counted(file: Path) -> None:
    records, report = read(file, mbpp() + b"\n" + mbpp(task_id=11) + b"\n" + mbpp(task_id=511))
    assert [r.problem_id for r in records] == ["mbpp/700"]
    assert (report.rows, report.kept, report.other_splits) == (3, 1, {"test": 1, "validation": 1})
    assert "2 of another split (test 1, validation 1)" in report.summary()


def test_a_file_of_other_splits_only_is_told_with_the_option_and_the_splits_it_has(file: Path) -> None:
    told = refused(file, mbpp() + b"\n" + mbpp(task_id=5), role="validation", split="test")
    assert "0 records of 2 rows; 2 of another split (train 1, prompt 1)" in told
    assert told.endswith("set data.validation.split to a split it has: train or prompt")
    with pytest.raises(DataError, match="set --split to a split it has: train or prompt"):
        list(stream_records(file, SourceReport(str(file)), split="test"))


def test_a_field_map_does_not_smuggle_mbpps_test_split_into_training(file: Path) -> None:
    fields = {"prompt": "text", "response": "code"}
    rows = mbpp() + b"\n" + mbpp(task_id=11) + b"\n" + mbpp(task_id=511)
    records, report = read(file, rows, fields=fields)
    assert [r.prompt for r in records] == ["Write f."]
    assert (report.kept, report.other_splits.total()) == (1, 2)
    assert "is for evaluation" in refused(file, rows, fields=fields, split="test")
    assert len(read(file, rows, fields=fields, split="test", role="validation")[0]) == 1


# MBPP itself


@needs_mbpp
def test_mbpps_official_splits_have_their_published_sizes() -> None:
    path = MBPP / "mbpp.jsonl"
    sizes = {"train": 374, "validation": 90, "test": 500, "prompt": 10}
    seen: set[str] = set()
    for split, size in sizes.items():
        records, report = read(path, role="validation", split=split)
        assert (len(records), report.rows, report.other_splits.total(), report.num_bad) == (size, 974, 974 - size, 0)
        ids = {record.problem_id for record in records}
        assert len(ids) == size
        assert not ids & seen
        seen |= ids
    assert len(seen) == 974
    for role in ("train", "validation"):
        assert read(path, role=role) == read(path, role=role, split=role)
        assert len(read(path, role=role)[0]) == sizes[role]
    assert "is for evaluation" in refused(path, split="test")


@needs_mbpp
def test_mbpps_sanitized_file_has_427_rows_in_the_same_splits() -> None:
    path = MBPP / "sanitized-mbpp.json"
    full = {r.problem_id for split in MBPP_SPLITS for r in read(MBPP / "mbpp.jsonl", role="validation", split=split)[0]}
    total = 0
    for split, (low, high) in MBPP_SPLITS.items():
        records, report = read(path, role="validation", split=split)
        assert report.rows == 427
        assert all(low <= int(r.problem_id.removeprefix("mbpp/")) <= high for r in records)
        assert {r.problem_id for r in records} <= full
        total += len(records)
    assert total == 427


@needs_mbpp
def test_no_mbpp_response_keeps_a_carriage_return_and_every_prompt_shows_a_test() -> None:
    for record in read(MBPP / "mbpp.jsonl")[0]:
        assert "\r" not in record.response
        assert "assert" in record.prompt
        assert record.tests
        assert record.is_correct is True
