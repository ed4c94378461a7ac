"""The critic: a value head on a language model's hidden states, and the losses that train it.

docs/math.md (4.2). `values[b, t]` is read after token t: the expected reward of the finished response given the
tokens so far. Stage 1 of the critic arm trains it; stage 2 reads it, frozen, through `weighting.critic`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmtp.discount import discounted_sums
from wmtp.heads import layer_list
from wmtp.probing import check_causal

HEADS = ("linear", "mlp", "sigmoid")
LOSSES = ("pairwise", "lambda_return", "monte_carlo", "combined")
"""What may train a critic; only `pairwise` leaves its values open by a constant."""
BACKBONES = ("full", "frozen", "lora")


class ValueHead(nn.Module):
    """Hidden state -> one number, in fp32.

    Args:
        kind: `linear` D->1; `mlp` D->D/4->D/8->1 with GELU; `sigmoid` a linear head squashed into (0, 1).
    """

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        if kind not in HEADS:
            raise ValueError(f"value head must be one of {HEADS}, got {kind!r}")
        self.kind, self.width = kind, width
        if kind == "mlp":
            inner, last = max(1, width // 4), max(1, width // 8)
            self.layers = nn.Sequential(
                nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, last), nn.GELU(), nn.Linear(last, 1)
            )
        else:
            self.layers = nn.Sequential(nn.Linear(width, 1))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """`values_BT`, fp32."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            value_BT: Tensor = self.layers(hidden_BTD.float()).squeeze(-1).clone()  # no view: sharding hooks into it
        return value_BT.sigmoid() if self.kind == "sigmoid" else value_BT


def following_loss(values_BT: Tensor, critic_BT: Tensor, response_BT: Tensor) -> Tensor:
    """How far values are from a critic's: Huber's loss of width 0.5, summed over the tokens that have values."""
    error_BT = F.huber_loss(values_BT, critic_BT.detach(), reduction="none", delta=0.5)
    return (error_BT * with_state_before(response_BT)).sum()


class ValueModel(nn.Module):
    """A causal language model's decoder with a value head.

    Raises:
        ModelError: the model is not causal.

    Args:
        base: a `transformers` `...ForCausalLM`; its unembedding is kept but neither run nor trained.
        head: see `ValueHead`.
        backbone: `full` trains the decoder too, `frozen` the head alone, `lora` the head and the adapters that
            `wmtp.adapters` has put into `base`.
        loss: what trains it (one of `LOSSES`), kept with the saved model: it decides whether the values can be
            compared with rewards.
        rewards: what the values foresee, kept like `loss`: `labels` (is_correct), or the score of a reward `model`.
    """

    def __init__(
        self,
        base: Any,
        head: str = "mlp",
        backbone: str = "full",
        loss: str = "pairwise",
        rewards: str = "labels",
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
        check_causal(base)
        self.base = base
        self.value_head = ValueHead(base.config.hidden_size, head)
        self.backbone = backbone
        self.loss, self.rewards = loss, rewards
        tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
        if not tied:
            base.get_output_embeddings().requires_grad_(False)
        if backbone == "frozen":
            base.requires_grad_(False)

    def train(self, mode: bool = True) -> ValueModel:
        """As usual, but a frozen backbone stays in evaluation mode: its dropout would be noise."""
        super().train(mode)
        if self.backbone == "frozen":
            self.base.eval()
        return self

    def layers(self) -> list[nn.Module]:
        """The decoder's layers."""
        _, layers = layer_list(self.base.base_model, self.base.config.num_hidden_layers)
        return list(layers)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """`values_BT`, fp32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone != "frozen"):
            hidden_BTD = self.base.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state
        values_BT: Tensor = self.value_head(hidden_BTD)
        return values_BT

    def hf_key(self, key: str) -> str:
        """The name that transformers gives to this model's tensor `base.<...>`."""
        return key.removeprefix("base.")


class PairLoss(NamedTuple):
    """Sums over pairs; the difference of mean values is the margin."""

    loss_sum: Tensor
    margin_sum: Tensor
    correct_sum: Tensor


def mean_response_value(values_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Mean value over each row's response tokens, `[B]`."""
    return (values_BT * response_BT).sum(1) / response_BT.sum(1).clamp(min=1)


def pairwise_loss(values_BT: Tensor, response_BT: Tensor) -> PairLoss:
    """`-log sigmoid(mean v+ - mean v-)`, summed over pairs.

    Rows 2i and 2i+1 are a correct and an incorrect response to the same problem. Values trained so are defined up
    to a constant.
    """
    mean_B = mean_response_value(values_BT, response_BT)
    return margin_loss(mean_B[0::2] - mean_B[1::2])


def margin_loss(margin_P: Tensor) -> PairLoss:
    """`-log sigmoid(margin)`, summed over pairs; a margin is the correct response's mean value less the other's."""
    detached = margin_P.detach()
    return PairLoss(F.softplus(-margin_P).sum(), detached.sum(), (detached > 0).sum())


def lambda_returns(values_BT: Tensor, mask_BT: Tensor, rewards_B: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Targets `G[t] = (1-lam)*gamma*v[t+1] + lam*gamma*G[t+1]`, `G[last] = R`; detached, 0 outside the mask.

    Args:
        mask_BT: one run of tokens a row, whose last one carries the reward.
    """
    values, mask = values_BT.detach(), mask_BT.bool()
    goes_on = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    following = torch.cat([values[:, 1:], values[:, :1]], 1)
    terms = torch.where(goes_on, gamma * (1 - lam) * following, rewards_B.to(values).unsqueeze(1))
    return torch.where(mask, discounted_sums(torch.where(mask, terms, 0.0), gamma * lam), 0.0)


def with_state_before(response_BT: Tensor) -> Tensor:
    """The response mask and the token before it, whose value is that of the state before the response."""
    mask = response_BT.bool()
    return mask | torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def lambda_return_loss(
    values_BT: Tensor,
    response_BT: Tensor,
    rewards_B: Tensor,
    *,
    gamma: float,
    lam: float,
    huber_delta: float | None = 0.5,
) -> Tensor:
    """Regression on `lambda_returns`: mean over a row's tokens, summed over rows.

    The last prompt token is included: `gae` reads the value of the state before the response there.

    Args:
        huber_delta: width of Huber's quadratic zone; None for the squared error (halved, as Huber's is).
    """
    mask = with_state_before(response_BT)
    returns_BT = lambda_returns(values_BT, mask, rewards_B, gamma=gamma, lam=lam)
    if huber_delta is None:
        error_BT = 0.5 * (values_BT - returns_BT).square()
    else:
        error_BT = F.huber_loss(values_BT, returns_BT, reduction="none", delta=huber_delta)
    return ((error_BT * mask).sum(1) / mask.sum(1).clamp(min=1)).sum()
