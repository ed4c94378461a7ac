"""What a run will need, said before it starts (`--dry-run`): on every rank, with every strategy, from shapes alone.

The model may be without weights. What its passes hold is rehearsed on the meta device (`wmtp.rehearsal`), what a
strategy adds is arithmetic (`wmtp.memory`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wmtp import devices
from wmtp.loss_fused import default_chunk
from wmtp.memory import (
    EXACT,
    Passes,
    checkpoint_copy_bytes,
    elements,
    gradient_bytes,
    host_bytes,
    layout,
    loss_bytes,
    optimiser_bytes,
    step_peak,
    total,
    weight_bytes,
)
from wmtp.memory import Parts as Bytes
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.parts import Parts, prepare_model
from wmtp.rehearsal import Loss, Model, on_meta, rehearse, rehearse_scoring, units_of
from wmtp.reward import RewardModel

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class RankNeeds:
    """Memory of one rank under one strategy."""

    strategy: str
    bytes: Bytes
    """At the peak of a step, by part."""
    state_bytes: int
    """Weights, gradients and optimiser between steps: what sharding divides by the number of ranks."""
    host_bytes: int
    """In the host's memory beside that, with `distributed.cpu_offload`."""

    @property
    def total(self) -> int:
        """Expected peak, beside what the process itself takes."""
        return total(self.bytes)


@dataclass(frozen=True)
class Estimate:
    """Bytes by part, and the facts of the run."""

    parameters: int
    trainable: int
    frozen_parameters: int
    """Of critic, reference and reward model."""
    steps: int
    epochs: float
    tokens: int
    """Rough number of tokens the run trains on, padding left out."""
    ranks: int
    longest_micro_batch: tuple[int, int]
    """(rows, length) on one rank."""
    micro_batches: int
    """Of one rank in a step, at most."""
    strategy: str
    """The config's."""
    needs: list[RankNeeds]
    """Of every strategy; of the one process, where there is one."""
    activation_bytes: dict[str, int]
    """Most that the passes hold beside parameters, `kept` or `recomputed` (`train.activation_checkpointing`)."""
    process_bytes: int | None
    """Resident size of a process that has imported all it needs, where the system tells; a GPU does not hold it."""
    checkpoint_bytes: int

    @property
    def bytes(self) -> Bytes:
        """Memory at the peak of a step with the config's strategy, by part."""
        return next(needs for needs in self.needs if needs.strategy == self.strategy).bytes

    @property
    def total(self) -> int:
        """Expected peak, beside what the process itself takes."""
        return total(self.bytes)


def estimate(parts: Parts, ranks: int = 1) -> Estimate:
    """The needs of a run whose parts are built, with or without weights.

    Args:
        ranks: of one host; HYBRID_SHARD needs more than one such host.
    """
    model, train = parts.model, parts.data.train
    units = units_of(model)
    rows, length, micro_batches = largest_share(parts, ranks)
    per_epoch = train.tokens_per_epoch
    shape = (rows, length)
    kept, recomputed = (rehearsed(parts, shape, ranks, recomputed=choice) for choice in (False, True))
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(elements(unit.trained) for unit in units),
        frozen_parameters=sum(p.numel() for scorer in parts.frozen for p in scorer.parameters()),
        steps=parts.steps,
        epochs=parts.steps / len(train),
        tokens=round(per_epoch * parts.steps / len(train)),
        ranks=ranks,
        longest_micro_batch=shape,
        micro_batches=micro_batches,
        strategy=parts.config.distributed.strategy if ranks > 1 else SINGLE,
        needs=needs_of(
            parts, recomputed if parts.config.train.activation_checkpointing else kept, ranks, micro_batches
        ),
        activation_bytes={"kept": _most(kept), "recomputed": _most(recomputed)},
        process_bytes=devices.resident_memory(),
        checkpoint_bytes=checkpoint_bytes(model),
    )


def checkpoint_bytes(model: Model) -> int:
    """Weights and the optimiser's state, of all ranks together."""
    units = units_of(model)
    return weight_bytes(units, 1) + optimiser_bytes(units, 1)


def _most(passes: Passes) -> int:
    return max(moment.activations for moment in passes.moments)


SINGLE = "one process"
STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD")


