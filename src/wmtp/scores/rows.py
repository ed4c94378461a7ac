"""What of a row has scores, and by what a row is known: its content, never its place.

A score is of a token (critic, reference), and the row is known by the ids that the policy has; or it is of the whole
row (reward model), which is known by the ids that the reward model reads.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wmtp.data.batches import Batch
from wmtp.data.text import Row

Of = Literal["token", "row"]
"""What a score is of."""


class Span(NamedTuple):
    """The tokens of a row that have scores: the response and the token before it; place 0 for a score of the row."""

    key: bytes
    start: int
    end: int

    @property
    def length(self) -> int:
        """How many there are."""
        return self.end - self.start


def row_key(tokens: NDArray[Any], response_start: int) -> bytes:
    """16 bytes of BLAKE2b over a row's ids (int32) and where its response starts (int64), little-endian."""
    digest = hashlib.blake2b(response_start.to_bytes(8, "little"), digest_size=16)
    digest.update(np.ascontiguousarray(tokens, dtype="<i4").tobytes())
    return digest.digest()


def span_of(tokens: NDArray[Any], response_start: int) -> Span:
    """Of a row without its padding. A response that starts the row has no token before it."""
    return Span(row_key(tokens, response_start), max(0, response_start - 1), len(tokens))


def judged_span(judged: NDArray[Any]) -> Span:
    """Of a row that a reward model reads as these ids, without padding."""
    return Span(row_key(judged, 0), 0, 1)


def span_in(row: Row, of: Of) -> Span:
    """What of a row has scores.

    Raises:
        ValueError: scores of rows, and the row has nothing that a reward model could read.
    """
    if of == "token":
        return span_of(row.tokens, row.response_start)
    if row.judged is None:
        raise ValueError("the row has no ids of a reward model")
    return judged_span(row.judged)


def judged_spans_of(batch: Batch) -> list[Span | None]:
    """Of every row of a batch, by what a reward model reads; None for one that only fills."""
    if batch.judged_BJ is None or batch.judged_mask_BJ is None:
        return [None] * len(batch.reward_B)
    judged, mask = batch.judged_BJ.cpu().numpy(), batch.judged_mask_BJ.cpu().numpy()
    return [judged_span(ids[there]) for ids, there in zip(judged, mask, strict=True)]


def spans_of(batch: Batch) -> list[Span | None]:
    """Of every row of a batch; None for one that only fills."""
    tokens, trainable = batch.tokens_BT.cpu().numpy(), batch.trainable_BT.cpu().numpy()
    spans: list[Span | None] = []
    for ids, mask in zip(tokens, trainable, strict=True):
        places = np.flatnonzero(mask)
        spans.append(span_of(ids[: places[-1] + 1], int(places[0])) if places.size else None)
    return spans
