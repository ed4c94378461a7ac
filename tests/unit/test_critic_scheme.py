"""The critic's weights: whitened together, exactly 1 where there is nothing to tell apart, aligned to targets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.ranks import alone
from wmtp.targets import future_targets
from wmtp.testing import Ranks
from wmtp.weighting import Critic, SchemeInput, When, gae, masked_moments


def batch(
    rows: int = 4, length: int = 10, heads: int = 3, seed: int = 0, values: Tensor | None = None, size: float = 1.0
) -> SchemeInput:
    """Random values, one response a row, random rewards."""
    random = torch.Generator().manual_seed(seed)
    response = torch.zeros(rows, length, dtype=torch.bool)
    for b in range(rows):
        start = int(torch.randint(1, length - 2, (), generator=random))
        response[b, start : int(torch.randint(start + 1, length + 1, (), generator=random))] = True
    drawn = size * torch.randn(rows, length, generator=random)
    return SchemeInput(
        target_BTK=future_targets(torch.ones(rows, length, dtype=torch.int64), response, None, heads),
        response_BT=response,
        reward_B=torch.randint(0, 2, (rows,), generator=random).float(),
        values_BT=drawn if values is None else values.expand(rows, length),
    )


def rows_of(step: list[SchemeInput], order: list[int], sizes: list[int]) -> list[SchemeInput]:
    """The same rows in another order and other micro-batches."""
    merged = {
        name: torch.cat([getattr(b, name) for b in step])[order]
        for name in ("target_BTK", "response_BT", "reward_B", "values_BT")
    }
    parts = {name: tensor.split(sizes) for name, tensor in merged.items()}
    return [SchemeInput(**{name: piece[i] for name, piece in parts.items()}) for i in range(len(sizes))]


def weights(scheme: Critic, step: list[SchemeInput], training: bool = True, reduce: Any = alone) -> Tensor:
    """All rows' weights, one tensor."""
    out = scheme.weights(step, reduce, training)
    return torch.cat([w for w in out if w is not None])


def by_definition(step: list[SchemeInput], *, moments: tuple[float, float] | None = None, **options: Any) -> Tensor:
    """u[b, j] per token in float64: gae, whitening over everything, exp, clip."""
    beta, clip = options.pop("beta", 1.0), options.pop("clip", (0.1, 3.0))
    settings = {"gamma": 1.0, "lam": 0.95, "terminal": "value"} | options
    advantage = torch.cat([gae(b.values_BT.double(), b.response_BT, b.reward_B, **settings) for b in step])
    mask = torch.cat([b.response_BT for b in step])
    mean, variance = moments or (float(advantage[mask].mean()), float(advantage[mask].var(unbiased=False)))
    return ((advantage - mean) / variance**0.5 / beta).exp().clamp(*clip)


def of_targets(u_BT: Tensor, step: list[SchemeInput], weight_BTK: Tensor) -> tuple[Tensor, Tensor]:
    """What the weights of valid pairs are, and should be."""
    target = torch.cat([b.target_BTK for b in step])
    pairs = [(b, t, k) for b, t, k in (target != -100).nonzero().tolist()]
    expected = torch.stack([u_BT[b, t + k + 1] for b, t, k in pairs])
    return torch.stack([weight_BTK[b, t, k] for b, t, k in pairs]).double(), expected


# the definition


@pytest.mark.parametrize(
    "options",
    [{}, {"terminal": "reward"}, {"beta": 0.3}, {"gamma": 0.9, "lam": 1.0}, {"clip": (0.5, 1.5)}, {"lam": 0.0}],
)
def test_the_weight_of_a_pair_is_that_of_its_target_token(options: dict[str, Any]) -> None:
    step = [batch(seed=1), batch(rows=2, seed=2)]
    got, expected = of_targets(by_definition(step, **options), step, weights(Critic(**options), step))
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=0)


