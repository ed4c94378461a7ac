"""K = 1 with uniform weights *is* ordinary fine-tuning: same parameters after 20 steps as a loop written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from wmtp.data.batches import Batch
from wmtp.families import FAMILIES as HEADS
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.optim import build_adamw, learning_rate, set_learning_rate
from wmtp.step import train_step
from wmtp.testing import random_batch, tiny_base
from wmtp.weighting import Uniform

STEPS, WARMUP, LR = 20, 5, 3e-3
BETAS, EPS, DECAY = (0.9, 0.95), 1e-8, 0.1
CLIP = 3.0
BATCHES = [random_batch(rows=5, length=8 + seed % 5, seed=seed) for seed in range(STEPS)]

MODELS = [
    pytest.param("llama", {"tie_word_embeddings": False}, id="llama-untied"),
    pytest.param("llama", {"tie_word_embeddings": True}, id="llama-tied"),
    pytest.param("gpt2", {}, id="gpt2"),
]


def fine_tuned_by_hand(base: Any, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """The loop that everybody writes, with transformers and PyTorch alone."""
    matrices = [p for p in base.parameters() if p.ndim >= 2]
    vectors = [p for p in base.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    for step, batch in enumerate(batches, 1):
        labels = batch.tokens_BT.masked_fill(~batch.trainable_BT, -100)
        logits = base(batch.tokens_BT).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, step / WARMUP)
        optimizer.step()
    return {name: p.detach() for name, p in base.named_parameters()}


def fine_tuned_here(
    base: Any, batches: list[Batch], kind: str, heads: str = "parallel"
) -> tuple[dict[str, torch.Tensor], list[float]]:
    model = MTPModel(base, 1, family=heads)
    model.train()
    optimizer = build_adamw(model, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    objective = MTPObjective(Uniform(), kind=kind)
    norms = []
    for step, batch in enumerate(batches, 1):
        lr = learning_rate(step, peak=LR, total=len(batches), warmup=WARMUP, schedule="constant", floor=0.0)
        set_learning_rate(optimizer, lr)
        norms.append(train_step(model, optimizer, objective, [batch], clip_norm=CLIP).grad_norm)
    return {model.hf_key(name): p.detach() for name, p in model.named_parameters()}, norms


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("family", "options"), MODELS)
def test_with_the_plain_loss_it_is_ordinary_fine_tuning_to_the_last_bit(
    family: str, options: dict[str, Any], heads: str
) -> None:
    start = {name: p.detach().clone() for name, p in tiny_base(family, **options).named_parameters()}
    expected = fine_tuned_by_hand(tiny_base(family, **options).train(), BATCHES)
    got, norms = fine_tuned_here(tiny_base(family, **options), BATCHES, "plain", heads)
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
        assert not torch.equal(got[name], start[name]), name
    assert min(norms) < CLIP < max(norms)  # some steps clip and some do not


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("family", "options"), MODELS)
def test_with_the_fused_loss_it_is_ordinary_fine_tuning_to_one_in_a_million(
    family: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    expected = fine_tuned_by_hand(tiny_base(family, dtype=dtype, **options).train(), BATCHES)
    got, _ = fine_tuned_here(tiny_base(family, dtype=dtype, **options), BATCHES, "fused")
    for name in expected:
        if dtype == torch.float32 and name.endswith("attn.c_attn.bias"):
            continue  # the keys' bias has a gradient of 0 but for rounding, and Adam divides it by its own size
        error = (got[name] - expected[name]).norm() / expected[name].norm()
        assert float(error) < 1e-6, name


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 5)])
def test_its_loss_is_the_one_transformers_reports(rows: slice) -> None:
    base, batch = tiny_base(), random_batch(rows=5)
    batch = Batch(
        batch.tokens_BT[rows], batch.trainable_BT[rows], batch.reward_B[rows], batch.row_B[rows], batch.num_tokens
    )
    with torch.no_grad():
        labels = batch.tokens_BT.masked_fill(~batch.trainable_BT, -100)
        expected = float(base(input_ids=batch.tokens_BT, labels=labels).loss)
    model = MTPModel(base, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    metrics = train_step(model, optimizer, MTPObjective(Uniform()), [batch]).metrics
    assert metrics["loss/weighted"] == pytest.approx(expected, rel=1e-6)
    assert metrics["loss/nll"] == pytest.approx(expected, rel=1e-6)
