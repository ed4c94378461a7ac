"""What the suites read of records: the rows and classes that training and people mean by them."""

from __future__ import annotations

from typing import Any

import pytest
from test_chat_text import CHATML, LLAMA2, TALK

from wmtp.data.records import Record
from wmtp.errors import UsageError
from wmtp.evaluation.suites import Corpus, heads, perplexity, speed
from wmtp.evaluation.token_classes import CLASSES
from wmtp.testing import tiny_model, tiny_tokenizer


def tokenizer(template: str | None = None) -> Any:
    found = tiny_tokenizer()
    found.chat_template = template
    return found


def classes(corpus: Corpus, tokenizer: Any) -> list[tuple[str, str]]:
    """The text and class of every response token of the first row."""
    row, class_T = corpus.rows[0], corpus.class_T[0]
    ids = row.tokens[row.response_start :].tolist()
    return [(tokenizer.decode([i]), CLASSES[c]) for i, c in zip(ids, class_T[row.response_start :], strict=True)]


@pytest.mark.parametrize(("template", "closing"), [(CHATML, "<|im_end|>"), (LLAMA2, " ")])
def test_the_answer_of_a_conversation_has_its_classes_and_what_closes_it_is_other(template: str, closing: str) -> None:
    read = tokenizer(template)
    corpus = Corpus.of([TALK], read, "Q: {prompt}\n", 200)
    found = [(text, kind) for text, kind in classes(corpus, read) if text != " "]
    assert found[:3] == [("a", "identifier"), ("+", "operator"), ("b", "identifier")]
    assert {kind for text, kind in found[3:-1]} <= {"other"}
    assert "".join(text for text, _ in found[3:-1]) == closing.strip()
    assert found[-1] == (read.eos_token, "end")
    assert corpus.response_bytes == len(TALK.response)
    assert len(corpus.rows[0].tokens) == len(corpus.class_T[0])


def test_both_suites_take_conversations() -> None:
    read = tokenizer(CHATML)
    model, corpus = tiny_model(num_heads=2, vocab_size=len(read)), Corpus.of([TALK, TALK], read, "{prompt}\n", 200)
    found = heads(model, corpus)["heads"]
    assert perplexity(model, corpus)["tokens"] == found[0]["tokens"]
    assert found[0]["by_class"]["other"]["tokens"] == 2 * len("<|im_end|>")


def test_bits_per_byte_are_of_what_a_cut_row_still_has() -> None:
    whole, read = Record("p", "x", "äb" * 20), tokenizer()
    corpus = Corpus.of([whole], read, "{prompt}\n", 11)
    [row] = corpus.rows
    assert read.decode(row.tokens[row.response_start :].tolist()) == "äb" * 3
    assert corpus.response_bytes == 9
    assert Corpus.of([whole], read, "{prompt}\n", 200).response_bytes == 60


def test_speed_is_refused_where_the_context_would_end_it() -> None:
    model = tiny_model(num_heads=2)
    context = model.base.config.max_position_embeddings
    with pytest.raises(UsageError, match=rf"give --lengths of at most {context - 4}"):
        speed(model, [[5, 6, 7]], batches=[1], lengths=[2, context - 3], new_tokens=4)
    (row,) = speed(model, [[5, 6, 7]], batches=[1], lengths=[context - 4], new_tokens=4, rounds=1)
    assert row["same_tokens"]
