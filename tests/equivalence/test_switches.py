"""Compiling, recomputing and cutting batches by tokens change how a step computes, not what."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wmtp.data.batches import Batches, pair_items, single_items
from wmtp.data.text import Row
from wmtp.loss import LossSum, Unembedding
from wmtp.loss_fused import fused_loss
from wmtp.objective import MTPObjective
from wmtp.optim import build_adamw
from wmtp.parts import prepare_model
from wmtp.step import train_step
from wmtp.targets import IGNORE
from wmtp.testing import random_batch, tiny_model
from wmtp.weighting import Uniform


def gradients(family: str, *, seeds: tuple[int, ...] = (1,), checkpointing: bool = False) -> list[Tensor]:
    model = tiny_model(family, num_heads=3, noise=0.1)
    prepare_model(model, checkpointing=checkpointing, compiled=False)
    optimizer = build_adamw(model, lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for seed in seeds:
        train_step(model, optimizer, MTPObjective(Uniform()), [random_batch(seed=seed)], clip_norm=None)
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_recomputed_activations_give_the_same_gradients_to_the_last_bit(family: str) -> None:
    kept, recomputed = gradients(family), gradients(family, checkpointing=True)
    assert all(a.equal(b) for a, b in zip(kept, recomputed, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile reads .grad of non-leaves and uses torch.jit.script_method
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
def test_compiled_layers_agree_without_graph_breaks_and_without_recompiling_for_other_shapes() -> None:
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = (tiny_model("llama", num_heads=2, noise=0.1) for _ in range(2))
    prepare_model(compiled, checkpointing=False, compiled=True)
    models = (plain, compiled)
    optimizers = [build_adamw(m, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0) for m in models]
    graphs = []
    for rows, length, seed in ((4, 12, 1), (3, 9, 2), (6, 15, 3), (2, 7, 4), (5, 11, 5)):
        batch = random_batch(rows=rows, length=length, seed=seed)
        results = [train_step(m, o, MTPObjective(Uniform()), [batch]) for m, o in zip(models, optimizers, strict=True)]
        assert results[1].metrics["loss/nll"] == pytest.approx(results[0].metrics["loss/nll"], rel=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert graphs[-1] == graphs[1], graphs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
@pytest.mark.parametrize("bias", [False, True])
def test_the_compiled_loss_of_bf16_rows_is_the_fused_one(bias: bool) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 20, 16, generator=random), torch.randn(2, 20, 16, generator=random)]
    inputs.append(torch.randn(300, 16, generator=random) / 2)
    target_BTK = torch.randint(300, (2, 20, 2), generator=random)
    target_BTK[:, :3] = IGNORE
    weight_BTK = 3 * torch.rand(2, 20, 2, generator=random) * (torch.rand(2, 20, 2, generator=random) < 0.6)

    def loss(compiled: bool) -> tuple[LossSum, list[Tensor]]:
        *hidden_K, projection = [each.bfloat16().requires_grad_() for each in inputs]
        cap = {"bias_V": torch.linspace(-1, 1, 300), "softcap": 5.0} if bias else {}
        unembedding = Unembedding(projection, **cap)
        found = fused_loss(hidden_K, unembedding, target_BTK, weight_BTK, chunk=13, compiled=compiled)
        found.weighted_sum.backward()
        return found, [each.grad for each in (*hidden_K, projection) if each.grad is not None]

    (ours, gradients), (theirs, expected) = loss(True), loss(False)
    torch.testing.assert_close(ours.nll_BTK, theirs.nll_BTK)
    assert ours.correct_K.equal(theirs.correct_K)
    for one, other in zip(gradients, expected, strict=True):
        assert (one - other).norm() <= 2e-3 * other.norm()


@st.composite
def data(draw: st.DrawFn) -> list[Row]:
    lengths = draw(st.lists(st.integers(3, 40), min_size=4, max_size=40))
    rewards = [float(i % 2) for i in range(len(lengths))]
    return [
        Row(np.arange(n, dtype=np.int32), 1, i // 4, r, 0)
        for i, (n, r) in enumerate(zip(lengths, rewards, strict=True))
    ]


@given(data(), st.integers(1, 200), st.integers(1, 6), st.booleans())
def test_micro_batches_by_tokens_hold_every_row_once_within_the_budget(
    rows: list[Row], tokens: int, most: int, paired: bool
) -> None:
    items = pair_items(rows) if paired else single_items(rows)
    size = len(items[0])
    batches = Batches(rows, items, batch_size=8, seed=3, pad_id=0)
    micro = batches.at(1, most * size, tokens)
    assert [row for batch in micro for row in batch.row_B] == batches.rows_of(1)
    for batch in micro:
        assert len(batch.row_B) % size == 0
        assert len(batch.row_B) <= most * size
        assert batch.tokens_BT.numel() <= tokens or len(batch.row_B) == size
