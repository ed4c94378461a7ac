"""Generalised advantages on examples that fit on a napkin, and what is refused."""

from __future__ import annotations

import pytest
import torch

from wmtp.weighting import gae

VALUES = torch.tensor([[0.5, 0.6, 0.4, 0.9]])
MASK = torch.tensor([[False, True, True, True]])


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        # delta = 0.9*0.6-0.5, 0.9*0.4-0.6, 1-0.4 = 0.04, -0.24, 0.6; each step back keeps 0.9*0.5 = 0.45
        ("reward", [0.0, 0.0535, 0.03, 0.6]),
        # the last delta is 0.9-0.4 = 0.5
        ("value", [0.0, 0.03325, -0.015, 0.5]),
    ],
)
def test_three_tokens_by_hand(terminal: str, expected: list[float]) -> None:
    got = gae(VALUES, MASK, torch.tensor([1.0]), gamma=0.9, lam=0.5, terminal=terminal)
    torch.testing.assert_close(got, torch.tensor([expected]), atol=1e-7, rtol=0)


def test_with_gamma_and_lam_1_every_advantage_is_the_reward_minus_the_value_before() -> None:
    got = gae(VALUES.double(), MASK, torch.tensor([1.0]), gamma=1.0, lam=1.0, terminal="reward")
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.5, 0.4, 0.6]]).double(), atol=1e-7, rtol=0)


def test_with_lam_0_every_advantage_is_its_own_delta() -> None:
    got = gae(VALUES.double(), MASK, torch.tensor([1.0]), gamma=1.0, lam=0.0, terminal="value")
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.1, -0.2, 0.5]]).double(), atol=1e-7, rtol=0)


def test_with_gamma_0_only_the_last_token_looks_ahead() -> None:
    got = gae(VALUES, MASK, torch.tensor([1.0]), gamma=0.0, lam=1.0, terminal="reward")
    torch.testing.assert_close(got, torch.tensor([[0.0, -0.5, -0.6, 0.6]]))


def test_a_response_of_one_token_is_its_last_token() -> None:
    mask = torch.tensor([[False, False, True, False]])
    got = gae(VALUES, mask, torch.tensor([1.0]), gamma=0.3, lam=0.7, terminal="reward")
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0, 0.4, 0.0]]))


def test_a_response_that_ends_before_the_row_does_ends_where_the_mask_does() -> None:
    longer = torch.cat([VALUES, torch.tensor([[7.0, -3.0]])], 1)
    mask = torch.cat([MASK, torch.zeros(1, 2, dtype=torch.bool)], 1)
    for terminal in ("reward", "value"):
        options = {"gamma": 0.9, "lam": 0.5, "terminal": terminal}
        short = gae(VALUES, MASK, torch.tensor([1.0]), **options)
        got = gae(longer, mask, torch.tensor([1.0]), **options)
        assert torch.equal(got, torch.cat([short, torch.zeros(1, 2)], 1))


def test_a_row_without_response_has_advantage_0() -> None:
    got = gae(VALUES, torch.zeros_like(MASK), torch.tensor([1.0]), gamma=1.0, lam=0.9, terminal="reward")
    assert torch.equal(got, torch.zeros(1, 4))


def test_terminal_value_never_looks_at_the_reward() -> None:
    options = {"gamma": 1.0, "lam": 0.95, "terminal": "value"}
    unknown = gae(VALUES, MASK, torch.tensor([float("nan")]), **options)
    assert torch.equal(unknown, gae(VALUES, MASK, torch.tensor([1.0]), **options))


def test_bf16_values_are_subtracted_in_fp32() -> None:
    values = torch.tensor([[100.0, 100.5, 101.0, 100.5]], dtype=torch.bfloat16)
    got = gae(values, MASK, torch.tensor([1.0]), gamma=1.0, lam=0.95, terminal="value")
    assert got.dtype == torch.float32
    assert torch.equal(got, gae(values.float(), MASK, torch.tensor([1.0]), gamma=1.0, lam=0.95, terminal="value"))
    # 0.95*0.95*-0.5 + 0.95*0.5 + 0.5 is no bf16 number
    torch.testing.assert_close(got[0, 1], torch.tensor(0.52375), atol=1e-6, rtol=0)


def test_a_mask_of_numbers_is_a_mask() -> None:
    options = {"gamma": 1.0, "lam": 0.95, "terminal": "value"}
    assert torch.equal(gae(VALUES, MASK.long(), torch.ones(1), **options), gae(VALUES, MASK, torch.ones(1), **options))


def test_a_response_that_starts_at_column_0_is_refused() -> None:
    with pytest.raises(ValueError, match="column 0"):
        gae(VALUES, torch.tensor([[True, True, False, False]]), torch.ones(1), gamma=1.0, lam=1.0, terminal="value")


def test_two_runs_of_response_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="one run"):
        gae(VALUES, torch.tensor([[False, True, False, True]]), torch.ones(1), gamma=1.0, lam=1.0, terminal="value")


@pytest.mark.parametrize(
    ("values", "mask", "rewards"),
    [((1, 4), (1, 5), (1,)), ((1, 4), (2, 4), (1,)), ((2, 4), (2, 4), (1,)), ((2, 4), (2, 4), (2, 1))],
)
def test_shapes_that_differ_are_refused(
    values: tuple[int, ...], mask: tuple[int, ...], rewards: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="expected values and mask"):
        gae(
            torch.zeros(values),
            torch.zeros(mask, dtype=torch.bool),
            torch.zeros(rewards),
            gamma=1.0,
            lam=1.0,
            terminal="value",
        )


def test_an_unknown_terminal_is_refused_and_named() -> None:
    with pytest.raises(ValueError, match="'rewards'"):
        gae(VALUES, MASK, torch.ones(1), gamma=1.0, lam=1.0, terminal="rewards")


# gamma, lam, values of the states before each token, advantages by stable-baselines3 2.9.2
# (`RolloutBuffer.compute_returns_and_advantage`, one episode whose last step has reward 1)
STABLE_BASELINES = [
    (1.0, 0.95, [0.001, 0.299, -0.274, -0.891, -0.455, -0.992], [0.674605, 0.396426, 1.020448, 1.72363, 1.3554, 1.992]),
    (0.9, 0.5, [0.06, 1.34, -0.492, -0.62, 0.49, 0.357], [0.432006, -1.586653, 0.435882, 1.115292, 0.12065, 0.643]),
    (1.0, 1.0, [0.105, -0.93, -0.029, 0.695, -1.344, -0.458], [0.895, 1.93, 1.029, 0.305, 2.344, 1.458]),
    (0.99, 0.0, [-1.901, -1.29, -1.842, -0.235, -1.267, 0.271], [0.6239, -0.53358, 1.60935, -1.01933, 1.53529, 0.729]),
]


@pytest.mark.parametrize(("gamma", "lam", "before", "expected"), STABLE_BASELINES)
def test_an_independent_library_has_the_same_advantages(
    gamma: float, lam: float, before: list[float], expected: list[float]
) -> None:
    values = torch.tensor([[*before, 0.0]])  # what is read after the last token does not count for terminal "reward"
    mask = torch.ones(1, 7, dtype=torch.bool)
    mask[0, 0] = False
    got = gae(values, mask, torch.ones(1), gamma=gamma, lam=lam, terminal="reward")
    torch.testing.assert_close(got[0, 1:], torch.tensor(expected), atol=1e-6, rtol=0)
