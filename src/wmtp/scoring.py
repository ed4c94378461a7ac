"""Frozen scorers: what a critic or a reference model says about a batch, without gradients.

Their scores are functions of the data alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.model import MTPModel, batch_targets, hidden_loss
from wmtp.targets import align_to_targets
from wmtp.value import ValueModel

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

    Args:
        alignment: `next` is the reference's next-token nll of x[t+k] (it has seen k-1 tokens more than head k);
            `matched` is that of the reference's own head k.
        kind, chunk: of the loss, as the policy's: then equal models have equal losses, to the last bit.

    Raises:
        ValueError: an unknown alignment, or `matched` with a reference of fewer heads.
    """
    if alignment == "matched":
        if model.num_heads < num_heads:
            raise ValueError(f"alignment 'matched' needs {num_heads} heads, the reference has {model.num_heads}")
        return model_nll(model, batch, num_heads=num_heads, kind=kind, chunk=chunk)
    if alignment != "next":
        raise ValueError(f"alignment must be one of {ALIGNMENTS}, got {alignment!r}")
    next_BT = model_nll(model, batch, num_heads=1, kind=kind, chunk=chunk)[:, :, 0]
    of_token_BT = torch.cat([torch.zeros_like(next_BT[:, :1]), next_BT[:, :-1]], 1)
    return align_to_targets(of_token_BT, num_heads)
