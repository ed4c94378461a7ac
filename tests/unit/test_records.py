"""What a row must be to become a record, and what is said about one that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.data.records import BadRow, Record, parse

GOOD = {"prompt": "add two numbers", "response": "def add(a, b):\n    return a + b"}


def test_prompt_and_response_are_enough_and_the_prompt_names_the_problem() -> None:
    record = parse(dict(GOOD))
    assert record == Record(problem_id=GOOD["prompt"], prompt=GOOD["prompt"], response=GOOD["response"])
    assert (record.is_correct, record.difficulty, record.tests, record.source) == (None, 0, (), "")


def test_every_field_is_taken_as_it_is() -> None:
    row = {
        **GOOD,
        "problem_id": "p/1",
        "is_correct": False,
        "difficulty": 3,
        "tests": ["assert True", ""],
        "source": "hand",
    }
    assert parse(row) == Record("p/1", GOOD["prompt"], GOOD["response"], False, 3, ("assert True", ""), source="hand")


def test_white_space_around_texts_is_kept() -> None:
    record = parse({"prompt": " p\n", "response": "\n    x  "})
    assert (record.prompt, record.response) == (" p\n", "\n    x  ")


def test_a_number_names_a_problem_as_its_digits() -> None:
    assert parse({**GOOD, "problem_id": 17}).problem_id == "17"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (None, "expected a JSON object, got None"),
        ([1, 2], r"expected a JSON object, got \[1, 2\]"),
        ("text", "expected a JSON object, got 'text'"),
        ({}, "'prompt' is missing"),
        ({"prompt": "p"}, "'response' is missing"),
        ({"response": "r"}, "'prompt' is missing"),
        ({**GOOD, "iscorrect": True}, "unknown field 'iscorrect'.*is_correct"),
        ({**GOOD, "Prompt": "x"}, "unknown field 'Prompt'"),
        ({**GOOD, "prompt": 5}, "'prompt' must be a string, got 5"),
        ({**GOOD, "response": None}, "'response' must be a string, got None"),
        ({**GOOD, "prompt": ""}, "'prompt' is blank"),
        ({**GOOD, "response": " \n\t"}, "'response' is blank"),
        ({**GOOD, "problem_id": ""}, "'problem_id' is blank"),
        ({**GOOD, "problem_id": 1.5}, "'problem_id' must be a string"),
        ({**GOOD, "problem_id": True}, "'problem_id' must be a string"),
        ({**GOOD, "is_correct": 1}, "'is_correct' must be true, false or null, got 1"),
        ({**GOOD, "is_correct": "true"}, "'is_correct' must be true, false or null, got 'true'"),
        ({**GOOD, "is_correct": float("nan")}, "'is_correct' must be true, false or null, got nan"),
        ({**GOOD, "difficulty": -1}, "'difficulty' must be an integer >= 0"),
        ({**GOOD, "difficulty": 1.0}, "'difficulty' must be an integer >= 0"),
        ({**GOOD, "difficulty": True}, "'difficulty' must be an integer >= 0"),
        ({**GOOD, "difficulty": None}, "'difficulty' must be an integer >= 0"),
        ({**GOOD, "tests": "assert 1"}, "'tests' must be a list of strings"),
        ({**GOOD, "tests": ["assert 1", 2]}, "'tests' must be a list of strings"),
        ({**GOOD, "source": 3}, "'source' must be a string"),
    ],
)
def test_a_bad_row_is_refused_and_its_field_named(row: Any, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        parse(row)


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "prompt": "p\ud800"},
        {**GOOD, "response": "\udfff r"},
        {**GOOD, "problem_id": "\ud83d"},
        {**GOOD, "tests": ["assert 1", "assert '\ude00'"]},
        {**GOOD, "source": "\ud800"},
    ],
)
def test_half_a_surrogate_pair_is_refused_in_every_text(row: Any) -> None:
    with pytest.raises(BadRow, match="surrogate"):
        parse(row)


def test_a_whole_surrogate_pair_in_json_is_a_character() -> None:
    assert parse(json.loads(r'{"prompt": "\ud83d\ude00", "response": "x"}')).prompt == "😀"


@pytest.mark.parametrize(
    "row", [{**GOOD, "tests": "x" * 10**6}, {**GOOD, "k" * 10**6: 1}, ["x"] * 10**5, {**GOOD, "prompt": [0] * 10**5}]
)
def test_a_message_never_holds_a_whole_document(row: Any) -> None:
    with pytest.raises(BadRow) as caught:
        parse(row)
    assert len(str(caught.value)) < 300


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda children: st.one_of(st.lists(children, max_size=3), st.dictionaries(st.text(max_size=5), children)),
    max_leaves=5,
)
FIELDS = ["prompt", "response", "problem_id", "is_correct", "difficulty", "tests", "source"]


@given(
    st.one_of(JSON, st.dictionaries(st.sampled_from(FIELDS), JSON), st.fixed_dictionaries({f: JSON for f in FIELDS}))
)
def test_any_json_value_is_a_record_or_a_bad_row_and_nothing_else(row: Any) -> None:
    try:
        record = parse(row)
    except BadRow:
        return
    assert record.prompt.strip()
    assert record.response.strip()
    assert record.problem_id
