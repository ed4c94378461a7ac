"""Frozen scorers: what a critic, a reference or a reward model says about a batch, without gradients.

Their scores are functions of the data alone. Those of critic and reference belong to tokens: `scores_BTC[b, j]` are
those of token j, 0 where nothing reads them. A reward belongs to a row, and is its only score. So they can be asked for
now or have been stored (`wmtp.scores`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.model import MTPModel, batch_targets, hidden_loss
from wmtp.reward import RewardModel
from wmtp.targets import align_to_targets
from wmtp.value import ValueModel, with_state_before

ALIGNMENTS = ("next", "matched")


@torch.no_grad()
def critic_values(model: ValueModel, batch: Batch) -> Tensor:
    """`values_BT`, fp32: value read after each token."""
    values_BT: Tensor = model(batch.tokens_BT)
    return values_BT.float()


@torch.no_grad()
def model_nll(
    model: MTPModel,
    batch: Batch,
    *,
    num_heads: int | None = None,
    kind: str = "fused",
    chunk: int | None = None,
) -> Tensor:
    """`nll_BTK` of a model's own heads; 0 where there is no target."""
    heads = num_heads or model.num_heads
    hidden_K = model(batch.tokens_BT)[:heads]
    targets = batch_targets(batch, heads)
    return hidden_loss(hidden_K, model.unembedding(), targets, kind=kind, chunk=chunk).nll_BTK


def critic_scores(model: ValueModel, batch: Batch) -> Tensor:
    """`values_BTC` with C = 1: of the response's tokens and the token before them."""
    values_BT = critic_values(model, batch)
    return torch.where(with_state_before(batch.trainable_BT), values_BT, 0.0).unsqueeze(-1)


def reference_scores(
    model: MTPModel,
    batch: Batch,
    num_heads: int,
    *,
    alignment: str = "next",
    kind: str = "fused",
    chunk: int | None = None,
) -> Tensor:
    """The reference's nll of every response token, `[B, T, C]`.

    Args:
        alignment: `next` asks its next-token head (C = 1), `matched` each of its first K heads (C = K).
        kind, chunk: of the loss, as the policy's: then equal models have equal losses, to the last bit.

    Raises:
        ValueError: an unknown alignment, or `matched` with a reference of fewer heads.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment must be one of {ALIGNMENTS}, got {alignment!r}")
    if alignment == "matched" and model.num_heads < num_heads:
        raise ValueError(f"alignment 'matched' needs {num_heads} heads, the reference has {model.num_heads}")
    asked = num_heads if alignment == "matched" else 1
    nll_BTC = model_nll(model, batch, num_heads=asked, kind=kind, chunk=chunk)
    scores_BTC = torch.zeros_like(nll_BTC)
    for k in range(1, min(asked, nll_BTC.shape[1] - 1) + 1):
        scores_BTC[:, k:, k - 1] = nll_BTC[:, :-k, k - 1]
    return scores_BTC


@torch.no_grad()
def reward_scores(model: RewardModel, batch: Batch) -> Tensor:
    """`rewards_BTC` with T = C = 1; what rows that only fill get is read by nobody.

    Raises:
        ValueError: rows without the reward model's ids.
    """
    judged_BJ, mask_BJ = batch.judged_BJ, batch.judged_mask_BJ
    if judged_BJ is None:
        if batch.row_B:
            raise ValueError("the rows have no ids of a reward model")
        judged_BJ, mask_BJ = torch.zeros_like(batch.tokens_BT), torch.ones_like(batch.trainable_BT)
    reward_B: Tensor = model(judged_BJ, mask_BJ)
    return reward_B.view(-1, 1, 1)


def of_pairs(scores_BTC: Tensor, num_heads: int) -> Tensor:
    """Scores of tokens as those of the (position, head) that predict them: `out[b, t, k] = scores[b, t+k, k]`.

    One score per token (C = 1) is every head's.
    """
    if scores_BTC.shape[2] == 1:
        return align_to_targets(scores_BTC[:, :, 0], num_heads)
    out_BTK = torch.zeros_like(scores_BTC[:, :, :num_heads])
    for k in range(1, min(num_heads, scores_BTC.shape[1] - 1) + 1):
        out_BTK[:, :-k, k - 1] = scores_BTC[:, k:, k - 1]
    return out_BTK


def reference_nll(
    model: MTPModel,
    batch: Batch,
    num_heads: int,
    *,
    alignment: str = "next",
    kind: str = "fused",
    chunk: int | None = None,
) -> Tensor:
    """The reference's nll of every target, `[B, T, K]`.

    With alignment `next` it has seen k-1 tokens more than the policy's head k. Arguments and errors as
    `reference_scores`.
    """
    scores_BTC = reference_scores(model, batch, num_heads, alignment=alignment, kind=kind, chunk=chunk)
    return of_pairs(scores_BTC, num_heads)
