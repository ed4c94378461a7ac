"""Attention over cached keys that several heads share, without a copy of them.

Transformers' `sdpa` copies keys and values once for every head of a group, unless the forward is one token wide: then
the heads of a group become queries of one head. A forward over drafts is wider, and its copies of whole caches, in
every layer, would cost more than all else that drafts add to it. The heads of a group can become queries of one head
whatever the width, if the mask says for each what it sees. A forward over a prompt is so wide that the mask would be
the larger copy: there each head of a group is asked by itself, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "wmtp_grouped"
"""What transformers' configs call it."""


def grouped_attention(
    module: nn.Module,
    query_BHQD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Transformers' `sdpa`, which also gets what this does not know: `[B, Q, H, D]`, and no weights.

    Args:
        key_BGSD: of G groups of H / G heads each.
        attention_mask: what is added to the scores `[B, 1, Q, S]`.
    """
    (rows, heads, width, _), groups = query_BHQD.shape, key_BGSD.shape[1]
    known = all(keywords.get(name) is None for name in ("position_bias", "softcap"))
    if attention_mask is None or heads == groups or not known:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BHQD, key_BGSD, value_BGSD, attention_mask, scaling=scaling, **keywords
        )
        return out
    size = heads // groups
    if width > 2 * groups * key_BGSD.shape[-1] and not torch.compiler.is_compiling():
        query_BGMQD = query_BHQD.reshape(rows, groups, size, width, -1)
        of_member = [
            scaled_dot_product_attention(
                query_BGMQD[:, :, i], key_BGSD, value_BGSD, attn_mask=attention_mask, scale=scaling
            )
            for i in range(size)
        ]
        return torch.stack(of_member, 2).flatten(1, 2).transpose(1, 2).contiguous(), None
    query = query_BHQD.reshape(rows, groups, size * width, -1)
    mask = attention_mask[:, :, None].expand(-1, -1, size, -1, -1).reshape(rows, 1, size * width, -1)
    read = scaled_dot_product_attention(query, key_BGSD, value_BGSD, attn_mask=mask, scale=scaling)
    return read.reshape(rows, heads, width, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def grouped(config: Any) -> Iterator[None]:
    """Models of this config attend so where they would use `sdpa`."""
    named = config._attn_implementation
    if named == "sdpa" and hasattr(config, "num_key_value_heads"):
        config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = named
