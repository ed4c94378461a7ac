"""Which rows form which batch, and batches as tensors.

The order is a pure function of (seed, batch number): nothing is consumed, so a run that resumes at step n asks for
batch n and gets the one it would have got. Rows of similar length share a batch and are padded to its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.text import Row
from wmtp.errors import DataError

Item = tuple[int, ...]
"""Rows that must stay together: one row, or a (correct, incorrect) pair."""

POOL = 32
"""Batches that are sorted by length together: enough to even out lengths, few enough to keep the order random."""


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to the longest of them."""

    tokens_BT: Tensor
    trainable_BT: Tensor
    """bool: response tokens and their EOS."""
    reward_B: Tensor
    """fp32: 1 correct, 0 incorrect, NaN unknown."""
    row_B: tuple[int, ...]
    """Place of each row in the data set, for messages."""
    num_tokens: int
    """Tokens of the rows, padding left out."""
    paired: bool = False
    """Rows 2i and 2i+1 are a correct and an incorrect response to one problem."""
    document_BT: Tensor | None = None
    """None: every row is one document."""
    group_B2: Tensor | None = None
    """fp32: mean and standard deviation of the rewards of all responses to the row's problem; NaN unknown."""

    def filler(self) -> Batch:
        """Rows of the same kind with nothing to train on: for a rank that has no rows left while others have."""
        rows = 2 if self.paired else 1
        return replace(
            self,
            tokens_BT=self.tokens_BT[:rows, :2],
            trainable_BT=torch.zeros_like(self.trainable_BT[:rows, :2]),
            reward_B=torch.zeros_like(self.reward_B[:rows]),
            row_B=(),
            num_tokens=0,
            document_BT=None if self.document_BT is None else self.document_BT[:rows, :2],
            group_B2=None if self.group_B2 is None else torch.zeros_like(self.group_B2[:rows]),
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def single_items(rows: Sequence[Row]) -> list[Item]:
    """Every row by itself."""
    return [(i,) for i in range(len(rows))]


def rows_by_label(rows: Sequence[Row]) -> dict[int, tuple[list[int], list[int]]]:
    """Per problem, in order: its correct and its incorrect rows. Rows without a label are in neither."""
    sides: dict[int, tuple[list[int], list[int]]] = {}
    for i, row in enumerate(rows):
        good, bad = sides.setdefault(row.problem, ([], []))
        if row.reward == 1.0:
            good.append(i)
        elif row.reward == 0.0:
            bad.append(i)
    return sides


def pair_items(rows: Sequence[Row]) -> list[Item]:
    """(correct, incorrect) rows of the same problem, each row used once where possible.

    Per problem, the longer side is walked through once and the shorter one repeated, so every labelled row of a
    problem that has both kinds is in at least one pair.

    Raises:
        DataError: no problem has both.
    """
    sides = rows_by_label(rows)
    pairs: list[Item] = [
        (good[j % len(good)], bad[j % len(bad)])
        for good, bad in sides.values()
        if good and bad
        for j in range(max(len(good), len(bad)))
    ]
    if not pairs:
        raise DataError(
            f"no pairs: none of {len(sides):,} problems has a response with is_correct true and one with false"
        )
    return pairs


class Batches:
    """An endless, addressable sequence of batches over items.

    Args:
        batch_size: rows per batch; a multiple of the items' size. The last batch of an epoch may be smaller.
        seed: of the order; None keeps the items' own order (validation).
        pad_id: id in the padded places; never trained, never attended to by a real token.

    Raises:
        DataError: a batch size that items do not fill evenly.
    """

    def __init__(
        self, rows: Sequence[Row], items: Sequence[Item], *, batch_size: int, seed: int | None, pad_id: int
    ) -> None:
        per_item = len(items[0])
        if batch_size % per_item:
            raise DataError(f"train.batch_size must be even (rows come in pairs), got {batch_size}")
        self.rows, self.items = rows, items
        self.items_per_batch = batch_size // per_item
        self.seed, self.pad_id = seed, pad_id
        self._lengths = np.array([max(len(rows[i].tokens) for i in item) for item in items])
        self._epoch: tuple[int, list[NDArray[np.int64]]] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.items) // self.items_per_batch)

    def rows_of(self, number: int) -> list[int]:
        """The rows of batch `number`, counted from 0 over all epochs."""
        epoch, place = divmod(number, len(self))
        return [row for item in self._order(epoch)[place] for row in self.items[item]]

    def at(
        self, number: int, rows: int | None = None, tokens: int | None = None, *, rank: int = 0, ranks: int = 1
    ) -> list[Batch]:
        """Batch `number` as micro-batches: one rank's share of it.

        The union of the ranks' rows is the batch, and all ranks get the same number of micro-batches (a rank with
        too few rows gets fillers), each known without asking the others.

        Args:
            rows: at most so many rows in each (None: any number).
            tokens: at most so many positions in each, padding included, unless it is a single item. Rows of a batch
                come sorted by length, so this bounds memory with next to no padding.

        Raises:
            DataError: `rows` would tear pairs apart.
        """
        paired = len(self.items[0]) == 2
        if rows is not None and rows % len(self.items[0]):
            raise DataError(f"train.micro_batch_size must be even (rows come in pairs), got {rows}")
        epoch, place = divmod(number, len(self))
        items = self._order(epoch)[place]
        shares = [self._groups(items[r::ranks], rows or len(self.rows) * 2, tokens) for r in range(ranks)]
        own = [collate(self.rows, group, self.pad_id, paired) for group in shares[rank]]
        missing = max(len(groups) for groups in shares) - len(own)
        if not missing:
            return own
        like = own[0] if own else collate(self.rows, self.items[items[0]], self.pad_id, paired)
        return [*own, *[like.filler()] * missing]

    def _groups(self, items: NDArray[np.int64], most_rows: int, most_tokens: int | None) -> list[list[int]]:
        """Rows of the micro-batches, whole items each."""
        groups: list[list[int]] = []
        longest = 0
        for item in items:
            rows = list(self.items[item])
            longest = max(longest, int(self._lengths[item]))
            count = (len(groups[-1]) if groups else most_rows) + len(rows)
            if count > most_rows or (most_tokens is not None and count * longest > most_tokens):
                groups.append([])
                longest = int(self._lengths[item])
            groups[-1] += rows
        return groups

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1]

    def _shuffled(self, epoch: int) -> list[NDArray[np.int64]]:
        """Items per batch: shuffled, sorted by length within pools, batches shuffled again."""
        size, total = self.items_per_batch, len(self.items)
        if self.seed is None:
            return [np.arange(i, min(i + size, total)) for i in range(0, total, size)]
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        order = random.permutation(total)
        pool = POOL * size
        pools = [order[i : i + pool] for i in range(0, total, pool)]
        order = np.concatenate([p[np.argsort(self._lengths[p], kind="stable")] for p in pools])
        batches = [order[i : i + size] for i in range(0, total, size)]
        return [batches[i] for i in random.permutation(len(batches))]


def collate(rows: Sequence[Row], chosen: Sequence[int], pad_id: int, paired: bool = False) -> Batch:
    """The chosen rows as one padded batch."""
    longest = max(len(rows[i].tokens) for i in chosen)
    tokens = np.full((len(chosen), longest), pad_id, dtype=np.int64)
    trainable = np.zeros((len(chosen), longest), dtype=bool)
    for b, i in enumerate(chosen):
        row = rows[i]
        tokens[b, : len(row.tokens)] = row.tokens
        trainable[b, row.response_start : len(row.tokens)] = True
    reward = np.array([rows[i].reward for i in chosen], dtype=np.float32)
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(trainable),
        torch.from_numpy(reward),
        tuple(chosen),
        sum(len(rows[i].tokens) for i in chosen),
        paired,
        group_B2=torch.tensor([rows[i].group for i in chosen], dtype=torch.float32),
    )
