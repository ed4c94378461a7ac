"""docs/math.md (1) against its definition, one (row, position, head) at a time."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wmtp.targets import IGNORE, align_to_targets, future_targets

Case = tuple[Tensor, Tensor, Tensor | None, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Tokens, trainable mask, documents (runs of equal ids, or None), K; K may exceed T."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    grid = lambda one: st.lists(st.lists(one, min_size=length, max_size=length), min_size=rows, max_size=rows)  # noqa: E731
    tokens = torch.tensor(draw(grid(st.integers(0, 5))))
    trainable = torch.tensor(draw(grid(st.booleans())))
    starts = torch.tensor(draw(grid(st.booleans())))
    document = starts.long().cumsum(1) if draw(st.booleans()) else None
    return tokens, trainable, document, draw(st.integers(1, 12))


@given(cases())
def test_targets_are_what_the_definition_says_for_every_pair(case: Case) -> None:
    tokens, trainable, document, num_heads = case
    targets = future_targets(tokens, trainable, document, num_heads)
    rows, length = tokens.shape
    assert targets.shape == (rows, length, num_heads)
    for b in range(rows):
        for t in range(length):
            for k in range(1, num_heads + 1):
                j = t + k
                exists = j < length and (document is None or bool(document[b, j] == document[b, t]))
                expected = int(tokens[b, j]) if exists and trainable[b, j] else IGNORE
                assert targets[b, t, k - 1] == expected


@given(cases())
def test_packing_rows_into_one_keeps_the_targets_of_each(case: Case) -> None:
    tokens, trainable, _, num_heads = case
    rows, length = tokens.shape
    document = torch.arange(rows).repeat_interleave(length).view(1, -1)
    packed = future_targets(tokens.view(1, -1), trainable.view(1, -1), document, num_heads)
    assert torch.equal(packed.view(rows, length, num_heads), future_targets(tokens, trainable, None, num_heads))


@given(cases())
def test_fewer_heads_see_the_same_targets(case: Case) -> None:
    tokens, trainable, document, num_heads = case
    targets = future_targets(tokens, trainable, document, num_heads)
    for fewer in range(1, num_heads):
        assert torch.equal(future_targets(tokens, trainable, document, fewer), targets[:, :, :fewer])


@given(cases())
def test_aligned_tokens_are_their_own_targets(case: Case) -> None:
    tokens, _, _, num_heads = case
    targets = future_targets(tokens, torch.ones_like(tokens, dtype=torch.bool), None, num_heads)
    assert torch.equal(align_to_targets(tokens, num_heads), targets.masked_fill(targets == IGNORE, 0))