def test_every_head_reads_the_weight_of_the_token_it_predicts() -> None:
    one = batch(heads=1, seed=3)
    four = SchemeInput(
        target_BTK=future_targets(torch.ones(4, 10, dtype=torch.int64), one.response_BT, None, 4),
        response_BT=one.response_BT,
        reward_B=one.reward_B,
        values_BT=one.values_BT,
    )
    first, all_heads = weights(Critic(), [one]), weights(Critic(), [four])
    for k in range(1, 5):
        assert torch.equal(all_heads[:, : 10 - k, k - 1], first[:, k - 1 : -1, 0])


def test_it_waits_for_no_forward_pass_and_asks_for_values_only() -> None:
    assert Critic().when is When.BEFORE_FORWARD
    assert Critic().needs == {"values_BT"}
    with pytest.raises(ValueError, match="values_BT"):
        Critic().weights(
            [SchemeInput(torch.zeros(1, 2, 1).long(), torch.ones(1, 2).bool(), torch.ones(1))], alone, True
        )


def test_bf16_values_give_the_weights_of_the_same_numbers_in_fp32() -> None:
    one = batch(seed=5)
    assert one.values_BT is not None
    rounded = one.values_BT.bfloat16()
    half, full = (
        SchemeInput(one.target_BTK, one.response_BT, one.reward_B, values_BT=v) for v in (rounded, rounded.float())
    )
    assert weights(Critic(), [half]).dtype == torch.float32
    assert torch.equal(weights(Critic(), [half]), weights(Critic(), [full]))


# one step is one whole


@pytest.mark.parametrize("sizes", [[6], [4, 2], [1, 1, 1, 1, 1, 1], [3, 3], [1, 5]])
@pytest.mark.parametrize("whiten", ["step", "ema"])
def test_moving_rows_between_micro_batches_moves_their_weights_along(sizes: list[int], whiten: str) -> None:
    step = [batch(seed=1), batch(rows=2, seed=2, size=5.0)]
    order = torch.randperm(6, generator=torch.Generator().manual_seed(sum(sizes[:1]))).tolist()
    plain = weights(Critic(whiten=whiten), step)
    moved = weights(Critic(whiten=whiten), rows_of(step, order, sizes))
    torch.testing.assert_close(moved, plain[order], rtol=1e-5, atol=0)


def test_whitening_one_micro_batch_at_a_time_would_give_something_else() -> None:
    step = [batch(seed=1), batch(rows=2, seed=2, size=5.0)]
    apart = torch.cat([weights(Critic(), [b]) for b in step])
    assert not torch.allclose(apart, weights(Critic(), step), rtol=0.05)


@pytest.mark.parametrize("options", [{}, {"whiten": "ema", "ema_decay": 0.5}, {"terminal": "reward", "lam": 1.0}])
def test_two_ranks_are_one(options: dict[str, Any]) -> None:
    steps = [[batch(seed=s), batch(rows=2, seed=s + 1, size=3.0)] for s in (1, 11)]
    single = Critic(**options)
    expected = [weights(single, step) for step in steps]
    ranks, schemes = Ranks(2), [Critic(**options), Critic(**options)]

    def run(rank: int) -> list[Tensor]:
        return [weights(schemes[rank], [step[rank]], reduce=ranks.reduce(rank)) for step in steps]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    for i, whole in enumerate(expected):
        torch.testing.assert_close(torch.cat([first[i], second[i]]), whole, rtol=1e-5, atol=0)
    assert schemes[0].state_dict() == schemes[1].state_dict()


def test_a_rank_without_a_response_token_changes_nothing() -> None:
    full, empty = batch(seed=1), batch(seed=2)
    empty = SchemeInput(
        empty.target_BTK, torch.zeros_like(empty.response_BT), empty.reward_B, values_BT=empty.values_BT
    )
    together = Critic().weights([full, empty], alone, True)
    assert together[0] is not None
    torch.testing.assert_close(together[0], weights(Critic(), [full]), rtol=1e-6, atol=0)


