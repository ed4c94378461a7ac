"""Discounted sums of what is still to come: advantages and returns are made of them."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_sums(terms_BT: Tensor, factor: float) -> Tensor:
    """`out[b, t] = terms[b, t] + factor * out[b, t+1]`, 0 after the end.

    By doubling: after n passes every sum reaches 2^n terms far, so T steps one after another become log2(T).

    Args:
        factor: in [0, 1].
    """
    sums_BT, reach = terms_BT, 1
    while reach < terms_BT.shape[1]:
        nearer = sums_BT[:, :-reach] + factor**reach * sums_BT[:, reach:]
        sums_BT = torch.cat([nearer, sums_BT[:, -reach:]], 1)
        reach *= 2
    return sums_BT
