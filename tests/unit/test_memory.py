"""The arithmetic of a rank's memory: shares are those of FSDP2, and what strategies promise follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from wmtp import loss_fused, memory
from wmtp.bench.ranks_table import LLAMA_2_7B, RANKS
from wmtp.config import load
from wmtp.estimate import estimate
from wmtp.formats.hf import random_causal_lm, without_parameters
from wmtp.loss import Unembedding
from wmtp.memory import Moment, Passes, Unit, host_bytes, layout, share, step_peak, total
from wmtp.model import MTPModel
from wmtp.parts import build
from wmtp.rehearsal import units_of
from wmtp.testing import tiny_model

RECIPE = Path(__file__).parent.parent / "e2e" / "small_recipe.yaml"
SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)
STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD")
UNITS = [Unit(((64, 8), (8,))), Unit(((64, 8), (8,))), Unit(((64, 8), (8,))), Unit(((100, 8), (100, 8), (8,)))]
MOMENTS = [
    Moment(3, "forward", 0, 10),
    Moment(0, "forward", 10, 30),
    Moment(1, "forward", 30, 50),
    Moment(2, "forward", 50, 70),
    Moment(3, "loss", 70, 80, loss={"unembedding gradient": 3200}, kept=3200),
    Moment(3, "backward", 80, 80),
    Moment(2, "backward", 80, 90, gradients=2080),
    Moment(1, "backward", 50, 60, gradients=2080),
    Moment(0, "backward", 30, 40, gradients=2080),
    Moment(3, "backward", 10, 10),
]
MODEL = Passes(UNITS, MOMENTS)
PARAMETERS = 3 * (64 * 8 + 8) + 200 * 8 + 8


@given(SHAPES, st.integers(1, 9))
def test_a_share_is_the_first_piece_that_torch_cuts(shape: tuple[int, ...], pieces: int) -> None:
    assert share(shape, pieces) == torch.empty(shape, device="meta").chunk(pieces)[0].numel()


def test_one_process_needs_sixteen_bytes_a_parameter_when_it_steps_and_fetches_nothing() -> None:
    walk = memory.Walk(UNITS, layout("one process", 1), {"weights": 4 * PARAMETERS, "optimiser": 8 * PARAMETERS})
    instants = list(walk.micro_batch(MOMENTS, reduces=True))
    assert total(walk.finished()) == 16 * PARAMETERS
    assert not any({"fetched weights", "transfer buffers"} & set(parts) for parts in instants)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_after_a_step_only_the_shares_of_gradients_are_left(strategy: str, micro_batches: int) -> None:
    how = layout(strategy, 4)
    walk = memory.Walk(UNITS, how, {})
    for left in reversed(range(micro_batches)):
        list(walk.micro_batch(MOMENTS, reduces=how.reduces_each or left == 0))
    left_over = walk.finished()
    assert left_over.pop("gradients") == memory.gradient_bytes(UNITS, how.pieces)
    assert set(left_over) <= {"transfer buffers"}, "the last unit's, until the next step"


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "HYBRID_SHARD"])
def test_strategies_for_memory_hold_no_whole_gradients_from_one_micro_batch_to_the_next(strategy: str) -> None:
    walk = memory.Walk(UNITS, layout(strategy, 4), {})
    list(walk.micro_batch(MOMENTS, reduces=walk.layout.reduces_each))
    assert walk.finished()["gradients"] == memory.gradient_bytes(UNITS, 4)


def test_strategies_for_time_hold_whole_gradients_until_the_last_micro_batch() -> None:
    for strategy in ("SHARD_GRAD_OP", "NO_SHARD"):
        one, many = (total(step_peak(MODEL, [], layout(strategy, 4), count, {})) for count in (1, 2))
        assert many > one


@given(st.sampled_from(STRATEGIES), st.integers(2, 8), st.booleans(), st.integers(1, 3))
def test_a_peak_is_never_below_what_is_there_between_steps(
    strategy: str, ranks: int, bf16: bool, micro_batches: int
) -> None:
    how = layout(strategy, ranks, bf16=bf16)
    terms = (memory.weight_bytes, memory.gradient_bytes, memory.optimiser_bytes)
    assert total(step_peak(MODEL, [], how, micro_batches, {})) >= sum(term(UNITS, how.pieces) for term in terms)


@given(st.integers(2, 8), st.integers(1, 3))
def test_sharding_more_never_needs_more_between_steps_and_fetching_less_never_at_the_peak(
    ranks: int, micro_batches: int
) -> None:
    full, grad, none = (
        total(step_peak(MODEL, [], layout(strategy, ranks), micro_batches, {}))
        for strategy in ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD")
    )
    assert full <= grad <= none


def test_a_frozen_scorer_is_shared_out_like_the_model_and_offload_moves_shares_to_the_host() -> None:
    frozen = Passes(UNITS, [Moment(3, "forward", 0, 10), Moment(0, "forward", 10, 20)])
    on_gpu = layout("FULL_SHARD", 4, device="cuda")
    offloaded = layout("FULL_SHARD", 4, device="cuda", cpu_offload=True)
    with_all, without = (step_peak(MODEL, [frozen], how, 1, {}) for how in (on_gpu, offloaded))
    assert with_all["frozen scorer"] == memory.weight_bytes(UNITS, 4)
    assert not {"weights", "optimiser", "frozen scorer"} & set(without)
    assert host_bytes(MODEL, [frozen], offloaded) == 5 * memory.weight_bytes(UNITS, 4)
    assert host_bytes(MODEL, [frozen], on_gpu) == 0


def test_full_sharding_of_llama_2_7b_holds_a_share_and_a_tenth_at_most() -> None:
    with without_parameters():
        units = units_of(MTPModel(random_causal_lm(LLAMA_2_7B, 0, 0), 4))
    terms = (memory.weight_bytes, memory.gradient_bytes, memory.optimiser_bytes)
    one, each = (sum(term(units, pieces) for term in terms) for pieces in (1, RANKS))
    assert one == 16 * sum(memory.elements(unit.trained) for unit in units)
    assert one / RANKS <= each <= 1.1 * one / RANKS


def test_units_hold_every_parameter_once() -> None:
    for tied in (False, True):
        model = tiny_model("llama", num_heads=3, tie_word_embeddings=tied)
        assert sum(memory.elements((*u.trained, *u.frozen)) for u in units_of(model)) == sum(
            p.numel() for p in model.parameters()
        )


class Shapes(TorchDispatchMode):
    """Remembers the shape of everything that an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.seen.add(tuple(out.shape))
        return out


