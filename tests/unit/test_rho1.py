"""Rho-1's weights: how many pairs stay, which ones, over what, and what is remembered."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.ranks import alone
from wmtp.testing import Ranks
from wmtp.weighting import Rho1, SchemeInput, When, kth_largest


def batch(excess_BTK: Tensor, valid_BTK: Tensor | None = None, reference: Tensor | None = None) -> SchemeInput:
    """A micro-batch with this excess loss; where it is not valid there is no target."""
    valid = torch.ones_like(excess_BTK, dtype=torch.bool) if valid_BTK is None else valid_BTK
    reference = torch.zeros_like(excess_BTK) if reference is None else reference
    return SchemeInput(
        target_BTK=torch.where(valid, 5, -100),
        response_BT=valid.any(-1),
        reward_B=torch.ones(len(excess_BTK)),
        reference_nll_BTK=reference,
        nll_BTK=reference + excess_BTK,
    )


def column(*excess: float) -> SchemeInput:
    """One row, one head."""
    return batch(torch.tensor(excess).view(1, -1, 1))


def draw(seed: int, rows: int = 3, length: int = 7, heads: int = 2, invalid: float = 0.3) -> SchemeInput:
    """Random excess without ties; some pairs have no target."""
    random = torch.Generator().manual_seed(seed)
    excess = torch.randn(rows, length, heads, generator=random)
    return batch(excess, torch.rand(rows, length, heads, generator=random) >= invalid)


def weights(scheme: Rho1, step: list[SchemeInput], training: bool = True, reduce: Any = alone) -> Tensor:
    """All rows' weights, one tensor."""
    return torch.cat([w for w in scheme.weights(step, reduce, training) if w is not None])


def kept(scheme: Rho1, one: SchemeInput) -> list[float]:
    """The weights of a `column`."""
    return weights(scheme, [one]).flatten().tolist()


def excess(step: list[SchemeInput]) -> Tensor:
    return torch.cat([b.nll_BTK - b.reference_nll_BTK for b in step])  # type: ignore[operator]


def valid(step: list[SchemeInput]) -> Tensor:
    return torch.cat([b.valid_BTK for b in step])


# which


def test_the_excess_is_signed_what_the_policy_knows_better_goes_first() -> None:
    # policy 0.1 against reference 3.0 is the token it needs least, although the difference is the largest
    one = batch(torch.tensor([-2.9, 0.5, 1.0, 0.0, 2.0]).view(1, 5, 1), reference=torch.full((1, 5, 1), 3.0))
    assert kept(Rho1("select", 0.4), one) == [0, 0, 1, 0, 1]
    assert kept(Rho1("select", 0.8), one) == [0, 1, 1, 1, 1]
    assert kept(Rho1("skip", 0.2), one) == [0, 1, 1, 1, 1]
    soft = kept(Rho1("soft", clip=(0.0, 100.0)), one)
    assert soft[0] == min(soft) == pytest.approx(math.exp(-2.9), rel=1e-5)


