"""Tasks: what their rows and questions are, and how answers are counted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wmtp.data.batches import collate
from wmtp.data.text import encode
from wmtp.decoding import generate
from wmtp.formats.hf import fast_tokenizer
from wmtp.grading import first_choice, grade
from wmtp.model import MTPModel
from wmtp.tasks import Induction, Polynomial, Task
from wmtp.tasks.polynomial import N, P, add, compose, multiply, negative
from wmtp.testing import tiny_base

TASKS: list[Task] = [Polynomial(), Induction(names=50)]
polynomials = st.tuples(*[st.integers(0, P - 1)] * N)


def name_of(task: Task) -> str:
    return type(task).__name__


def rows_of(task: Task, count: int, role: Any = "validation") -> Any:
    records = list(islice(task.records(role), count))
    return encode(records, fast_tokenizer(task.tokenizer()), template="{prompt}\n", max_length=256)[0]


@given(polynomials, polynomials)
def test_products_are_numpys_reduced(p: tuple[int, ...], q: tuple[int, ...]) -> None:
    assert list(multiply(p, q)) == [int(a) % P for a in np.convolve(p, q)[:N]]


@given(polynomials, polynomials)
def test_a_composition_is_the_polynomial_taken_at_the_other(p: tuple[int, ...], q: tuple[int, ...]) -> None:
    """As a sum of powers of q, each over the integers first."""
    power, total = np.array([1], dtype=object), np.zeros(1, dtype=object)
    for a in p:
        total = np.polynomial.polynomial.polyadd(total, a * power)
        power = np.convolve(power, np.array(q, dtype=object))
    whole = [int(a) % P for a in total]
    assert list(compose(p, q)) == (whole + [0] * N)[:N]


def test_the_value_of_an_expression_is_what_another_reader_makes_of_it() -> None:
    """Python itself reads the written form, with the operators of a class that looks values up by numpy."""

    class Value:
        def __init__(self, p: tuple[int, ...]) -> None:
            self.p = p

        def __neg__(self) -> Value:
            return Value(negative(self.p))

        def __add__(self, other: Value) -> Value:
            return Value(add(self.p, other.p))

        def __mul__(self, other: Value) -> Value:
            return Value(multiply(self.p, other.p))

        def __matmul__(self, other: Value) -> Value:
            return Value(compose(self.p, other.p))

    for record in islice(Polynomial(seed=3).records("validation"), 80):
        text, digits = "", record.prompt.removesuffix("=")
        while digits:
            size = N if digits[0].isdigit() else 1
            text += f"Value({tuple(map(int, digits[:size]))})" if size == N else digits[0]
            digits = digits[size:]
        value = eval(text, {"Value": Value})  # noqa: S307
        assert "".join(map(str, value.p)) == record.response
        assert sum(record.prompt.count(sign) for sign in "-+*@") == record.difficulty


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_training_and_held_out_rows_share_no_text(task: Task) -> None:
    train, held = ({r.prompt + r.response for r in islice(task.records(role), 400)} for role in ("train", "validation"))
    assert not train & held


def test_small_expressions_fall_on_one_side_only() -> None:
    """With a single operation the same expression comes again soon, but never on the other side."""
    task = Polynomial(operations=1, more=0)
    train, held = ([r.prompt for r in islice(task.records(role), 1200)] for role in ("train", "validation"))
    assert len(set(train)) < len(train)
    assert not set(train) & set(held)


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_rows_are_the_same_in_another_process(task: Task) -> None:
    """Hashes of texts differ between processes; rows must not come from them."""
    code = (
        f"from itertools import islice; from wmtp.tasks import *; task = {name_of(task)}("
        f"{'names=50' if isinstance(task, Induction) else ''}); "
        "print([r.prompt + r.response for r in islice(task.records('train'), 3)])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str([r.prompt + r.response for r in islice(task.records("train"), 3)])


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_the_tokenizer_knows_every_word_and_gives_the_text_back(task: Task) -> None:
    tokenizer = fast_tokenizer(task.tokenizer())
    for record in islice(task.records("train"), 100):
        ids = tokenizer(record.response).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).replace(" ", "") == record.response.replace(" ", "")


def test_every_word_of_the_stories_is_there_once_and_used() -> None:
    task = Induction(names=5000)
    words = task.tokenizer().get_vocab()
    used = Counter(w for row in rows_of(task, 600, "train") for w in row.tokens.tolist())
    assert sorted(words.values()) == list(range(len(words)))
    assert {word for word, i in words.items() if not used[i]} <= {"<pad>", "<bos>", "<unk>"}


def test_held_out_names_are_new_and_their_words_are_not() -> None:
    task = Induction(names=300)

    def names(role: Any) -> set[tuple[int, int]]:
        found = set()
        for row in rows_of(task, 200, role):
            found |= {(int(row.tokens[q.tokens[0] - 1]), int(row.tokens[q.tokens[0]])) for q in task.questions(row)}
        return found

    train, held = names("train"), names("validation")
    assert not train & held
    assert len({a for a, _ in train}) > 80
    assert {a for a, _ in held} >= {a for a, _ in train}


def test_a_story_asks_about_three_names_and_again_at_every_mention() -> None:
    task = Induction()
    for row in rows_of(task, 20):
        asked = [(q.group, tuple(row.tokens[q.tokens[0] - 1 : q.tokens[0] + 1].tolist())) for q in task.questions(row)]
        new = [name for group, name in asked if group == "first_mention"]
        assert len(new) == len(set(new)) == 3
        assert {name for group, name in asked if group == "second_word"} <= set(new)
        assert len(asked) > 6


def test_held_out_expressions_have_every_number_of_operations_equally_often() -> None:
    rows = rows_of(Polynomial(operations=2, more=1), 30)
    assert Counter(row.difficulty for row in rows) == {1: 10, 2: 10, 3: 10}


def base_of(task: Task) -> Any:
    return tiny_base(vocab_size=task.tokenizer().get_vocab_size(), max_position_embeddings=256)


def model_of(task: Task) -> MTPModel:
    return MTPModel(base_of(task), 2)


def test_an_answer_is_right_if_and_only_if_greedy_decoding_gives_it() -> None:
    """On rows whose answer is what the model says, and on the same rows with one token changed."""
    task, random = Polynomial(operations=1, more=0), torch.Generator().manual_seed(0)
    rows, model = rows_of(task, 6), model_of(task)
    prompts = [row.tokens[: row.response_start].tolist() for row in rows]
    said = generate(model, prompts, 6, "plain", eos=()).tokens
    for changed in (False, True):
        for row, tokens in zip(rows, said, strict=True):
            row.tokens[row.response_start :] = tokens
            if changed:
                at = row.response_start + int(torch.randint(6, (), generator=random))
                row.tokens[at] = (row.tokens[at] + 1) % 10
        batch = collate(rows, range(6), 0)
        found = grade(model, task, rows, [[batch]])
        assert found == {"task/in_domain": float(not changed), "task/operations_1": float(not changed)}


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_grades_do_not_depend_on_how_rows_are_batched_and_none_asked_is_none_answered(task: Task) -> None:
    rows, model = rows_of(task, 6), model_of(task)
    whole = grade(model, task, rows, [[collate(rows, range(6), 0)]])
    parts = grade(model, task, rows, [[collate(rows, [i, 5 - i], 0)] for i in range(3)])
    assert set(whole) == {f"task/{group}" for group in task.groups}
    np.testing.assert_equal(parts, whole)
    assert all(np.isnan(value) for value in grade(model, task, rows, []).values())


def test_the_first_choice_is_that_of_the_base_model() -> None:
    task = Polynomial()
    rows, model = rows_of(task, 4), model_of(task)
    tokens_BT = collate(rows, range(4), 0).tokens_BT
    best_BT = base_of(task)(tokens_BT).logits.argmax(-1)
    assert torch.equal(first_choice(model, tokens_BT)[:, 1:], best_BT[:, :-1] == tokens_BT[:, 1:])


def test_the_pages_own_task_makes_rows_and_asks_for_all_that_follows_the_prompt() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    found = re.search(r"<!-- task: my_tasks.py -->\n```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    module = ModuleType("my_tasks")
    exec(found[1], module.__dict__)  # noqa: S102
    task = module.Backwards(length=3)
    rows = rows_of(task, 5)
    assert [[q.group, len(q.tokens)] for row in rows for q in task.questions(row)] == [["backwards", 4]] * 5
    assert set(grade(model_of(task), task, rows, [[collate(rows, range(5), 0)]])) == {"task/backwards"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Polynomial(operations=0), "at least 1"),
        (lambda: Polynomial(more=-1), "at least 0"),
        (lambda: Induction(names=9999), "from 3 to 9,997"),
        (lambda: Induction(sentences=3), "at least 4"),
    ],
)
def test_impossible_options_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
