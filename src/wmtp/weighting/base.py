"""What a weighting scheme is.

A scheme turns what is known about the micro-batches of one optimiser step into one weight per (position, head).
It sees tensors and numbers only: no kernel, optimiser, file or process group. To add up over ranks it is given a
callable. Weights are fp32, detached, >= 0, aligned to the *target*: `weight[b, t, k]` belongs to token t+k; 0 where
there is no target. `wmtp.testing.check_scheme` holds a scheme to what it promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from wmtp.ranks import Reduce
from wmtp.targets import IGNORE, align_to_targets


class When(Enum):
    """What a scheme must have seen before it can tell its weights."""

    BEFORE_FORWARD = "before_forward"
    """The data and frozen scores only: loss and gradient come from one visit."""
    ROW = "row"
    """Also the policy's nll (and gradient norm) of the very pair: still one visit. Such a scheme is asked about any set
    of pairs, often laid out as one row of one head."""
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
    row_B: Tensor | None = None
    """int64: place of each row in the data set; -1 for a row that only fills."""
    group_B2: Tensor | None = None
    """fp32: mean and standard deviation of the rewards of all responses to the row's problem; NaN unknown."""
    values_BT: Tensor | None = None
    """Frozen critic: value read after token t."""
    reference_nll_BTK: Tensor | None = None
    """Frozen reference: nll of the target of (t, k)."""
    nll_BTK: Tensor | None = None
    """Policy: detached nll of the target of (t, k)."""
    gradient_norm_BTK: Tensor | None = None
    """Policy: |d nll / d hidden| of (t, k), in front of the unembedding, before any weight."""
    step: int = 1
    """Of the optimiser, counted from 1."""
    first_head: int = 0
    """Which head (counted from 0) the first of the K heads here is."""

    def head(self, k: int) -> SchemeInput:
        """What concerns the k-th head here (counted from 0)."""
        pairs = ("target_BTK", "reference_nll_BTK", "nll_BTK", "gradient_norm_BTK")
        of_all = {name: getattr(self, name) for name in pairs}
        of_head: dict[str, Any] = {name: v if v is None else v[:, :, k : k + 1] for name, v in of_all.items()}
        return replace(self, first_head=self.first_head + k, **of_head)

    @property
    def valid_BTK(self) -> Tensor:
        """bool: where there is a target."""
        return self.target_BTK != IGNORE

    def of_targets(self, per_token_BT: Tensor) -> Tensor:
        """`u[b, j]` of token j as the weight of every pair that predicts it; 0 where there is no target."""
        all_heads = self.first_head + self.target_BTK.shape[2]
        return self.masked(align_to_targets(per_token_BT, all_heads)[:, :, self.first_head :])

    def masked(self, weight_BTK: Tensor) -> Tensor:
        """The weights where there is a target, 0 elsewhere."""
        return torch.where(self.valid_BTK, weight_BTK, 0.0)


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
        """What it reads that costs something: any of `values_BT`, `reference_nll_BTK`, `gradient_norm_BTK`."""
        ...

    @property
    def bounds(self) -> tuple[float, float] | None:
        """What its weights are clipped to; None where nothing is clipped. For the figures only."""
        ...

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """`weight_BTK` per micro-batch; None means 1 everywhere.

        `step` holds all micro-batches of the step, or one (`When.MICRO_BATCH`). Memory is updated only if `training`.
        """
        ...

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """Told once after every training step that was done: sums over all its pairs on all ranks.

        `count_K`, `nll_sum_K`, and `gradient_norm_sum_K` if the scheme needs gradient norms. Memory of a scheme that
        looks at one row at a time is updated here.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SchemeDefaults:
    """Mix-in with what most schemes answer: nothing is clipped, and a finished step teaches nothing."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Nothing is clipped."""
        return None

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """Nothing."""


class Stateless(SchemeDefaults):
    """Mix-in of schemes without memory."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accepts only the empty state that `state_dict` returns."""
        if state:
            raise ValueError(f"{type(self).__name__} has no memory, got the keys {sorted(state)}")


def ask(scheme: Scheme, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor]:
    """Weights of all micro-batches of a step, asked for as the scheme's `when` says; None is spelt out."""
    groups = [[batch] for batch in step] if scheme.when is When.MICRO_BATCH else [step]
    given = [weight for group in groups for weight in scheme.weights(group, reduce, training)]
    return [batch.valid_BTK.float() if w is None else w for w, batch in zip(given, step, strict=True)]


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
