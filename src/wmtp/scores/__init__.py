"""Stored scores of frozen models: what a critic, a reference or a reward model says about a data set, asked once.

    scores.json          what was scored and by what (`card`): every key that a training run must agree with
    index.npy            one entry per row, sorted by the row's key: 16 bytes of key, where its scores start
    values.npy           `[N, 1]`: the critic's value after each token
    reference_nll.npy    `[N, C]`: a reference's nll of each token, by its head 1 (C = 1) or by its first C heads
    reward.npy           `[rows, 1]`: a reward model's score of each row

N counts, row after row, the response's tokens and the token before them; nothing else is ever read of a score. A row
is found by its content (`row_key`), so any subset of the rows, in any order and any split, reads from the same folder.
"""

from __future__ import annotations

from wmtp.scores.card import CARD, CODE, Card, ColumnCard, read_card
from wmtp.scores.in_store import score_writer
from wmtp.scores.rows import Of, Span, judged_spans_of, row_key, span_in, spans_of
from wmtp.scores.stored import StoredScores
from wmtp.scores.writing import ScoreFile, ScoreWriter

__all__ = [
    "CARD",
    "CODE",
    "Card",
    "ColumnCard",
    "Of",
    "ScoreFile",
    "ScoreWriter",
    "Span",
    "StoredScores",
    "judged_spans_of",
    "read_card",
    "row_key",
    "score_writer",
    "span_in",
    "spans_of",
]
