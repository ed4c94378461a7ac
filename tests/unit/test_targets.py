"""docs/math.md (1) in hand-written cases: which token each head must predict."""

from __future__ import annotations

import pytest
import torch

from wmtp.data.batches import collate
from wmtp.data.text import Row
from wmtp.targets import IGNORE, align_to_targets, future_targets
from wmtp.testing import EOS, PAD

X = IGNORE


def tensor(*values: object) -> torch.Tensor:
    return torch.tensor([list(values)])


def test_head_k_predicts_the_token_k_places_on() -> None:
    targets = future_targets(tensor(10, 11, 12, 13), torch.ones(1, 4, dtype=torch.bool), None, 3)
    assert targets[0].T.tolist() == [[11, 12, 13, X], [12, 13, X, X], [13, X, X, X]]
    assert targets.dtype == torch.int64


def test_the_last_prompt_tokens_predict_the_response_and_nothing_predicts_the_prompt() -> None:
    trainable = tensor(False, False, False, True, True)
    targets = future_targets(tensor(10, 11, 12, 13, 14), trainable, None, 2)
    assert targets[0].T.tolist() == [[X, X, 13, 14, X], [X, 13, 14, X, X]]


def test_no_target_crosses_a_document() -> None:
    tokens, document = tensor(10, 11, 12, 20, 21), tensor(0, 0, 0, 1, 1)
    targets = future_targets(tokens, torch.ones(1, 5, dtype=torch.bool), document, 2)
    assert targets[0].T.tolist() == [[11, 12, X, 21, X], [12, X, X, X, X]]


def test_padding_with_the_id_of_eos_does_not_mask_the_eos_that_ends_a_response() -> None:
    rows = [Row(torch.tensor([5, 6, 7, EOS]).numpy(), 2, 0, 1.0, 0), Row(torch.tensor([8, EOS]).numpy(), 1, 1, 0.0, 0)]
    batch = collate(rows, [0, 1], pad_id=EOS)
    targets = future_targets(batch.tokens_BT, batch.trainable_BT, batch.document_BT, 2)
    assert targets[:, :, 0].tolist() == [[X, 7, EOS, X], [EOS, X, X, X]]
    assert targets[:, :, 1].tolist() == [[7, EOS, X, X], [X, X, X, X]]


def test_padding_is_never_a_target() -> None:
    rows = [Row(torch.tensor([5, 6, 7, 8, EOS]).numpy(), 1, 0, 1.0, 0), Row(torch.tensor([9, 3]).numpy(), 1, 1, 0.0, 0)]
    batch = collate(rows, [0, 1], pad_id=PAD)
    targets = future_targets(batch.tokens_BT, batch.trainable_BT, batch.document_BT, 4)
    assert not (targets == PAD).any()
    assert (targets[1] != X).sum() == 1


def test_more_heads_than_tokens_have_no_targets() -> None:
    targets = future_targets(tensor(10, 11), torch.ones(1, 2, dtype=torch.bool), None, 5)
    assert targets[0].tolist() == [[11, X, X, X, X], [X] * 5]
    assert (future_targets(tensor(10), torch.ones(1, 1, dtype=torch.bool), None, 3) == X).all()


def test_targets_of_narrow_ids_are_int64_and_unchanged() -> None:
    tokens = torch.tensor([[1, 255, 7]], dtype=torch.uint8)
    assert future_targets(tokens, torch.ones(1, 3, dtype=torch.bool), None, 1)[0, :, 0].tolist() == [255, 7, X]


def test_no_heads_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        future_targets(tensor(1, 2), torch.ones(1, 2, dtype=torch.bool), None, 0)


@pytest.mark.parametrize("wrong", ["trainable_BT", "document_BT"])
def test_shapes_that_differ_are_refused_by_name(wrong: str) -> None:
    shapes = {"trainable_BT": (1, 3), "document_BT": (1, 3)} | {wrong: (1, 4)}
    with pytest.raises(ValueError, match=rf"{wrong} has shape \(1, 4\), tokens_BT has \(1, 3\)"):
        future_targets(
            tensor(1, 2, 3),
            torch.ones(shapes["trainable_BT"], dtype=torch.bool),
            torch.zeros(shapes["document_BT"], dtype=torch.int64),
            2,
        )


def test_a_weight_of_a_token_is_the_weight_of_every_pair_that_predicts_it() -> None:
    aligned = align_to_targets(tensor(5.0, 1.0, 2.0, 3.0), 2)
    assert aligned[0].T.tolist() == [[1.0, 2.0, 3.0, 0.0], [2.0, 3.0, 0.0, 0.0]]
