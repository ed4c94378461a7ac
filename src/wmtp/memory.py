"""How much memory a rank needs, from shapes alone: arithmetic, no tensors.

A step is walked through moment by moment (`wmtp.rehearsal` says what each holds beside parameters), and what a
strategy holds at each is added up: bytes, by part. The peak is the largest of these sums. What FSDP2 does at each
moment is read from its source (torch 2.13, `torch/distributed/fsdp/_fully_shard`):

    fetch      one flat buffer of the unit, gathered from all ranks, then copied out into parameters. On the way
               forward the flat buffer stays until the next unit is there; on the way back the unit before is fetched
               while this one computes
    free       FULL_SHARD and HYBRID_SHARD free a unit after its forward and fetch it again (but not a head whose
               backward pass is next: the walk does, which is never the peak); all free it after its backward pass.
               What the heads share stays for the whole step
    reduce     gradients are copied into one flat buffer, which stays until the next unit's are
    NO_SHARD   a mesh of one piece: "fetching" copies the parameters, "reducing" copies the gradients

gloo copies the flat buffer once more in both directions (measured: `wmtp bench ranks`); NCCL does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

EXACT = 4
"""Bytes of a stored weight, a reduced gradient, and each of AdamW's two moments: fp32."""

Shape = tuple[int, ...]
Parts = dict[str, int]
"""Bytes by part."""

BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20, "mps": 128 * 2**20}
"""Of the block of logits that the softmax is at (`loss_fused.BLOCK_BYTES`)."""


@dataclass(frozen=True)
class Unit:
    """Parameters that are fetched, freed and reduced together: a layer, a head, or what is left of a model."""

    trained: tuple[Shape, ...]
    frozen: tuple[Shape, ...] = ()
    cast: bool = True
    """Whether a lower precision of the run applies to it."""


@dataclass(frozen=True)
class Moment:
    """One unit at work in one direction."""

    unit: int
    """Its place in the model's list; the last one is what is left (embedding, final norm, unembedding)."""
    passes: str
    """`forward`, `loss` or `backward`."""
    before: int
    """Bytes of activations when it begins."""
    activations: int
    """Bytes of activations and of their gradients at its peak."""
    gradients: int = 0
    """Bytes of parameter gradients that are there at that peak, made in this moment."""
    loss: Mapping[str, int] = field(default_factory=dict)
    """Further bytes, by part, of the loss."""
    kept: int = 0
    """Bytes of the unembedding's gradient that stay after the loss."""


@dataclass(frozen=True)
class Layout:
    """What a strategy does on a number of ranks."""

    strategy: str
    pieces: int
    """Ranks that hold one copy of the model together."""
    ranks: int
    computed: int = EXACT
    """Bytes per fetched parameter."""
    staged: bool = False
    """Whether collectives copy what they are given (gloo)."""
    offloaded: bool = False
    """Whether shares of weights, gradients and optimiser are in the host's memory instead of the device's."""

    @property
    def wrapped(self) -> bool:
        """A single process is not."""
        return self.ranks > 1

    @property
    def refetches(self) -> bool:
        """Whether a unit is freed after its forward pass."""
        return self.strategy in ("FULL_SHARD", "HYBRID_SHARD")

    @property
    def reduces_each(self) -> bool:
        """Whether every micro-batch's gradients are reduced at once, rather than the step's at its end."""
        return self.wrapped and self.refetches


def layout(strategy: str, ranks: int, *, bf16: bool = False, device: str = "cpu", cpu_offload: bool = False) -> Layout:
    """The layout of a strategy on `ranks` ranks; for HYBRID_SHARD these are the ranks of one host."""
    pieces = 1 if strategy == "NO_SHARD" else ranks
    return Layout(
        strategy,
        pieces,
        ranks,
        computed=2 if bf16 and ranks > 1 else EXACT,
        staged=device == "cpu" and pieces > 1,
        offloaded=cpu_offload and device == "cuda" and ranks > 1,
    )


# Terms


