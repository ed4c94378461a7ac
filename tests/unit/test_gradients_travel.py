"""When gradients are added up over ranks. One process of four that are only said to be there: values mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from wmtp.distributed import STRATEGIES, World, sharding
from wmtp.objective import MTPObjective
from wmtp.parts import spread
from wmtp.ranks import alone
from wmtp.testing import random_batch, tiny_model
from wmtp.weighting import Uniform


@pytest.fixture
def world() -> Iterator[World]:
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield World(0, 4, 0, 2)
    dist.destroy_process_group()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_travel_before_the_last_micro_batch_only_where_sharding_is_for_memory(
    strategy: str, world: World
) -> None:
    model, cpu = tiny_model("llama", 3).train(), torch.device("cpu")
    how = sharding(world, cpu, strategy)
    assert how is not None
    spread(model, how, None, cpu)
    objective, batch = MTPObjective(Uniform()), random_batch()

    def backward(*, last: bool) -> list[bool]:
        (plan,) = objective.plan(model, [batch], alone, True)
        objective.backward(model, batch, plan, torch.ones(()), alone, nullcontext, last=last)
        return [parameter.grad is not None for parameter in model.parameters()]

    assert set(backward(last=False)) == {strategy == "FULL_SHARD"}, "HYBRID_SHARD: within the host, not yet between"
    assert set(backward(last=True)) == {True}
