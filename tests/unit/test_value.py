"""The critic's losses against their definitions, what a backbone setting trains, and that a critic can learn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.testing import tiny_base
from wmtp.value import (
    HEADS,
    ValueHead,
    ValueModel,
    lambda_return_loss,
    lambda_returns,
    mean_response_value,
    pairwise_loss,
    with_state_before,
)

MASK = torch.tensor([[False, True, True, True], [False, False, True, False]])
VALUES = torch.tensor([[0.5, 0.6, 0.4, 0.9], [0.1, 0.3, 0.8, 0.2]])

# pairwise


def test_pairwise_by_hand() -> None:
    loss = pairwise_loss(VALUES, MASK)
    margin = (0.6 + 0.4 + 0.9) / 3 - 0.8
    assert float(loss.loss_sum) == pytest.approx(-math.log(1 / (1 + math.exp(-margin))), rel=1e-6)
    assert float(loss.margin_sum) == pytest.approx(margin, abs=1e-6)
    assert int(loss.correct_sum) == 0


def test_pairwise_sums_over_pairs() -> None:
    values = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.0, -1.0], [0.0, 3.0]])
    mask = torch.tensor([[False, True]]).expand(4, 2)
    loss = pairwise_loss(values, mask)
    assert float(loss.loss_sum) == pytest.approx(math.log1p(math.exp(-1)) + math.log1p(math.exp(4)), rel=1e-6)
    assert float(loss.margin_sum) == pytest.approx(-3.0)
    assert int(loss.correct_sum) == 1


def test_pairwise_does_not_see_a_constant_added_to_all_values() -> None:
    torch.testing.assert_close(pairwise_loss(VALUES + 7, MASK).loss_sum, pairwise_loss(VALUES, MASK).loss_sum)


def test_equal_pairs_are_not_counted_as_right() -> None:
    loss = pairwise_loss(torch.ones(2, 3), torch.tensor([[False, True, True]]).expand(2, 3))
    assert int(loss.correct_sum) == 0
    assert float(loss.loss_sum) == pytest.approx(math.log(2))


def test_pairwise_stays_finite_for_huge_margins() -> None:
    values = torch.tensor([[0.0, -1e4], [0.0, 1e4]], requires_grad=True)
    loss = pairwise_loss(values, torch.tensor([[False, True]]).expand(2, 2)).loss_sum
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4)
    assert values.grad is not None
    assert values.grad.tolist() == [[0, -1], [0, 1]]


def test_only_response_tokens_count_in_the_mean() -> None:
    assert mean_response_value(VALUES, MASK).tolist() == pytest.approx([1.9 / 3, 0.8])
    assert mean_response_value(VALUES, torch.zeros_like(MASK)).tolist() == [0, 0]


def test_figures_of_a_pair_carry_no_gradient() -> None:
    loss = pairwise_loss(VALUES.clone().requires_grad_(), MASK)
    assert loss.loss_sum.requires_grad
    assert not loss.margin_sum.requires_grad
    assert not loss.correct_sum.requires_grad


# lambda-returns


def recursive(values: list[float], tokens: list[int], reward: float, gamma: float, lam: float) -> dict[int, float]:
    """G_T = R, G_t = (1-lam)*gamma*v[t+1] + lam*gamma*G_{t+1}, by recursion in float64."""

    def target(i: int) -> float:
        if i == len(tokens) - 1:
            return reward
        return (1 - lam) * gamma * values[tokens[i + 1]] + lam * gamma * target(i + 1)

    return {t: target(i) for i, t in enumerate(tokens)}


UNIT = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@given(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=9), st.data(), UNIT, UNIT, st.sampled_from([0.0, 1.0]))
def test_lambda_returns_are_the_recursion(
    values: list[float], data: st.DataObject, gamma: float, lam: float, reward: float
) -> None:
    start = data.draw(st.integers(0, len(values) - 1))
    stop = data.draw(st.integers(start + 1, len(values)))
    mask = torch.zeros(1, len(values), dtype=torch.bool)
    mask[0, start:stop] = True
    values_BT = torch.tensor([values], dtype=torch.float64)
    got = lambda_returns(values_BT, mask, torch.tensor([reward]), gamma=gamma, lam=lam)
    expected = torch.zeros_like(values_BT)
    for t, target in recursive(values, list(range(start, stop)), reward, gamma, lam).items():
        expected[0, t] = target
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_monte_carlo_is_lam_1_every_target_is_the_discounted_reward() -> None:
    got = lambda_returns(VALUES, MASK, torch.tensor([1.0, 0.0]), gamma=0.9, lam=1.0)
    torch.testing.assert_close(got, torch.tensor([[0, 0.81, 0.9, 1.0], [0, 0, 0, 0]]))


def test_lam_0_looks_one_token_ahead() -> None:
    got = lambda_returns(VALUES, MASK, torch.tensor([1.0, 1.0]), gamma=0.5, lam=0.0)
    torch.testing.assert_close(got, torch.tensor([[0, 0.2, 0.45, 1.0], [0, 0, 1.0, 0]]))


def test_targets_are_detached() -> None:
    values = VALUES.clone().requires_grad_()
    assert not lambda_returns(values, MASK, torch.ones(2), gamma=1.0, lam=0.5).requires_grad
    loss = lambda_return_loss(values, MASK, torch.ones(2), gamma=1.0, lam=0.5, huber_delta=None)
    loss.backward()
    mask = with_state_before(MASK)
    returns = lambda_returns(VALUES, mask, torch.ones(2), gamma=1.0, lam=0.5)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, (VALUES - returns) * mask / mask.sum(1, keepdim=True))


def test_the_state_before_the_response_is_trained_too() -> None:
    assert with_state_before(MASK).tolist() == [[True, True, True, True], [False, True, True, False]]
    assert with_state_before(torch.tensor([[True, False, False]])).tolist() == [[True, False, False]]
    values = VALUES.clone().requires_grad_()
    lambda_return_loss(values, MASK, torch.ones(2), gamma=1.0, lam=1.0).backward()
    assert values.grad is not None
    assert (values.grad != 0).tolist() == [[True, True, True, True], [False, True, True, False]]


def test_the_loss_is_the_mean_of_a_rows_tokens_summed_over_rows() -> None:
    rewards = torch.tensor([1.0, 0.0])
    loss = lambda_return_loss(VALUES, MASK, rewards, gamma=1.0, lam=1.0, huber_delta=None)
    first = sum(0.5 * (v - 1) ** 2 for v in (0.5, 0.6, 0.4, 0.9)) / 4
    second = sum(0.5 * v**2 for v in (0.3, 0.8)) / 2
    assert float(loss) == pytest.approx(first + second, rel=1e-6)
    alone = [
        float(
            lambda_return_loss(
                VALUES[i : i + 1], MASK[i : i + 1], rewards[i : i + 1], gamma=1.0, lam=1.0, huber_delta=None
            )
        )
        for i in range(2)
    ]
    assert sum(alone) == pytest.approx(float(loss), rel=1e-6)


def test_huber_is_the_square_near_0_and_a_line_further_out() -> None:
    mask, options = torch.tensor([[False, True]]), {"gamma": 1.0, "lam": 1.0}
    for value, expected in ((1.25, 0.5 * 0.25**2), (0.0, 0.5 * (1 - 0.25)), (-9.0, 0.5 * (10 - 0.25))):
        values = torch.tensor([[value, value]])
        assert float(lambda_return_loss(values, mask, torch.ones(1), **options)) == pytest.approx(expected)
        square = lambda_return_loss(values, mask, torch.ones(1), **options, huber_delta=None)
        assert float(square) == pytest.approx(0.5 * (value - 1) ** 2)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_values_outside_the_response_never_reach_the_loss(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 4, generator=random)
    other = torch.where(with_state_before(MASK), values, torch.randn(2, 4, generator=random))
    options = {"gamma": 0.9, "lam": 0.7}
    losses = [lambda_return_loss(v, MASK, torch.ones(2), **options) for v in (values, other)]
    assert torch.equal(*losses)


# heads


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_is_one_fp32_number_per_token(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = ValueHead(16, kind)
    values = head(50 * torch.randn(2, 5, 16).to(dtype)).detach()
    assert values.shape == (2, 5)
    assert values.dtype == torch.float32
    if kind == "sigmoid":
        assert 0 <= float(values.min()) <= float(values.max()) <= 1
    else:
        assert float(values.abs().max()) > 1


def test_an_mlp_head_narrows_to_a_quarter_and_an_eighth() -> None:
    shapes = [tuple(p.shape) for p in ValueHead(32, "mlp").parameters() if p.ndim == 2]
    assert shapes == [(8, 32), (4, 8), (1, 4)]


def test_a_narrow_backbone_still_gets_a_head() -> None:
    assert ValueHead(2, "mlp")(torch.zeros(1, 1, 2)).shape == (1, 1)


def test_autocast_does_not_reach_the_value_head() -> None:
    head = ValueHead(16, "linear")
    hidden = torch.randn(2, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden), head(hidden.clone()))
        inside = head(hidden)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, head(hidden))


def test_an_unknown_head_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'linear', 'mlp', 'sigmoid'"):
        ValueHead(16, "tanh")


# backbone


def with_gradient(model: ValueModel) -> set[str]:
    """Names of the parameters that a backward pass reaches."""
    model.zero_grad()
    model(torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(0))).square().sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def test_a_frozen_backbone_gets_no_gradient_and_the_head_does() -> None:
    model = ValueModel(tiny_base(), "linear", "frozen")
    assert with_gradient(model) == {n for n, _ in model.named_parameters() if n.startswith("value_head.")}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == with_gradient(model)


@pytest.mark.parametrize("tied", [True, False])
def test_a_full_backbone_trains_everything_but_an_untied_unembedding(tied: bool) -> None:
    model = ValueModel(tiny_base(tie_word_embeddings=tied), "linear", "full")
    trained = with_gradient(model)
    assert trained == {n for n, _ in model.named_parameters() if n != "base.lm_head.weight"}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_value_sees_no_later_token() -> None:
    model = ValueModel(tiny_base(), "mlp").eval()
    tokens = torch.randint(3, 64, (1, 8), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[0, 5:] = 9
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :5], model(other)[:, :5])


def test_padding_on_the_right_moves_no_value() -> None:
    model = ValueModel(tiny_base(), "mlp").eval()
    tokens = torch.randint(3, 64, (1, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(torch.nn.functional.pad(tokens, (0, 5)))[:, :8], model(tokens))


# learning

PLANTED = 7


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows 2i hold the planted token somewhere in the first half of their response; rows 2i+1 never do."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(8, 64, (2 * count, 14), generator=random)
    places = torch.randint(4, 9, (count,), generator=random)
    tokens[torch.arange(0, 2 * count, 2), places] = PLANTED
    response = torch.zeros_like(tokens, dtype=torch.bool)
    response[:, 4:] = True
    return tokens, response


@pytest.mark.parametrize("loss", ["pairwise", "lambda_return"])
def test_sixty_steps_teach_a_critic_a_planted_signal(loss: str) -> None:
    torch.manual_seed(0)
    model = ValueModel(tiny_base(), "mlp", "full", loss)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    reward = torch.tensor([1.0, 0.0]).repeat(16)
    for step in range(60):
        tokens, response = pairs(16, seed=step)
        values = model(tokens)
        if loss == "pairwise":
            total = pairwise_loss(values, response).loss_sum / 16
        else:
            total = lambda_return_loss(values, response, reward, gamma=1.0, lam=0.95) / 32
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    tokens, response = pairs(64, seed=10**6)
    with torch.no_grad():
        held_out = pairwise_loss(model.eval()(tokens), response)
    assert int(held_out.correct_sum) == 64
    assert float(held_out.margin_sum) / 64 > 0.2