# where there is nothing to tell apart, the weight is 1


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, -7.3, 1e6, 1e-30])
@pytest.mark.parametrize("whiten", ["step", "ema"])
def test_a_constant_critic_gives_weights_of_exactly_1(constant: float, whiten: str) -> None:
    values = torch.tensor(constant)
    step = [batch(rows=7, length=31, seed=1, values=values), batch(seed=2, values=values)]
    scheme = Critic(whiten=whiten)
    for _ in range(3):
        for weight, one in zip(scheme.weights(step, alone, True), step, strict=True):
            assert weight is not None
            assert bool((weight[one.valid_BTK] == 1).all())


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_equal_advantages_that_are_not_0_give_weights_of_exactly_1(constant: float, rows: int) -> None:
    one = batch(rows=rows, length=50, seed=1, values=torch.tensor(constant))
    solved = SchemeInput(one.target_BTK, one.response_BT, torch.ones(rows), values_BT=one.values_BT)
    got = weights(Critic(terminal="reward", lam=1.0), [solved])
    assert bool((got[solved.valid_BTK] == 1).all())


def test_a_step_of_one_response_token_weighs_1() -> None:
    response = torch.tensor([[False, True, False]])
    target = future_targets(torch.ones(1, 3, dtype=torch.int64), response, None, 2)
    one = SchemeInput(target, response, torch.ones(1), values_BT=torch.tensor([[0.2, 0.9, 5.0]]))
    assert bool((weights(Critic(), [one])[one.valid_BTK] == 1).all())


def test_a_step_without_response_tokens_gives_finite_weights() -> None:
    one = batch(seed=1)
    empty = SchemeInput(one.target_BTK, torch.zeros_like(one.response_BT), one.reward_B, values_BT=one.values_BT)
    assert bool(weights(Critic(), [empty]).isfinite().all())


def test_adding_a_constant_to_all_values_changes_nothing() -> None:
    one = batch(seed=4)
    assert one.values_BT is not None
    moved = SchemeInput(one.target_BTK, one.response_BT, one.reward_B, values_BT=one.values_BT + 10.0)
    torch.testing.assert_close(weights(Critic(), [moved]), weights(Critic(), [one]), rtol=1e-4, atol=0)


# clip


@pytest.mark.parametrize("clip", [(0.1, 3.0), (0.0, 1.0), (0.9, 1.1), (1.0, 1.0)])
@pytest.mark.parametrize("beta", [1e-6, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, 1e15])
def test_no_weight_leaves_the_clip(clip: tuple[float, float], beta: float, size: float) -> None:
    one = batch(seed=6, size=size)
    got = weights(Critic(clip=clip, beta=beta), [one])[one.valid_BTK]
    low, high = (float(torch.tensor(bound)) for bound in clip)
    assert bool(got.isfinite().all())
    assert low <= float(got.min()) <= float(got.max()) <= max(high, 1.0)


def test_a_small_beta_reaches_both_ends_of_the_clip() -> None:
    one = batch(seed=6)
    got = weights(Critic(beta=1e-3), [one])[one.valid_BTK]
    assert float(got.min()) == pytest.approx(0.1)
    assert float(got.max()) == 3.0


# reward


def test_terminal_reward_needs_every_reward() -> None:
    one = batch(seed=1)
    unknown = one.reward_B.clone()
    unknown[2] = float("nan")
    partly = SchemeInput(one.target_BTK, one.response_BT, unknown, values_BT=one.values_BT)
    with pytest.raises(ValueError, match="is_correct"):
        Critic(terminal="reward").weights([partly], alone, True)
    assert torch.equal(weights(Critic(terminal="value"), [partly]), weights(Critic(), [one]))


