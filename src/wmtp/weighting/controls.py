"""Controls: the weights of another scheme, given to other pairs. What a study compares that scheme with.

docs/math.md (4.7). All three deal out the very same numbers anew, per head, so mean, variance and sum over the step are
those of the scheme that they wrap, on any number of ranks; only which pair gets which weight has changed.

    shuffled         within each row, by lot               keeps what a row counts for
    random_matched   over the whole step, by lot           keeps nothing of what the scheme found
    inverted         over the whole step, largest for smallest, ties by lot

The lot of a pair follows from the seed, its row's place in the data set and its token's place in the row. So it depends
neither on batches nor on ranks, there is nothing to save, and a pair keeps its lot from epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wmtp.ranks import Reduce
from wmtp.weighting.base import Scheme, SchemeInput, When, ask

_LARGEST = torch.iinfo(torch.int64).max

Deal = Callable[[list[Tensor], list[Tensor], list[Tensor], Reduce], list[Tensor]]
"""(weights, masks and lots of every micro-batch, each [B, T, K]) -> the weights dealt out anew, 0 outside the masks."""


class Control:
    """Another scheme's weights, dealt out anew.

    Args:
        of: the scheme.
        seed: of the lots.
        deal: how.
        whole_step: whether all of the step's weights must be there for that.
    """

    def __init__(self, of: Scheme, seed: int, deal: Deal, *, whole_step: bool) -> None:
        self.of, self.seed, self.deal, self.whole_step = of, seed, deal, whole_step

    @property
    def when(self) -> When:
        """As the scheme, unless more of its weights must be there."""
        if self.of.when is When.BEFORE_FORWARD:
            return When.BEFORE_FORWARD
        if self.whole_step:
            return When.WHOLE_STEP
        return When.MICRO_BATCH if self.of.when is When.ROW else self.of.when

    @property
    def per_head(self) -> bool:
        """As the scheme: weights never leave their head."""
        return self.of.per_head

    @property
    def needs(self) -> frozenset[str]:
        """What the scheme needs."""
        return self.of.needs

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The weights are the same numbers."""
        return self.of.bounds

    @torch.no_grad()
    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """The scheme's weights of the given micro-batches, dealt out anew."""
        given = ask(self.of, step, reduce, training)
        masks, drawn = [batch.valid_BTK for batch in step], [lots(batch, self.seed) for batch in step]
        return list(self.deal(given, masks, drawn, reduce))

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """Passed on."""
        self.of.observe(totals)

    def state_dict(self) -> dict[str, Any]:
        """The scheme's memory."""
        return self.of.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.of.load_state_dict(state)


def shuffled(of: Scheme, seed: int = 0) -> Control:
    """Each row's weights, permuted among the pairs of that row and head."""
    return Control(of, seed, _within_rows, whole_step=False)


def random_matched(of: Scheme, seed: int = 0) -> Control:
    """The step's weights, drawn for its pairs without replacement."""
    return Control(of, seed, _over_the_step(_by_lot), whole_step=True)


def inverted(of: Scheme, seed: int = 0) -> Control:
    """The pair with the n-th largest weight of the step gets the n-th smallest; ties by lot."""
    return Control(of, seed, _over_the_step(_largest_for_smallest), whole_step=True)


def _within_rows(given: list[Tensor], masks: list[Tensor], drawn: list[Tensor], reduce: Reduce) -> list[Tensor]:
    dealt = []
    for weight_BTK, mask_BTK, lot_BTK in zip(given, masks, drawn, strict=True):
        place_BTK = torch.arange(weight_BTK.shape[1], device=weight_BTK.device).view(1, -1, 1).expand_as(weight_BTK)
        receive_BTK, give_BTK = (
            order.masked_fill(~mask_BTK, _LARGEST).argsort(dim=1, stable=True) for order in (place_BTK, lot_BTK)
        )
        moved_BTK = torch.zeros_like(weight_BTK).scatter(1, receive_BTK, weight_BTK.gather(1, give_BTK))
        dealt.append(torch.where(mask_BTK, moved_BTK, 0.0))
    return dealt


Orders = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(weights, lots) of all pairs of a head -> in which order pairs receive, and in which they give."""


def _over_the_step(orders: Orders) -> Deal:
    """Deal among the pairs of a head on all ranks; every rank sees all of the step's weights for that."""

    def deal(given: list[Tensor], masks: list[Tensor], drawn: list[Tensor], reduce: Reduce) -> list[Tensor]:
        dealt = [torch.zeros_like(weight_BTK) for weight_BTK in given]
        for k in range(given[0].shape[2]):
            of_head = [mask_BTK[:, :, k] for mask_BTK in masks]
            weight_M, here = reduce.gather(_picked(given, of_head, k))
            lot_M, _ = reduce.gather(_picked(drawn, of_head, k))
            receive_M, give_M = orders(weight_M, lot_M)
            own_N = torch.empty_like(weight_M).index_copy_(0, receive_M, weight_M[give_M])[here]
            parts = torch.split(own_N, [int(mask_BT.sum()) for mask_BT in of_head])
            for out_BTK, mask_BT, part in zip(dealt, of_head, parts, strict=True):
                out_BTK[:, :, k][mask_BT] = part
        return dealt

    return deal


def _picked(value_list: list[Tensor], mask_list: list[Tensor], k: int) -> Tensor:
    """The masked values of head k, one micro-batch after another."""
    return torch.cat([v_BTK[:, :, k][mask_BT] for v_BTK, mask_BT in zip(value_list, mask_list, strict=True)])


def _by_lot(weight_M: Tensor, lot_M: Tensor) -> tuple[Tensor, Tensor]:
    return lot_M.argsort(), mixed(lot_M).argsort()


def _largest_for_smallest(weight_M: Tensor, lot_M: Tensor) -> tuple[Tensor, Tensor]:
    by_lot_M = lot_M.argsort()
    ascending_M = by_lot_M[weight_M[by_lot_M].argsort(stable=True)]
    return ascending_M.flip(0), ascending_M


def lots(batch: SchemeInput, seed: int) -> Tensor:
    """A lot per pair, `[B, T, K]` int64: a function of the seed, the row and the place of the target token in it."""
    if batch.row_B is None:
        raise ValueError("controls need row_B: the lot of a pair follows from its row's place in the data set")
    _, T, K = batch.target_BTK.shape
    of_row_B = mixed(mixed(torch.full_like(batch.row_B, seed)) + batch.row_B)
    place_TK = torch.arange(T, device=of_row_B.device).unsqueeze(1) + torch.arange(K, device=of_row_B.device)
    return mixed(of_row_B.view(-1, 1, 1) + place_TK + batch.first_head)


def mixed(value: Tensor) -> Tensor:
    """int64 -> int64, one to one and as good as random: the mixing of SplitMix64 (Steele et al. 2014), which wraps."""
    value = value + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ _shifted(value, shift)) * _signed(factor)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
