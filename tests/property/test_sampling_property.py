"""A selection is a function of data, seed and epoch, and holds what its name says; an order deals it out."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.data.batches import Batches, pair_items
from wmtp.data.facts import facts_of
from wmtp.data.orders import POOL, DifficultyBin, Mixed, Order, Shuffled
from wmtp.data.sampling import PRIORITY, RATIO, UNKNOWN, RowFacts, Selection, cycled_pairs, generator
from wmtp.data.text import Row
from wmtp.errors import DataError
from wmtp.schedule import Schedule

SEED = st.integers(0, 2**32 - 1)
few = settings(max_examples=40)


@st.composite
def facts(draw: st.DrawFn, largest: int = 60) -> RowFacts:
    rows = draw(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 0, UNKNOWN]), st.integers(0, 4),
                                   st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=largest))  # fmt: skip
    problem, correct, difficulty, response, prompt = (np.array(column) for column in zip(*rows, strict=True))
    firsts = {p: i for i, p in enumerate(dict.fromkeys(problem.tolist()))}
    numbers = np.array([firsts[p] for p in problem.tolist()], np.int32)
    i32 = [column.astype(np.int32) for column in (difficulty, response + prompt, response)]
    return RowFacts(numbers, correct.astype(np.int8), *i32)


def rows_like(known: RowFacts) -> list[Row]:
    reward = {1: 1.0, 0: 0.0, UNKNOWN: math.nan}
    return [
        Row(np.arange(length, dtype=np.int32), length - response, problem, reward[correct], difficulty)
        for problem, correct, difficulty, length, response in zip(
            *(column.tolist() for column in vars(known).values()), strict=True
        )
    ]


def pairs_of(known: RowFacts, kind: Any, **options: Any) -> list[tuple[int, int]] | None:
    """The pairs of the first epoch; None where there are none."""
    try:
        return [tuple(pair) for pair in Selection(known, kind, **options).items(0).tolist()]
    except DataError:
        return None


# selections


@given(facts())
@few
def test_what_is_known_of_rows_is_what_they_are(known: RowFacts) -> None:
    found = facts_of(rows_like(known))
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in
               zip(vars(found).values(), vars(known).values(), strict=True))  # fmt: skip


@given(facts())
@few
def test_cycled_pairs_are_those_of_the_plain_definition(known: RowFacts) -> None:
    try:
        expected = pair_items(rows_like(known))
    except DataError:
        expected = []
    assert [tuple(pair) for pair in cycled_pairs(known).tolist()] == expected


@given(facts(), SEED, st.integers(0, 3))
@few
def test_every_epoch_selects_as_much_and_asking_twice_gives_the_same(known: RowFacts, seed: int, epoch: int) -> None:
    for kind in ("rows", "cycled", "unique", "length"):
        for most in (None, 1, 2):
            chosen = Selection(known, kind, most, seed)  # type: ignore[arg-type]
            try:
                first = chosen.items(0)
            except DataError:
                continue
            items = chosen.items(epoch)
            assert len(items) == len(first)
            assert np.array_equal(items, Selection(known, kind, most, seed).items(epoch))  # type: ignore[arg-type]


@given(facts(), SEED, st.integers(1, 3))
@few
def test_no_problem_has_more_items_than_allowed_and_none_has_fewer_than_it_could(
    known: RowFacts, seed: int, most: int
) -> None:
    for kind in ("rows", "cycled", "unique", "length"):
        try:
            everything = Selection(known, kind, None, seed).items(0)  # type: ignore[arg-type]
        except DataError:
            continue
        kept = Selection(known, kind, most, seed).items(0)  # type: ignore[arg-type]
        before, after = (Counter(known.problem_R[items[:, 0]].tolist()) for items in (everything, kept))
        assert after == {problem: min(count, most) for problem, count in before.items()}
        assert {tuple(item) for item in kept.tolist()} <= {tuple(item) for item in everything.tolist()}


@given(facts(), SEED)
@few
def test_unique_pairs_use_a_row_once_and_leave_no_pair_over(known: RowFacts, seed: int) -> None:
    pairs = pairs_of(known, "unique", seed=seed) or []
    rows = [row for pair in pairs for row in pair]
    assert len(rows) == len(set(rows))
    assert all(known.correct_R[good] == 1 and known.correct_R[bad] == 0 for good, bad in pairs)
    assert all(known.problem_R[good] == known.problem_R[bad] for good, bad in pairs)
    labels = Counter(zip(known.problem_R.tolist(), known.correct_R.tolist(), strict=True))
    problems = set(known.problem_R.tolist())
    assert len(pairs) == sum(min(labels[p, 1], labels[p, 0]) for p in problems)


@given(facts(), SEED)
@few
def test_unique_pairs_are_those_of_the_plain_definition(known: RowFacts, seed: int) -> None:
    priority = generator(PRIORITY, seed, 0).permutation(len(known))

    def side(problem: int, label: int) -> list[int]:
        rows = (r for r in range(len(known)) if (known.problem_R[r], known.correct_R[r]) == (problem, label))
        return sorted(rows, key=lambda row: int(priority[row]))

    problems = sorted(set(known.problem_R.tolist()))
    plain = [pair for p in problems for pair in zip(side(p, 1), side(p, 0), strict=False)]
    assert (pairs_of(known, "unique", seed=seed) or []) == plain


@given(facts(), SEED)
@few
def test_length_balanced_pairs_are_of_one_problem_and_one_length_bin(known: RowFacts, seed: int) -> None:
    def place(row: int) -> tuple[int, int]:
        return int(known.problem_R[row]), math.floor(math.log(int(known.response_R[row])) / math.log(RATIO))

    pairs = pairs_of(known, "length", seed=seed) or []
    assert all(place(good) == place(bad) for good, bad in pairs)
    assert all(max(a, b) / min(a, b) < RATIO * 1.0001 for a, b in
               ([int(known.response_R[row]) for row in pair] for pair in pairs))  # fmt: skip
    rows = range(len(known))
    sides = [Counter(place(row) for row in rows if known.correct_R[row] == label) for label in (1, 0)]
    assert len(pairs) == sum(min(sides[0][p], sides[1][p]) for p in sides[0])


def test_rows_are_matched_anew_in_every_epoch() -> None:
    known = RowFacts(np.zeros(40, np.int32), np.arange(40, dtype=np.int8) % 2, *[np.ones(40, np.int32)] * 3)
    for most in (None, 5):
        epochs = [Selection(known, "unique", most, 3).items(epoch).tolist() for epoch in range(3)]
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("kind", ["cycled", "unique", "length"])
def test_no_pairs_is_an_error_that_says_what_a_pair_is(kind: Any) -> None:
    known = RowFacts(*[np.array([0, 1], np.int32)], np.array([1, 0], np.int8), *[np.ones(2, np.int32)] * 3)
    with pytest.raises(DataError, match="none of 2 problems has a response with is_correct true and one with false"):
        Selection(known, kind).items(0)


# orders


def mixed(known: RowFacts, bins: list[DifficultyBin], size: int, seed: int = 0) -> Mixed:
    return Mixed(Selection(known, seed=seed).items, known.length_R, known.levels(), bins, size, seed)


def graded(count: int = 400) -> RowFacts:
    """Rows of four difficulties, 0 to 3, two to a problem."""
    problem = np.arange(count, dtype=np.int32) // 2
    random = np.random.default_rng(0)
    length = random.integers(5, 90, count).astype(np.int32)
    return RowFacts(problem, np.zeros(count, np.int8), (problem % 4).astype(np.int32), length, length)


def counts(order: Order, known: RowFacts, numbers: range) -> Counter[int]:
    return Counter(int(known.levels()[row]) for n in numbers for row in order.items(n).ravel())


def test_a_batch_has_the_share_of_each_difficulty_that_its_bin_says_and_nothing_of_no_bin() -> None:
    known = graded()
    order = mixed(known, [DifficultyBin(0, 0, 1.0), DifficultyBin(1, 2, 3.0)], 8)
    found = counts(order, known, range(4 * POOL))
    assert found[3] == 0
    assert sum(found.values()) == 4 * POOL * 8
    assert abs(found[0] - POOL * 8) <= 4, "a quarter, up to one item a pool"


def test_a_schedule_of_weights_is_a_curriculum() -> None:
    known, steps = graded(), 8 * POOL
    bins = [DifficultyBin(1, 1, Schedule(1.0, 0.0, steps)), DifficultyBin(3, 3, Schedule(0.0, 1.0, steps))]
    order = mixed(known, bins, 8)
    easy = [counts(order, known, range(p * POOL, (p + 1) * POOL))[1] for p in range(8)]
    assert all(later < earlier for earlier, later in itertools.pairwise(easy))
    assert easy[0] > 0.9 * POOL * 8
    assert easy[-1] < 0.1 * POOL * 8
    assert counts(order, known, range(steps, steps + POOL))[1] == 0, "after its end a schedule stays where it is"


def test_a_bin_of_weight_0_gives_nothing_wherever_it_stands() -> None:
    known = graded()
    weights = [DifficultyBin(level, level, weight) for level, weight in enumerate((0.0, 0.3, 0.0, 0.0))]
    for size in (1, 3, 7):
        assert set(counts(mixed(known, weights, size), known, range(2 * POOL))) == {1}


@given(facts(), SEED, st.integers(1, 5))
@few
def test_a_deck_gives_each_of_its_items_once_before_it_gives_one_again(known: RowFacts, seed: int, size: int) -> None:
    order = mixed(known, [DifficultyBin(0, 9, 1.0)], size, seed)
    pools = range(3)
    dealt = Counter(int(row) for p in pools for n in range(p * POOL, (p + 1) * POOL) for row in order.items(n).ravel())
    assert max(dealt.values()) - min(dealt[row] for row in range(len(known))) <= 1
    assert len(order) == -(-len(known) // size)


def test_an_empty_bin_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"no rows to train on have a difficulty in \[7, 9\]"):
        mixed(graded(), [DifficultyBin(1, 3, 1.0), DifficultyBin(7, 9, 0.5)], 4)


def test_the_difficulty_of_a_problem_is_the_largest_of_its_rows() -> None:
    known = RowFacts(*(np.array(v, np.int32) for v in ([0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 2, 0], [1] * 4, [1] * 4)))
    assert known.levels().tolist() == [2, 0, 2, 0]


@pytest.mark.parametrize("bins", [None, [DifficultyBin(0, 1, 1.0), DifficultyBin(2, 3, Schedule(0.1, 2.0, 90))]])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_together_have_the_batch_and_equally_many_micro_batches(
    bins: list[DifficultyBin] | None, ranks: int
) -> None:
    known = graded()
    order: Order = Shuffled(Selection(known, "rows", 1, 5).items, known.length_R, 6, 5)
    if bins is not None:
        order = mixed(known, bins, 6)
    batches = Batches.ordered(rows_like(known), order, pad_id=0)
    for number in (0, 1, len(order) - 1, len(order), 70):
        shares = [batches.at(number, 2, rank=rank, ranks=ranks) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        together = sorted(row for share in shares for batch in share for row in batch.row_B)
        assert together == sorted(batches.rows_of(number)) == sorted(order.items(number).ravel().tolist())


def test_an_order_does_not_depend_on_what_was_asked_before() -> None:
    known = graded()
    bins = [DifficultyBin(0, 1, 1.0), DifficultyBin(2, 3, Schedule(0.1, 2.0, 90))]
    straight = [mixed(known, bins, 6).items(n).tolist() for n in range(120)]
    other = mixed(known, bins, 6)
    assert [other.items(n).tolist() for n in reversed(range(120))] == straight[::-1]


def test_the_orders_are_these_forever() -> None:
    # A run that resumes with a newer version must find the batches it had: change this and say so in the CHANGELOG.
    known = graded(24)
    pairs = RowFacts(known.problem_R // 4, np.arange(24, dtype=np.int8) % 2, *list(vars(known).values())[2:])
    unique = Shuffled(Selection(pairs, "unique", 2, 7).items, pairs.length_R, 2, 7)
    decks = mixed(known, [DifficultyBin(0, 1, 1.0), DifficultyBin(2, 3, 2.0)], 3, 7)
    assert [unique.items(n).tolist() for n in range(3)] == [[[13, 10], [15, 8]], [[3, 6], [5, 4]], [[21, 16], [19, 22]]]
    assert [decks.items(n).ravel().tolist() for n in range(3)] == [[7, 7, 7], [22, 22, 15], [1, 10, 10]]
