"""The planted-signal task knows which tokens matter, and counts fairly who finds them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.ranks import alone
from wmtp.testing import draw_step
from wmtp.weighting import Uniform, ask


@pytest.fixture(scope="module")
def planted() -> Any:
    """The script as a module."""
    path = Path(__file__).parents[2] / "scripts" / "planted_signal.py"
    spec = importlib.util.spec_from_file_location("planted_signal", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_value_is_planted_where_it_follows_from_the_table(planted: Any) -> None:
    task = planted.Task(0, problems=8)
    for row, planted_T in zip(task.rows, task.planted_RT, strict=True):
        groups = row.tokens[planted.START : -1].reshape(-1, 4)
        expected = [planted.VALUES + task.table[b - planted.LETTERS] for _, b, _, _ in groups]
        right = [v == e for (_, _, _, v), e in zip(groups, expected, strict=True)]
        assert planted_T.nonzero().flatten().tolist() == [planted.START + 3 + 4 * i for i, r in enumerate(right) if r]
        assert row.reward == all(right)
    assert 0 < sum(row.reward for row in task.rows) < len(task.rows)


def test_the_same_seed_gives_the_same_task_and_another_gives_another(planted: Any) -> None:
    one, same, other = (planted.Task(seed, problems=2) for seed in (3, 3, 4))
    assert all((a.tokens == b.tokens).all() for a, b in zip(one.rows, same.rows, strict=True))
    assert any((a.tokens != b.tokens).any() for a, b in zip(one.rows, other.rows, strict=True))


@pytest.mark.parametrize(
    ("weights", "found"),
    [([3, 2, 1, 0], 1.0), ([0, 1, 2, 3], 0.0), ([2, 0, 2, 0], 0.5), ([1, 1, 1, 1], 0.5), ([1, 0, 0, 0], 2 / 3)],
)
def test_recall_by_hand_ties_as_a_lot_would_on_average(planted: Any, weights: list[float], found: float) -> None:
    # The first two pairs are planted. In the last case one is above the ties, and one of three ties is taken.
    mask = torch.tensor([True, True, False, False])
    assert planted.recall(torch.tensor(weights).float(), mask) == pytest.approx(found)


def test_recording_passes_weights_on(planted: Any) -> None:
    step = draw_step(0, heads=planted.HEADS)
    planted_RT = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    step = step[1:]  # one micro-batch of length 9
    recording = planted.Recording(Uniform(), planted_RT)
    (got,) = ask(recording, step, alone, True)
    assert torch.equal(got, step[0].valid_BTK.float())
    found = planted.align_to_targets(planted_RT[step[0].row_B], planted.HEADS)[step[0].valid_BTK]
    assert recording.recalls == pytest.approx([float(found.float().mean())])
