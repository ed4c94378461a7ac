"""Work that ranks do together, and that fails on all of them when it fails on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from wmtp.errors import CheckpointError

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group; without a group, this process alone.

    The group must be of the backend gloo and nobody else's: collectives of two threads in one group get mixed up.
    Its timeout must be longer than a save takes. Objects travel between the ranks of one job as
    `torch.distributed` sends them; nothing that was sent is read from or written to a file.
    """

    group: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many there are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def together(self, work: Callable[[], T], lead: Callable[[list[T]], Sequence[U]]) -> U:
        """Do `work` on every rank, then `lead` on rank 0 with all results; give each rank its item of the answer.

        Raises:
            CheckpointError: `work` failed somewhere, or `lead` did, or a rank is gone. Raised on every rank that is
                there, with the ranks that failed and their reasons. A process alone gets the error itself.
        """
        if self.group is None:
            return lead([work()])[0]
        error, result = _attempt(work)
        try:
            everyone: list[Any] | None = [None] * self.size if self.rank == 0 else None
            dist.gather_object((_reason(error), result), everyone, group=self.group, group_dst=0)
            answers: list[Any] | None = None
            if everyone is not None:
                answers, error = _lead(everyone, lead, error)
            received: list[Any] = [None]
            dist.scatter_object_list(received, answers, group=self.group, group_src=0)
        except RuntimeError as lost:
            raise CheckpointError(
                f"rank {self.rank} lost touch with the others: one died, or the group's timeout is too short ({lost})"
            ) from (error or lost)
        reason, answer = received[0]
        if error is not None and not isinstance(error, Exception):
            raise error
        if reason is not None:
            raise CheckpointError(reason) from error
        share: U = answer
        return share


def _lead(
    everyone: list[Any], lead: Callable[[list[Any]], Sequence[Any]], error: BaseException | None
) -> tuple[list[Any], BaseException | None]:
    """What each rank is told, (reason, answer), and the error of this one."""
    failed = [f"rank {rank}: {reason}" for rank, (reason, _) in enumerate(everyone) if reason is not None]
    if not failed:
        error, shares = _attempt(lambda: lead([result for _, result in everyone]))
        if shares is not None:
            return [(None, share) for share in shares], None
        failed = [f"rank 0: {_reason(error)}"]
    return [("; ".join(failed), None)] * len(everyone), error


def _attempt(work: Callable[[], T]) -> tuple[BaseException | None, T | None]:
    """Error or result. Even an interrupt is caught, since the other ranks wait for word; `together` raises it again."""
    try:
        return None, work()
    except BaseException as error:  # noqa: BLE001
        return error, None


def _reason(error: BaseException | None) -> str | None:
    return None if error is None else str(error) or type(error).__name__
