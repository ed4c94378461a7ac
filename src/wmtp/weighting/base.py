"""What a weighting scheme is.

A scheme turns what is known about the micro-batches of one optimiser step into one weight per (position, head).
It sees tensors and numbers only: no kernel, optimiser, file or process group. To add up over ranks it is given a
callable. Weights are fp32, detached, >= 0, aligned to the *target*: `weight[b, t, k]` belongs to token t+k.
What a scheme says where there is no target does not matter; the loss multiplies it by 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from wmtp.ranks import Reduce
from wmtp.targets import IGNORE


class When(Enum):
    """What a scheme must have seen before it can tell its weights."""

    BEFORE_FORWARD = "before_forward"
    """The data and frozen scores only: loss and gradient come from one visit."""
    ROW = "row"
    """Also the policy's nll of the very pair: still one visit. Such a scheme is asked about any set of pairs, laid out
    as one row of one head."""
    MICRO_BATCH = "micro_batch"
    """Also the policy's nll on the same micro-batch."""
    WHOLE_STEP = "whole_step"
    """Also the policy's nll on every micro-batch of the step."""


@dataclass(frozen=True)
class SchemeInput:
    """One micro-batch as a scheme sees it. What a scheme does not ask for is None."""

    target_BTK: Tensor
    response_BT: Tensor
    """bool: response tokens and their EOS."""
    reward_B: Tensor
    """1 correct, 0 incorrect, NaN unknown."""
    values_BT: Tensor | None = None
    """Frozen critic: value read after token t."""
    reference_nll_BTK: Tensor | None = None
    """Frozen reference: nll of the target of (t, k)."""
    nll_BTK: Tensor | None = None
    """Policy: detached nll of the target of (t, k)."""

    def head(self, k: int) -> SchemeInput:
        """What concerns head k (counted from 0)."""
        reference, nll = (None if v is None else v[:, :, k : k + 1] for v in (self.reference_nll_BTK, self.nll_BTK))
        return replace(self, target_BTK=self.target_BTK[:, :, k : k + 1], reference_nll_BTK=reference, nll_BTK=nll)

    @property
    def valid_BTK(self) -> Tensor:
        """bool: where there is a target."""
        return self.target_BTK != IGNORE


class Scheme(Protocol):
    """One weighting scheme."""

    @property
    def when(self) -> When: ...

    @property
    def per_head(self) -> bool:
        """Whether head k's weights depend on head k's losses alone.

        Then heads are asked for one by one (a `SchemeInput` of K = 1 each), and only one head's activations live at a
        time. A scheme that counts its calls, or keeps something for all heads together, says False.
        """
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Which frozen scores it reads: any of `values_BT`, `reference_nll_BTK`."""
        ...

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """`weight_BTK` per micro-batch; None means 1 everywhere.

        `step` holds all micro-batches of the step, or one (`When.MICRO_BATCH`). Memory is updated only if `training`.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """Mix-in of schemes without memory."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accepts only the empty state that `state_dict` returns."""
        if state:
            raise ValueError(f"{type(self).__name__} has no memory, got the keys {sorted(state)}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def masked_moments(value_list: Sequence[Tensor], mask_list: Sequence[Tensor], reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Mean and (population) variance over all masked elements of all tensors and ranks, in fp32.

    Two passes: the variance is that of deviations from the mean, so a constant has variance exactly 0 whenever its
    mean is exact, and never a negative one.
    """
    count = reduce(torch.stack([m.sum() for m in mask_list]).sum()).clamp(min=1)
    mean = (
        reduce(torch.stack([(v.float() * m).sum() for v, m in zip(value_list, mask_list, strict=True)]).sum()) / count
    )
    squares = [((v.float() - mean).square() * m).sum() for v, m in zip(value_list, mask_list, strict=True)]
    return mean, reduce(torch.stack(squares).sum()) / count