def needs_of(parts: Parts, passes: Passes, ranks: int, micro_batches: int) -> list[RankNeeds]:
    """What each strategy needs on a rank."""
    config, device = parts.config, parts.device.type
    frozen = scoring(parts, ranks)
    further = {}
    if device == "cpu" and config.checkpoint.every is not None:
        further["checkpoint copy"] = checkpoint_copy_bytes(passes.units, ranks)
    found = []
    for strategy in STRATEGIES if ranks > 1 else (SINGLE,):
        how = layout(
            strategy,
            ranks,
            bf16=config.precision == "bf16",
            device=device,
            cpu_offload=config.distributed.cpu_offload,
        )
        kept = [term(passes.units, how.pieces) for term in (weight_bytes, gradient_bytes, optimiser_bytes)]
        peak = step_peak(passes, frozen, how, micro_batches, further)
        found.append(RankNeeds(strategy, peak, sum(kept), host_bytes(passes, frozen, how)))
    return found


def largest_share(parts: Parts, ranks: int) -> tuple[int, int, int]:
    """(rows, length) of the micro-batch with the most positions that a rank can be given, and how many micro-batches
    of such rows it takes in a step."""
    train, options = parts.data.train, parts.config.train
    per_item, longest = train.rows_per_item, train.longest
    share = -(-train.largest_batch // ranks) * per_item
    rows = min(options.micro_batch_size or share, share)
    if options.micro_batch_tokens is not None:
        rows = min(rows, max(per_item, options.micro_batch_tokens // longest // per_item * per_item))
    return rows, longest, -(-share // rows)


# The passes


def rehearsed(parts: Parts, shape: tuple[int, int], ranks: int, *, recomputed: bool) -> Passes:
    """What training on one micro-batch holds.

    Args:
        recomputed: whether activations are (`train.activation_checkpointing`).
    """
    model, autocast = _copy(parts, parts.model, ranks)
    prepare_model(model, checkpointing=recomputed, compiled=False)
    shared = model.unembedding().projection_VD if isinstance(model, MTPModel) else None
    kept = shared.numel() * EXACT if shared is not None and shared.requires_grad else 0
    by_head = isinstance(parts.objective, MTPObjective) and parts.objective.head_by_head
    loss = _loss(parts, model, shape)
    moments = rehearse(model, shape, loss, kept, head_by_head=by_head, autocast=autocast)
    return Passes(units_of(parts.model), moments)


def scoring(parts: Parts, ranks: int) -> list[Passes]:
    """What asking each frozen model about one micro-batch holds."""
    return [_scoring(parts, scorer, ranks) for scorer in parts.frozen]


def _scoring(parts: Parts, scorer: Model, ranks: int) -> Passes:
    rows, length, _ = largest_share(parts, ranks)
    if isinstance(scorer, RewardModel):
        length = max(len(row.judged) for row in parts.data.rows if row.judged is not None)
    model, autocast = _copy(parts, scorer, ranks)
    loss = _loss(parts, model, (rows, length))

    def without_gradients(heads: int) -> Bytes:
        return {name: size for name, size in loss(heads).items() if name.startswith("logits")}

    moments = rehearse_scoring(model, (rows, length), without_gradients, autocast=autocast)
    return Passes(units_of(scorer), moments)


def _copy(parts: Parts, model: Model, ranks: int) -> tuple[Model, bool]:
    """The model on the meta device, and whether autocast lowers its products: ranks fetch parameters in bf16."""
    lower = parts.config.precision == "bf16"
    return on_meta(model, torch.bfloat16 if lower and ranks > 1 else torch.float32), lower and ranks == 1


def _loss(parts: Parts, model: Model, shape: tuple[int, int]) -> Loss:
    """Bytes by part of the loss of so many heads."""
    if not isinstance(model, MTPModel) or not isinstance(parts.objective, MTPObjective):
        return lambda heads: {}
    vocabulary, width = model.unembedding().projection_VD.shape
    positions, objective = shape[0] * shape[1], parts.objective
    if objective.kind == "plain":
        return lambda heads: {"logits": 2 * EXACT * heads * positions * vocabulary}
    device = parts.device.type
    lower = parts.config.precision == "bf16"
    chunk = objective.chunk or default_chunk(vocabulary, device, torch.bfloat16 if lower else torch.float32)
    computed = 2 if lower else EXACT
    trained = model.unembedding().projection_VD.requires_grad

    def of_heads(heads: int) -> Bytes:
        found = loss_bytes(
            heads=heads,
            positions=positions,
            width=width,
            vocabulary=vocabulary,
            chunk=chunk,
            computed=computed,
            device=device,
        )
        return found if trained else {name: size for name, size in found.items() if "gradient" not in name}

    return of_heads
