"""Many ranks: the process group, what ranks tell one another, and models sharded over them (FSDP2).

Ranks are the processes that `torchrun` starts. Nothing here happens in a single process: there is no group, nothing
is wrapped, and `World.sum` gives back what it is given.

    strategy        parameters, gradients, optimiser    mesh                what moves in a step
    FULL_SHARD      1/N each                            [N]                 all-gather twice, reduce-scatter
    SHARD_GRAD_OP   1/N; parameters whole in a step*    [N]                 all-gather once, reduce-scatter
    HYBRID_SHARD    1/M on each of N/M hosts            [N/M, M]            as FULL_SHARD on a host, all-reduce between
    NO_SHARD        whole                               [N, 1]              all-reduce

    * and gradients too, where a step has several micro-batches

A head that runs apart from the others is gathered once: it stays from its forward to its backward pass.

The first and the third are for memory: what moves moves in every micro-batch (only the all-reduce between hosts waits
for the last), so that no rank ever holds whole gradients. The others are for time: gradients travel once a step.

All four are `fully_shard` over a mesh: NO_SHARD is a hybrid whose shards have one piece. Every trunk layer, every head,
an embedding that is not tied, and what is left (final norm, unembedding: shared by the heads) is a unit of its own. The
embedding must be: in bf16 its gradient would come in bf16 to a unit that adds up the heads' in fp32.

Gradients are *summed*, since the step divides by totals over all ranks. A collective that not every rank joins waits
for ever, so none stands in a branch on the rank: what one rank finds out travels by `World.first`, and what may fail
on any rank runs under `World.together`. Tested with gloo on CPU; NCCL follows the same documented calls, untested here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from wmtp.errors import ConfigError, WmtpError
from wmtp.probing import evaluating

T = TypeVar("T")

STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD")


@dataclass(frozen=True)
class World:
    """The ranks of a run. As a `Reduce` (see `wmtp.weighting.base`) it adds over all of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among those on the same host."""
    local_size: int = 1
    background: Any = None
    """A gloo group of all ranks for work beside training; collectives of one group must not overlap."""
    unhurried: Any = None
    """A gloo group of all ranks whose collectives wait for ever."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes for all."""
        return self.rank == 0

    def __call__(self, total: Tensor) -> Tensor:
        """Sum of a tensor over all ranks."""
        return self._all_reduced(total, dist.ReduceOp.SUM)

    def largest(self, value: Tensor) -> Tensor:
        """Elementwise maximum over all ranks."""
        return self._all_reduced(value, dist.ReduceOp.MAX)

    def gather(self, own: Tensor) -> tuple[Tensor, slice]:
        """All ranks' tensors one after another along the first axis, whose length may differ, and where ours is."""
        if self.size == 1:
            return own, slice(0, len(own))
        lengths = self._all_gathered(torch.tensor(len(own), device=own.device))
        counts = [int(length) for length in lengths]
        padded = torch.cat([own, own.new_zeros(max(counts) - len(own), *own.shape[1:])])
        parts = self._all_gathered(padded)
        start = sum(counts[: self.rank])
        whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return whole, slice(start, start + len(own))

    def _all_gathered(self, value: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value)
        return parts

    def _all_reduced(self, value: Tensor, operation: Any) -> Tensor:
        if self.size == 1:
            return value
        result = value.detach().clone()
        dist.all_reduce(result, op=operation)
        return result

    def first(self, find: Callable[[], T]) -> T:
        """What rank 0 finds, on every rank; if it raises there, every rank raises the same.

        Raises:
            WmtpError: what `find` raised.
        """
        found: list[Any] = [None, None]
        if self.leads:
            found = _attempt(find)
        if self.size > 1:
            dist.broadcast_object_list(found, src=0)
        return cast(T, _outcome(found))

    def together(self, do: Callable[[], T], *, unhurried: bool = False) -> T:
        """What `do` returns here, if it succeeds on all ranks; else every rank raises the first rank's error.

        Args:
            unhurried: it, or what was before it, may take some ranks much longer than others: wait as long as they
                live. One that hangs is for the watchdog.

        Raises:
            WmtpError: what `do` raised, with the rank's number where it was not rank 0.
        """
        found = _attempt(do)
        if self.size == 1:
            return cast(T, _outcome(found))
        problems: list[Any] = [None] * self.size
        dist.all_gather_object(problems, found[1], group=self.unhurried if unhurried else None)
        failed = [(rank, problem) for rank, problem in enumerate(problems) if problem is not None]
        if failed:
            rank, problem = failed[0]
            if rank:
                problem.args = (f"rank {rank}: {problem}", *problem.args[1:])
            raise problem
        return cast(T, found[0])


