"""A critic's held-out rows: each is evaluated once, pairs are made of them, and batches make no difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.config import Config
from wmtp.data.batches import Batch
from wmtp.data.sampling import RowFacts, in_turn
from wmtp.dataset import build_data
from wmtp.errors import DataError
from wmtp.formats.hf import load_tokenizer
from wmtp.objective import ValueObjective
from wmtp.step import evaluate
from wmtp.testing import random_batch, tiny_base
from wmtp.value import LOSSES, ValueModel, lambda_return_loss, mean_response_value, pairwise_loss
from wmtp.value_stats import HeldOut

NAN = float("nan")
ROWS = replace(random_batch(6, 12), reward_B=torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, NAN]), paired=False)
PAIRS = torch.tensor([[0, 1], [2, 3], [0, 4]])
"""Row 0 is in two of them, row 5 in none."""


@pytest.fixture(scope="module")
def model() -> ValueModel:
    torch.manual_seed(0)
    made = ValueModel(tiny_base(), "mlp").eval()
    with torch.no_grad():
        made.value_head.layers[-1].weight.mul_(20)
    return made


def rows_of(places: Sequence[int]) -> Batch:
    """Some of the rows."""
    picked = list(places)
    tensors: dict[str, Any] = {name: getattr(ROWS, name)[picked] for name in ("tokens_BT", "trainable_BT", "reward_B")}
    return replace(ROWS, **tensors, row_B=tuple(places), group_B2=None)


def figures_of(model: ValueModel, loss: str, batches: Sequence[Sequence[int]]) -> dict[str, float]:
    objective = ValueObjective(loss, lam=0.8, returns_share=0.3, held_out=HeldOut(6, PAIRS))
    return evaluate(model, objective, [[rows_of(places)] for places in batches])


@settings(max_examples=10)
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
def test_batches_and_their_order_make_no_difference(model: ValueModel, order: list[int], cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 6]
    parts = [order[start:end] for start, end in pairwise(edges)]
    whole, cut = (figures_of(model, "combined", batches) for batches in ([range(6)], parts))
    assert cut == pytest.approx(whole, rel=1e-4, abs=1e-6, nan_ok=True)


def test_each_loss_is_over_pairs_of_means_and_over_labelled_rows_that_count_once(model: ValueModel) -> None:
    with torch.no_grad():
        values = model(ROWS.tokens_BT)
        sides = pairwise_loss(values[PAIRS.flatten()], ROWS.trainable_BT[PAIRS.flatten()])
        pairs, margin = float(sides.loss_sum) / 3, float(sides.margin_sum) / 3
        known = slice(0, 5)
        returns = {
            lam: float(
                lambda_return_loss(
                    values[known], ROWS.trainable_BT[known], ROWS.reward_B[known], gamma=1.0, lam=lam
                )
            ) / 5
            for lam in (0.8, 1.0)
        }  # fmt: skip
    expected = {"pairwise": pairs, "lambda_return": returns[0.8], "monte_carlo": returns[1.0]}
    expected["combined"] = 0.7 * pairs + 0.3 * returns[0.8]
    for loss in LOSSES:
        got = figures_of(model, loss, [range(6)])
        assert got["loss/weighted"] == pytest.approx(expected[loss], rel=1e-5), loss
        assert got["value/margin"] == pytest.approx(margin, rel=1e-4)
        assert got["value/pair_accuracy"] == pytest.approx(int(sides.correct_sum) / 3)
        every_row = mean_response_value(values, ROWS.trainable_BT).mean()
        assert got["value/response_mean"] == pytest.approx(float(every_row), rel=1e-5)


def test_a_pair_counts_where_both_its_rows_were_evaluated(model: ValueModel) -> None:
    with_one, with_none = (figures_of(model, "lambda_return", [rows]) for rows in ([1, 0, 2], [1, 2]))
    assert with_one["value/pair_accuracy"] in (0.0, 1.0)
    assert "value/pair_accuracy" not in with_none


def test_training_goes_on_by_pairs(model: ValueModel) -> None:
    from wmtp.ranks import alone

    objective = ValueObjective("pairwise", held_out=HeldOut(6, PAIRS))
    with pytest.raises(ValueError, match="needs batches of pairs"):
        objective.sums(model, ROWS, ROWS.reward_B, alone, True)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 0, -1])), min_size=1, max_size=20))
def test_rows_come_problem_by_problem_and_correct_and_incorrect_ones_in_turn(rows: list[tuple[int, int]]) -> None:
    numbers = {problem: number for number, problem in enumerate(dict.fromkeys(problem for problem, _ in rows))}
    problem_R = np.array([numbers[problem] for problem, _ in rows], np.int32)
    correct_R, zeros = np.array([label for _, label in rows], np.int8), np.zeros(len(rows), np.int32)
    order = in_turn(RowFacts(problem_R, correct_R, zeros, zeros, zeros))
    assert sorted(order) == list(range(len(rows)))
    assert list(problem_R[order]) == sorted(problem_R)
    for number in numbers.values():
        own = [int(correct_R[i]) for i in order if problem_R[i] == number]
        both = min(own.count(1), own.count(0))
        if not own.count(-1):
            assert own[: 2 * both] == [1, 0] * both


# From a file


def config(folder: Path, labels: dict[str, list[bool]], **more: Any) -> Config:
    """A critic whose held-out rows have these labels, by problem."""
    for name, problems in (("train", {"t": [True, False]}), ("validation", labels)):
        rows = [
            {"problem_id": problem, "prompt": problem, "response": f"x = {number}", "is_correct": label}
            for problem, given in problems.items()
            for number, label in enumerate(given)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective = {"kind": "value", "loss": more.pop("loss", "monte_carlo")}
    return Config.model_validate(
        {
            "model": {"architecture": "embedded://tiny-llama"},
            "data": {role: {"path": str(folder / f"{role}.jsonl")} for role in ("train", "validation")},
            "objective": objective,
            "train": {"steps": 1, "batch_size": 2, **more.pop("train", {})},
            **more,
        }
    )


LABELS = {"one": [True, True, True], "both": [True, True, False]}


def test_every_held_out_row_is_evaluated_once_also_those_of_a_problem_with_one_label(tmp_path: Path) -> None:
    data = build_data(config(tmp_path, LABELS), load_tokenizer("embedded://tiny-llama"))
    assert data.validation is not None
    assert data.held_out is not None
    seen = [row for number in range(len(data.validation)) for row in data.validation.rows_of(number)]
    assert sorted(seen) == list(range(6))
    assert data.held_out.rows == 6
    assert data.held_out.pair_P2.tolist() == [[3, 5], [4, 5]]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"loss": "pairwise"}, r"loss = pairwise goes by held-out pairs.*2 rows"),
        ({"checkpoint": {"select": "best"}}, "checkpoint.select = best goes"),
    ],
)
def test_a_critic_that_needs_pairs_is_refused_where_an_evaluation_would_see_none(
    more: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        build_data(config(tmp_path, LABELS, train={"eval_batches": 1}, **more), load_tokenizer("embedded://tiny-llama"))
