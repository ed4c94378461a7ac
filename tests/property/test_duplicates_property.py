"""Duplicates and overlaps against the slow, obvious definition."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.curation.duplicates import ExactDuplicates, NearDuplicates, jaccard, normalized, shingles
from wmtp.curation.grams import grams, tokens, words
from wmtp.curation.overlap import Overlap
from wmtp.data.records import Record
from wmtp.errors import UsageError

TEXT = st.text("ab (\n", max_size=60)


def record(response: str, prompt: str = "p", **other: object) -> Record:
    return Record(problem_id=other.pop("problem_id", prompt), prompt=prompt, response=response, **other)  # type: ignore[arg-type]


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+|[^\w\s]", text)
    return {tuple(found[i : i + 5]) for i in range(max(1, len(found) - 4))} if found else set()


@given(TEXT, TEXT)
def test_the_index_is_that_of_sets_of_five_tokens(one: str, other: str) -> None:
    a, b = plain_shingles(one), plain_shingles(other)
    expected = len(a & b) / len(a | b) if a | b else 1.0
    assert jaccard(shingles(one), shingles(other)) == expected


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
def test_grams_are_as_many_as_there_are_places_and_equal_where_the_words_are(units: list[str], n: int) -> None:
    found = list(grams(units, n))
    assert len(found) == (max(1, len(units) - n + 1) if units else 0)
    windows = [tuple(units[i : i + n]) for i in range(len(found))]
    assert [windows.index(window) for window in windows] == [found.index(gram) for gram in found]


@given(st.lists(TEXT, max_size=6), st.booleans())
def test_exact_duplicates_are_those_whose_normalised_texts_were_there(texts: list[str], label: bool) -> None:
    seen: set[str] = set()
    duplicates = ExactDuplicates()
    for text in texts:
        reason = duplicates.reason(record(text, is_correct=label))
        assert (reason != "") == (normalized(text) in seen)
        seen.add(normalized(text))


def test_a_text_with_another_verdict_is_a_contradiction() -> None:
    duplicates = ExactDuplicates()
    assert duplicates.reason(record("x", is_correct=True)) == ""
    assert duplicates.reason(record("x \n\n", is_correct=True)) == "exact duplicate"
    assert duplicates.reason(record("x", is_correct=False)) == "exact duplicate with another is_correct"
    assert duplicates.reason(record("  x", is_correct=True)) == ""


def variants(seed: int) -> list[str]:
    """A program of 150 words and copies of it with ever more words replaced."""
    draws = np.random.default_rng(seed)
    original = [f"w{draws.integers(10**6)}" for _ in range(150)]
    made = []
    for changes in range(8):
        copy = list(original)
        for place in draws.choice(150, changes, replace=False):
            copy[place] = f"w{draws.integers(10**6)}"
        made.append(" ".join(copy))
    return made


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_what_is_removed_is_alike_and_nearly_all_that_is_alike_is_removed(threshold: float) -> None:
    alike = removed = 0
    for seed in range(20):
        original, *others = variants(seed)
        for other in others:
            near = NearDuplicates(threshold)
            assert near.find(record(original)) is None
            found = near.find(record(other)) is not None
            really = jaccard(shingles(original), shingles(other)) >= threshold
            assert really or not found
            alike, removed = alike + really, removed + found
    assert alike >= 20
    assert removed / alike > 0.98


def test_the_wrong_variant_of_a_program_and_another_problems_program_are_kept() -> None:
    program = "def f(a, b, c): return a + b + c if a else b - c or a * b * c"
    near = NearDuplicates(0.7)
    assert near.find(record(program, "Add.", is_correct=True, problem_id="first")) is None
    assert near.find(record(program + " ", "Add.", is_correct=False)) is None
    assert near.find(record(program, "Something else altogether, in many words.", is_correct=True)) is None
    assert near.find(record(program + "\n", "Add.", is_correct=True)) == "first"


@pytest.mark.parametrize("threshold", [0.69, 1.01, float("nan")])
def test_a_threshold_at_which_much_is_missed_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match=r"from 0\.7 to 1"):
        NearDuplicates(threshold)


NUMBERS = [f"n{i}" for i in range(40)]


@given(st.lists(st.sampled_from(NUMBERS[:2]), max_size=20), st.lists(st.sampled_from(NUMBERS[:2]), max_size=40))
@settings(max_examples=50)
def test_an_overlap_is_thirteen_words_in_a_row_or_a_whole_text_of_eight(theirs: list[str], ours: list[str]) -> None:
    n = min(13, len(theirs))
    parts = {tuple(theirs[i : i + n]) for i in range(len(theirs) - n + 1)} if n >= 8 else set()
    expected = any(tuple(ours[i : i + n]) in parts for i in range(len(ours) - n + 1))
    overlap = Overlap([record("x", " ".join(theirs) or "x", problem_id="theirs")])
    found = overlap.find(record(" ".join(ours) or "y", "q"))
    assert found == ("theirs" if expected else None)


def test_case_and_punctuation_hide_nothing_and_a_solution_counts_as_well() -> None:
    statement, solution = " ".join(NUMBERS[:9]), " ".join(NUMBERS[10:30])
    overlap = Overlap([record(solution, statement, problem_id="theirs")])
    assert overlap.find(record("r", f"Please: {', '.join(NUMBERS[:9]).upper()}!")) == "theirs"
    assert overlap.find(record(f"x {' '.join(NUMBERS[12:26])} y")) == "theirs"
    assert overlap.find(record(" ".join(NUMBERS[12:24]), " ".join(NUMBERS[:8]))) is None
    assert list(words("A_b, c")) == ["a_b", "c"]
    assert list(tokens("A_b, c")) == ["A_b", ",", "c"]