def _attempt(do: Callable[[], Any]) -> list[Any]:
    """[result, None] or [None, the error]; other errors than ours are bugs and fall through."""
    try:
        return [do(), None]
    except WmtpError as problem:
        problem.__traceback__ = None
        return [None, problem]


def _outcome(found: list[Any]) -> Any:
    result, problem = found
    if problem is not None:
        raise problem
    return result


# The group


def launched() -> bool:
    """Whether `torchrun` (or something that sets the same variables) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


FOR_EVER = timedelta(days=365)


@contextmanager
def joined(device: torch.device, timeout_s: float) -> Iterator[World]:
    """The world this process is in. Leaves the process group on every way out.

    Args:
        timeout_s: how long a collective may wait for other ranks before it fails, but for those of `World.unhurried`.

    Raises:
        ConfigError: the device has no collectives.
    """
    if not launched():
        yield World()
        return
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"several ranks need device = cpu or cuda, got {device.type!r}; run one process instead")
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, timeout=timeout)
    try:
        background, unhurried = (dist.new_group(backend="gloo", timeout=limit) for limit in (timeout, FOR_EVER))
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, local_size, background, unhurried)
    finally:
        dist.destroy_process_group()


def leave(code: int) -> None:
    """End a rank's process: gloo's threads make an ordinary exit crash now and then, after all work is done."""
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# Sharding


@dataclass(frozen=True)
class Sharding:
    """How models are spread over ranks."""

    mesh: DeviceMesh
    reshard_after_forward: bool
    precision: MixedPrecisionPolicy
    offload: OffloadPolicy


def sharding(
    world: World, device: torch.device, strategy: str, *, bf16: bool = False, cpu_offload: bool = False
) -> Sharding | None:
    """The mesh and policies of a strategy; None in a single process.

    Raises:
        ConfigError: an unknown strategy, or hosts that HYBRID_SHARD cannot make a mesh of.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"distributed.strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if world.size == 1:
        return None
    shape, names = mesh_shape(strategy, world.size, world.local_size)
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32 if bf16 else None
    )
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy()
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    return Sharding(mesh, strategy in ("FULL_SHARD", "HYBRID_SHARD"), precision, offload)


def mesh_shape(strategy: str, size: int, local_size: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape and names of the mesh, with the dimension that shards last.

    Raises:
        ConfigError: HYBRID_SHARD on one host, or on hosts of different sizes.
    """
    if strategy == "NO_SHARD":
        return (size, 1), ("replicate", "shard")
    if strategy != "HYBRID_SHARD":
        return (size,), ("shard",)
    if size % local_size or size == local_size:
        raise ConfigError(
            "distributed.strategy = HYBRID_SHARD shards on each host and replicates over hosts: it needs several hosts "
            f"with the same number of ranks, got {size} ranks of which {local_size} are here; use FULL_SHARD"
        )
    return (size // local_size, local_size), ("replicate", "shard")


def shard(
    model: nn.Module,
    trunk: Sequence[nn.Module],
    how: Sharding,
    *,
    heads: Sequence[nn.Module] | None = None,
    exact: Sequence[nn.Module] = (),
    embedding: nn.Module | None = None,
) -> None:
    """Shard `model` in place: every trunk layer and head by itself, then what is left as the model's own.

    Args:
        exact: further units, whose parameters are never cast to a lower precision.
        embedding: a unit that is not fetched again for the backward pass, which does not need its parameters.
        heads: run one after another on the trunk's output; each is fetched while what is before it (the trunk's last
            layer, or a head) computes. A model that may have them has a method `trunk`, which needs its parameters as
            `forward` does.
    """
    options: dict[str, Any] = {"mesh": how.mesh, "mp_policy": how.precision, "offload_policy": how.offload}
    for unit in exact:
        fully_shard(unit, **options | {"mp_policy": MixedPrecisionPolicy()})
    first = [] if embedding is None else [fully_shard(embedding, reshard_after_forward=False, **options)]
    apart = (*trunk, *(heads or ()))
    units = [fully_shard(unit, reshard_after_forward=how.reshard_after_forward, **options) for unit in apart]
    root = fully_shard(model, reshard_after_forward=False, **options)
    if how.reshard_after_forward:
        _GIVEN_BACK.update(apart)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if how.reshard_after_forward:
                _REDUCED_EACH.add(module)
    if heads is None:
        return
    register_fsdp_forward_method(model, "trunk")
    for before, head in pairwise(units[max(len(trunk) - 1, 0) :]):
        before.set_modules_to_forward_prefetch([head])
    # The root is there already: by itself the first unit would fetch what the micro-batch before ended with.
    (first or units)[0].set_modules_to_backward_prefetch([root])


_REDUCED_EACH: WeakSet[nn.Module] = WeakSet()
"""Units whose gradients are reduced in every micro-batch, so that they are never held whole from one to the next."""

_GIVEN_BACK: WeakSet[nn.Module] = WeakSet()
"""Units whose parameters are given back after each forward pass."""


_GATHERED_ONCE: WeakSet[nn.Module] = WeakSet()
"""Heads that have been gathered. In bf16 runs FSDP2 (torch 2.13) fails at the end of a backward pass for a unit that
never was and may not reduce."""


def synchronise(model: nn.Module, last: bool) -> None:
    """Whether the coming backward pass is the last of its step: then gradients travel, where they did not before."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or model in _REDUCED_EACH)
        model.set_requires_all_reduce(last)
        model.set_is_last_backward(last)


