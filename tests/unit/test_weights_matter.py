"""A weight does what it says, a masked token nothing, and a bad step or an evaluation leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.loss import LossSum
from wmtp.model import MTPModel, batch_targets, mtp_loss
from wmtp.objective import MTPObjective, Plan, ValueObjective
from wmtp.ranks import alone
from wmtp.scoring import reference_nll
from wmtp.step import evaluate, train_step
from wmtp.targets import IGNORE
from wmtp.testing import EOS, random_batch, tiny_base, tiny_model
from wmtp.value import ValueModel
from wmtp.weight_stats import weight_meter
from wmtp.weighting import GRPO, Critic, Rho1, Scheme, SchemeDefaults, SchemeInput, Uniform, When

K = 3
BATCH = random_batch(rows=4, length=12, seed=1)
every_kind = pytest.mark.parametrize("kind", ["fused", "plain"])
every_denominator = pytest.mark.parametrize("denominator", ["weights", "tokens"])


def loss_and_gradients(batch: Batch, weight_BTK: Tensor | None, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The divided loss in float64, and its gradients."""
    model = tiny_model("llama", K, dtype=torch.float64, noise=0.1)
    sums = mtp_loss(model, batch, weight_BTK, **options)
    loss = sums.weighted_sum / sums.weight_total
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def random_weights(batch: Batch = BATCH) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return 0.1 + torch.rand(*batch.tokens_BT.shape, K, generator=random)


def first_valid(k: int) -> tuple[int, int, int]:
    b, t = (batch_targets(BATCH, K)[:, :, k] != IGNORE).nonzero()[0].tolist()
    return b, t, k


def far_apart(one: list[Tensor], two: list[Tensor]) -> bool:
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) > 1e-3


# Weights


@every_kind
@every_denominator
@pytest.mark.parametrize("k", range(K))
def test_one_token_a_hundred_times_as_heavy_changes_loss_and_gradient(kind: str, denominator: str, k: int) -> None:
    light, heavy = random_weights(), random_weights()
    heavy[first_valid(k)] *= 100
    loss, gradient = loss_and_gradients(BATCH, light, kind=kind, denominator=denominator)
    other_loss, other_gradient = loss_and_gradients(BATCH, heavy, kind=kind, denominator=denominator)
    assert abs(float(loss - other_loss)) > 1e-3
    assert far_apart(gradient, other_gradient)


@every_kind
@pytest.mark.parametrize("factor", [1e-3, 0.7, 64.0, 1e4])
def test_all_weights_times_a_constant_change_nothing_when_divided_by_weights(kind: str, factor: float) -> None:
    loss, gradient = loss_and_gradients(BATCH, random_weights().double(), kind=kind)
    scaled, same = loss_and_gradients(BATCH, factor * random_weights().double(), kind=kind)
    torch.testing.assert_close(scaled, loss, rtol=1e-12, atol=0.0)
    for one, two in zip(gradient, same, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-13)


@every_kind
@pytest.mark.parametrize("factor", [1e-3, 0.7, 64.0, 1e4])
def test_all_weights_times_a_constant_scale_the_loss_when_divided_by_tokens(kind: str, factor: float) -> None:
    options = {"kind": kind, "denominator": "tokens"}
    loss, gradient = loss_and_gradients(BATCH, random_weights().double(), **options)
    scaled, scaled_gradient = loss_and_gradients(BATCH, factor * random_weights().double(), **options)
    torch.testing.assert_close(scaled, factor * loss, rtol=1e-12, atol=0.0)
    for one, two in zip(gradient, scaled_gradient, strict=True):
        assert float((two - factor * one).norm()) <= 1e-6 * factor * float(one.norm())  # norms work in fp32


@every_kind
@every_denominator
def test_no_weights_are_weights_of_one(kind: str, denominator: str) -> None:
    ones = torch.ones(*BATCH.tokens_BT.shape, K)
    loss, gradient = loss_and_gradients(BATCH, None, kind=kind, denominator=denominator)
    same_loss, same_gradient = loss_and_gradients(BATCH, ones, kind=kind, denominator=denominator)
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradient, same_gradient, strict=True))


@every_kind
def test_weights_carry_no_gradient(kind: str) -> None:
    weight = random_weights().requires_grad_()
    loss_and_gradients(BATCH, weight, kind=kind)
    assert weight.grad is None


