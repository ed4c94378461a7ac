"""What a draft costs is counted from the sizes of matrices, and is what the heads really multiply."""

from __future__ import annotations

import pytest
import torch

from wmtp.decoding.cost import Pass, Weights, drafting_cost, weights_of
from wmtp.decoding.drafting import ChainDrafter, Drafter, LinearDrafter, ParallelDrafter, drafter_of
from wmtp.decoding.trunk import CachedTrunk, decoding
from wmtp.families import FAMILIES
from wmtp.flops import counter
from wmtp.testing import tiny_model

SIZES = Weights(trunk=1000, head=100, unembedding=50)


@pytest.mark.parametrize(
    ("drafter", "length", "passes", "total"),
    [
        (ParallelDrafter, 1, [Pass(100, 2), Pass(50, 1)], 1050 * 14 + 100 * 14 + 50 * 12),
        (ParallelDrafter, 2, [Pass(100, 3), Pass(100, 3), Pass(50, 2)], 1050 * 16 + 2 * 100 * 16 + 50 * 14),
        (LinearDrafter, 1, [Pass(100, 1), Pass(50, 1)], 1050 * 14 + 100 * 12 + 50 * 12),
        (LinearDrafter, 2, [Pass(100, 1), Pass(100, 1), Pass(50, 2)], 1050 * 16 + 2 * 100 * 12 + 50 * 14),
        (ChainDrafter, 1, [Pass(100, 2), Pass(50, 1)], 1050 * 14 + 100 * 14 + 50 * 12),
        (ChainDrafter, 2, [Pass(100, 4), Pass(50, 1)] * 2, 1050 * 16 + 2 * (100 * 18 + 50 * 12)),
    ],
)
def test_a_forward_costs_each_matrix_read_once_a_use_and_multiplied_at_each_position(
    drafter: type[Drafter], length: int, passes: list[Pass], total: int
) -> None:
    """Two rows, and a reading that takes as long as the arithmetic of ten positions."""
    assert drafter.passes(SIZES, length) == passes
    cost = drafting_cost(SIZES, drafter.passes, 2, flat=10.0)
    assert cost.of(length, 2) == pytest.approx(total / (1050 * 12))
    assert cost.of(0, 2) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("heads", FAMILIES)
def test_what_is_multiplied_is_what_torch_counts(family: str, heads: str) -> None:
    """Of one round of drafts that are all accepted, after another; attention aside."""
    model, rows, drafts, length = tiny_model(family, 4, heads=heads).eval(), 2, 3, 5
    tokens_BQ = torch.zeros(rows, length, dtype=torch.long)
    with decoding(model):
        trunk = CachedTrunk(model, rows, 20, keep_output=True)
        drafter = drafter_of(model, trunk, rows)
        trunk.run(tokens_BQ, [0] * rows)
        for _ in range(2):
            with counter() as counted:
                drafts_BJ = drafter.draft([length] * rows, tokens_BQ[:, 0], drafts, lambda logits: logits.argmax(-1))
                model.project(trunk.run(torch.cat([tokens_BQ[:, :1], drafts_BJ], 1), [length] * rows))
            length += 1 + drafts
    flops_of = counted.get_flop_counts()["Global"]
    products = flops_of.get(torch.ops.aten.mm, 0) + flops_of.get(torch.ops.aten.addmm, 0)
    cost = drafting_cost(weights_of(model), drafter.passes, drafts, flat=0.0)
    assert products == 2 * rows * cost.multiplied[drafts]
