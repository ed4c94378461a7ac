"""What a run will need, said before it starts (`--dry-run`).

Weights, gradients, optimiser and disk follow from shapes. Activations are measured: four small forward passes of the
real model on its real device, counting the bytes that autograd keeps, give the four coefficients of

    bytes(B, T) = shared + shared_linear * T + B * (linear * T + quadratic * T^2)

so attention kernels, autocast copies and model peculiarities are in the figure without a formula for any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from wmtp import devices
from wmtp.loss_fused import default_chunk
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.parts import Parts

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Estimate:
    """Bytes by part, and the facts of the run."""

    parameters: int
    trainable: int
    frozen_parameters: int
    """Of the critic or the reference."""
    steps: int
    epochs: float
    tokens: int
    """Rough number of tokens the run trains on, padding left out."""
    longest_micro_batch: tuple[int, int]
    bytes: dict[str, int]
    """Memory at the peak of a step, by part."""
    checkpoint_bytes: int

    @property
    def total(self) -> int:
        """Expected peak, beside what Python and its libraries take."""
        return sum(self.bytes.values())


def estimate(parts: Parts) -> Estimate:
    """The needs of a run whose parts are built."""
    model, train = parts.model, parts.data.train
    trainable = [p for p in model.parameters() if p.requires_grad]
    shape = largest_micro_batch(parts)
    weights = _bytes(list(model.parameters()) + list(model.buffers()))
    frozen = [p for model in parts.frozen for p in model.parameters()]
    per_epoch = sum(len(train.rows[row].tokens) for item in train.items for row in item)
    sizes = {
        "weights": weights,
        "frozen scorer": _bytes(frozen),
        "gradients": _bytes(trainable),
        "optimiser": 2 * _bytes(trainable),
        "activations": activation_bytes(parts, shape),
        **_loss_bytes(parts, shape),
    }
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in trainable),
        frozen_parameters=sum(p.numel() for p in frozen),
        steps=parts.steps,
        epochs=parts.steps / len(train),
        tokens=round(per_epoch * parts.steps / len(train)),
        longest_micro_batch=shape,
        bytes={name: size for name, size in sizes.items() if size},
        checkpoint_bytes=weights + 2 * _bytes(trainable),
    )


def _bytes(tensors: list[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def largest_micro_batch(parts: Parts) -> tuple[int, int]:
    """(rows, length) of the micro-batch with the most positions that any order of the data can give."""
    train = parts.data.train
    size = parts.config.train.micro_batch_size or parts.config.train.batch_size
    rows = min(size, sum(len(item) for item in train.items))
    longest = max(len(train.rows[row].tokens) for item in train.items for row in item)
    budget = parts.config.train.micro_batch_tokens
    return (rows if budget is None else min(rows, max(len(train.items[0]), budget // longest))), longest


def _loss_bytes(parts: Parts, shape: tuple[int, int]) -> dict[str, int]:
    """Of the fused loss: hidden states with their gathered rows and gradients, one chunk of logits, the unembedding's
    gradient."""
    model = parts.model
    if not isinstance(model, MTPModel):
        return {}
    vocabulary, width = model.unembedding().projection_VD.shape
    positions = shape[0] * shape[1]
    objective = parts.objective
    if not isinstance(objective, MTPObjective):
        return {}
    heads = 1 if objective.head_by_head else model.num_heads
    if objective.kind == "plain":
        return {"logits": 2 * 4 * heads * positions * vocabulary}
    chunk = objective.chunk or default_chunk(vocabulary, parts.device.type)
    return {
        "hidden rows": 4 * (3 * heads + 1) * positions * width,
        "logits chunk": 4 * min(chunk, positions) * vocabulary,
        "unembedding gradient": 4 * vocabulary * width,
    }


Forward = Callable[[Tensor], Any]
"""Runs what autograd holds at the peak of a step, and returns something that keeps it alive."""


def held_forward(parts: Parts) -> Forward:
    """The forward pass whose activations live at one time: trunk and one head, or all of the model."""
    model, objective = parts.model, parts.objective
    if isinstance(model, MTPModel) and isinstance(objective, MTPObjective) and objective.head_by_head:
        return lambda tokens_BT: model.head(next(model.heads()), model.trunk(tokens_BT))
    return model


def activation_bytes(parts: Parts, shape: tuple[int, int]) -> int:
    """Bytes that autograd keeps at the peak of a step on `shape` = (rows, length), from four small passes."""
    rows, length = shape
    small = max(2, min(16, length // 2))

    def shared_and_per_row(tokens: int) -> tuple[int, int]:
        one, two = (saved_bytes(parts, (count, tokens)) for count in (1, 2))
        return 2 * one - two, two - one

    (shared, row), (shared_double, row_double) = shared_and_per_row(small), shared_and_per_row(2 * small)
    shared_linear = (shared_double - shared) / small
    quadratic = (row_double - 2 * row) / (2 * small * small)
    linear = row / small - quadratic * small
    per_row = linear * length + quadratic * length * length
    return max(0, round(shared + shared_linear * (length - small) + rows * per_row))


class _Saved:
    """A tensor that autograd keeps; gone when autograd lets it go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # a node that held its own output would keep itself alive


def saved_bytes(parts: Parts, shape: tuple[int, int]) -> int:
    """Bytes of distinct storages, parameters left out, that autograd holds after `held_forward` on `shape`."""
    own = {p.untyped_storage().data_ptr() for p in parts.model.parameters()}
    alive: WeakSet[_Saved] = WeakSet()

    def keep(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        alive.add(saved)
        return saved

    tokens = torch.zeros(shape, dtype=torch.int64, device=parts.device)
    state = devices.random_state(parts.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor), parts.precision():
        output = held_forward(parts)(tokens)
    storages = {saved.tensor.untyped_storage() for saved in alive}
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    devices.set_random_state(state, parts.device)
    del output
    return sum(size for address, size in sizes.items() if address not in own)
