"""Gradient weights: relative to the average of earlier steps, per head, and the same for any split of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.loss import plain_gradient_norms
from wmtp.model import batch_targets
from wmtp.objective import MTPObjective
from wmtp.ranks import alone
from wmtp.step import evaluate, train_step
from wmtp.testing import random_batch, tiny_model
from wmtp.weighting import Gradient, SchemeInput, When, shuffled

K = 3


def one_row(*norms: float, first_head: int = 0) -> SchemeInput:
    norm_BTK = torch.tensor(norms).view(1, -1, 1)
    target_BTK = torch.full(norm_BTK.shape, 5)
    response_BT = torch.ones(norm_BTK.shape[:2], dtype=torch.bool)
    return SchemeInput(
        target_BTK, response_BT, torch.ones(1), gradient_norm_BTK=norm_BTK, nll_BTK=norm_BTK, first_head=first_head
    )


def told(scheme: Gradient, *means: float, pairs: int = 4) -> Gradient:
    """The scheme after a step with these mean norms per head."""
    count_K = torch.full((len(means),), pairs)
    scheme.observe({"count_K": count_K, "gradient_norm_sum_K": torch.tensor(means) * pairs})
    return scheme


def weights(scheme: Gradient, batch: SchemeInput) -> list[float]:
    (weight,) = scheme.weights([batch], alone, True)
    assert weight is not None
    return weight.flatten().tolist()


def test_before_there_is_an_average_every_pair_weighs_1() -> None:
    assert Gradient().weights([one_row(1.0, 9.0)], alone, True) == [None]


def test_the_weight_is_the_norm_relative_to_the_average_clipped() -> None:
    assert weights(told(Gradient(), 2.0), one_row(2.0, 4.0, 1.0, 0.0, 100.0)) == pytest.approx(
        [1.0, 2.0, 0.5, 0.1, 3.0]
    )


def test_alpha_is_the_exponent() -> None:
    assert weights(told(Gradient(alpha=0.5), 4.0), one_row(1.0, 16.0)) == pytest.approx([0.5, 2.0])


def test_every_head_has_its_own_average() -> None:
    scheme = told(Gradient(), 2.0, 4.0)
    assert weights(scheme, one_row(4.0)) == pytest.approx([2.0])
    assert weights(scheme, one_row(4.0, first_head=1)) == pytest.approx([1.0])


def test_the_average_runs_over_steps_and_weights_read_the_one_before() -> None:
    scheme = told(told(Gradient(ema_decay=0.75), 4.0), 8.0)
    assert scheme.state_dict() == {"average_K": [5.0]}


def test_a_step_in_which_a_head_had_no_pair_moves_no_average() -> None:
    scheme = told(Gradient(), 2.0, 4.0)
    scheme.observe({"count_K": torch.tensor([4, 0]), "gradient_norm_sum_K": torch.tensor([400.0, 0.0])})
    assert scheme.state_dict() == {"average_K": [2.0, 4.0]}


def test_norms_of_0_only_weigh_the_least() -> None:
    assert weights(told(Gradient(), 0.0), one_row(0.0, 0.0)) == pytest.approx([0.1, 0.1])


def steps(scheme: Any, batches: list[list[Batch]], kind: str = "fused") -> list[dict[str, float]]:
    """Metrics of some steps that change nothing but the scheme's memory."""
    model = tiny_model("llama", K, dtype=torch.float64, noise=0.1)
    no_step = torch.optim.SGD(model.parameters(), lr=0.0)
    objective = MTPObjective(scheme, kind=kind)
    return [train_step(model, no_step, objective, several, clip_norm=None).metrics for several in batches]


def norms_of(batch: Batch) -> tuple[Tensor, Tensor]:
    model = tiny_model("llama", K, dtype=torch.float64, noise=0.1)
    target_BTK = batch_targets(batch, K)
    with torch.no_grad():
        hidden_K = model(batch.tokens_BT)
    return plain_gradient_norms(hidden_K, model.unembedding(), target_BTK), target_BTK != -100


@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_the_average_after_a_step_is_the_mean_norm_of_all_its_pairs(kind: str) -> None:
    batches = [random_batch(rows=3, length=9, seed=1), random_batch(rows=2, length=14, seed=2)]
    scheme = Gradient()
    steps(scheme, [batches], kind)
    sums, counts = torch.zeros(K).double(), torch.zeros(K)
    for batch in batches:
        norm_BTK, valid_BTK = norms_of(batch)
        sums, counts = sums + (norm_BTK * valid_BTK).sum((0, 1)), counts + valid_BTK.sum((0, 1))
    assert scheme.state_dict()["average_K"] == pytest.approx((sums / counts).tolist())


@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_training_uses_the_weights_of_the_definition(kind: str) -> None:
    first, second = random_batch(seed=1), random_batch(seed=2)
    mean, spread = [], []
    for scheme in (Gradient(), shuffled(Gradient())):
        metrics = steps(scheme, [[first], [second]], kind)
        assert metrics[0]["weight/std"] == 0
        mean.append(metrics[1]["weight/mean"])
        spread.append(metrics[1]["weight/std"])
    first_BTK, first_valid = norms_of(first)
    average_K = (first_BTK * first_valid).sum((0, 1)) / first_valid.sum((0, 1))
    norm_BTK, valid_BTK = norms_of(second)
    expected = (norm_BTK / average_K).clamp(0.1, 3.0)[valid_BTK]
    assert mean == pytest.approx([float(expected.mean())] * 2, rel=1e-5)
    assert spread == pytest.approx([float(expected.std(correction=0))] * 2, rel=1e-4)


def test_it_is_asked_during_the_one_visit_and_only_for_norms() -> None:
    assert Gradient().when is When.ROW
    assert Gradient().needs == {"gradient_norm_BTK"}
    with pytest.raises(ValueError, match="needs gradient_norm_BTK"):
        Gradient().weights(
            [SchemeInput(torch.zeros(1, 2, 1).long(), torch.ones(1, 2).bool(), torch.ones(1))], alone, True
        )


def test_evaluation_and_a_step_that_was_skipped_teach_nothing() -> None:
    scheme = Gradient()
    model = tiny_model("llama", K)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, optimizer, MTPObjective(scheme), [random_batch(seed=1)])
    memory = scheme.state_dict()
    evaluate(model, MTPObjective(scheme), [[random_batch(seed=3)]])
    assert scheme.state_dict() == memory
    with torch.no_grad():
        model.extra_heads[0].mlp.down_proj.weight[0, 0] = torch.inf
    assert not train_step(model, optimizer, MTPObjective(scheme), [random_batch(seed=2)]).stepped
    assert scheme.state_dict() == memory
