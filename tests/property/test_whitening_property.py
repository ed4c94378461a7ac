"""Whatever the critic says, its weights are numbers within the clip; where it tells nothing apart they are 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.ranks import alone
from wmtp.targets import future_targets
from wmtp.testing import Ranks
from wmtp.weighting import Critic, SchemeInput

CLIP = (0.1, 3.0)
OPTIONS = st.fixed_dictionaries(
    {
        "whiten": st.sampled_from(["step", "ema"]),
        "terminal": st.sampled_from(["value", "reward"]),
        "lam": st.sampled_from([0.0, 0.95, 1.0]),
        "gamma": st.sampled_from([0.9, 1.0]),
        "beta": st.sampled_from([1e-3, 1.0, 10.0]),
    }
)
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, 1.0, 2.0**-100, -7.25])


def step_of(values_BT: Tensor, lengths: list[int], rewards: list[float]) -> SchemeInput:
    """Responses of so many tokens, from column 1."""
    response = torch.arange(values_BT.shape[1]).unsqueeze(0) <= torch.tensor(lengths).unsqueeze(1)
    response[:, 0] = False
    return SchemeInput(
        target_BTK=future_targets(torch.ones(values_BT.shape, dtype=torch.int64), response, None, 2),
        response_BT=response,
        reward_B=torch.tensor(rewards),
        values_BT=values_BT,
    )


@st.composite
def steps(draw: st.DrawFn, numbers: st.SearchStrategy[float] = NUMBERS) -> SchemeInput:
    rows, length = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    values = draw(st.lists(numbers, min_size=rows * length, max_size=rows * length))
    lengths = draw(st.lists(st.integers(1, length - 1), min_size=rows, max_size=rows))
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=rows, max_size=rows))
    return step_of(torch.tensor(values, dtype=torch.float32).view(rows, length), lengths, rewards)


def weights(scheme: Critic, step: SchemeInput, reduce: Any = alone) -> Tensor:
    (weight,) = scheme.weights([step], reduce, True)
    assert weight is not None
    return weight[step.valid_BTK]


@given(st.lists(steps(), min_size=1, max_size=3), OPTIONS)
@settings(max_examples=60)
def test_every_weight_is_a_number_within_the_clip_whatever_the_values(
    several: list[SchemeInput], options: dict[str, Any]
) -> None:
    scheme = Critic(**options, clip=CLIP)
    for step in several:
        got = weights(scheme, step)
        assert bool(got.isfinite().all())
        assert bool(((got >= 0.0999) & (got <= 3.0)).all())


@given(steps(), OPTIONS, st.floats(-(2.0**20), 2.0**20, width=32))
@settings(max_examples=30)
def test_a_single_token_and_equal_values_weigh_exactly_1(
    step: SchemeInput, options: dict[str, Any], constant: float
) -> None:
    one = SchemeInput(step.target_BTK[:1], step.response_BT[:1], step.reward_B[:1], values_BT=step.values_BT[:1])  # type: ignore[index]
    single = torch.zeros_like(one.response_BT)
    single[0, 1] = True
    target = future_targets(torch.ones(single.shape, dtype=torch.int64), single, None, 2)
    alone_in_the_step = SchemeInput(target, single, one.reward_B, values_BT=one.values_BT)
    assert bool((weights(Critic(**options), alone_in_the_step) == 1).all())
    same = SchemeInput(
        step.target_BTK, step.response_BT, step.reward_B, values_BT=torch.full(step.response_BT.shape, constant)
    )
    assert bool((weights(Critic(**{**options, "terminal": "value", "gamma": 1.0}), same) == 1).all())


@given(steps(st.floats(-5, 5, width=32)), OPTIONS, st.integers(1, 3))
@settings(max_examples=25)
def test_two_ranks_give_the_weights_of_one(step: SchemeInput, options: dict[str, Any], cut: int) -> None:
    parts = [
        SchemeInput(
            step.target_BTK[rows], step.response_BT[rows], step.reward_B[rows], values_BT=step.values_BT[rows]  # type: ignore[index]
        )
        for rows in (slice(0, cut), slice(cut, None))
    ]  # fmt: skip
    if not len(parts[1].reward_B):
        return
    whole = weights(Critic(**options), step)
    got = Ranks(2).run(lambda rank, reduce: weights(Critic(**options), parts[rank], reduce))
    close = {"rtol": 1e-3, "atol": 1e-4} if options["beta"] >= 1 else {"rtol": 3e3, "atol": 3.0}
    torch.testing.assert_close(torch.cat(got), whole, **close)


@pytest.mark.parametrize("whiten", ["step", "ema"])
def test_whitened_advantages_have_mean_0_and_variance_1(whiten: str) -> None:
    random = torch.Generator().manual_seed(0)
    step = step_of(torch.randn(8, 20, generator=random), list(range(5, 13)), [1.0] * 8)
    scheme = Critic(whiten=whiten, clip=(1e-9, 1e9))
    (weight,) = scheme.weights([step], alone, True)
    assert weight is not None
    whitened = weight[:, :-1, 0][step.response_BT[:, 1:]].log().double()
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-5)
    assert float(whitened.var(unbiased=False)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_an_independent_library_whitens_the_same(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the comparison needs scipy: pip install 'wmtp[dev]'")
    random = torch.Generator().manual_seed(seed)
    step = step_of(torch.randn(8, 20, generator=random), list(range(5, 13)), [1.0] * 8)
    scheme = Critic(lam=0.5 * seed, clip=(1e-9, 1e9))
    (weight,) = scheme.weights([step], alone, True)
    assert weight is not None
    advantages = scheme.advantages(step)[step.response_BT].double()
    whitened = weight[:, :-1, 0][step.response_BT[:, 1:]].log().double()
    torch.testing.assert_close(whitened, torch.from_numpy(stats.zscore(advantages.numpy())), rtol=0, atol=3e-6)
