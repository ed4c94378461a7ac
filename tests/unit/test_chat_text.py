"""Conversations are rendered by the model's own chat template, and what closes an answer is learned."""

from __future__ import annotations

from typing import Any

import pytest

from wmtp.data.records import Record
from wmtp.data.text import encode, render
from wmtp.errors import DataError
from wmtp.testing import tiny_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
TALK = Record(
    problem_id="p", prompt="Add.", response="a + b", messages=({"role": "user", "content": "Add."},)
)  # fmt: skip


def tokenizer(template: str | None) -> Any:
    found = tiny_tokenizer()
    found.chat_template = template
    return found


def test_the_template_is_not_put_around_a_conversation_and_the_closing_mark_is_learned() -> None:
    prompt, response = render(TALK, tokenizer(CHATML), "Q: {prompt}")
    assert prompt == "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"
    assert response == "a + b<|im_end|>"


def test_marks_that_encoding_adds_itself_are_there_once() -> None:
    found = tokenizer(LLAMA2)
    [row], _ = encode([TALK], found, template="{prompt}", max_length=200)
    text = found.decode(row.tokens)
    assert text.count(found.eos_token) == 1
    assert text.endswith(found.eos_token)
    assert text.count(found.bos_token) == 1
    assert found.decode(row.tokens[row.response_start :]).lstrip().startswith("a + b")


def test_other_records_are_what_they_were() -> None:
    record = Record(problem_id="p", prompt="Add.", response="a + b")
    assert render(record, tokenizer(None), "Q: {prompt}\n") == ("Q: Add.\n", "a + b")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ raise_exception('no users') }}", "the chat template refuses it: no users"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not end with prompt and response"),
    ],
)
def test_a_template_that_does_not_fit_is_an_error(template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render(TALK, tokenizer(template), "{prompt}")
