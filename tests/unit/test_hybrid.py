"""A hybrid's parts count alike: each has mean 1, per head, over the whole step on all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from wmtp.ranks import Reduce, alone
from wmtp.testing import Ranks, draw_step
from wmtp.weighting import Critic, Gradient, Hybrid, Rho1, SchemeInput, Stateless, Uniform, When, ask


class Given(Stateless):
    """Weights that are told to it."""

    per_head = True
    needs: frozenset[str] = frozenset()

    def __init__(self, weight_BTK: Tensor, when: When = When.BEFORE_FORWARD) -> None:
        self.weight_BTK, self.when = weight_BTK, when

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        return [self.weight_BTK]


def row(length: int) -> SchemeInput:
    target_BTK = torch.full((1, length, 1), 5)
    return SchemeInput(target_BTK, torch.ones(1, length, dtype=torch.bool), torch.ones(1))


def combined(hybrid: Hybrid) -> list[float]:
    (weight,) = hybrid.weights([row(4)], alone, True)
    assert weight is not None
    return weight.flatten().tolist()


ONE, TWO = torch.tensor([2.0, 2.0, 6.0, 6.0]).view(1, 4, 1), torch.tensor([0.0, 2.0, 0.0, 2.0]).view(1, 4, 1)


def test_by_hand() -> None:
    # over their means 4 and 1: 0.5 0.5 1.5 1.5 and 0 2 0 2
    assert combined(Hybrid([Given(ONE), Given(TWO)])) == [0.0, 1.0, 0.0, 3.0]
    assert combined(Hybrid([Given(ONE), Given(TWO)], "mixture")) == [0.25, 1.25, 0.75, 1.75]
    assert combined(Hybrid([Given(ONE), Given(TWO)], "mixture", [0.0, 1.0])) == [0.0, 2.0, 0.0, 2.0]


def test_the_size_of_a_parts_weights_decides_nothing() -> None:
    for combine in ("product", "mixture"):
        large = combined(Hybrid([Given(1000 * ONE), Given(TWO)], combine))
        assert large == pytest.approx(combined(Hybrid([Given(ONE), Given(TWO)], combine)))


def test_a_uniform_part_of_a_product_changes_only_the_scale() -> None:
    assert combined(Hybrid([Given(ONE), Uniform()])) == [0.5, 0.5, 1.5, 1.5]


def test_a_part_without_any_weight_stays_without() -> None:
    assert combined(Hybrid([Given(ONE), Given(0 * TWO)])) == [0.0] * 4


def test_a_mixture_has_mean_1_per_head_over_two_ranks() -> None:
    step = draw_step(0)
    parts = Ranks(2).run(lambda r, reduce: ask(Hybrid([Critic(), Rho1()], "mixture"), [step[r]], reduce, True)[0])
    for k in range(3):
        total = sum(float(w[:, :, k].sum()) for w in parts)
        assert total == pytest.approx(sum(int(b.valid_BTK[:, :, k].sum()) for b in step), rel=1e-5)


def test_it_waits_for_its_slowest_part_and_needs_what_they_need() -> None:
    assert Hybrid([Critic(), Uniform()]).when is When.BEFORE_FORWARD
    hybrid = Hybrid([Critic(whiten="ema"), Rho1("soft"), Gradient()])
    assert hybrid.when is When.WHOLE_STEP
    assert not hybrid.per_head
    assert Hybrid([Critic(), Gradient()]).per_head
    assert hybrid.needs == {"values_BT", "reference_nll_BTK", "gradient_norm_BTK"}


def test_one_part_is_no_hybrid() -> None:
    with pytest.raises(ValueError, match="at least two parts, got 1"):
        Hybrid([Uniform()])
