"""The auxiliary value loss: a policy whose own value head follows a critic while the policy learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp.config import Config
from wmtp.data.batches import Batch
from wmtp.errors import ConfigError
from wmtp.formats.native import load_model, load_value_head, save_model
from wmtp.loss import plain_nll
from wmtp.model import MTPModel, batch_targets
from wmtp.objective import MTPObjective
from wmtp.parts import build_model
from wmtp.ranks import alone
from wmtp.scoring import critic_scores
from wmtp.step import train_step
from wmtp.testing import random_batch, tiny_base, tiny_model
from wmtp.value import ValueHead, ValueModel
from wmtp.weighting import Critic

BATCH = random_batch(4, 12)
RANDOM = torch.Generator().manual_seed(0)
VALUES = torch.randn(4, 12, generator=RANDOM)


def policy(family: str = "parallel", dtype: torch.dtype = torch.float32) -> MTPModel:
    model = tiny_model(num_heads=3, heads=family, noise=0.1, dtype=dtype)
    torch.manual_seed(0)
    model.value_head = ValueHead(32, "mlp")
    return model


def objective(aux: float | None, values_BT: Tensor = VALUES) -> MTPObjective:
    return MTPObjective(Critic(), score=lambda batch: {"values_BT": values_BT[list(batch.row_B)]}, aux_value=aux)


def gradients(model: MTPModel, made: MTPObjective, batches: list[Batch]) -> dict[str, Tensor]:
    """Of one step, whose learning rate is 0."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, optimizer, made, batches, clip_norm=None)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["parallel", "chain"])
def test_the_gradient_is_that_of_both_losses_over_the_sum_of_the_weights(family: str) -> None:
    model = policy(family)
    got = gradients(model, objective(0.7), [BATCH])
    hidden_K, target_BTK = model(BATCH.tokens_BT), batch_targets(BATCH, 3)
    nll_BTK, _ = plain_nll(hidden_K, model.unembedding(), target_BTK)
    (plan,) = objective(None).plan(model, [BATCH], alone, True)
    response = BATCH.trainable_BT
    mask_BT = response | torch.cat([response[:, 1:], torch.zeros(4, 1, dtype=torch.bool)], 1)
    assert model.value_head is not None
    errors_BT = F.huber_loss(model.value_head(hidden_K[0]), VALUES, reduction="none", delta=0.5)
    assert plan.weight_BTK is not None
    total = (plan.weight_BTK * nll_BTK).sum() + 0.7 * errors_BT[mask_BT].sum()
    model.zero_grad()
    (total / plan.weight_BTK.sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert bool(got["value_head.layers.0.weight"].any())


def test_two_micro_batches_are_one_batch() -> None:
    def part(rows: list[int]) -> Batch:
        cut = {n: getattr(BATCH, n)[rows] for n in ("tokens_BT", "trainable_BT", "reward_B", "group_B2")}
        return replace(BATCH, row_B=tuple(rows), **cut)

    model = policy()
    whole, parts = (gradients(model, objective(0.7), b) for b in ([BATCH], [part([0, 1, 2]), part([3])]))
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_a_policy_that_is_its_critics_backbone_follows_from_the_first_step() -> None:
    torch.manual_seed(0)
    critic = ValueModel(tiny_base(), "linear").eval()
    values_BT = critic_scores(critic, BATCH)[:, :, 0]
    model = MTPModel(tiny_base(), 2)
    model.value_head = critic.value_head
    made = objective(0.7, values_BT)
    (plan,) = made.plan(model, [BATCH], alone, False)
    sums = made.sums(model, BATCH, plan, alone, False)
    assert made.metrics(dict(sums.meter.sums), sums.meter)["loss/value"] == pytest.approx(0.0, abs=1e-9)


def test_a_saved_policy_has_its_value_head_and_without_the_option_there_is_none(tmp_path: Path) -> None:
    model = policy()
    save_model(model, tmp_path / "policy")
    again, head = load_model(str(tmp_path / "policy")), load_value_head(str(tmp_path / "policy"))
    hidden = torch.ones(1, 32)
    assert again.value_head is not None
    assert model.value_head is not None
    for found in (again.value_head, head):
        assert torch.equal(found(hidden), model.value_head(hidden))
    model.value_head = None
    save_model(model, tmp_path / "policy")
    assert load_model(str(tmp_path / "policy")).value_head is None
    assert not (tmp_path / "policy" / "value_head.safetensors").exists()


def config(critic: str, weighting: str = "critic") -> Config:
    given = {"scheme": weighting} | ({"critic": critic} if weighting == "critic" else {})
    return Config.model_validate(
        {
            "model": {"path": critic},
            "data": {"train": {"path": "x"}, "max_length": 32},
            "objective": {"kind": "mtp", "weighting": given, "aux_value_loss": 0.1},
            "train": {"steps": 1},
        }
    )


def test_an_auxiliary_value_loss_without_a_critic_that_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a weighting with a critic"):
        config("x", "uniform")
    save_model(ValueModel(tiny_base(hidden_size=16, head_dim=4), "linear"), tmp_path / "critic")
    tiny_base().save_pretrained(tmp_path / "policy")
    made = config(str(tmp_path / "critic"))
    made = made.model_copy(update={"model": made.model.model_copy(update={"path": str(tmp_path / "policy")})})
    with pytest.raises(ConfigError, match="of width 16; the policy's are 32 wide"):
        build_model(made, range(64))
