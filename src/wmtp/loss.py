"""The loss, slow and obvious: the specification that the fused version is proven against.

Source: docs/math.md (2). Nothing here is fast and nothing here may change for speed's sake.

The unembedding is described by `Unembedding`: logits = softcap(scale * (hidden @ projection.T + bias)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp.targets import IGNORE


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that losses and weights are computed in: fp32 whatever the compute dtype; float64 stays float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


RowWeight = Callable[[int, Tensor, Tensor, Tensor | None], Tensor]
"""(head counted from 0, places of rows in the flattened [B, T], their detached nll, and the norms of their gradients if
these were asked for) -> weights of these rows."""


class Unembedding(NamedTuple):
    """How a hidden state becomes logits."""

    projection_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    """Gemma 2's final soft-capping: `cap * tanh(logits / cap)`."""
    scale: float = 1.0
    """Some models multiply their logits by a constant (Cohere's `logit_scale`, Granite's `1 / logits_scaling`)."""

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits `[..., V]` of hidden states `[..., D]`, in their own dtype."""
        logits = F.linear(hidden_ND, self.projection_VD, self.bias_V)
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class LossSum:
    """Sums over one micro-batch. They add; the one division happens in `step.train_step`.

    `weighted_sum` carries the gradient; everything else is detached, fp32 (counts int64).
    """

    weighted_sum: Tensor
    """sum c_k * w * nll over the valid (position, head) pairs."""
    weight_total: Tensor
    """sum c_k * w over the same pairs."""
    nll_sum_K: Tensor
    """Unweighted sum of nll per head."""
    count_K: Tensor
    """Number of valid pairs per head."""
    correct_K: Tensor | None
    """How often no token was more likely than the target, per head; None where the loss does not tell."""
    nll_BTK: Tensor
    """Per-pair nll, 0 where there is no target."""
    weight_BTK: Tensor | None = None
    """Weights that were made from the losses on the way (`RowWeight`); None where they were given."""
    gradient_norm_BTK: Tensor | None = None
    """|d nll / d hidden| per pair, before any weight; 0 where there is no target. Only where asked for."""
    softmax_2BTK: Tensor | None = None
    """What a second visit of the fused loss need not find again: maximum logit, sum of the others' exponentials."""

    def head(self, k: int) -> LossSum:
        """The figures of head k (counted from 0); `weighted_sum` and `weight_total` stay those of all heads."""
        one = slice(k, k + 1)
        pairs = ("nll_BTK", "weight_BTK", "gradient_norm_BTK", "softmax_2BTK")
        figures: dict[str, Any] = {name: getattr(self, name) for name in ("nll_sum_K", "count_K", "correct_K", *pairs)}
        of_head: dict[str, Any] = {n: v if v is None else v[..., one] for n, v in figures.items()}
        return replace(self, **of_head)

    def per(self, weight_total: Tensor) -> LossSum:
        """The same sums, to be divided by another total."""
        return replace(self, weight_total=weight_total)


def plain_nll(hidden_K: Sequence[Tensor], unembedding: Unembedding, target_BTK: Tensor) -> tuple[Tensor, Tensor]:
    """Per-pair negative log-likelihood and argmax-correctness, `nll_BTK` (differentiable) and `correct_BTK` (bool).

    One head's logits `[B,T,V]` at a time, in fp32; pairs without a target are 0 and False.
    """
    nll_K, correct_K = [], []
    for k, hidden_BTD in enumerate(hidden_K):
        logits_BTV = unembedding.logits(hidden_BTD)
        logits_BTV = logits_BTV.to(accumulator(logits_BTV.dtype))
        target_BT = target_BTK[:, :, k]
        nll = F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), reduction="none", ignore_index=IGNORE)
        nll_K.append(nll.view_as(target_BT))
        at_target_BT = logits_BTV.gather(-1, target_BT.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        correct_K.append((at_target_BT >= logits_BTV.amax(-1)) & (target_BT != IGNORE))
    return torch.stack(nll_K, -1), torch.stack(correct_K, -1)


def plain_gradient_norms(hidden_K: Sequence[Tensor], unembedding: Unembedding, target_BTK: Tensor) -> Tensor:
    """|d nll / d hidden| of every pair, `[B, T, K]`: how far its loss pulls at the final hidden state, unweighted."""
    norm_K = []
    for k, hidden_BTD in enumerate(hidden_K):
        with torch.enable_grad():
            leaf_BTD = hidden_BTD.detach().requires_grad_()
            nll_BT1, _ = plain_nll([leaf_BTD], unembedding, target_BTK[:, :, k : k + 1])
            (gradient_BTD,) = torch.autograd.grad(nll_BT1.sum(), leaf_BTD)
        norm_K.append(torch.linalg.vector_norm(gradient_BTD, dim=-1, dtype=accumulator(hidden_BTD.dtype)))
    return torch.stack(norm_K, -1)


def row_weights(weight_of: RowWeight, nll_BTK: Tensor, norm_BTK: Tensor | None = None) -> Tensor:
    """`weight_BTK` of a rule that looks at one row at a time."""
    B, T, K = nll_BTK.shape
    places = torch.arange(B * T, device=nll_BTK.device)

    def of_head(k: int) -> Tensor:
        norm_N = None if norm_BTK is None else norm_BTK[:, :, k].flatten()
        return weight_of(k, places, nll_BTK[:, :, k].detach().flatten(), norm_N).view(B, T)

    return torch.stack([of_head(k) for k in range(K)], -1)


def reduce_loss(
    nll_BTK: Tensor,
    correct_BTK: Tensor,
    target_BTK: Tensor,
    weight_BTK: Tensor | None = None,
    coefficient_K: Tensor | None = None,
) -> LossSum:
    """The weighted reduction of docs/math.md (2): sums only, no division.

    Args:
        weight_BTK: w >= 0, used in fp32 and detached; None means 1 everywhere.
        coefficient_K: c_k >= 0; None means 1 for every head.
    """
    valid_BTK = target_BTK != IGNORE
    scale_BTK = pair_scale(target_BTK, weight_BTK, coefficient_K, nll_BTK.dtype)
    nll_detached = nll_BTK.detach() * valid_BTK
    return LossSum(
        weighted_sum=(scale_BTK * nll_BTK).sum(),
        weight_total=scale_BTK.sum(),
        nll_sum_K=nll_detached.sum((0, 1)),
        count_K=valid_BTK.sum((0, 1)),
        correct_K=correct_BTK.sum((0, 1)),
        nll_BTK=nll_detached,
    )


def pair_scale(
    target_BTK: Tensor,
    weight_BTK: Tensor | None,
    coefficient_K: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """c_k * w * m for every pair: what multiplies its nll. Detached; exactly 0 where there is no target."""
    scale_BTK = (target_BTK != IGNORE).to(dtype)
    if weight_BTK is not None:
        if weight_BTK.shape != target_BTK.shape:
            raise ValueError(f"weights have shape {tuple(weight_BTK.shape)}, targets {tuple(target_BTK.shape)}")
        scale_BTK = torch.where(scale_BTK > 0, weight_BTK.detach().to(dtype), 0.0)
    if coefficient_K is not None:
        scale_BTK = scale_BTK * coefficient_K.to(scale_BTK)
    return scale_BTK
