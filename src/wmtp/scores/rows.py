"""Which tokens of a row have scores, and by what a row is known: its content, never its place."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wmtp.data.batches import Batch


class Span(NamedTuple):
    """The tokens of a row that have scores: the response and the token before it."""

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


def spans_of(batch: Batch) -> list[Span | None]:
    """Of every row of a batch; None for one that only fills."""
    tokens, trainable = batch.tokens_BT.cpu().numpy(), batch.trainable_BT.cpu().numpy()
    spans: list[Span | None] = []
    for ids, mask in zip(tokens, trainable, strict=True):
        places = np.flatnonzero(mask)
        spans.append(span_of(ids[: places[-1] + 1], int(places[0])) if places.size else None)
    return spans