@pytest.mark.parametrize("count", range(1, 31))
def test_select_keeps_the_ratio_rounded_up(count: int) -> None:
    one = column(*torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist())
    assert sum(kept(Rho1("select"), one)) == -(-6 * count // 10)
    assert sum(kept(Rho1("select", 0.25), one)) == -(-count // 4)
    assert sum(kept(Rho1("select", 0.1), one)) == -(-count // 10)


@pytest.mark.parametrize("percent", [7, 14, 28, 29, 55, 56, 57, 58])
def test_a_share_that_is_a_whole_number_is_not_rounded_up_by_floating_point(percent: int) -> None:
    # 0.55 * 100 is 55.00000000000001 in float64
    one = column(*range(100))
    assert sum(kept(Rho1("select", percent / 100), one)) == percent
    assert sum(kept(Rho1("skip", percent / 100), one)) == 100 - percent


@pytest.mark.parametrize("count", range(1, 31))
def test_skip_drops_the_ratio_rounded_down(count: int) -> None:
    one = column(*torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist())
    got = kept(Rho1("skip"), one)
    assert count - sum(got) == 3 * count // 10
    values = excess([one]).flatten().tolist()
    dropped = [v for v, w in zip(values, got, strict=True) if not w]
    assert dropped == sorted(dropped, key=values.index)
    assert set(dropped) == set(sorted(values)[: len(dropped)])


def test_all_ties_at_the_threshold_stay() -> None:
    assert kept(Rho1("select", 0.4), column(3, 1, 1, 1, 0)) == [1, 1, 1, 1, 0]
    assert kept(Rho1("skip", 0.4), column(3, 0, 0, 0, 1)) == [1, 1, 1, 1, 1]


def test_minus_0_and_0_tie() -> None:
    assert kept(Rho1("select", 0.25), column(0.0, -0.0, -1.0, -0.0)) == [1, 1, 0, 1]


@pytest.mark.parametrize("mode", ["select", "skip", "soft"])
@pytest.mark.parametrize("scope", ["micro", "global", "running"])
def test_a_policy_that_is_the_reference_keeps_everything_with_weight_1(mode: str, scope: str) -> None:
    reference = 4 * torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0))
    same = batch(torch.zeros_like(reference), reference=reference)
    scheme = Rho1(mode, scope=scope)
    for _ in range(3):
        assert bool((weights(scheme, [same]) == 1).all())


def test_soft_is_the_clipped_exponential() -> None:
    step = [draw(1), draw(2, rows=1)]
    got = weights(Rho1("soft", temperature=0.5, clip=(0.2, 2.0)), step)
    expected = (excess(step) / 0.5).exp().clamp(0.2, 2.0)
    torch.testing.assert_close(got, torch.where(valid(step), expected, 0.0))


def test_soft_stays_in_its_clip_for_any_excess() -> None:
    got = kept(Rho1("soft", temperature=1e-3), column(1e30, -1e30, math.inf, -math.inf, 0))
    assert got == pytest.approx([3.0, 0.1, 3.0, 0.1, 1.0])


def test_heads_have_their_own_thresholds() -> None:
    one = batch(torch.tensor([[[1.0, 100.0], [2.0, 200.0], [3.0, 300.0], [4.0, 400.0]]]))
    assert weights(Rho1("select", 0.5), [one])[0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_a_head_with_one_pair_keeps_it_and_one_without_any_does_not_disturb_the_others() -> None:
    has_target = torch.tensor([[[True, True, False], [True, False, False], [True, False, False]]])
    one = batch(torch.tensor([[[1.0, 1.0, 9.0], [2.0, 5.0, 9.0], [3.0, 5.0, 9.0]]]), has_target)
    got = weights(Rho1("select", 0.5), [one])[0]
    assert got[:, 0].tolist() == [0, 1, 1]
    assert float(got[0, 1]) == 1


@pytest.mark.parametrize("mode", ["select", "skip"])
def test_what_stands_where_there_is_no_target_never_moves_the_threshold(mode: str) -> None:
    one = draw(3)
    for odd in (1e9, -1e9, math.inf, -math.inf, math.nan):
        other = batch(torch.where(one.valid_BTK, excess([one]), odd), one.valid_BTK)
        got, plain = weights(Rho1(mode), [other]), weights(Rho1(mode), [one])
        assert torch.equal(got[one.valid_BTK], plain[one.valid_BTK])
        assert bool(got.isfinite().all())


def test_both_losses_are_asked_for() -> None:
    assert Rho1().needs == {"reference_nll_BTK"}
    one = draw(1)
    for missing in ("nll_BTK", "reference_nll_BTK"):
        fields = {name: getattr(one, name) for name in ("target_BTK", "response_BT", "reward_B")}
        other = {"nll_BTK", "reference_nll_BTK"} - {missing}
        with pytest.raises(ValueError, match="needs nll_BTK and reference_nll_BTK"):
            Rho1().weights([SchemeInput(**fields, **{name: getattr(one, name) for name in other})], alone, True)


# over what


def test_only_a_global_quantile_waits_for_the_whole_step() -> None:
    assert Rho1().when is When.WHOLE_STEP
    assert Rho1("soft").when is When.ROW
    assert Rho1(scope="micro").when is Rho1(scope="running").when is When.MICRO_BATCH


def test_a_global_quantile_does_not_depend_on_the_split_into_micro_batches() -> None:
    step = [draw(1), draw(2, rows=1), draw(3, rows=2)]
    merged = batch(excess(step), valid(step))
    assert torch.equal(weights(Rho1(), step), weights(Rho1(), [merged]))


def test_a_micro_quantile_is_that_of_its_own_micro_batch() -> None:
    low, high = column(1, 2, 3, 4), column(11, 12, 13, 14)
    scheme = Rho1("select", 0.5, scope="micro")
    assert kept(scheme, low) == kept(scheme, high) == [0, 0, 1, 1]
    assert weights(Rho1("select", 0.5), [low, high]).tolist()[0] == [[0], [0], [0], [0]]


@pytest.mark.parametrize("mode", ["select", "skip", "soft"])
def test_two_ranks_are_one(mode: str) -> None:
    step, ranks = [draw(1), draw(2, rows=2)], Ranks(2)
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda r: weights(Rho1(mode), [step[r]], reduce=ranks.reduce(r)), range(2))
        assert torch.equal(torch.cat(list(parts)), weights(Rho1(mode), step))


def test_a_running_threshold_of_two_ranks_is_that_of_one() -> None:
    step, ranks = [draw(1), draw(2, rows=2)], Ranks(2)
    schemes = [Rho1(scope="running"), Rho1(scope="running")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda r: weights(schemes[r], [step[r]], reduce=ranks.reduce(r)), range(2)))
    alone_with_all = Rho1(scope="running")
    weights(alone_with_all, step)
    assert schemes[0].state_dict() == schemes[1].state_dict() == alone_with_all.state_dict()


