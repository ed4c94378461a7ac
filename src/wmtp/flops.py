"""How many floating-point operations training takes, counted from shapes: what "the same FLOPs" means in a study.

Counted are matrix products and attention, 2 per multiply-add, as `torch.utils.flop_counter` does: of the policy's
trunk and heads (forward, backward, what is recomputed), of every visit of the unembedding, and of the frozen scorers.
Attention counts all T x T scores, masked or not; padding is computed and so it counts. Not counted: what is no product
(norms, softmax, the optimiser), evaluations, checkpoints.

A pair that a scheme drops (weight 0) saves its visit for the gradient. How many are dropped is known when the step is
done, so they count as if they were kept: a scheme that drops pairs never spends more than is said here.

Trunk and heads cost a row of length T `linear * T + square * T^2`. The two numbers come from two rehearsals on the
meta device, so any architecture is counted as it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from wmtp.data.batches import Batch
from wmtp.model import MTPModel, batch_targets
from wmtp.objective import MTPObjective, Objective
from wmtp.parts import prepare_model
from wmtp.rehearsal import Model, on_meta, rehearse, rehearse_scoring
from wmtp.targets import IGNORE
from wmtp.weighting import When

PROBE = 32
"""Length of the shorter rehearsal; the longer one is twice as long."""

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def _added_product(_: Any, a: Any, b: Any, *__: Any, **___: Any) -> int:
    return 2 * int(a[0]) * int(a[1]) * int(b[1])


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.addmm_: _added_product,
    aten.addmm: _added_product,
}
"""Operators that torch's counter (2.13) does not know, or not in all their forms, by the same rules."""


def counter() -> FlopCounterMode:
    """Torch's counter, with `FORMULAS`."""
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)


@dataclass(frozen=True)
class RowCost:
    """FLOPs of a row of length T: `linear * T + square * T^2`."""

    linear: float
    square: float

    def of(self, rows: int, length: int) -> int:
        """FLOPs of so many rows."""
        return rows * round(self.linear * length + self.square * length * length)


def row_cost(flops_of: Callable[[int], int]) -> RowCost:
    """The cost that explains what two rehearsals counted."""
    short, long = flops_of(PROBE), flops_of(2 * PROBE)
    square = (long - 2 * short) / (2 * PROBE * PROBE)
    return RowCost(short / PROBE - square * PROBE, square)


def training_cost(model: Model, *, checkpointing: bool, head_by_head: bool) -> RowCost:
    """Forward and backward of trunk and heads (or of a critic), without the unembedding."""

    def flops_of(length: int) -> int:
        copy = on_meta(model)
        prepare_model(copy, checkpointing=checkpointing, compiled=False)
        with counter() as count:
            rehearse(copy, (1, length), lambda heads: {}, 0, head_by_head=head_by_head)
        return int(count.get_total_flops())

    return row_cost(flops_of)


def forward_cost(model: Model) -> RowCost:
    """One forward pass without gradients, without the unembedding."""

    def flops_of(length: int) -> int:
        with counter() as count:
            rehearse_scoring(on_meta(model), (1, length), lambda heads: {})
        return int(count.get_total_flops())

    return row_cost(flops_of)


class StepCost:
    """Counts the steps of a run in one process.

    Args:
        model: to train; like the frozen ones with or without weights.
        frozen: the critic and the reference, where the scheme has them.
        checkpointing: whether activations are recomputed.
    """

    def __init__(
        self, model: Model, objective: Objective, frozen: Sequence[Model] = (), *, checkpointing: bool = False
    ) -> None:
        self.model, self.objective = model, objective
        by_head = isinstance(objective, MTPObjective) and objective.head_by_head
        self.training = training_cost(model, checkpointing=checkpointing, head_by_head=by_head)
        self.scorers = [(scorer, forward_cost(scorer)) for scorer in frozen]

    @cached_property
    def looking(self) -> RowCost:
        """A forward pass of the policy only to see its losses."""
        return forward_cost(self.model)

    def of(self, step: Sequence[Batch]) -> int:
        """FLOPs of one optimiser step over these micro-batches."""
        return sum(self._micro_batch(batch, len(step)) for batch in step)

    def _micro_batch(self, batch: Batch, micro_batches: int) -> int:
        rows, length = batch.tokens_BT.shape
        total = self.training.of(rows, length)
        for scorer, cost in self.scorers:
            read = batch.tokens_BT if batch.judged_BJ is None else batch.judged_BJ
            total += cost.of(*read.shape) + _unembedding(scorer, batch, [1] * heads_of(scorer))
        objective = self.objective
        if not isinstance(objective, MTPObjective):
            return total
        when = objective.scheme.when
        if when is When.WHOLE_STEP and micro_batches > 1:
            total += self.looking.of(rows, length)
        looks = 0
        if when in (When.MICRO_BATCH, When.WHOLE_STEP):
            looks = 2 if objective.norms else 1  # the losses (and norms) are looked at first
        return total + _unembedding(self.model, batch, [1 + looks + some for some in gradients_of(self.model)])


def heads_of(model: Model) -> int:
    """How many heads a model has; a critic has none that meets an unembedding."""
    return model.num_heads if isinstance(model, MTPModel) else 0


def gradients_of(model: Model) -> list[int]:
    """Of how many factors of each head's logits, hidden states and unembedding, a gradient is made."""
    if not isinstance(model, MTPModel):
        return []
    projection_VD = model.unembedding().projection_VD
    trunk = any(p.requires_grad for p in model.base.parameters() if p is not projection_VD)
    heads = [False, *(any(p.requires_grad for p in head.parameters()) for head in model.extra_heads)]
    return [int(trunk or head) + int(projection_VD.requires_grad) for head in heads]


def _unembedding(model: Model, batch: Batch, products_K: Sequence[int]) -> int:
    """So many products of every pair's hidden state, or of its logits' gradient, with the unembedding."""
    if not isinstance(model, MTPModel):
        return 0
    vocabulary, width = model.unembedding().projection_VD.shape
    pairs_K = (batch_targets(batch, model.num_heads) != IGNORE).sum((0, 1)).tolist()
    return sum(2 * products * pairs * vocabulary * width for products, pairs in zip(products_K, pairs_K, strict=True))