@every_kind
@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_a_head_with_coefficient_zero_is_not_trained(kind: str, coefficient: float) -> None:
    model = tiny_model("llama", K)
    mtp_loss(model, BATCH, coefficient_K=torch.tensor([1.0, coefficient, 1.0]), kind=kind).weighted_sum.backward()
    second_head = [float(p.grad.abs().max()) for p in model.extra_heads[0].parameters() if p.grad is not None]
    assert (max(second_head) > 0) == (coefficient > 0)


# Masked tokens


@every_kind
def test_a_masked_token_moves_nothing(kind: str) -> None:
    # Whatever id stands in the padding, and whatever weight in a pair without target.
    batch = random_batch(rows=4, length=12, seed=1)
    loss, gradient = loss_and_gradients(batch, random_weights(), kind=kind)
    other = random_batch(rows=4, length=12, seed=1, pad_id=EOS)
    assert not torch.equal(other.tokens_BT, batch.tokens_BT)
    weights = random_weights().masked_fill(batch_targets(batch, K) == IGNORE, 1e6)
    same_loss, same_gradient = loss_and_gradients(other, weights, kind=kind)
    torch.testing.assert_close(same_loss, loss, rtol=1e-12, atol=0.0)
    for one, two in zip(gradient, same_gradient, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-13)


@every_kind
def test_what_comes_after_the_last_trainable_token_moves_nothing(kind: str) -> None:
    # The last two tokens of a full row are made untrainable, then changed.
    trainable = BATCH.trainable_BT.clone()
    trainable[0, -2:] = False
    batch = replace(BATCH, trainable_BT=trainable)
    changed = batch.tokens_BT.clone()
    changed[0, -2:] = 60
    loss, gradient = loss_and_gradients(batch, None, kind=kind)
    same_loss, same_gradient = loss_and_gradients(replace(batch, tokens_BT=changed), None, kind=kind)
    torch.testing.assert_close(same_loss, loss, rtol=1e-12, atol=0.0)
    for one, two in zip(gradient, same_gradient, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-13)


@every_kind
def test_a_prompt_token_is_read_but_never_predicted(kind: str) -> None:
    model = tiny_model("llama", K, noise=0.1)
    prompt_only = replace(BATCH, trainable_BT=torch.zeros_like(BATCH.trainable_BT))
    sums = mtp_loss(model, prompt_only, kind=kind)
    assert float(sums.weighted_sum.detach()) == float(sums.weight_total) == 0.0
    changed = BATCH.tokens_BT.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 60 + 3
    loss, _ = loss_and_gradients(BATCH, None, kind=kind)
    other, _ = loss_and_gradients(replace(BATCH, tokens_BT=changed), None, kind=kind)
    assert float(loss) != float(other)


# Schemes at their neutral point


def rho1_input(model: MTPModel, reference: MTPModel, alignment: str, chunk: int | None) -> SchemeInput:
    """What the objective hands to a scheme that waits for the policy's nll."""
    objective = MTPObjective(
        Uniform(),
        score=lambda b: {"reference_nll_BTK": reference_nll(reference, b, K, alignment=alignment, chunk=chunk)},
        chunk=chunk,
    )
    plan: Plan = objective._with_nll(Plan(objective._scheme_input(model, BATCH)), model, model(BATCH.tokens_BT))
    return plan.scheme_input