def test_a_local_quantile_never_talks_to_other_ranks() -> None:
    class Refuse:
        def __call__(self, _: Tensor) -> Tensor:
            raise AssertionError("a rank-local scope has reduced something")

        largest = __call__

    Rho1(scope="micro").weights([draw(1)], Refuse(), True)


# memory


def test_a_running_threshold_is_an_exponential_average_of_thresholds() -> None:
    scheme = Rho1("select", 0.5, scope="running", ema_decay=0.75)
    assert kept(scheme, column(1, 2, 3, 4)) == [0, 0, 1, 1]
    assert scheme.state_dict() == {"threshold_K": [3.0]}
    # own threshold 13; running 0.75*3 + 0.25*13 = 5.5
    assert kept(scheme, column(5, 6, 13, 14)) == [0, 1, 1, 1]
    assert scheme.state_dict() == {"threshold_K": [5.5]}


def test_validation_reads_the_running_threshold_and_leaves_it_alone() -> None:
    scheme = Rho1("select", 0.5, scope="running", ema_decay=0.75)
    weights(scheme, [column(1, 2, 3, 4)], training=False)
    assert scheme.state_dict() == {"threshold_K": None}
    weights(scheme, [column(1, 2, 3, 4)])
    for _ in range(2):
        assert weights(scheme, [column(5, 6, 13, 14)], training=False).flatten().tolist() == [0, 1, 1, 1]
        assert scheme.state_dict() == {"threshold_K": [3.0]}


def test_a_micro_batch_where_a_head_has_no_target_does_not_spoil_the_running_threshold() -> None:
    scheme = Rho1("select", 0.5, scope="running")
    weights(scheme, [draw(1)])
    memory = scheme.state_dict()
    one = draw(2)
    short = batch(excess([one]), one.valid_BTK & torch.tensor([True, False]))
    weights(scheme, [short])
    assert scheme.state_dict() == memory


def test_memory_that_was_saved_and_read_back_continues_the_same() -> None:
    scheme = Rho1(scope="running")
    for seed in (1, 2):
        weights(scheme, [draw(seed)])
    other = Rho1(scope="running")
    other.load_state_dict(scheme.state_dict())
    for seed in (3, 4):
        assert torch.equal(weights(other, [draw(seed)]), weights(scheme, [draw(seed)]))
    assert other.state_dict() == scheme.state_dict()


@pytest.mark.parametrize("scope", ["micro", "global"])
def test_other_scopes_remember_nothing(scope: str) -> None:
    scheme = Rho1(scope=scope)
    weights(scheme, [draw(1)])
    assert scheme.state_dict() == {"threshold_K": None}


# kth largest, on the numbers that are easy to get wrong


@pytest.mark.parametrize(
    ("numbers", "keep", "expected"),
    [
        ([1.0, 2.0, 3.0], 1, 3.0),
        ([1.0, 2.0, 3.0], 3, 1.0),
        ([-1.0, -2.0, -3.0], 2, -2.0),
        ([2.0, 2.0, 2.0], 2, 2.0),
        ([0.0, -0.0], 1, 0.0),
        ([0.0, -0.0, -1e-45], 3, -1e-45),
        ([1e-45, 0.0], 1, 1e-45),
        ([math.inf, 1.0, -math.inf], 1, math.inf),
        ([math.inf, 1.0, -math.inf], 3, -math.inf),
        ([-3.4e38, 3.4e38], 2, -3.4e38),
        ([1.0], 0, math.inf),
        ([1.0, 2.0], 3, -math.inf),
    ],
)
def test_kth_largest_by_hand(numbers: list[float], keep: int, expected: float) -> None:
    values = torch.tensor(numbers).unsqueeze(1)
    got = kth_largest([values], [torch.ones_like(values, dtype=torch.bool)], torch.tensor([keep]), alone)
    assert torch.equal(got, torch.tensor([expected]))
