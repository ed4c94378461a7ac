"""Which solutions are laid side by side, what counts as changed between them, and the text of single tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import wmtp
from wmtp.config import CriticConfig
from wmtp.data.text import Row
from wmtp.errors import DataError
from wmtp.inspection import _about, after_a_prompt, changed_tokens, solution_pairs, token_texts, weight_groups

Sequence = st.lists(st.integers(0, 4), max_size=12)


def a_row(tokens: list[int], problem: int, reward: float, start: int = 1) -> Row:
    return Row(np.asarray([9, *tokens], dtype=np.int32), start, problem, reward, 0, f"p{problem}")


@given(Sequence, Sequence)
def test_what_is_not_marked_as_changed_is_the_same_in_both(one: list[int], other: list[int]) -> None:
    marks = changed_tokens(one, other)
    kept = [
        [token for token, mark in zip(row, m, strict=True) if not mark]
        for row, m in zip((one, other), marks, strict=True)
    ]
    assert kept[0] == kept[1]
    assert (one == other) == (not any(map(any, marks)))


def test_only_the_replaced_tokens_are_marked() -> None:
    assert changed_tokens([1, 2, 3, 4], [1, 7, 8, 3, 4]) == (
        [False, True, False, False],
        [False, True, True, False, False],
    )


def test_a_problem_shows_the_correct_and_incorrect_rows_that_differ_least_and_others_are_left_out() -> None:
    nan = float("nan")
    rows = [
        a_row([1, 1, 1, 1], 0, 1.0),
        a_row([2, 2, 2, 2], 0, 1.0),
        a_row([5, 5, 5, 5], 0, 0.0),
        a_row([2, 2, 3, 2], 0, 0.0),
        a_row([1], 1, 1.0),
        a_row([1], 2, 0.0),
        a_row([1], 2, nan),
        a_row([1], 3, 0.0),
        a_row([1], 3, 1.0),
    ]
    assert solution_pairs(rows, 5) == [(1, 3), (8, 7)]
    assert solution_pairs(rows, 1) == [(1, 3)]


def test_rows_that_start_with_their_response_are_left_out_of_a_critics_view_and_refused_if_all_do() -> None:
    first, second = a_row([1, 2], 0, 1.0, start=0), a_row([1, 2], 0, 0.0)
    assert after_a_prompt([first, second], Path("run")) == [second]
    told = _about(CriticConfig(scheme="critic", critic="run/final"), problems=1, left_out=1)
    assert told.endswith("Left out: 1 held-out row without a token before the response.")
    with pytest.raises(DataError, match=r"all held-out rows of run start with a response token.*train the critic anew"):
        after_a_prompt([first], Path("run"))


@pytest.mark.parametrize("text", ["def f(x):\n    return x\n", "s = 'é😀→'", "\t\tx  =  1 "])
def test_token_texts_join_to_the_response_whatever_characters_it_has(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(wmtp.__file__).parent / "embedded" / "tiny-llama")
    before, ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("a prompt\n", text))
    row = Row(np.asarray([*before, *ids], dtype=np.int32), len(before), 0, 1.0, 0)
    texts = token_texts(tokenizer, row)
    assert "".join(texts) == text
    assert len(texts) == len(ids)


def test_weights_are_averaged_by_class_and_position_over_all_solutions() -> None:
    tokens = ["return", " x", " + ", "1", "<eos>"]
    one = {"tokens": tokens, "ends": True, "weight": [[1.0, 2.0, 3.0, 4.0, 5.0], [None, 1.0, 1.0, 1.0, 1.0]]}
    other = {"tokens": ["x"] * 17, "ends": False, "weight": [[0.5] * 17, [2.0] * 17]}
    found = weight_groups([{"variants": [one]}, {"variants": [other]}])
    assert list(found["by_class"]) == ["keyword", "identifier", "operator", "literal", "end"]
    assert found["by_class"]["keyword"] == {"tokens": 1, "weight": [1.0, None]}
    assert found["by_class"]["identifier"]["tokens"] == 18
    assert found["by_class"]["identifier"]["weight"] == pytest.approx([10.5 / 18, 35 / 18], rel=1e-5)
    assert found["by_class"]["end"] == {"tokens": 1, "weight": [5.0, 1.0]}
    assert {name: group["tokens"] for name, group in found["by_position"].items()} == {"0-15": 21, "16-63": 1}