@contextmanager
def head_passes(model: nn.Module, units: Sequence[Sequence[nn.Module]], last: bool) -> Iterator[Callable[[int], None]]:
    """Around the passes of single heads, forward and then backward, before the trunk's backward pass.

    What the heads share (final norm, unembedding) stays gathered and goes on collecting. A head stays gathered until
    its own backward pass, which is next; after it the head's gradients are complete, so they travel while the next head
    computes. Only the head at work may reduce: FSDP2 goes through all units at the end of every backward pass, and at
    each that may reduce it waits for what is travelling.

    Args:
        units: the modules at work in each pass.

    Yields:
        What begins a pass, by its number.
    """
    if not isinstance(model, FSDPModule):
        yield lambda k: None
        return
    model.set_requires_gradient_sync(False)
    model.set_is_last_backward(False)
    model.set_reshard_after_backward(False)
    own = [unit for units_of_pass in units for unit in units_of_pass if isinstance(unit, FSDPModule)]
    given_back = [unit for unit in own if unit in _GIVEN_BACK]
    for unit in own:
        unit.set_reshard_after_backward(True)
    for unit in given_back:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.set_modules_to_backward_prefetch([model])  # is there already; by itself it would fetch the head before

    def begin(k: int) -> None:
        _GATHERED_ONCE.update(units[k])
        for unit in own:
            reduces = last or unit in _REDUCED_EACH
            unit.set_requires_gradient_sync(reduces if unit in units[k] else unit not in _GATHERED_ONCE)
            unit.set_requires_all_reduce(last)

    try:
        yield begin
    finally:
        for unit in given_back:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.set_modules_to_backward_prefetch([])
        model.set_reshard_after_backward(True)
        synchronise(model, last)


def whole_state(model: nn.Module, world: World) -> dict[str, Tensor]:
    """The model's state with every tensor put together, on rank 0's CPU; empty on other ranks. All ranks must ask."""
    if world.size == 1:
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    return state


def release(model: nn.Module) -> None:
    """Give back what a forward pass without a backward pass has gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it every rank has all parameters, so that its forward passes need no other rank. All ranks must enter.

    For decoding: ranks take different numbers of forward passes, and each is too short to fetch parameters for. The
    price is memory for the whole model's parameters.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]

    def forward() -> None:
        with evaluating(model):
            model(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))

    if not units:
        yield
        return
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
    forward()
    try:
        yield
        forward()  # the next backward pass fetches ahead by the passes before it: they must end alike on all ranks
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit in _GIVEN_BACK, recurse=False)
        release(model)


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_held(parameter: Tensor) -> tuple[Tensor, int, int]:
    """This rank's piece of a parameter, and which of its rows that is: first, and one past the last.

    FSDP2 splits the first dimension into equal pieces, the last of which may be smaller, or empty.
    """
    if not isinstance(parameter, DTensor):
        return parameter, 0, parameter.shape[0] if parameter.ndim else 1
    mesh = parameter.device_mesh
    piece, rows = parameter.to_local(), parameter.shape[0]
    size = -(-rows // mesh.size(mesh.ndim - 1))
    start = min(rows, size * mesh.get_local_rank(mesh.ndim - 1))
    return piece, start, min(rows, start + size)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together (every rank must ask); any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
