"""FLOPs counted from shapes are those that torch counts while the step runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from wmtp.data.batches import Batch
from wmtp.flops import RowCost, StepCost, counter, forward_cost, row_cost, training_cost
from wmtp.objective import MTPObjective, Objective, ValueObjective
from wmtp.optim import build_adamw
from wmtp.parts import prepare_model
from wmtp.rehearsal import Model
from wmtp.scoring import critic_values, reference_nll
from wmtp.step import train_step
from wmtp.testing import random_batch, tiny_base, tiny_model
from wmtp.testing.models import FAMILIES
from wmtp.value import ValueModel
from wmtp.weighting import Critic, Gradient, Hybrid, Rho1, Scheme, Uniform

HEADS = 2
BATCHES = [random_batch(3, 11, seed=1), random_batch(2, 17, seed=2)]


def counted(model: Model, objective: Objective, batches: Sequence[Batch]) -> int:
    """What torch's counter sees of a step."""
    optimizer = build_adamw(model, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    model.train()
    with counter() as count:
        train_step(model, optimizer, objective, batches)
    return int(count.get_total_flops())


@pytest.mark.parametrize(
    ("family", "count"),
    [("gpt2", 1), *[pytest.param(f, 2, marks=pytest.mark.exhaustive) for f in sorted(FAMILIES)]],
)
def test_a_uniform_step_costs_what_torch_counts(family: str, count: int) -> None:
    model, objective = tiny_model(family, HEADS), MTPObjective(Uniform())
    assert StepCost(model, objective).of(BATCHES[:count]) == counted(model, objective, BATCHES[:count])


@pytest.mark.parametrize("trained", ["heads", "heads+norm"])
def test_what_is_frozen_has_no_gradient_to_count(trained: str) -> None:
    model, objective = tiny_model("llama", HEADS), MTPObjective(Uniform())
    model.train_only(trained)
    assert StepCost(model, objective).of(BATCHES) == counted(model, objective, BATCHES)


@pytest.mark.exhaustive
def test_recomputed_activations_count() -> None:
    model, objective = tiny_model("llama", HEADS), MTPObjective(Uniform())
    plain = StepCost(model, objective).of(BATCHES)
    prepare_model(model, checkpointing=True, compiled=False)
    found = StepCost(model, objective, checkpointing=True).of(BATCHES)
    assert plain < found == counted(model, objective, BATCHES)


SCHEMES: dict[str, Callable[[], Scheme]] = {
    "looks at the row": Gradient,
    "looks at the micro-batch": lambda: Rho1("select", ratio=0.999999, scope="micro"),
    "looks at the whole step": lambda: Rho1("soft", scope="global"),
    "looks at the whole step and at norms": lambda: Hybrid([Gradient(), Rho1("soft")]),
}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("looks at the whole step and at norms", 2),
        *[pytest.param(name, count, marks=pytest.mark.exhaustive) for name in SCHEMES for count in (1, 2)],
    ],
)
def test_a_scorer_and_a_second_look_count(name: str, count: int) -> None:
    model, reference, scheme = tiny_model("llama", HEADS), tiny_model("llama", 1, seed=3), SCHEMES[name]()
    needed = "reference_nll_BTK" in scheme.needs
    objective = MTPObjective(
        scheme, score=lambda batch: {"reference_nll_BTK": reference_nll(reference, batch, HEADS)} if needed else {}
    )
    cost = StepCost(model, objective, [reference] if needed else [])
    assert cost.of(BATCHES[:count]) == counted(model, objective, BATCHES[:count])


def test_a_scheme_that_drops_pairs_spends_less_than_it_is_said_to() -> None:
    model, reference = tiny_model("llama", HEADS), tiny_model("llama", 1, seed=3)
    objective = MTPObjective(
        Rho1("select", ratio=0.5), score=lambda batch: {"reference_nll_BTK": reference_nll(reference, batch, HEADS)}
    )
    said, spent = StepCost(model, objective, [reference]).of(BATCHES), counted(model, objective, BATCHES)
    assert 0.9 * said < spent < said


@pytest.mark.exhaustive
def test_the_critic_that_gives_weights_counts() -> None:
    model, critic = tiny_model("llama", HEADS), ValueModel(tiny_base("llama"), "mlp")
    objective = MTPObjective(Critic(), score=lambda batch: {"values_BT": critic_values(critic, batch)})
    assert StepCost(model, objective, [critic]).of(BATCHES) == counted(model, objective, BATCHES)


@pytest.mark.parametrize("backbone", ["frozen", pytest.param("full", marks=pytest.mark.exhaustive)])
def test_training_a_critic_costs_what_torch_counts(backbone: str) -> None:
    model, objective = ValueModel(tiny_base("llama"), "mlp", backbone), ValueObjective("lambda_return")
    assert StepCost(model, objective).of(BATCHES) == counted(model, objective, BATCHES)


def test_a_row_is_a_polynomial_of_its_length() -> None:
    assert row_cost(lambda length: 7 * length + 3 * length**2) == RowCost(7, 3)
    assert RowCost(7, 3).of(2, 10) == 2 * (70 + 300)


@pytest.mark.exhaustive
def test_the_cost_is_known_without_weights() -> None:
    """What a model of any size costs is counted on the meta device."""
    model = tiny_model("llama", HEADS)
    with torch.device("meta"):
        empty = model.to_empty(device="meta")
    assert training_cost(empty, checkpointing=False, head_by_head=True).linear > forward_cost(empty).linear