def share(shape: Shape, pieces: int) -> int:
    """Elements of a tensor on the first of `pieces` ranks: ceil(rows / pieces) rows of it."""
    return -(-shape[0] // pieces) * prod(shape[1:]) if shape else 1


def elements(shapes: Sequence[Shape], pieces: int = 1) -> int:
    """Elements of some tensors on the first of `pieces` ranks: sum of `share`."""
    return sum(share(shape, pieces) for shape in shapes)


def weight_bytes(units: Sequence[Unit], pieces: int) -> int:
    """4 * the share of every parameter."""
    return sum(EXACT * elements((*unit.trained, *unit.frozen), pieces) for unit in units)


def gradient_bytes(units: Sequence[Unit], pieces: int) -> int:
    """4 * the share of every trained parameter: gradients after they were added up over ranks."""
    return sum(EXACT * elements(unit.trained, pieces) for unit in units)


def optimiser_bytes(units: Sequence[Unit], pieces: int) -> int:
    """AdamW: 2 * 4 * the share of every trained parameter."""
    return 2 * gradient_bytes(units, pieces)


def fetched_bytes(unit: Unit, layout: Layout) -> int:
    """A whole unit in the precision it computes in: c * (P * share), padded to P equal pieces; 0 in one process."""
    if not layout.wrapped:
        return 0
    size = layout.computed if unit.cast else EXACT
    return size * layout.pieces * elements((*unit.trained, *unit.frozen), layout.pieces)


def flat_bytes(unit: Unit, layout: Layout) -> int:
    """The buffer a unit is gathered in: as large as the unit; none where there is nothing to gather."""
    return fetched_bytes(unit, layout) if layout.pieces > 1 else 0


def reduced_from_bytes(unit: Unit, layout: Layout) -> int:
    """The buffer a unit's gradients are reduced from, fp32: 4 * (P * share of the trained); 0 in one process."""
    return layout.pieces * gradient_bytes([unit], layout.pieces) if layout.wrapped else 0


def loss_bytes(
    *, heads: int, positions: int, width: int, vocabulary: int, chunk: int, computed: int, device: str
) -> Parts:
    """What the fused loss of `heads` heads holds beside their hidden states, with at most C rows of N in a chunk.

    hidden rows             2 * c * heads * N * D: the rows that have a target, and their gradient
    logits chunk            c * C * V; in bf16 also a fp32 copy of the block that the softmax is at
    unembedding gradient    4 * V * D; in bf16 also a copy in bf16
    """
    rows = min(chunk, positions)
    lower = computed < EXACT
    copied = min(EXACT * rows * vocabulary, BLOCK_BYTES[device]) if lower else 0
    return {
        "hidden rows": 2 * computed * heads * positions * width,
        "logits chunk": computed * rows * vocabulary + copied,
        "unembedding gradient": (EXACT + (computed if lower else 0)) * vocabulary * width,
    }


def checkpoint_copy_bytes(units: Sequence[Unit], ranks: int) -> int:
    """What a background save keeps of the state on a CPU: weights and moments, every rank the 1/N that it writes."""
    return -(-(weight_bytes(units, 1) + optimiser_bytes(units, 1)) // ranks)


# The walk


class Walk:
    """One micro-batch after another of one model, on one rank.

    Args:
        fixed: bytes by part that are there all the time.
    """

    def __init__(self, units: Sequence[Unit], layout: Layout, fixed: Parts) -> None:
        self.units, self.layout, self.fixed = units, layout, fixed
        self.rest = len(units) - 1
        self.fetched: set[int] = set()
        self.flat = 0
        """Of the unit fetched last, on the way forward."""
        self.ahead: int | None = None
        """The unit whose flat buffer is there before it is needed."""
        self.reducing = 0
        """The buffer that gradients were reduced from last."""
        self.whole: set[int] = set()
        """Units that hold whole gradients: not reduced yet, or there is nobody to reduce them with."""
        self.unembedding = 0
        """Of the unembedding's gradient, which is there before the rest of its unit's."""
        self.reduced: set[int] = set()

    def micro_batch(self, moments: Sequence[Moment], *, reduces: bool) -> Iterator[Parts]:
        """Bytes by part at every instant that can be the peak.

        Args:
            reduces: whether the gradients are added up over ranks in this micro-batch.
        """
        ends = [*(moment.before for moment in moments[1:]), 0]
        for place, (moment, end) in enumerate(zip(moments, ends, strict=True), 1):
            if moment.passes == "forward":
                yield from self._forward(moment)
            elif moment.passes == "loss":
                yield self._at(moment.activations, loss=moment.loss)
                self.unembedding = moment.kept
            else:
                yield from self._fetch_back(moment)
                yield self._at(moment.activations, gradients=moment.gradients)
                if moment.unit != self.rest or place == len(moments):
                    yield from self._after_backward(moment.unit, end, reduces)

    def finished(self) -> Parts:
        """Bytes by part when the optimiser steps."""
        return self._at(0)

    def _forward(self, moment: Moment) -> Iterator[Parts]:
        unit = moment.unit
        if self.layout.refetches and unit != self.rest:
            self.fetched &= {self.rest}  # freed after their forward passes
        if unit not in self.fetched:
            size = self._flat_of(unit)
            yield self._at(moment.before, buffers=size + self._staging(size))
            self.flat = size
            self.fetched.add(unit)
        yield self._at(moment.activations)

    def _fetch_back(self, moment: Moment) -> Iterator[Parts]:
        """A freed unit again; and the one before it, which is needed next."""
        self.flat = 0
        unit = moment.unit
        if unit == self.rest or not self.layout.wrapped:
            return
        if self.layout.refetches:
            self.fetched &= {self.rest}
        if unit not in self.fetched:
            size = 0 if self.ahead == unit else self._flat_of(unit)
            yield self._at(moment.before, buffers=size + self._staging(size))
            self.fetched.add(unit)
        self.ahead = unit - 1 if unit > 0 and unit - 1 not in self.fetched else None
        yield self._at(moment.before, buffers=self._staging(self._flat_of(self.ahead)))

    def _after_backward(self, unit: int, activations: int, reduces: bool) -> Iterator[Parts]:
        """The unit is freed; its gradients are reduced, or kept whole until they are."""
        self.fetched.discard(unit)
        self.reducing = 0
        if unit == self.rest:
            self.unembedding = 0
        if not (reduces and self.layout.wrapped):
            self.whole.add(unit)
            return
        self.whole.discard(unit)
        flat = reduced_from_bytes(self.units[unit], self.layout)
        yield self._at(activations, gradients=EXACT * elements(self.units[unit].trained), buffers=flat)
        copy = flat if self.layout.staged or self.layout.pieces == 1 else 0
        added = gradient_bytes([self.units[unit]], self.layout.pieces) if unit in self.reduced else 0
        self.reduced.add(unit)
        yield self._at(activations, buffers=flat + copy + added)
        self.reducing = flat

    def _flat_of(self, unit: int | None) -> int:
        return 0 if unit is None else flat_bytes(self.units[unit], self.layout)

    def _staging(self, size: int) -> int:
        return size if self.layout.staged else 0

    def _at(
        self, activations: int, *, gradients: int = 0, buffers: int = 0, loss: Mapping[str, int] | None = None
    ) -> Parts:
        whole = sum(EXACT * elements(self.units[unit].trained) for unit in self.whole)
        reduced = gradient_bytes([self.units[unit] for unit in self.reduced], self.layout.pieces)
        shared = 0 if self.rest in self.whole else self.unembedding
        parts = {
            **self.fixed,
            "gradients": (0 if self.layout.offloaded else reduced) + whole + shared + gradients,
            "fetched weights": sum(fetched_bytes(self.units[unit], self.layout) for unit in self.fetched),
            "transfer buffers": self.flat + self._flat_of(self.ahead) + self.reducing + buffers,
            "activations": activations,
            **(loss or {}),
        }
        return {name: size for name, size in parts.items() if size}


def total(parts: Parts) -> int:
    """All parts together."""
    return sum(parts.values())


@dataclass(frozen=True)
class Passes:
    """A model, and what a micro-batch's passes through it hold."""

    units: Sequence[Unit]
    moments: Sequence[Moment]


def step_peak(model: Passes, frozen: Sequence[Passes], layout: Layout, micro_batches: int, further: Parts) -> Parts:
    """Bytes by part at the peak of a step on one rank.

    Args:
        frozen: of the critic and the reference, which are asked before the first backward pass.
        micro_batches: of one rank in a step.
        further: what else is there all the time.
    """
    fixed = dict(further)
    if not layout.offloaded:
        fixed["weights"] = weight_bytes(model.units, layout.pieces)
        fixed["optimiser"] = optimiser_bytes(model.units, layout.pieces)
        if frozen:
            fixed["frozen scorer"] = sum(weight_bytes(scorer.units, layout.pieces) for scorer in frozen)
    instants: list[Parts] = []
    for scorer in frozen:
        instants += Walk(scorer.units, layout, fixed).micro_batch(scorer.moments, reduces=False)
    walk = Walk(model.units, layout, fixed)
    for left in reversed(range(min(micro_batches, 2))):  # the second of many is like the third
        instants += walk.micro_batch(model.moments, reduces=layout.reduces_each or left == 0)
    return max([*instants, walk.finished()], key=total)


def host_bytes(model: Passes, frozen: Sequence[Passes], layout: Layout) -> int:
    """Weights, gradients and moments of a rank that CPU offload keeps in the host's memory; 0 without it."""
    if not layout.offloaded:
        return 0
    units = model.units
    own = sum(term(units, layout.pieces) for term in (weight_bytes, gradient_bytes, optimiser_bytes))
    return own + sum(weight_bytes(scorer.units, layout.pieces) for scorer in frozen)
