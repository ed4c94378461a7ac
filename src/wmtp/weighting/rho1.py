"""`rho1`: weights from the excess loss over a frozen reference model.

docs/math.md (4.3). Source: Lin et al. 2024, Rho-1 (arXiv 2404.07965), whose selection is the mode `select`.
`excess = nll_policy - nll_reference`, signed: what the policy does not know yet and the reference does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wmtp.ranks import Reduce, alone
from wmtp.schedule import Scheduled, value_at
from wmtp.weighting.base import SchemeDefaults, SchemeInput, When, check_choice

_LOWEST = -0x7F800000
"""`_ordered_bits` of -inf."""


def kth_largest(value_list: Sequence[Tensor], mask_list: Sequence[Tensor], keep_K: Tensor, reduce: Reduce) -> Tensor:
    """Per head, the `keep`-th largest masked value over all tensors and ranks, exactly.

    Bisection on the ordered bits of fp32: 32 counts per head are added over ranks, no value travels. So the result
    depends neither on the split into micro-batches and ranks nor on the order of the rows.

    Args:
        value_list: tensors `[..., K]`.
        keep_K: how many values should be >= the result, per head; a head with 0 gets +inf, one with more than there
            are gets -inf.
    """
    keys = [_ordered_bits(v.float()) for v in value_list]
    low_K = torch.full_like(keep_K, _LOWEST, dtype=torch.int64)
    high_K = torch.full_like(keep_K, 2**31 - 1, dtype=torch.int64)
    for _ in range(32):
        middle_K = (low_K + high_K + 1).div(2, rounding_mode="floor")
        count_K = torch.stack(
            [((k >= middle_K) & m).flatten(0, -2).sum(0) for k, m in zip(keys, mask_list, strict=True)]
        )
        enough_K = reduce(count_K.sum(0)) >= keep_K
        low_K = torch.where(enough_K, middle_K, low_K)
        high_K = torch.where(enough_K, high_K, middle_K - 1)
    return torch.where(keep_K > 0, _from_ordered_bits(low_K), math.inf)


def _ordered_bits(value: Tensor) -> Tensor:
    """fp32 as int64 in the same order (-0 counts as +0)."""
    bits = (value + 0.0).contiguous().view(torch.int32).long()
    return torch.where(bits >= 0, bits, -(2**31) - bits)


def _from_ordered_bits(bits: Tensor) -> Tensor:
    return torch.where(bits >= 0, bits, -(2**31) - bits).to(torch.int32).view(torch.float32)


class Rho1(SchemeDefaults):
    """Weights from excess loss.

    Args:
        mode: `select` keeps the `ratio` of pairs with the largest excess (weight 1 or 0); `skip` drops the `ratio`
            with the lowest; `soft` is `exp(excess / temperature)`, clipped.
        ratio: default 0.6 for `select`, 0.3 for `skip`; may be scheduled.
        temperature, clip: of `soft`; the temperature may be scheduled.
        scope: of the quantile: `micro` this micro-batch, `global` the whole step on all ranks, `running` an
            exponential average over micro-batches (of all ranks together). The quantile is per head.
        ema_decay: of `running`.

    Pairs whose excess equals the threshold are all kept: order never decides.
    """

    needs = frozenset({"reference_nll_BTK"})

    def __init__(
        self,
        mode: str = "select",
        ratio: Scheduled | None = None,
        temperature: Scheduled = 1.0,
        clip: tuple[float, float] = (0.1, 3.0),
        scope: str = "global",
        ema_decay: float = 0.99,
    ) -> None:
        check_choice("mode", mode, ("select", "skip", "soft"))
        check_choice("scope", scope, ("micro", "global", "running"))
        self.mode, self.temperature, self.clip = mode, temperature, clip
        self.ratio = ratio if ratio is not None else {"select": 0.6, "skip": 0.3, "soft": 1.0}[mode]
        self.scope, self.ema_decay = scope, ema_decay
        self._threshold_K: list[float] | None = None

    @property
    def per_head(self) -> bool:
        """Quantiles are per head; only the running ones are kept together."""
        return self.scope != "running"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The clip of `soft`; the others weigh 1 or 0."""
        return self.clip if self.mode == "soft" else None

    @property
    def when(self) -> When:
        """`soft` looks at one pair at a time, `global` quantiles at the whole step, the others at a micro-batch."""
        if self.mode == "soft":
            return When.ROW
        return When.WHOLE_STEP if self.scope == "global" else When.MICRO_BATCH

    @torch.no_grad()
    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """Weights of the given micro-batches; their quantile is taken over all of them together."""
        excess = [self.excess(batch) for batch in step]
        if self.mode == "soft":
            temperature = value_at(self.temperature, step[0].step)
            soft = [(e / temperature).exp().clamp(*self.clip) for e in excess]
            return [batch.masked(w) for w, batch in zip(soft, step, strict=True)]
        valid = [batch.valid_BTK for batch in step]
        threshold_K = self._threshold(excess, valid, value_at(self.ratio, step[0].step), reduce, training)
        return [((e >= threshold_K) & v).float() for e, v in zip(excess, valid, strict=True)]

    def excess(self, batch: SchemeInput) -> Tensor:
        """`excess_BTK = nll_policy - nll_reference`."""
        if batch.nll_BTK is None or batch.reference_nll_BTK is None:
            raise ValueError("the rho1 scheme needs nll_BTK and reference_nll_BTK")
        return batch.nll_BTK.float() - batch.reference_nll_BTK.float()

    def _threshold(
        self, excess: list[Tensor], masks: list[Tensor], ratio: float, reduce: Reduce, training: bool
    ) -> Tensor:
        over_ranks = alone if self.scope == "micro" else reduce
        count_K = over_ranks(torch.stack([m.flatten(0, 1).sum(0) for m in masks]).sum(0))
        threshold_K = kth_largest(excess, masks, self._keep(count_K, ratio), over_ranks)
        if self.scope != "running" or not bool((count_K > 0).all()):
            return threshold_K
        running = threshold_K
        if self._threshold_K is not None:
            previous_K = threshold_K.new_tensor(self._threshold_K)
            running = self.ema_decay * previous_K + (1 - self.ema_decay) * threshold_K
        if training:
            self._threshold_K = running.tolist()
        return running

    def _keep(self, count_K: Tensor, ratio: float) -> Tensor:
        """How many pairs of each head stay: rounded up, so that at least one does wherever there is one."""
        share = ratio if self.mode == "select" else 1.0 - ratio
        return torch.tensor([math.ceil(count * share - 1e-9) for count in count_K.tolist()], device=count_K.device)

    def state_dict(self) -> dict[str, Any]:
        """The running threshold per head."""
        return {"threshold_K": self._threshold_K}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._threshold_K = state["threshold_K"]
