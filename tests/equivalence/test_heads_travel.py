"""Heads' parameters and gradients travel while other heads compute. One process of four that are only said to be there:
values mean nothing, and what is compared is the order of FSDP2's calls. `test_ranks` does it between two processes.

On a GPU these calls put work on streams of their own; gloo returns from each when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from fsdp_events import check_fetched_ahead, check_reduced_behind, micro_batches, recorded, units_of
from torch.testing._internal.distributed.fake_pg import FakeStore

from wmtp.distributed import World, sharding
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


def events(
    world: World, strategy: str, heads: str = "parallel", bf16: bool = False
) -> tuple[list[list[str]], list[str]]:
    """Those of two micro-batches, and the units that are looked at."""
    model, cpu = tiny_model("llama", 3, heads=heads).train(), torch.device("cpu")
    how = sharding(world, cpu, strategy, bf16=bf16)
    assert how is not None
    spread(model, how, None, cpu)
    objective, batch = MTPObjective(Uniform()), random_batch()
    with recorded() as names:
        for last in (False, True):
            (plan,) = objective.plan(model, [batch], alone, True)
            objective.backward(model, batch, plan, torch.ones(()), alone, nullcontext, last=last)
    return micro_batches(names), units_of(model)


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "HYBRID_SHARD"])
def test_a_head_is_gathered_once_while_what_is_before_it_computes(strategy: str, world: World) -> None:
    found, units = events(world, strategy)
    assert len(found) == 2
    for names in found:
        check_fetched_ahead(names, units)


@pytest.mark.parametrize("bf16", [pytest.param(False, marks=pytest.mark.exhaustive), True])
@pytest.mark.parametrize("strategy", ["FULL_SHARD", "HYBRID_SHARD", "SHARD_GRAD_OP", "NO_SHARD"])
def test_a_heads_gradients_travel_while_the_next_head_computes(strategy: str, bf16: bool, world: World) -> None:
    """From the second time on: see `distributed._GATHERED_ONCE`."""
    found, (_, *heads) = events(world, strategy, bf16=bf16)
    check_reduced_behind(found[-1], heads)


def test_heads_that_go_back_together_are_fetched_again_while_the_one_after_them_computes(world: World) -> None:
    found, (_, *heads) = events(world, "FULL_SHARD", "chain")
    for names in found:
        for head, after in pairwise(heads):
            again = names.index(f"all_gather ({head})", names.index(f"pre_backward ({after})"))
            assert again < names.index(f"post_backward_accumulate ({after})")
