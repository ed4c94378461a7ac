"""Rows measured in tokens: columns of an index that belong to one tokenizer and one template.

The ids themselves can be kept too, so that a run on indexed rows tokenises nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmtp.data.cache import token_code_version
from wmtp.data.columns import Columns, ColumnWriter
from wmtp.data.records import Record
from wmtp.data.sampling import Integers
from wmtp.data.text import Encoder, Tokens, check_template
from wmtp.data.tokenising import with_tokens

NO_LIMIT = 2**31 - 1
"""Tokens of a row: what a column holds."""
_NO_TOKEN = -1
"""Of `start`: no token holds a character of the response."""


@dataclass(frozen=True)
class Measure:
    """How rows are measured.

    Args:
        tokenizer: a fast one, with an EOS.
        fingerprint: all that decides which ids it gives (`wmtp.formats.hf.backend_fingerprint`).
        template: around each prompt, as data.template.
        workers: processes that tokenise, beside this one.
        keep_ids: the ids too, 4 bytes a token.

    Raises:
        ConfigError: a template that is none.
    """

    tokenizer: Any
    fingerprint: str
    template: str
    workers: int = 0
    keep_ids: bool = False

    def __post_init__(self) -> None:
        check_template(self.template)

    def about(self) -> dict[str, Any]:
        """What the measured lengths belong to, for the header of the index."""
        return {**identity(self.fingerprint, self.template), "ids": self.keep_ids}

    def measured(self, records: Iterable[Record]) -> Iterator[Measured]:
        """Each record's tokens, in order.

        Raises:
            DataError: the chat template refuses a conversation.
            ModelError, WmtpError: as `with_tokens`.
        """
        encoder = Encoder(self.tokenizer, template=self.template, max_length=NO_LIMIT)
        before, ends = len(encoder.before), len(encoder.before) + len(encoder.after)
        for _, tokens in with_tokens(records, encoder, self.workers):
            start = _NO_TOKEN if tokens.first is None else before + tokens.first
            ids = np.array(tokens.ids, np.int32) if self.keep_ids else None
            yield Measured(ends + len(tokens.ids), start, tokens.straddles, ids)


@dataclass(frozen=True)
class Measured:
    """What is known of one row: its length with BOS and EOS, its first trainable token (or _NO_TOKEN), its ids."""

    length: int
    start: int
    straddles: bool
    ids: NDArray[np.int32] | None


def identity(fingerprint: str, template: str) -> dict[str, str]:
    """All that decides how many tokens a row has."""
    return {"tokenizer": fingerprint, "template": template, "code": token_code_version()}


def append(writer: ColumnWriter, rows: Sequence[Measured]) -> None:
    """Put rows into columns."""
    writer.append("tokens", np.array([row.length for row in rows], np.int32))
    writer.append("start", np.array([row.start for row in rows], np.int32))
    writer.append("straddles", np.array([row.straddles for row in rows], np.int8))
    kept = [row.ids for row in rows if row.ids is not None]
    if kept:
        end = writer.length("id")
        writer.append("id", np.concatenate(kept))
        writer.append("id_end", end + np.cumsum([len(ids) for ids in kept], dtype=np.int64))


def lengths(arrays: Mapping[str, NDArray[Any]], max_length: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokens of each row and of its response, EOS included, after truncation to `max_length`."""
    length_R = np.minimum(arrays["tokens"], np.int32(min(max_length, NO_LIMIT)))
    start_R = np.where(arrays["start"] == _NO_TOKEN, length_R, arrays["start"])
    return length_R, np.maximum(length_R - start_R, np.int32(0))


def kept_tokens(columns: Columns, rows: Integers, before: int) -> Iterator[Tokens]:
    """What `Encoder.tokens` gave for some rows; `before` is the number of tokens that a BOS takes."""
    end_R, start_R, straddles_R = (columns.arrays[name] for name in ("id_end", "start", "straddles"))
    begin_N = np.where(rows > 0, end_R[rows - 1], 0)
    for row, ids in zip(rows.tolist(), columns.pieces("id", begin_N, end_R[rows]), strict=True):
        start = int(start_R[row])
        yield Tokens(ids.tolist(), None if start == _NO_TOKEN else start - before, bool(straddles_R[row]))