def test_a_solved_row_weighs_more_than_the_same_row_unsolved() -> None:
    values = torch.zeros(2, 6)
    response = torch.tensor([[False, False, True, True, True, True]]).expand(2, 6)
    target = future_targets(torch.ones(2, 6, dtype=torch.int64), response, None, 1)
    step = [SchemeInput(target, response, torch.tensor([1.0, 0.0]), values_BT=values)]
    got = weights(Critic(terminal="reward"), step)
    valid = step[0].valid_BTK[0]
    assert bool((got[0][valid] > got[1][valid]).all())


# ema


def moments_of(step: list[SchemeInput]) -> tuple[float, float]:
    advantages = [
        gae(b.values_BT.double(), b.response_BT, b.reward_B, gamma=1.0, lam=0.95, terminal="value")
        for b in step
        if b.values_BT is not None
    ]
    everything = torch.cat([a[b.response_BT] for a, b in zip(advantages, step, strict=True)])
    return float(everything.mean()), float(everything.var(unbiased=False))


def test_the_first_step_of_ema_uses_its_own_statistics_and_later_ones_decay() -> None:
    first, second, third = ([batch(seed=s, size=size)] for s, size in ((1, 1.0), (2, 4.0), (3, 0.5)))
    scheme = Critic(whiten="ema", ema_decay=0.75)
    assert torch.equal(weights(scheme, first), weights(Critic(whiten="step"), first))
    running = moments_of(first)
    for step in (second, third):
        running = tuple(0.75 * old + 0.25 * new for old, new in zip(running, moments_of(step), strict=True))
        got, expected = of_targets(by_definition(step, moments=running), step, weights(scheme, step))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    assert scheme.state_dict()["moments"] == pytest.approx(list(running), rel=1e-4, abs=1e-6)


def test_validation_reads_the_memory_and_leaves_it_alone() -> None:
    scheme = Critic(whiten="ema", ema_decay=0.9)
    held_out = [batch(seed=9, size=5.0)]
    before_any = weights(scheme, held_out, training=False)
    assert scheme.state_dict() == {"moments": None}
    weights(scheme, [batch(seed=1)])
    memory = scheme.state_dict()
    once, twice = (weights(scheme, held_out, training=False) for _ in range(2))
    assert scheme.state_dict() == memory
    assert torch.equal(once, twice)
    assert not torch.allclose(once, before_any)


def test_whitening_by_step_remembers_nothing() -> None:
    scheme = Critic()
    weights(scheme, [batch(seed=1, size=100.0)])
    assert scheme.state_dict() == {"moments": None}
    assert torch.equal(weights(scheme, [batch(seed=2)]), weights(Critic(), [batch(seed=2)]))


def test_memory_that_was_saved_and_read_back_continues_the_same() -> None:
    scheme = Critic(whiten="ema")
    weights(scheme, [batch(seed=1)])
    other = Critic(whiten="ema")
    other.load_state_dict(scheme.state_dict())
    for seed in (2, 3):
        assert torch.equal(weights(other, [batch(seed=seed)]), weights(scheme, [batch(seed=seed)]))
    other.load_state_dict(Critic(whiten="ema").state_dict())
    assert torch.equal(weights(other, [batch(seed=4)]), weights(Critic(), [batch(seed=4)]))


# moments


def test_moments_are_those_of_all_masked_numbers_together() -> None:
    values = [torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[3.0], [6.0]])]
    masks = [torch.tensor([[True, True, False]]), torch.tensor([[True], [True]])]
    mean, variance = masked_moments(values, masks, alone)
    assert (float(mean), float(variance)) == (3.0, 3.5)


def test_the_variance_of_large_equal_numbers_is_0_and_never_negative() -> None:
    values, mask = torch.full((3, 5), 1e6), torch.ones(3, 5, dtype=torch.bool)
    mean, variance = masked_moments([values], [mask], alone)
    assert (float(mean), float(variance)) == (1e6, 0.0)


def test_the_moments_of_nothing_are_0() -> None:
    mean, variance = masked_moments([torch.ones(2, 2)], [torch.zeros(2, 2, dtype=torch.bool)], alone)
    assert (float(mean), float(variance)) == (0.0, 0.0)
