"""Controls deal out the very weights of the scheme they wrap: within rows, or over the step and all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.ranks import Reduce, alone
from wmtp.testing import Ranks, draw_step
from wmtp.weighting import Rho1, Scheme, SchemeInput, Stateless, When, ask, inverted, random_matched, shuffled
from wmtp.weighting.controls import lots, mixed

CONTROLS: dict[str, Callable[..., Scheme]] = {
    "shuffled": shuffled,
    "random_matched": random_matched,
    "inverted": inverted,
}
every_control = pytest.mark.parametrize("name", CONTROLS)


class OfLoss(Stateless):
    """A pair's weight is its loss, rounded so that there are ties or not."""

    when = When.ROW
    per_head = True
    needs: frozenset[str] = frozenset()

    def __init__(self, digits: int = 6) -> None:
        self.digits = digits

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        return [batch.masked(batch.nll_BTK.round(decimals=self.digits)) for batch in step]  # type: ignore[union-attr]


def of_head(weights: Sequence[Tensor], step: Sequence[SchemeInput], k: int) -> list[float]:
    """All weights of a head's pairs, in order of size."""
    found = [w[:, :, k][b.valid_BTK[:, :, k]] for w, b in zip(weights, step, strict=True)]
    return sorted(torch.cat(found).tolist())


@every_control
@given(seed=st.integers(0, 10**6), digits=st.sampled_from([0, 1, 6]), lot=st.integers(0, 5))
@settings(max_examples=10)
def test_the_step_holds_the_same_weights_per_head(name: str, seed: int, digits: int, lot: int) -> None:
    step = draw_step(seed)
    plain, dealt = ask(OfLoss(digits), step, alone, True), ask(CONTROLS[name](OfLoss(digits), lot), step, alone, True)
    for k in range(3):
        assert of_head(dealt, step, k) == of_head(plain, step, k)


@every_control
@given(seed=st.integers(0, 10**6), digits=st.sampled_from([0, 6]))
@settings(max_examples=10)
def test_so_do_two_ranks_together_and_each_pair_gets_what_it_gets_in_one_process(
    name: str, seed: int, digits: int
) -> None:
    step = draw_step(seed)
    whole = ask(CONTROLS[name](OfLoss(digits)), step, alone, True)
    parts = Ranks(2).run(lambda rank, reduce: ask(CONTROLS[name](OfLoss(digits)), [step[rank]], reduce, True))
    assert all(torch.equal(part[0], one) for part, one in zip(parts, whole, strict=True))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_shuffling_keeps_the_weights_of_every_row(seed: int) -> None:
    step = draw_step(seed)
    plain, dealt = ask(OfLoss(), step, alone, True), ask(shuffled(OfLoss()), step, alone, True)
    for one, other in zip(plain, dealt, strict=True):
        assert torch.equal(one.sort(1).values, other.sort(1).values)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_inverting_gives_the_nth_largest_the_nth_smallest(seed: int) -> None:
    step = draw_step(seed)
    plain, dealt = ask(OfLoss(), step, alone, True), ask(inverted(OfLoss()), step, alone, True)
    for k in range(3):
        ascending = of_head(plain, step, k)
        swapped = dict(zip(ascending, reversed(ascending), strict=True))
        for one, other, batch in zip(plain, dealt, step, strict=True):
            valid = batch.valid_BTK[:, :, k]
            got = other[:, :, k][valid].tolist()
            assert got == [swapped[w] for w in one[:, :, k][valid].tolist()]


def test_inverting_twice_is_the_scheme() -> None:
    step = draw_step(0)
    twice = ask(inverted(inverted(OfLoss())), step, alone, True)
    assert all(torch.equal(a, b) for a, b in zip(twice, ask(OfLoss(), step, alone, True), strict=True))


def one_row(length: int, seed: int = 0, row: int = 0) -> SchemeInput:
    random = torch.Generator().manual_seed(seed)
    target_BTK = torch.full((1, length, 1), 5)
    response_BT = torch.ones(1, length, dtype=torch.bool)
    nll_BTK = torch.rand(target_BTK.shape, generator=random)
    return SchemeInput(target_BTK, response_BT, torch.ones(1), torch.tensor([row]), nll_BTK=nll_BTK)


@pytest.mark.parametrize("name", ["shuffled", "random_matched"])
def test_which_pair_gets_which_weight_has_nothing_to_do_with_the_scheme(name: str) -> None:
    one = one_row(20_000)
    (dealt,) = ask(CONTROLS[name](OfLoss()), [one], alone, True)
    assert one.nll_BTK is not None
    correlation = torch.corrcoef(torch.stack([dealt.flatten(), one.nll_BTK.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.03  # four standard errors of 20,000 independent pairs


@every_control
def test_epochs_repeat_a_lot_and_another_seed_or_row_changes_it(name: str) -> None:
    def dealt(seed: int, row: int) -> list[float]:
        (weight,) = ask(CONTROLS[name](OfLoss(0), seed), [one_row(50, row=row)], alone, True)
        return weight.flatten().tolist()

    assert dealt(1, 7) == dealt(1, 7)
    assert len({tuple(dealt(seed, row)) for seed in (1, 2) for row in (7, 8)}) == 4


def test_lots_of_a_token_are_the_same_for_every_head_that_predicts_it() -> None:
    (first, _) = draw_step(0)
    drawn = lots(first, seed=3)
    assert torch.equal(drawn[:, 1:, 0], drawn[:, :-1, 1])
    assert torch.equal(lots(first.head(2), seed=3)[:, :, 0], drawn[:, :, 2])


def test_lots_are_those_of_splitmix64() -> None:
    # The first outputs of SplitMix64 started at 0, as its reference implementation (Vigna 2015) prints them.
    gamma = 0x9E3779B97F4A7C15
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = [(i * gamma) % 2**64 for i in range(3)]
    got = mixed(torch.tensor([state - 2**64 if state >= 2**63 else state for state in states]))
    assert [x % 2**64 for x in got.tolist()] == expected


def test_a_control_waits_as_long_as_it_must_and_remembers_what_its_scheme_does() -> None:
    running: Any = Rho1(scope="running")
    assert shuffled(OfLoss()).when is When.MICRO_BATCH
    assert random_matched(OfLoss()).when is inverted(running).when is When.WHOLE_STEP
    assert shuffled(running).when is When.MICRO_BATCH
    control = shuffled(running)
    ask(control, draw_step(0), alone, True)
    assert control.state_dict() == running.state_dict() != Rho1(scope="running").state_dict()


def test_without_row_numbers_there_are_no_lots() -> None:
    (batch, _) = draw_step(0)
    lost = SchemeInput(batch.target_BTK, batch.response_BT, batch.reward_B, nll_BTK=batch.nll_BTK)
    with pytest.raises(ValueError, match="controls need row_B"):
        shuffled(OfLoss()).weights([lost], alone, True)
