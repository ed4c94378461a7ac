"""One optimiser step over micro-batches, and one pass of evaluation. The one place where a loss is divided.

plan        frozen scores; weights as far as they are known before a backward pass
per batch   forward, backward of sum / known_total
once        gradients *= known_total / weight_total    (both over all micro-batches and ranks; 1 if uniform)
then        clip; stop before the optimiser if the norm is not finite; step
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wmtp.data.batches import Batch
from wmtp.distributed import local, synchronise, whole
from wmtp.faults import fault
from wmtp.metrics import Meter
from wmtp.objective import Objective, Precision
from wmtp.probing import evaluating
from wmtp.ranks import Reduce, alone


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    metrics: dict[str, float]
    grad_norm: float
    stepped: bool
    """False if the gradient norm was not finite: then neither the model nor the scheme's memory changed."""
    tokens: int
    """Tokens of the rows of all ranks, padding left out."""


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    objective: Objective,
    micro_batches: Sequence[Batch],
    *,
    clip_norm: float | None = 1.0,
    reduce: Reduce = alone,
    precision: Precision = nullcontext,
) -> StepResult:
    """One optimiser step. Four micro-batches give what one batch of the same rows gives.

    Args:
        clip_norm: largest total gradient norm; None never clips.
        reduce: adds a tensor over all ranks.
    """
    memory = objective.state_dict()
    optimizer.zero_grad(set_to_none=True)
    meter = Meter()
    with precision():
        plans = objective.plan(model, micro_batches, reduce, True)
    known_total = reduce(objective.known_total(model, micro_batches))
    for place, (batch, plan) in enumerate(zip(micro_batches, plans, strict=True), 1):
        last = place == len(micro_batches)
        synchronise(model, last)
        meter.merge(objective.backward(model, batch, plan, known_total, reduce, precision, last=last))
    totals = meter.reduced(reduce)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if fault("after_backward") == "nan":
        local(gradients[0]).fill_(float("nan"))
    _rescale(gradients, known_total, totals["weight_total"])
    grad_norm = whole(torch.nn.utils.get_total_norm(gradients))
    finite = bool(torch.isfinite(grad_norm))
    if finite:
        if clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, grad_norm)
        optimizer.step()
        objective.observe(totals)
    else:
        objective.load_state_dict(memory)
    tokens = reduce(known_total.new_tensor(sum(batch.num_tokens for batch in micro_batches), dtype=torch.int64))
    return StepResult(objective.metrics(totals, meter), float(grad_norm), finite, int(tokens))


def _rescale(gradients: list[Tensor], known_total: Tensor, weight_total: Tensor) -> None:
    """From 'divided by known_total' to 'divided by weight_total', at once and only if they differ.

    Where nothing weighs anything all gradients are 0, and stay 0.
    """
    if bool(weight_total != known_total) and bool(weight_total > 0):
        torch._foreach_mul_(gradients, float(known_total / weight_total))


def evaluate(
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Sequence[Batch]],
    *,
    reduce: Reduce = alone,
    precision: Precision = nullcontext,
) -> dict[str, float]:
    """Metrics over all batches, each given as its micro-batches.

    Neither the model (nor its modules' modes) nor any scheme's memory changes.
    """
    meter = Meter()
    with evaluating(model):
        for micro_batches in batches:
            with precision():
                plans = objective.plan(model, micro_batches, reduce, False)
                for batch, plan in zip(micro_batches, plans, strict=True):
                    meter.merge(objective.sums(model, batch, plan, reduce, False).meter)
    return objective.metrics(meter.reduced(reduce), meter)