@pytest.mark.parametrize("chunk", [None, 1, 3, 5, 7])
@pytest.mark.parametrize("alignment", ["next", "matched"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_reference_equal_to_the_policy_has_an_excess_of_exactly_zero(
    family: str, alignment: str, chunk: int | None
) -> None:
    model = tiny_model(family, K, noise=0.1)
    reference = copy.deepcopy(model)
    if alignment == "next":
        reference.keep_heads(1)
    seen = rho1_input(model, reference, alignment, chunk)
    assert seen.nll_BTK is not None
    assert seen.reference_nll_BTK is not None
    excess = seen.nll_BTK - seen.reference_nll_BTK
    heads = slice(0, 1) if alignment == "next" else slice(0, K)
    valid = seen.valid_BTK[:, :, heads]
    assert float(seen.nll_BTK[:, :, heads][valid].min()) > 0
    assert (excess[:, :, heads][valid] == 0).all()
    if alignment == "next":
        assert (excess[:, :, 1:][seen.valid_BTK[:, :, 1:]] != 0).any()


def test_the_reference_of_head_k_is_asked_for_the_token_that_head_k_predicts() -> None:
    reference = tiny_model("llama", 1)
    got = reference_nll(reference, BATCH, K, alignment="next")
    with torch.no_grad():
        log_probability = reference.project(reference(BATCH.tokens_BT)[0]).log_softmax(-1)
    for b, t, k in (batch_targets(BATCH, K) != IGNORE).nonzero().tolist():
        token = BATCH.tokens_BT[b, t + k + 1]
        assert float(got[b, t, k]) == pytest.approx(-float(log_probability[b, t + k, token]), rel=1e-5)


def test_a_reference_with_too_few_heads_or_an_unknown_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 3 heads, the reference has 1"):
        reference_nll(tiny_model(num_heads=1), BATCH, K, alignment="matched")
    with pytest.raises(ValueError, match="alignment must be one of"):
        reference_nll(tiny_model(num_heads=1), BATCH, K, alignment="last")


@pytest.mark.parametrize("value", [0.0, 0.3, -7.7, 1e4])
@pytest.mark.parametrize("whiten", ["step", "ema"])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_a_constant_critic_gives_weights_of_exactly_one(value: float, whiten: str, lam: float) -> None:
    step = [
        SchemeInput(batch_targets(b, K), b.trainable_BT, b.reward_B, values_BT=torch.full(b.tokens_BT.shape, value))
        for b in (BATCH, random_batch(rows=3, length=9, seed=2))
    ]
    for seen, weight_BTK in zip(step, Critic(lam=lam, whiten=whiten).weights(step, alone, True), strict=True):
        assert weight_BTK is not None
        assert (weight_BTK[seen.valid_BTK] == 1).all()


# A step that must not happen


class Poison(SchemeDefaults):
    """A scheme with memory whose every third weight is not a number."""

    per_head = False
    when = When.MICRO_BATCH
    needs: frozenset[str] = frozenset()

    def __init__(self, bad: float) -> None:
        self.bad, self.calls = bad, 0

    def weights(self, step: list[SchemeInput], reduce: Any, training: bool) -> list[Tensor | None]:
        self.calls += training
        weight = torch.ones(step[0].target_BTK.shape)
        if self.calls == 3:
            weight[step[0].valid_BTK.nonzero()[0].unbind()] = self.bad
        return [weight]

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


def snapshot(model: MTPModel, optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(unchanged(before[k], after[k]) for k in before)
    if isinstance(before, tuple):
        return all(unchanged(a, b) for a, b in zip(before, after, strict=True))
    return bool(before == after)


@every_denominator
def test_a_step_in_which_nothing_weighs_anything_has_no_gradient_and_is_done(denominator: str) -> None:
    model = tiny_model("llama", K)
    failed = replace(BATCH, reward_B=torch.zeros(4), group_B2=torch.full((4, 2), 0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model.state_dict())
    objective = MTPObjective(GRPO("positive"), denominator=denominator)
    result = train_step(model, optimizer, objective, [failed])
    assert (result.stepped, result.grad_norm) == (True, 0.0)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_a_non_finite_gradient_never_reaches_the_optimiser(bad: float, clip_norm: float | None) -> None:
    model, scheme = tiny_model("llama", K), Poison(bad)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    objective = MTPObjective(scheme)

    def step() -> Any:
        return train_step(model, optimizer, objective, [BATCH, BATCH], clip_norm=clip_norm)

    assert step().stepped
    assert scheme.calls == 2
    before = snapshot(model, optimizer)
    result = step()
    assert not result.stepped
    assert not torch.isfinite(torch.tensor(result.grad_norm))
    assert unchanged(before, snapshot(model, optimizer))
    assert scheme.calls == 2
    scheme.bad = 1.0
    assert step().stepped
    assert not unchanged(before, snapshot(model, optimizer))


MEMORIES: list[Callable[[], Scheme]] = [
    lambda: Critic(whiten="ema", ema_decay=0.5),
    lambda: Rho1("select", scope="running", ema_decay=0.5),
]


def scores(batch: Batch) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(int(batch.tokens_BT.sum()))
    shape = batch.tokens_BT.shape
    return {
        "values_BT": torch.randn(shape, generator=random),
        "reference_nll_BTK": 4 + torch.randn(*shape, K, generator=random),
    }


@pytest.mark.parametrize("make", MEMORIES)
def test_after_a_non_finite_gradient_the_memory_of_a_scheme_is_as_before(make: Callable[[], Scheme]) -> None:
    model, scheme = tiny_model("llama", K), make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train_step(model, optimizer, MTPObjective(scheme, score=scores), [BATCH])
    memory = copy.deepcopy(scheme.state_dict())
    with torch.no_grad():
        model.extra_heads[0].mlp.down_proj.weight[0, 0] = torch.inf
    result = train_step(model, optimizer, MTPObjective(scheme, score=scores), [random_batch(seed=9)])
    assert not result.stepped
    assert scheme.state_dict() == memory


# Evaluation


@pytest.mark.parametrize("make", [*MEMORIES, Uniform, Critic, Rho1])
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_changes_neither_memory_nor_modes_nor_parameters(make: Callable[[], Scheme], training: bool) -> None:
    model, scheme = tiny_model("llama", K), make()
    objective = MTPObjective(scheme, score=scores)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train_step(model, optimizer, objective, [BATCH])
    optimizer.zero_grad()
    model.train(training)
    model.branch.layer.train(not training)  # a part of its own mode, as a frozen one may be
    modes = [module.training for module in model.modules()]
    memory, parameters = copy.deepcopy(scheme.state_dict()), copy.deepcopy(model.state_dict())
    metrics = evaluate(model, objective, [[random_batch(seed=8)], [random_batch(seed=9)]])
    assert scheme.state_dict() == memory
    assert [module.training for module in model.modules()] == modes
    assert unchanged(parameters, model.state_dict())
    assert all(p.grad is None for p in model.parameters())
    assert metrics["loss/nll"] > 0


def test_evaluation_runs_in_evaluation_mode_and_gives_modes_back_after_an_error() -> None:
    model, seen = tiny_model("llama", K).train(), []

    def fail(batch: Batch) -> dict[str, Tensor]:
        seen.append(model.training)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(model, MTPObjective(Uniform(), score=fail), [[BATCH]])
    assert seen == [False]
    assert all(module.training for module in model.modules())


def test_evaluation_of_two_batches_is_the_mean_over_their_pairs() -> None:
    model, objective = tiny_model("llama", K), MTPObjective(Uniform())
    batches = [random_batch(rows=1, length=5, seed=8), random_batch(rows=6, length=14, seed=9)]
    both = evaluate(model, objective, [[batch] for batch in batches])["loss/nll"]
    sums: list[LossSum] = [mtp_loss(model, b) for b in batches]
    nll = sum(float(s.nll_sum_K.sum()) for s in sums)
    assert both == pytest.approx(nll / sum(int(s.count_K.sum()) for s in sums), rel=1e-5)


# What ranks add up


def test_a_micro_batch_without_targets_holds_the_same_sums_as_any_other() -> None:
    # Ranks add their sums name by name: a name that one of them lacks would leave the others waiting.
    valid = batch_targets(BATCH, K) != IGNORE
    full, empty = weight_meter(None, valid), weight_meter(None, torch.zeros_like(valid))
    assert list(full.sums) == list(empty.sums)
    assert empty.sums["weight_count_K"].tolist() == [0] * K


@pytest.mark.parametrize("rewards", [[1.0, 0.0, 1.0, 0.0], [torch.nan] * 4])
def test_a_critic_batch_that_is_no_pairs_holds_the_same_sums_as_one_that_is(rewards: list[float]) -> None:
    model = ValueModel(tiny_base(), head="linear")
    pairs = replace(BATCH, reward_B=torch.tensor([1.0, 0.0, 1.0, 0.0]), paired=True)
    others = replace(BATCH, reward_B=torch.tensor(rewards))
    objective = ValueObjective("lambda_return")
    meters = [objective.sums(model, batch, None, alone, False).meter for batch in (pairs, others)]
    assert list(meters[0].sums) == list(meters[1].sums)
    assert [float(meter.sums["pair_count"]) for meter in meters] == [2, 0]
    assert ["value/pair_accuracy" in objective.metrics(m.sums, m) for m in meters] == [True, False]
    with pytest.raises(ValueError, match="needs batches of pairs"):
        ValueObjective("pairwise").sums(model, others, None, alone, False)
