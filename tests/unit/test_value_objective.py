"""What trains a critic: each loss is the one its name says, and each part learns at its own rate."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from wmtp.adapters import add_adapters, is_adapter, merged
from wmtp.config import Config
from wmtp.data.batches import Batch
from wmtp.errors import UsageError
from wmtp.objective import ValueObjective
from wmtp.optim import build_adamw, set_learning_rate
from wmtp.parts import rate_factor
from wmtp.ranks import alone
from wmtp.schedule import Schedule
from wmtp.testing import random_batch, tiny_base
from wmtp.value import LOSSES, ValueModel, lambda_return_loss, pairwise_loss

BATCH = replace(random_batch(6, 12), reward_B=torch.tensor([1.0, 0.0] * 3), paired=True)


@pytest.fixture(scope="module")
def model() -> ValueModel:
    torch.manual_seed(0)
    return ValueModel(tiny_base(), "mlp").eval()


def loss_of(objective: ValueObjective, model: ValueModel, batch: Batch = BATCH) -> float:
    sums = objective.sums(model, batch, batch.reward_B, alone, True)
    return float(sums.weighted_sum.detach() / sums.weight_total)


def by_hand(model: ValueModel, lam: float, huber_delta: float | None = 0.5) -> tuple[float, float]:
    """Mean pairwise loss over pairs, mean lambda-return loss over rows."""
    with torch.no_grad():
        values = model(BATCH.tokens_BT)
        pairs = pairwise_loss(values, BATCH.trainable_BT).loss_sum / 3
        options: dict[str, Any] = {"gamma": 0.9, "lam": lam, "huber_delta": huber_delta}
        returns = lambda_return_loss(values, BATCH.trainable_BT, BATCH.reward_B, **options) / 6
    return float(pairs), float(returns)


def test_each_loss_is_the_one_that_its_name_says(model: ValueModel) -> None:
    pairs, returns = by_hand(model, 0.8)
    _, monte_carlo = by_hand(model, 1.0)
    expected = {"pairwise": pairs, "lambda_return": returns, "monte_carlo": monte_carlo}
    expected["combined"] = 0.7 * pairs + 0.3 * returns
    for loss in LOSSES:
        objective = ValueObjective(loss, gamma=0.9, lam=0.8, returns_share=0.3)
        assert loss_of(objective, model) == pytest.approx(expected[loss], rel=1e-5), loss


def test_lam_follows_its_schedule(model: ValueModel) -> None:
    objective = ValueObjective("lambda_return", gamma=0.9, lam=Schedule(0.2, 1.0, 5))
    for step, lam in ((1, 0.2), (3, 0.6), (5, 1.0), (9, 1.0)):
        objective.begin(step)
        assert loss_of(objective, model) == pytest.approx(by_hand(model, lam)[1], rel=1e-5)


@pytest.mark.parametrize("loss", ["pairwise", "combined"])
def test_a_loss_that_compares_refuses_rows_that_are_no_pairs(loss: str, model: ValueModel) -> None:
    with pytest.raises(ValueError, match=f"the {loss} loss needs batches of pairs"):
        loss_of(ValueObjective(loss), model, replace(BATCH, paired=False))


@pytest.mark.parametrize("loss", LOSSES)
def test_two_micro_batches_are_one_batch(loss: str, model: ValueModel) -> None:
    def part(rows: slice) -> Batch:
        cut = {
            name: getattr(BATCH, name)[rows] for name in ("tokens_BT", "trainable_BT", "reward_B", "row_B", "group_B2")
        }
        return replace(BATCH, **cut)

    objective = ValueObjective(loss)
    parts = [part(rows) for rows in (slice(0, 2), slice(2, 6))]
    sums = [objective.sums(model, batch, batch.reward_B, alone, True) for batch in parts]
    whole = objective.sums(model, BATCH, BATCH.reward_B, alone, True)
    torch.testing.assert_close(sums[0].weighted_sum + sums[1].weighted_sum, whole.weighted_sum)
    assert float(sums[0].weight_total + sums[1].weight_total) == float(whole.weight_total)


def test_only_values_that_mean_probabilities_have_a_calibration(model: ValueModel) -> None:
    for loss in LOSSES:
        sums = ValueObjective(loss).sums(model, BATCH, BATCH.reward_B, alone, True)
        figures = ValueObjective(loss).metrics(dict(sums.meter.sums), sums.meter)
        assert ("value/calibration_error" in figures) == (loss != "pairwise")


# Learning rates


def config_of(**objective: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"path": "x"},
            "data": {"train": {"path": "x"}},
            "objective": {"kind": "value", **objective},
            "optim": {"lr": 1e-3},
            "train": {"steps": 1},
        }
    )


def test_head_and_backbone_learn_at_their_own_rates(model: ValueModel) -> None:
    factor = rate_factor(config_of(rates={"head": 1e-2, "backbone": 1e-4}))
    optimizer = build_adamw(model, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, lr_factor=factor)
    set_learning_rate(optimizer, 5e-4)  # half of the peak
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(5e-3 if name.startswith("value_head.") else 5e-5)
            assert decays[id(parameter)] == (0.1 if parameter.ndim >= 2 else 0.0)


def test_own_rates_are_kept_by_a_checkpoint(model: ValueModel) -> None:
    def made(target: ValueModel) -> torch.optim.AdamW:
        factor = rate_factor(config_of(rates={"head": 1e-2}))
        return build_adamw(target, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, lr_factor=factor)

    first, second = made(model), made(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    set_learning_rate(first, 0.0)
    first.step()
    set_optimizer_state_dict(model, second, get_optimizer_state_dict(model, first))
    assert [group.get("lr_factor") for group in second.param_groups] == [None, None, 10.0, 10.0]
    set_learning_rate(second, 1e-3)
    assert [group["lr"] for group in second.param_groups] == [1e-3, 1e-3, 1e-2, 1e-2]


def test_without_own_rates_groups_are_what_they_were(model: ValueModel) -> None:
    optimizer = build_adamw(
        model, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, lr_factor=rate_factor(config_of())
    )
    assert len(optimizer.param_groups) == 2
    assert not any("lr_factor" in group for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ({"backbone": "frozen", "rates": {"backbone": 1e-4}}, "rates.backbone does nothing"),
        ({"rates": {"adapters": 1e-4}}, "rates.adapters does nothing"),
        ({"lora": {"rank": 4}}, "lora does nothing"),
        ({"loss": "monte_carlo", "lam": 0.9}, "monte_carlo"),
        ({"loss": "pairwise", "returns_share": 0.3}, "returns_share does nothing"),
    ],
)
def test_what_nothing_would_read_is_refused(objective: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config_of(**objective)


# Adapters


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_peft(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "peft":
            raise ImportError("no peft")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(UsageError, match=r"pip install 'wmtp\[lora\]'"):
        add_adapters(tiny_base(), rank=2, alpha=4.0, dropout=0.0, targets=None, option="objective.lora")


@pytest.fixture
def adapted() -> ValueModel:
    """A critic with adapters that are not zero any more."""
    pytest.importorskip("peft", reason="adapters need peft: pip install 'wmtp[lora]'")
    base = tiny_base()
    torch.manual_seed(0)
    add_adapters(base, rank=2, alpha=6.0, dropout=0.0, targets=None, option="objective.lora")
    made = ValueModel(base, "linear", "lora", "pairwise")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if is_adapter(name):
                parameter.normal_(std=0.3)
    return made


def test_adapters_and_head_are_trained_and_nothing_else(adapted: ValueModel) -> None:
    loss_of_model = adapted(BATCH.tokens_BT).square().sum()
    loss_of_model.backward()
    reached = {name for name, p in adapted.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(is_adapter(name) or name.startswith("value_head.") for name in reached)
    assert any(is_adapter(name) for name in reached)
    factor = rate_factor(config_of(backbone="lora", rates={"adapters": 2e-3}))
    assert {factor(name) for name in reached if is_adapter(name)} == {2.0}


def test_a_merged_critic_has_the_values_of_the_adapted_one(adapted: ValueModel) -> None:
    plain = ValueModel(tiny_base(), "linear")
    plain.load_state_dict(merged(adapted, adapted.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(plain(BATCH.tokens_BT), adapted.eval()(BATCH.tokens_BT), rtol=1e-4, atol=1e-5)


def test_adapters_for_modules_that_are_not_there_are_refused() -> None:
    pytest.importorskip("peft", reason="adapters need peft: pip install 'wmtp[lora]'")
    with pytest.raises(UsageError, match=r"objective\.lora\.targets"):
        add_adapters(tiny_base(), rank=2, alpha=4.0, dropout=0.0, targets=["no_such_module"], option="objective.lora")
