"""Batches made ahead are the batches made when asked for; threads end with the block, whatever ends it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from wmtp.data.ahead import Ahead
from wmtp.data.batches import Batch, Batches
from wmtp.data.facts import facts_of
from wmtp.data.orders import DifficultyBin, Mixed, Order, Shuffled
from wmtp.data.sampling import RowFacts, Selection
from wmtp.data.text import Row
from wmtp.schedule import Schedule

STEPS = 120


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("wmtp-batches")]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_numbers_come_in_any_order_and_each_is_made_once_if_they_follow_one_another(workers: int) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    with Ahead(make, 20, workers) as ahead:
        assert [ahead(number) for number in range(20)] == [number * number for number in range(20)]
        assert sorted(made) == list(range(20)), "nothing past the end, nothing twice"
        assert ahead(3) == 9
    assert own_threads() == []


def test_an_error_comes_when_its_number_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("bad row")
        return number

    def use(ahead: Ahead[int]) -> None:
        assert (ahead(0), ahead(1)) == (0, 1)
        ahead(2)

    with pytest.raises(ValueError, match="bad row"), Ahead(make, 9, 3) as ahead:
        use(ahead)
    assert own_threads() == []


def leave(ahead: Ahead[int], problem: type[BaseException]) -> None:
    ahead(0)
    raise problem


@pytest.mark.parametrize("problem", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_threads_end_on_every_way_out(problem: type[BaseException]) -> None:
    with pytest.raises(problem), Ahead(lambda number: number, 99, 2) as ahead:
        leave(ahead, problem)
    assert own_threads() == []


# the batches after a resume


def rows() -> list[Row]:
    random = np.random.default_rng(1)
    return [
        Row(random.integers(0, 99, random.integers(4, 30)).astype(np.int32), 2, i // 3, float(i % 2), i // 3 % 4)
        for i in range(300)
    ]


def order(kind: str, known: RowFacts) -> Order:
    if kind == "curriculum":
        bins = [DifficultyBin(0, 1, Schedule(1.0, 0.1, STEPS)), DifficultyBin(2, 3, Schedule(0.0, 1.0, STEPS))]
        return Mixed(Selection(known, "rows", 2, 5).items, known.length_R, known.levels(), bins, 8, 5)
    selection = Selection(known, "unique", None, 5) if kind == "pairs" else Selection(known, "rows", None, 5)
    return Shuffled(selection.items, known.length_R, 4 if kind == "pairs" else 8, 5)


def fresh(kind: str) -> Batches:
    """As a process that has just started has them."""
    data = rows()
    return Batches.ordered(data, order(kind, facts_of(data)), pad_id=0)


def seen(batch: Batch) -> list[Any]:
    return [batch.row_B, batch.tokens_BT.tolist(), batch.trainable_BT.tolist(), batch.reward_B.tolist()]


def run(kind: str, first: int, ranks: int, workers: int) -> list[list[list[list[Any]]]]:
    """What each rank trains on in steps `first` to `first + 50`, in processes that start there."""
    shares = []
    for rank in range(ranks):
        batches = fresh(kind)
        with Ahead(lambda n, b=batches, r=rank: b.at(n, 4, 60, rank=r, ranks=ranks), STEPS, workers) as ahead:  # type: ignore[misc]
            shares.append([[seen(batch) for batch in ahead(number)] for number in range(first, first + 50)])
    return shares


@pytest.mark.parametrize("kind", ["shuffled", "pairs", "curriculum"])
def test_the_batches_after_a_resume_are_those_of_an_undisturbed_run(kind: str) -> None:
    for ranks in (1, 2, 4):
        begun, gone_on = run(kind, 0, ranks, 0), run(kind, 50, ranks, 0)
        undisturbed = [[*one, *other][37:87] for one, other in zip(begun, gone_on, strict=True)]
        for workers in (0, 2):
            assert run(kind, 37, ranks, workers) == undisturbed


@pytest.mark.parametrize("kind", ["shuffled", "pairs", "curriculum"])
def test_the_rows_of_a_step_are_the_same_on_any_number_of_ranks(kind: str) -> None:
    def rows_of_steps(ranks: int, workers: int) -> list[list[int]]:
        shares = run(kind, 37, ranks, workers)
        return [sorted(row for share in shares for batch in share[step] for row in batch[0]) for step in range(50)]

    one = rows_of_steps(1, 0)
    assert all(rows_of_steps(ranks, workers) == one for ranks in (2, 4) for workers in (0, 2))


def test_a_rank_reads_the_tokens_of_its_own_rows_only_and_four_read_each_row_once() -> None:
    class Counting(list[Row]):
        read: list[int]

        def __getitem__(self, place: Any) -> Any:
            self.read.append(place)
            return super().__getitem__(place)

    known, read = facts_of(rows()), []
    for rank in range(4):
        data = Counting(rows())
        batches = Batches.ordered(data, order("shuffled", known), pad_id=0)
        data.read = []
        own = {row for n in range(len(batches)) for batch in batches.at(n, rank=rank, ranks=4) for row in batch.row_B}
        assert set(data.read) == own
        read += data.read
    assert sorted(read) == list(range(300))


def test_a_filler_has_nothing_to_train_on_and_is_made_without_a_row() -> None:
    (share,) = [fresh("pairs").at(0, 2, rank=3, ranks=4)]
    assert len(share) == len(fresh("pairs").at(0, 2, rank=0, ranks=4))
    data = rows()[:2]
    last = Batches(data, [(0,), (1,)], batch_size=2, seed=None, pad_id=7).at(0, rank=2, ranks=3)
    assert [batch.row_B for batch in last] == [()]
    assert torch.equal(last[0].tokens_BT, torch.full((1, 2), 7))
    assert not last[0].trainable_BT.any()
