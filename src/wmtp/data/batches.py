"""Batches as tensors, and each rank's share of them. Which rows form which batch, `orders` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.facts import facts_of
from wmtp.data.orders import Order, Sequential, Shuffled
from wmtp.data.sampling import Integers
from wmtp.data.text import Row
from wmtp.errors import DataError

UNREAD = -1
"""The place of a row that the run does not train on."""

Item = tuple[int, ...]
"""Rows that must stay together: one row, or a (correct, incorrect) pair."""


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
    judged_BJ: Tensor | None = None
    """Each record as ids of the reward model's tokenizer, where the rows have them; 0 in the padding on the right."""
    judged_mask_BJ: Tensor | None = None
    """bool: False in that padding."""

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
            f"no pairs: none of {len(sides):,} problems has a response with is_correct true and one with false; "
            "`wmtp data label` judges responses, `wmtp data mutate` makes wrong ones"
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
        array, per_batch = np.asarray(items, np.int64), items_per_batch(batch_size, len(items[0]))
        lengths = facts_of(rows).length_R
        order = Sequential(array, per_batch) if seed is None else Shuffled(lambda _: array, lengths, per_batch, seed)
        self._begin(rows, order, lengths, pad_id, None)

    @classmethod
    def ordered(cls, rows: Sequence[Row], order: Order, *, pad_id: int, place_R: Integers | None = None) -> Batches:
        """Batches of an order over rows.

        Args:
            place_R: where the order's rows are among `rows`, or UNREAD; default: they are the same.
        """
        batches = cls.__new__(cls)
        batches._begin(rows, order, facts_of(rows).length_R, pad_id, place_R)
        return batches

    def _begin(
        self,
        rows: Sequence[Row],
        order: Order,
        length_R: NDArray[np.int32],
        pad_id: int,
        place_R: Integers | None,
    ) -> None:
        self.rows, self.order, self.pad_id = rows, order, pad_id
        self._length_R, self._place_R = length_R, place_R

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.order)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self._length_R.max())

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of the first epoch's rows, padding left out; those that the run will not train on are estimated."""
        rows = np.concatenate([self._items(number).ravel() for number in range(len(self))])
        return round(float(self._length_R[rows[rows != UNREAD]].mean()) * len(rows))

    @property
    def rows_per_item(self) -> int:
        """Rows that stay together: 2 for pairs."""
        return int(self._items(0).shape[1])

    @property
    def largest_batch(self) -> int:
        """Items of a batch, at most."""
        return max(len(self._items(number)) for number in range(min(2, len(self))))

    def rows_of(self, number: int) -> list[int]:
        """The rows of batch `number`, counted from 0 over all epochs.

        Raises:
            IndexError: some were not read, because the run ends before.
        """
        rows: list[int] = self._read_items(number).ravel().tolist()
        return rows

    def at(
        self, number: int, rows: int | None = None, tokens: int | None = None, *, rank: int = 0, ranks: int = 1
    ) -> list[Batch]:
        """Batch `number` as micro-batches: one rank's share of it, whose rows are the only ones that are read.

        The union of the ranks' rows is the batch, and all ranks get the same number of micro-batches (a rank with
        too few rows gets fillers), each known without asking the others.

        Args:
            rows: at most so many rows in each (None: any number).
            tokens: at most so many positions in each, padding included, unless it is a single item. Rows of a batch
                come sorted by length, so this bounds memory with next to no padding.

        Raises:
            DataError: `rows` would tear pairs apart.
            IndexError: as `rows_of`.
        """
        items = self._read_items(number)
        per_item = items.shape[1]
        if rows is not None and rows % per_item:
            raise DataError(f"train.micro_batch_size must be even (rows come in pairs), got {rows}")
        shares = [self._groups(items[r::ranks], rows or items.size, tokens) for r in range(ranks)]
        paired = per_item == 2
        own = [collate(self.rows, group, self.pad_id, paired) for group in shares[rank]]
        missing = max(len(groups) for groups in shares) - len(own)
        return [*own, *[filler(per_item, self.pad_id)] * missing]

    def _items(self, number: int) -> Integers:
        items = self.order.items(number)
        return items if self._place_R is None else self._place_R[items]

    def _read_items(self, number: int) -> Integers:
        items = self._items(number)
        if (items == UNREAD).any():
            raise IndexError(f"batch {number} has rows that were not read: the run was built for fewer steps")
        return items

    def _groups(self, items: Integers, most_rows: int, most_tokens: int | None) -> list[list[int]]:
        """Rows of the micro-batches, whole items each."""
        groups: list[list[int]] = []
        longest = 0
        for item, length in zip(items.tolist(), self._length_R[items].max(axis=1).tolist(), strict=True):
            longest = max(longest, length)
            count = (len(groups[-1]) if groups else most_rows) + len(item)
            if count > most_rows or (most_tokens is not None and count * longest > most_tokens):
                groups.append([])
                longest = length
            groups[-1] += item
        return groups


def items_per_batch(batch_size: int, per_item: int) -> int:
    """Items of a batch of so many rows.

    Raises:
        DataError: items do not fill it evenly.
    """
    if batch_size % per_item:
        raise DataError(f"train.batch_size must be even (rows come in pairs), got {batch_size}")
    return batch_size // per_item


def filler(rows: int, pad_id: int) -> Batch:
    """Rows with nothing to train on: for a rank that has no rows left while others have."""
    return Batch(
        torch.full((rows, 2), pad_id),
        torch.zeros(rows, 2, dtype=torch.bool),
        torch.zeros(rows),
        (),
        0,
        rows == 2,
        group_B2=torch.zeros(rows, 2),
    )


def collate(rows: Sequence[Row], chosen: Sequence[int], pad_id: int, paired: bool = False) -> Batch:
    """The chosen rows as one padded batch."""
    found = [rows[i] for i in chosen]
    longest = max(len(row.tokens) for row in found)
    tokens = np.full((len(found), longest), pad_id, dtype=np.int64)
    trainable = np.zeros((len(found), longest), dtype=bool)
    for b, row in enumerate(found):
        tokens[b, : len(row.tokens)] = row.tokens
        trainable[b, row.response_start : len(row.tokens)] = True
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(trainable),
        torch.from_numpy(np.array([row.reward for row in found], dtype=np.float32)),
        tuple(chosen),
        sum(len(row.tokens) for row in found),
        paired,
        group_B2=torch.tensor([row.group for row in found], dtype=torch.float32),
        **_judged([row.judged for row in found if row.judged is not None]),
    )


def _judged(rows: Sequence[NDArray[np.int32]]) -> dict[str, Tensor]:
    """`judged_BJ` and its mask; nothing where the rows have no such ids."""
    if not rows:
        return {}
    length_B1 = np.array([[len(row)] for row in rows])
    mask_BJ = np.arange(length_B1.max()) < length_B1
    judged_BJ = np.zeros(mask_BJ.shape, np.int64)
    judged_BJ[mask_BJ] = np.concatenate(rows)
    return {"judged_BJ": torch.from_numpy(judged_BJ), "judged_mask_BJ": torch.from_numpy(mask_BJ)}
