"""A budget pays for the steps of the run that it makes, also where the run's length decides which rows it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.config import Config, load
from wmtp.data.index import build_index, default_folder
from wmtp.data.records import Record
from wmtp.dataset import build_data, load_tokenizer
from wmtp.study.budget import longest_paid, steps_within
from wmtp.study.settings import BudgetConfig

RISING, FALLING = "{start: 0, end: 1}", "{start: 1, end: 0}"
TO_LONG_ROWS = f"{{difficulty: [{{levels: [1, 1], weight: {FALLING}}}, {{levels: [2, 2], weight: {RISING}}}]}}"
TO_SHORT_ROWS = f"{{difficulty: [{{levels: [1, 1], weight: {RISING}}}, {{levels: [2, 2], weight: {FALLING}}}]}}"
RECIPE = """
model: {architecture: embedded://tiny-llama}
data: {max_length: 96}
objective: {kind: mtp}
train: {steps: 1, batch_size: 2}
"""


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """A run of a single step, as a study has it before its budget is counted; half of its rows are short."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    records = tmp_path / "records.jsonl"
    rows = [Record(f"p{n}", "x", "1 + " * (1 + 9 * (n % 2)) + f"{n}", difficulty=1 + n % 2) for n in range(64)]
    records.write_text("".join(f"{json.dumps(row.row())}\n" for row in rows))
    build_index(records, default_folder(records))

    def made(*options: str) -> Config:
        return load([tmp_path / "recipe.yaml"], [f"data.train.path={records}", *options])

    return made, f"data.index={default_folder(records)}"


def tokens_of(config: Config, steps: int) -> int:
    """What the run trains on."""
    train = build_data(config, load_tokenizer(config)).train
    return sum(batch.num_tokens for number in range(steps) for batch in train.at(number))


@pytest.mark.parametrize(("sampling", "indexed"), [("null", True), (TO_LONG_ROWS, True), (TO_SHORT_ROWS, False)])
def test_a_budget_pays_for_the_rows_that_its_run_trains_on(sampling: str, indexed: bool, config: Any) -> None:
    made, index = config
    options = [f"data.sampling={sampling}", *([index] if indexed else [])]
    steps = steps_within(made(*options), BudgetConfig(tokens=1500))
    tokens = [tokens_of(made(*options, f"train.steps={n}"), n) for n in (steps, steps + 1)]
    assert tokens[0] <= 1500 < tokens[1]


def test_a_batch_whose_rows_were_not_read_is_no_other_batch(config: Any) -> None:
    made, index = config
    given_index = made(index)
    train = build_data(given_index, load_tokenizer(given_index)).train
    assert len(train.rows_of(0)) == 2
    for asked in (train.rows_of, train.at):
        with pytest.raises(IndexError, match="batch 1 has rows that were not read"):
            asked(1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(0, 5000))
def test_the_longest_run_that_is_paid_is_found(costs: list[int], more: int) -> None:
    limit = costs[0] + more

    def cost_of(steps: int) -> int:
        return sum(costs[n % len(costs)] for n in range(steps))

    steps = longest_paid(cost_of, limit)
    assert cost_of(steps) <= limit < cost_of(steps + 1)
