"""Every character of a program has a class, and a model token that of its first character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.evaluation.token_classes import CLASSES, character_classes, token_classes

CODE = 'def f(x):  # twice\n    return "two", 2 * x, None\n'


def classes_of(code: str, part: str) -> set[str]:
    at = code.index(part)
    return set(character_classes(code)[at : at + len(part)])


def test_each_class_is_found() -> None:
    expected = {
        "def": "keyword", "f": "identifier", "(": "operator", "# twice": "comment", "return": "keyword",
        '"two"': "literal", "2": "literal", "*": "operator", "None": "literal", "    ": "whitespace",
        "\n": "whitespace",
    }  # fmt: skip
    for part, name in expected.items():
        code = CODE if part != "f" else CODE[4:]
        assert classes_of(code, part) == {name}, part


def test_text_that_is_no_python_is_other_from_there_on() -> None:
    code = "x = 1\ny = (\n"
    assert classes_of(code, "x") == {"identifier"}
    assert set(character_classes("Sure, here's it")) <= set(CLASSES)


@given(st.text(max_size=80))
def test_any_text_has_as_many_classes_as_characters(text: str) -> None:
    found = character_classes(text)
    assert len(found) == len(text)
    assert set(found) <= set(CLASSES) - {"end"}


def test_a_model_token_has_the_class_of_its_first_character_that_is_no_space() -> None:
    spans = [(0, 3), (3, 5), (5, 6), (9, 12), (19, 23), (23, 30)]
    assert token_classes(CODE, spans) == ["keyword", "identifier", "operator", "comment", "whitespace", "keyword"]


def test_a_token_that_began_in_the_prompt_counts_by_what_it_has_of_the_response() -> None:
    assert token_classes("x = 1", [(-2, 1)]) == ["identifier"]


@pytest.mark.parametrize("mark", ["\f", "\v", "\x1c", "\x85", "\u2028"])
def test_what_ends_a_line_only_for_str_moves_no_class(mark: str) -> None:
    """Python's own tokenizer ends lines at newlines and carriage returns alone."""
    code = f"x = '{mark}'\nreturn y\n"
    assert classes_of(code, "return") == {"keyword"}
    assert classes_of(code, "y") == {"identifier"}


def test_a_token_outside_of_the_program_is_other() -> None:
    assert token_classes("x = 1", [(4, 5), (5, 9), (4, 9), (-4, 0)]) == ["literal", "other", "literal", "other"]