def test_the_loss_holds_what_its_formula_says() -> None:
    N, D, V, chunk = 48, 8, 50, 16
    hidden = torch.randn(1, N, D, requires_grad=True)
    unembedding = Unembedding(torch.randn(V, D, requires_grad=True), None)
    with Shapes() as shapes:
        loss_fused.fused_loss([hidden], unembedding, torch.randint(0, V, (1, N, 1)), chunk=chunk)
    said = memory.loss_bytes(heads=1, positions=N, width=D, vocabulary=V, chunk=chunk, computed=4, device="cpu")
    assert {(chunk, V), (V, D), (N, D)} <= shapes.seen
    assert said == {"hidden rows": 2 * 4 * N * D, "logits chunk": 4 * chunk * V, "unembedding gradient": 4 * V * D}


def test_the_block_of_the_softmax_is_that_of_the_loss() -> None:
    assert memory.BLOCK_BYTES == loss_fused.BLOCK_BYTES


@pytest.mark.parametrize("family", ["parallel", "chain"])
def test_what_is_not_trained_needs_neither_gradients_nor_moments(family: str) -> None:
    heads = "model.heads={{family: {}, num_heads: 3, trained: {}}}"
    few, every = (
        estimate(build(load([RECIPE], [heads.format(family, trained)]), weights=False)) for trained in ("heads", "all")
    )
    assert few.parameters == every.parameters == every.trainable
    for said in (few, every):
        (needs,) = said.needs
        assert needs.state_bytes == 4 * said.parameters + 12 * said.trainable
    assert few.total < every.total
    assert "unembedding gradient" not in few.bytes
