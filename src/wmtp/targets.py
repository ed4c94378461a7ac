"""Which token each head must predict at each position.

Source: docs/math.md (1). Head k (counted from 1) at position t predicts token t+k.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100
"""The target id of a (position, head) that has nothing to predict; the value `torch.nn.functional` uses."""


def future_targets(tokens_BT: Tensor, trainable_BT: Tensor, document_BT: Tensor | None, num_heads: int) -> Tensor:
    """Return `target_BTK`, int64: `tokens[b, t+k]`, or `IGNORE`.

    A target exists when position t+k exists, lies in the same document as t, and its token is trainable.

    Args:
        tokens_BT: token ids, any integer type.
        trainable_BT: bool; True where the token may be *predicted* (response tokens and their EOS).
        document_BT: integer id of the document each token belongs to; None when a row is one document.
        num_heads: K, at least 1.

    Raises:
        ValueError: K < 1 or shapes that differ.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    for name, other in (("trainable_BT", trainable_BT), ("document_BT", document_BT)):
        if other is not None and other.shape != tokens_BT.shape:
            raise ValueError(f"{name} has shape {tuple(other.shape)}, tokens_BT has {tuple(tokens_BT.shape)}")
    B, T = tokens_BT.shape
    target_BTK = torch.full((B, T, num_heads), IGNORE, dtype=torch.int64, device=tokens_BT.device)
    for k in range(1, min(num_heads, T - 1) + 1):
        valid = trainable_BT[:, k:].bool()
        if document_BT is not None:
            valid = valid & (document_BT[:, k:] == document_BT[:, :-k])
        target_BTK[:, :-k, k - 1] = torch.where(valid, tokens_BT[:, k:].long(), IGNORE)
    return target_BTK


def align_to_targets(per_token_BT: Tensor, num_heads: int) -> Tensor:
    """Turn a quantity of token j into one of the (position, head) that predicts it: `out[b,t,k] = u[b,t+k]`.

    0 where t+k is past the end: there is no target.
    """
    B, T = per_token_BT.shape
    out_BTK = per_token_BT.new_zeros((B, T, num_heads))
    for k in range(1, min(num_heads, T - 1) + 1):
        out_BTK[:, :-k, k - 1] = per_token_BT[:, k:]
    return out_BTK
