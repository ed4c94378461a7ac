"""How far a policy has gone from a frozen reference, estimated on the policy's own samples. docs/math.md (4.9).

The k3 estimator of Schulman 2020 (*Approximating KL Divergence*), as in Shao et al. 2024 (arXiv 2402.03300, equation
4): never negative, and on samples of the policy its mean is the divergence of the policy from the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wmtp.loss import Unembedding
from wmtp.model import hidden_loss
from wmtp.targets import IGNORE


class Divergence(NamedTuple):
    """Sums over the pairs of one head."""

    total: Tensor
    """sum k3, detached."""
    pull: Tensor
    """A scalar whose gradient is that of sum k3; its own value is not."""


def divergence(
    hidden_BTD: Tensor,
    unembedding: Unembedding,
    target_BT: Tensor,
    reference_nll_BT: Tensor,
    *,
    kind: str = "fused",
    chunk: int | None = None,
) -> Divergence:
    """`k3 = exp(x) - x - 1` with `x = nll - reference_nll` over the pairs that have a target.

    Since `d k3 = (exp(x) - 1) d nll`, its gradient is that of a loss whose row weights, here of either sign, are made
    from the rows' own nll: the loss kernels do it in one visit of the unembedding.

    Args:
        hidden_BTD: final hidden states of the head.
        reference_nll_BT: the reference's nll of the same targets.
        kind, chunk: as in `hidden_loss`.
    """
    reference_N = reference_nll_BT.flatten()

    def slope(k: int, places_R: Tensor, nll_R: Tensor, norm_R: Tensor | None) -> Tensor:
        return torch.expm1(nll_R - reference_N[places_R])

    target_BT1 = target_BT.unsqueeze(-1)
    loss = hidden_loss([hidden_BTD], unembedding, target_BT1, kind=kind, chunk=chunk, weight_of=slope)
    gap_BT = loss.nll_BTK.squeeze(-1) - reference_nll_BT
    k3_BT = torch.where(target_BT == IGNORE, 0.0, torch.expm1(gap_BT) - gap_BT)
    return Divergence(k3_BT.sum(), loss.weighted_sum)
