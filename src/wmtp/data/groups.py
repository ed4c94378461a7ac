"""How the responses to one problem did together: the group that a response's reward is compared with.

A group is all labelled responses to a problem that the data set has, also those that are not trained on. So it is a
fact of the data: the same on any number of ranks and for any batch size, and no rank needs to see another's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan, sqrt

from wmtp.data.text import Row
from wmtp.errors import DataError

Groups = Mapping[str, tuple[float, float]]
"""Mean and (population) standard deviation of the rewards, by problem."""


class GroupCounts:
    """Correct and labelled responses by problem, counted one after another."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, problem: str, is_correct: bool | None) -> None:
        """One more response."""
        if is_correct is not None:
            correct, labelled = self._counts.get(problem, (0, 0))
            self._counts[problem] = (correct + is_correct, labelled + 1)

    def groups(self) -> Groups:
        """The groups so far. Equal rewards have a deviation of exactly 0."""
        return {problem: group_of(correct, labelled) for problem, (correct, labelled) in self._counts.items()}


def group_of(correct: int, labelled: int) -> tuple[float, float]:
    """Mean and deviation of so many rewards, of which some are 1 and the others 0."""
    share = correct / labelled
    return share, sqrt(share * (1 - share))


def with_groups(rows: Sequence[Row], groups: Groups) -> list[Row]:
    """The rows, each with its problem's group."""
    return [replace(row, group=groups.get(row.name, (nan, nan))) for row in rows]


def check_mixed(rows: Sequence[Row]) -> list[str]:
    """What to tell of rows that weights from groups are made for: nothing, or that they will all weigh the same.

    Raises:
        DataError: no problem has a correct and an incorrect response.
    """
    if not any(row.group[1] > 0 for row in rows):
        raise DataError(
            "objective.weighting.scheme = grpo: none of the problems has a response with is_correct true and one with "
            "false, so every row would weigh 1; label wrong responses too (data.solutions decides what is trained on)"
        )
    first = rows[0].reward, rows[0].group
    if any((row.reward, row.group) != first for row in rows):
        return []
    return [
        "objective.weighting.scheme = grpo: every row that is trained on has the same reward, in a group with the same "
        "share of correct responses, so all weigh the same, as under uniform weights; data.solutions = all trains on "
        "the others too"
    ]
