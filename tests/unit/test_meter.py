"""Figures are added up as they are: nothing is rounded where there is nobody to add to."""

from __future__ import annotations

import torch

from wmtp.distributed import World
from wmtp.metrics import Meter
from wmtp.ranks import alone
from wmtp.testing.ranks import Ranks


def test_a_single_process_keeps_its_sums_as_they_are() -> None:
    """Also in a `World` of one: a wider type than the device has is not asked for, and counts stay whole."""
    meter = Meter()
    meter.add(count=torch.tensor(2**60 + 1), nll=torch.tensor([0.1, 0.2]))
    for reduce in (alone, World()):
        found = meter.reduced(reduce)
        assert found["count"].item() == 2**60 + 1
        assert torch.equal(found["nll"], torch.tensor([0.1, 0.2]))


def test_ranks_sums_are_added_in_their_own_types() -> None:
    def of_rank(rank: int, reduce: object) -> dict[str, torch.Tensor]:
        meter = Meter()
        meter.add(count=torch.tensor(3 + rank), nll=torch.tensor([0.5, float(rank)]))
        return meter.reduced(reduce)  # type: ignore[arg-type]

    for found in Ranks(2).run(of_rank):
        assert (found["count"].dtype, found["count"].item()) == (torch.int64, 7)
        assert torch.equal(found["nll"], torch.tensor([1.0, 1.0]))
