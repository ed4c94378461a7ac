"""A scheme of the user's own that breaks a promise while it runs ends the run in its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.errors import OutOfMemory, SchemeError
from wmtp.ranks import Reduce, alone
from wmtp.testing import check_scheme
from wmtp.testing.schemes import draw_step, observe
from wmtp.weighting import SchemeInput, Stateless, Uniform, When
from wmtp.weighting.watched import Watched

Answer = Callable[[SchemeInput], Any]


class Answers(Stateless):
    """Gives what it is told to."""

    when, per_head, needs = When.WHOLE_STEP, False, frozenset[str]()

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Any]:
        return [self.answer(batch) for batch in step]


def watched(answer: Answer) -> Watched:
    return Watched(Answers(answer), "objective.weighting.builder = 'mine:Scheme'")


def ones(batch: SchemeInput) -> Tensor:
    return batch.valid_BTK.float()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda batch: ones(batch)[:, :, 0], "expected torch.float32 of the shape [B, T, K] = (2, 6, 3)"),
        (lambda batch: ones(batch).double(), "returned torch.float64 of the shape (2, 6, 3)"),
        (lambda batch: ones(batch).requires_grad_(), "returned a tensor with a gradient"),
        (lambda batch: 1.0, "returned float, expected a tensor"),
    ],
)
def test_an_answer_of_another_form_is_refused_at_once(answer: Answer, told: str) -> None:
    with pytest.raises(SchemeError) as caught:
        watched(answer).weights(draw_step(0), alone, True)
    assert str(caught.value).startswith("objective.weighting.builder = 'mine:Scheme': weights() ")
    assert told in str(caught.value)
    assert "wmtp.testing.check_scheme" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1])
def test_an_answer_for_another_number_of_micro_batches_is_refused(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "weights", lambda self, step, reduce, training: [None] * size)
    with pytest.raises(SchemeError, match=f"returned {size} of them, expected a list of 2, one a micro-batch"):
        watched(ones).weights(draw_step(0), alone, True)


@pytest.mark.parametrize(("value", "told"), [(-0.5, "from -0.5 to 1"), (torch.nan, "nan"), (torch.inf, "to inf")])
def test_a_value_that_is_no_weight_ends_the_step_whether_it_was_done_or_not(value: float, told: str) -> None:
    for end in (lambda scheme: observe(scheme, draw_step(0)), lambda scheme: scheme.load_state_dict({})):
        scheme, given = watched(lambda batch: ones(batch).index_fill(1, torch.tensor([0]), value)), draw_step(0)
        scheme.weights(given, alone, True)
        with pytest.raises(SchemeError, match="returned weights") as caught:
            end(scheme)
        assert told in str(caught.value)
        end(scheme)  # another step begins with nothing seen


def test_weights_of_an_evaluation_are_looked_at_at_once() -> None:
    scheme = watched(lambda batch: -ones(batch))
    with pytest.raises(SchemeError, match="returned weights from -1 to -0"):
        scheme.weights(draw_step(0), alone, False)


def test_a_state_that_the_scheme_cannot_take_is_told_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "load_state_dict", lambda self, state: state["mean"].item())
    with pytest.raises(SchemeError, match=r"load_state_dict\(\) raised AttributeError"):
        watched(ones).load_state_dict({"mean": 1.0})


def test_an_exception_of_the_schemes_code_says_its_type_its_text_and_where_it_stands() -> None:
    def fails(batch: SchemeInput) -> Tensor:
        return batch.values_BT + "a"  # type: ignore[operator]

    with pytest.raises(SchemeError) as caught:
        watched(fails).weights(draw_step(0), alone, True)
    assert "weights() raised TypeError: " in str(caught.value)
    line = fails.__code__.co_firstlineno + 1
    assert f"({Path(__file__)}:{line})" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


def test_memory_that_runs_out_in_a_scheme_is_no_fault_of_the_scheme() -> None:
    def fills(batch: SchemeInput) -> Tensor:
        raise MemoryError

    with pytest.raises(OutOfMemory):
        watched(fills).weights(draw_step(0), alone, True)


def test_a_scheme_that_is_watched_keeps_every_promise_that_it_kept() -> None:
    check_scheme(lambda: Watched(Uniform(), "uniform"), seeds=[0])
