"""The order is a pure function of seed and number, and an epoch is the data set."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.data.batches import Batches, pair_items, single_items
from wmtp.data.text import Row
from wmtp.errors import DataError

PAD = 0
REWARD = st.sampled_from([1.0, 0.0, math.nan])


@st.composite
def data_sets(draw: st.DrawFn) -> list[Row]:
    out = []
    for i in range(draw(st.integers(1, 40))):
        length = draw(st.integers(2, 9))
        tokens = np.arange(10 * i + 1, 10 * i + 1 + length, dtype=np.int32)
        out.append(Row(tokens, draw(st.integers(1, length - 1)), draw(st.integers(0, 5)), draw(REWARD), 0))
    return out


def batches(data: list[Row], size: int, seed: int | None) -> Batches:
    return Batches(data, single_items(data), batch_size=size, seed=seed, pad_id=PAD)


SEED = st.one_of(st.none(), st.integers(0, 2**32 - 1))
few = settings(max_examples=40)


@given(data_sets(), st.integers(1, 9), SEED, st.integers(0, 3))
@few
def test_an_epoch_is_every_row_exactly_once(data: list[Row], size: int, seed: int | None, epoch: int) -> None:
    chosen = batches(data, size, seed)
    seen = [r for n in range(len(chosen)) for r in chosen.rows_of(epoch * len(chosen) + n)]
    assert sorted(seen) == list(range(len(data)))
    sizes = Counter(len(chosen.rows_of(epoch * len(chosen) + n)) for n in range(len(chosen)))
    assert sizes == Counter([size] * (len(data) // size) + [len(data) % size] * (len(data) % size > 0))


@given(data_sets(), st.integers(1, 9), SEED, st.randoms(use_true_random=False))
@few
def test_a_batch_does_not_depend_on_what_was_asked_before(
    data: list[Row], size: int, seed: int | None, random: Any
) -> None:
    straight = batches(data, size, seed)
    numbers = list(range(3 * len(straight)))
    expected = {n: straight.rows_of(n) for n in numbers}
    torch.manual_seed(random.randrange(100))
    np.random.seed(random.randrange(100))
    other = batches(data, size, seed)
    random.shuffle(numbers)
    assert all(other.rows_of(n) == expected[n] for n in numbers)


@given(data_sets(), st.integers(1, 9), SEED, st.integers(0, 20), st.integers(1, 10))
@few
def test_micro_batches_laid_together_are_the_batch(
    data: list[Row], size: int, seed: int | None, number: int, micro: int
) -> None:
    chosen = batches(data, size, seed)
    (whole,) = chosen.at(number)
    pieces = chosen.at(number, micro)
    assert [r for piece in pieces for r in piece.row_B] == list(whole.row_B) == chosen.rows_of(number)
    assert all(len(piece.row_B) == micro for piece in pieces[:-1])
    assert sum(piece.num_tokens for piece in pieces) == whole.num_tokens
    width = whole.tokens_BT.shape[1]
    for name, fill in (("tokens_BT", PAD), ("trainable_BT", False)):
        padded = [
            torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in (getattr(p, name) for p in pieces)
        ]
        assert torch.equal(torch.cat(padded), getattr(whole, name))
    rewards = torch.cat([piece.reward_B for piece in pieces])
    assert torch.equal(rewards.nan_to_num(-1), whole.reward_B.nan_to_num(-1))


@given(data_sets(), st.integers(1, 9), SEED, st.integers(0, 20))
@few
def test_a_batch_is_its_rows_padded_to_the_longest(data: list[Row], size: int, seed: int | None, number: int) -> None:
    (batch,) = batches(data, size, seed).at(number)
    assert batch.tokens_BT.shape[1] == max(len(data[r].tokens) for r in batch.row_B)
    for b, r in enumerate(batch.row_B):
        length, start = len(data[r].tokens), data[r].response_start
        assert batch.tokens_BT[b].tolist() == data[r].tokens.tolist() + [PAD] * (batch.tokens_BT.shape[1] - length)
        assert batch.trainable_BT[b].nonzero().flatten().tolist() == list(range(start, length))


@given(data_sets())
@few
def test_pairs_are_of_one_problem_and_hold_every_labelled_row_of_a_mixed_one(data: list[Row]) -> None:
    kinds: dict[int, set[float]] = {}
    for row in data:
        if not math.isnan(row.reward):
            kinds.setdefault(row.problem, set()).add(row.reward)
    mixed = {problem for problem, seen in kinds.items() if len(seen) == 2}
    try:
        pairs = pair_items(data)
    except DataError:
        assert not mixed
        return
    for good, bad in pairs:
        assert (data[good].reward, data[bad].reward) == (1.0, 0.0)
        assert data[good].problem == data[bad].problem
    labelled = {i for i, row in enumerate(data) if row.problem in mixed and not math.isnan(row.reward)}
    assert {i for pair in pairs for i in pair} == labelled
    assert len(set(pairs)) == len(pairs)


@given(data_sets(), st.integers(1, 4), st.integers(0, 100), st.integers(1, 3))
@few
def test_pairs_stay_side_by_side_through_batches_and_micro_batches(
    data: list[Row], half: int, seed: int, micro: int
) -> None:
    try:
        pairs = pair_items(data)
    except DataError:
        return
    chosen = Batches(data, pairs, batch_size=2 * half, seed=seed, pad_id=PAD)
    seen = []
    for number in range(len(chosen)):
        for piece in chosen.at(number, 2 * micro):
            seen += list(zip(piece.row_B[0::2], piece.row_B[1::2], strict=True))
    assert sorted(seen) == sorted(pairs)
