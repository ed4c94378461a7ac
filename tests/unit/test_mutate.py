"""Mutation of correct programs: what every operator does, and what holds for every mutant."""

from __future__ import annotations

import ast
import json
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.data.mutate import OPERATORS, Mutant, mutants, normalize
from wmtp.errors import DataError

# operator, an original body of `def f(a, b)`, and a mutant body that the operator must produce from it
EXAMPLES = [
    ("compare_boundary", "return a < b", "return a <= b"),
    ("compare_boundary", "return a >= b", "return a > b"),
    ("compare_negate", "return a == b", "return a != b"),
    ("compare_negate", "return a in b", "return a not in b"),
    ("compare_negate", "return a < b", "return a >= b"),
    ("arithmetic_swap", "return a + b", "return a - b"),
    ("arithmetic_swap", "return a // b", "return a % b"),
    ("augmented_swap", "a += b\nreturn a", "a -= b\nreturn a"),
    ("augmented_swap", "a += b\nreturn a", "a = b\nreturn a"),
    ("off_by_one", "return a[0]", "return a[1]"),
    ("off_by_one", "return a[0]", "return a[-1]"),
    ("range_bound", "return list(range(a))", "return list(range(1, a))"),
    ("range_bound", "return list(range(a))", "return list(range(a - 1))"),
    ("slice_bound", "return a[b:]", "return a[b + 1:]"),
    ("slice_bound", "return a[b:]", "return a[b:-1]"),
    ("index_shift", "return a[b]", "return a[b - 1]"),
    ("bool_swap", "return a and b", "return a or b"),
    ("drop_not", "return not a", "return a"),
    ("negate_condition", "if a:\n    return b\nreturn 1", "if not a:\n    return b\nreturn 1"),
    ("flip_bool", "return True", "return False"),
    ("swap_arguments", "return divmod(a, b)", "return divmod(b, a)"),
    ("swap_operands", "return a - b", "return b - a"),
    ("wrong_variable", "c = a\nreturn c", "c = b\nreturn c"),
    ("wrong_function", "return min(a, b)", "return max(a, b)"),
    ("wrong_function", "return a.find(b)", "return a.rfind(b)"),
    ("drop_call", "return sorted(a)", "return a"),
    ("drop_call", "return a.lower()", "return a"),
    ("drop_operand", "return a + b", "return b"),
    ("drop_operand", "return a and b", "return a"),
    ("drop_filter", "return [x for x in a if x > b]", "return [x for x in a]"),
    ("drop_statement", "a.sort()\nreturn a", "return a"),
    ("drop_branch", "if a:\n    return 1\nreturn 2", "return 2"),
    ("drop_branch", "return 1 if a else 2", "return 2"),
    ("drop_condition", "if a:\n    b += 1\nreturn b", "b += 1\nreturn b"),
    ("return_in_loop", "for x in a:\n    b += x\nreturn b", "for x in a:\n    b += x\n    return b"),
    ("break_continue", "for x in a:\n    break", "for x in a:\n    continue"),
    ("wrong_return", "return a == b", "return not a == b"),
    ("wrong_return", "return None", "return 0"),
]


def function(body: str) -> str:
    return "def f(a, b):\n" + "\n".join("    " + line for line in body.split("\n"))


def embedded_responses() -> list[str]:
    text = resources.files("wmtp").joinpath("embedded/problems_validation.jsonl").read_text(encoding="utf-8")
    return [row["response"] for row in map(json.loads, text.splitlines()) if row["is_correct"]]


def test_every_operator_has_an_example() -> None:
    assert {operator for operator, _, _ in EXAMPLES} == set(OPERATORS)


@pytest.mark.parametrize(("operator", "before", "after"), EXAMPLES)
def test_the_operator_makes_its_mistake(operator: str, before: str, after: str) -> None:
    made = {m.source for m in mutants(function(before)) if m.operator == operator}
    assert function(after) in made


@settings(max_examples=12)
@given(st.sampled_from(embedded_responses()))
def test_every_mutant_parses_and_differs(source: str) -> None:
    original = normalize(source)
    made = list(mutants(source))
    texts = [m.source for m in made]
    assert made == list(mutants(source))
    assert len(set(texts)) == len(texts)
    assert original not in texts
    for mutant in made:
        ast.parse(mutant.source)
        assert normalize(mutant.source) == mutant.source
        assert mutant.operator in OPERATORS


@settings(max_examples=12)
@given(st.sampled_from(embedded_responses()))
def test_line_is_where_original_and_mutant_part(source: str) -> None:
    old = normalize(source).split("\n")
    for mutant in mutants(source):
        new = mutant.source.split("\n")
        assert 1 <= mutant.line <= len(new)
        assert new[: mutant.line - 1] == old[: mutant.line - 1]
        assert new[mutant.line - 1 :] != old[mutant.line - 1 :]


def test_line_counts_from_one() -> None:
    made = [m for m in mutants(function("c = a\nreturn c < b")) if m.operator == "compare_boundary"]
    assert made == [Mutant(function("c = a\nreturn c <= b"), "compare_boundary", 3)]


def test_a_removed_last_line_is_reported_at_the_new_end() -> None:
    made = [m for m in mutants(function("c = a\nreturn c")) if m.operator == "drop_statement"]
    assert Mutant(function("c = a"), "drop_statement", 2) in made


def test_the_text_of_a_docstring_annotation_and_decorator_stays() -> None:
    source = 'import functools\n\n@functools.cache\ndef f(a: int) -> int:\n    """Text."""\n    return a + 1'
    for mutant in mutants(source):
        assert '"""Text."""' in mutant.source
        assert "@functools.cache\ndef f(a: int) -> int:" in mutant.source


def test_variables_of_another_function_are_not_mixed_in() -> None:
    source = "def f(a):\n    return a\n\ndef g(b):\n    return b"
    assert [m for m in mutants(source) if m.operator == "wrong_variable"] == []


def test_a_comprehension_does_not_iterate_over_its_own_variable() -> None:
    texts = [m.source for m in mutants(function("return [x for x in a]"))]
    assert function("return [x for x in x]") not in texts
    assert function("return [x for x in b]") in texts


def test_programs_that_would_not_compile_are_left_out() -> None:
    source = "def f(a):\n    n = 0\n\n    def g():\n        nonlocal n\n        n += a\n    g()\n    return n"
    made = list(mutants(source))
    assert made
    for mutant in made:
        compile(mutant.source, "<mutant>", "exec")


def test_normalize_drops_comments_and_is_stable() -> None:
    assert normalize("x = ( 1 )  # one\n\n\ny=2") == "x = 1\ny = 2"
    assert normalize(normalize("a=[1,\n2]")) == normalize("a=[1,\n2]")


def test_a_program_without_places_has_no_mutants() -> None:
    assert list(mutants("")) == []
    assert list(mutants("def f():\n    pass")) == []


@pytest.mark.parametrize("source", ["def f(:", "x = 1\n  y = 2", "a\0b"])
def test_source_that_does_not_parse_is_a_data_error(source: str) -> None:
    with pytest.raises(DataError, match="not valid Python"):
        list(mutants(source))
    with pytest.raises(DataError, match="not valid Python"):
        normalize(source)
