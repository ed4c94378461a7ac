"""`critic` (the arm `verifiable`): weights from the advantages of a frozen value model.

docs/math.md (4.2). GAE: Schulman et al. 2015 (arXiv 1506.02438). The exponential of a whitened advantage:
advantage-weighted regression, Peng et al. 2019 (arXiv 1910.00177). All in fp32: differences of values cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wmtp.discount import discounted_sums
from wmtp.ranks import Reduce
from wmtp.schedule import Scheduled, value_at
from wmtp.weighting.base import SchemeDefaults, SchemeInput, When, check_choice, masked_moments


def gae(
    values_BT: Tensor,
    mask_BT: Tensor,
    rewards_B: Tensor,
    *,
    gamma: float,
    lam: float,
    terminal: str,
) -> Tensor:
    """Generalised advantage of each response token, `advantages_BT`; 0 outside the mask.

    Args:
        values_BT: value read *after* token t; the state before token t is worth `values[t-1]`.
        mask_BT: one run of response tokens a row, not starting at column 0 (that state would have no value).
        rewards_B: reward of the finished response; read only if `terminal` is `reward`.
        gamma: discount, in [0, 1].
        lam: GAE's lambda, in [0, 1]; no special cases at its ends.
        terminal: the last delta is `R - v[T-1]` (`reward`) or `v[T] - v[T-1]` (`value`).

    Raises:
        ValueError: shapes that differ, a mask that is no such run, an unknown `terminal`.
    """
    mask = mask_BT.bool()
    _check_gae(values_BT, mask, rewards_B, terminal)
    values = values_BT.to(torch.promote_types(values_BT.dtype, torch.float32))
    before = torch.cat([values[:, :1], values[:, :-1]], 1)
    is_last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    end = values if terminal == "value" else rewards_B.to(values).unsqueeze(1).expand_as(values)
    delta = torch.where(is_last, end - before, gamma * values - before)
    delta = torch.where(mask, delta, 0.0)
    return torch.where(mask, discounted_sums(delta, gamma * lam), 0.0)


def _check_gae(values_BT: Tensor, mask_BT: Tensor, rewards_B: Tensor, terminal: str) -> None:
    if values_BT.shape != mask_BT.shape or rewards_B.shape != values_BT.shape[:1]:
        raise ValueError(
            f"expected values and mask [B, T] and rewards [B], got {tuple(values_BT.shape)}, "
            f"{tuple(mask_BT.shape)} and {tuple(rewards_B.shape)}"
        )
    check_choice("terminal", terminal, ("value", "reward"))
    starts = (mask_BT[:, 1:] & ~mask_BT[:, :-1]).sum(1)
    if bool(mask_BT[:, 0].any()) or bool((starts > 1).any()):
        raise ValueError(
            "the mask must be one run of response tokens a row and must not start at column 0: the value of the "
            "state before a response is read at the token before it (put a prompt or a BOS there)"
        )


class Critic(SchemeDefaults):
    """`w = clip(exp(whitened advantage / beta), lo, hi)`.

    Args:
        gamma, lam, terminal: see `gae`.
        beta: temperature, > 0; may be scheduled.
        clip: lowest and highest weight.
        whiten: `step` uses the mean and variance of this step's advantages over all ranks; `ema` a running average
            of them (the first step uses its own).
        ema_decay: how much of the running average is kept each step.

    Where advantages do not differ (one token, a constant critic) whitening gives 0, hence weight 1.
    """

    when = When.BEFORE_FORWARD
    needs = frozenset({"values_BT"})

    def __init__(
        self,
        gamma: float = 1.0,
        lam: float = 0.95,
        terminal: str = "value",
        beta: Scheduled = 1.0,
        clip: tuple[float, float] = (0.1, 3.0),
        whiten: str = "step",
        ema_decay: float = 0.99,
    ) -> None:
        check_choice("terminal", terminal, ("value", "reward"))
        check_choice("whiten", whiten, ("step", "ema"))
        self.gamma, self.lam, self.terminal = gamma, lam, terminal
        self.beta, self.clip = beta, clip
        self.whiten, self.ema_decay = whiten, ema_decay
        self._moments: tuple[float, float] | None = None

    @property
    def per_head(self) -> bool:
        """Advantages are of tokens; running averages are kept once for all heads."""
        return self.whiten == "step"

    @property
    def bounds(self) -> tuple[float, float]:
        """The clip."""
        return self.clip

    @torch.no_grad()
    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """Weights of all micro-batches of the step, whitened together."""
        advantages = [self.advantages(batch) for batch in step]
        masks = [batch.response_BT for batch in step]
        mean, variance = self._statistics(*masked_moments(advantages, masks, reduce), training)
        largest = reduce.largest(torch.stack([a.abs().max() for a in advantages]).max())
        spread = variance.sqrt()
        weights: list[Tensor | None] = []
        for advantage_BT, batch in zip(advantages, step, strict=True):
            whitened = torch.where(spread > 1e-6 * largest, (advantage_BT - mean) / (spread + 1e-8), 0.0)
            weight_BT = (whitened / value_at(self.beta, batch.step)).exp().clamp(*self.clip)
            weights.append(batch.of_targets(weight_BT))
        return weights

    def advantages(self, batch: SchemeInput) -> Tensor:
        """`advantages_BT` by `gae`, from the critic's values; before whitening."""
        if batch.values_BT is None:
            raise ValueError("the critic scheme needs values_BT")
        reward_B = batch.reward_B
        if self.terminal == "reward" and bool(reward_B.isnan().any()):
            raise ValueError("terminal 'reward' needs is_correct on every row; use terminal 'value', or label the data")
        return gae(
            batch.values_BT.float(), batch.response_BT, reward_B, gamma=self.gamma, lam=self.lam, terminal=self.terminal
        )

    def _statistics(self, mean: Tensor, variance: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        if self.whiten == "step":
            return mean, variance
        moments = (float(mean), float(variance))
        if self._moments is not None:
            keep = self.ema_decay
            moments = (
                keep * self._moments[0] + (1 - keep) * moments[0],
                keep * self._moments[1] + (1 - keep) * moments[1],
            )
        if training:
            self._moments = moments
        return mean.new_tensor(moments[0]), variance.new_tensor(moments[1])

    def state_dict(self) -> dict[str, Any]:
        """The running mean and variance."""
        return {"moments": None if self._moments is None else list(self._moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        moments = state["moments"]
        self._moments = None if moments is None else (moments[0], moments[1])
