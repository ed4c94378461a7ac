"""Training sees the ids that inference sees; response and EOS are trained, the prompt and padding never."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.data.records import Record
from wmtp.data.text import Row, TextReport, check_template, encode
from wmtp.errors import ConfigError, DataError
from wmtp.testing import BOS, EOS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=12).filter(str.strip)


def record(prompt: str = "add", response: str = "return a", **fields: Any) -> Record:
    return Record(**{"problem_id": prompt, "prompt": prompt, "response": response, **fields})


def rows(*records: Record, tokenizer: Any = TOKENIZER, template: str = "{prompt}\n", **options: Any) -> list[Row]:
    return encode(records, tokenizer, template=template, **{"max_length": 10**6, **options})[0]


def report(*records: Record, template: str = "{prompt}\n", **options: Any) -> TextReport:
    return encode(records, TOKENIZER, template=template, **{"max_length": 10**6, **options})[1]


def adding(bos: bool, eos: bool = False) -> Any:
    """The tiny tokenizer, now putting BOS before and EOS after a text by itself."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    single = " ".join(["<bos>"] * bos + ["$A"] + ["<eos>"] * eos)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


# ids


@given(TEXT, TEXT, st.sampled_from(["{prompt}\n", "{prompt}", "# {prompt} {{x}}\n\n", "{prompt} "]))
def test_ids_are_those_of_the_one_string_and_the_trainable_ones_say_the_response(
    prompt: str, response: str, template: str
) -> None:
    (row,) = rows(record(prompt, response), template=template)
    before = template.format(prompt=prompt)
    assert row.tokens.tolist() == [*TOKENIZER(before + response)["input_ids"], EOS]
    trained = TOKENIZER.decode(row.tokens[row.response_start :])
    assert trained.endswith(response + "<eos>")
    # a token that straddles the boundary also holds the end of the prompt
    assert before.endswith(trained.removesuffix(response + "<eos>")) or "\ufffd" in trained


@pytest.mark.parametrize(
    "response", ["return a", "  return a", "\n\treturn", "größer → 😀", "def f():\n    return 'ü'\n", "x  ", "日本"]
)
@pytest.mark.parametrize("prompt", ["add", "größe 😀", "add  "])
def test_the_trainable_tokens_decode_to_the_response_and_its_end(prompt: str, response: str) -> None:
    (row,) = rows(record(prompt, response))
    assert TOKENIZER.decode(row.tokens[row.response_start :]) == response + "<eos>"
    assert TOKENIZER.decode(row.tokens[: row.response_start]) == prompt + "\n"


def test_a_tokenizer_that_trims_offsets_trains_a_leading_space_too() -> None:
    from tokenizers.processors import ByteLevel

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    for response in ("  return a", "    x", " x"):
        (row,) = rows(record(response=response), tokenizer=tokenizer, template="{prompt}:")
        assert tokenizer.decode(row.tokens[row.response_start :]) == response + "<eos>"


def test_no_prompt_token_is_trainable_unless_it_holds_the_response_too() -> None:
    (row,) = rows(record("in", "return"), template="{prompt}")
    assert TOKENIZER.convert_ids_to_tokens(row.tokens.tolist()) == ["in", "return", "<eos>"]
    assert row.response_start == 1
    # "d" + "ef" is one token of three characters
    (row,) = rows(record("xd", "ef x"), template="{prompt}")
    assert TOKENIZER.decode(row.tokens[row.response_start :]) == "def x<eos>"
    assert report(record("xd", "ef x"), template="{prompt}").straddling == 1
    assert "1 share a token between prompt and response" in report(record("xd", "ef x"), template="{prompt}").summary()


def test_the_eos_is_trainable_even_if_padding_has_its_id() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<eos>"
    (row,) = rows(record(), tokenizer=tokenizer)
    assert tokenizer.pad_token_id == row.tokens[-1] == EOS
    assert row.response_start < len(row.tokens) - 1


@pytest.mark.parametrize("eos", [False, True])
def test_a_bos_is_added_where_the_tokenizer_adds_one_and_is_never_trainable(eos: bool) -> None:
    (plain,), (with_bos,) = rows(record()), rows(record(), tokenizer=adding(True, eos))
    assert with_bos.tokens.tolist() == [BOS, *plain.tokens.tolist()]
    assert with_bos.response_start == plain.response_start + 1
    assert rows(record(), tokenizer=adding(False, eos))[0].tokens.tolist() == plain.tokens.tolist()


def test_a_row_knows_its_problem_its_reward_and_its_difficulty() -> None:
    got = rows(
        record("a", "x", is_correct=True, difficulty=2),
        record("b", "x", is_correct=False),
        record("c", "x"),
        record("other words", "y", problem_id="a"),
    )
    assert [row.problem for row in got] == [0, 1, 2, 0]
    assert [row.reward for row in got[:2]] == [1.0, 0.0]
    assert math.isnan(got[2].reward)
    assert [row.difficulty for row in got] == [2, 0, 0, 0]
    assert all(row.tokens.dtype == np.int32 for row in got)


def test_braces_of_a_prompt_are_no_template() -> None:
    (row,) = rows(record("{prompt} {x} {", "y"), template="{{{prompt}}}")
    assert TOKENIZER.decode(row.tokens) == "{{prompt} {x} {}y<eos>"


def test_a_response_that_the_tokenizer_swallows_is_an_error_that_names_the_problem() -> None:
    from tokenizers.normalizers import Replace

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace("☃", "")
    with pytest.raises(DataError, match=r"'snow'.*no token of '☃☃'"):
        rows(record("snow", "☃☃"), tokenizer=tokenizer)


# length


def test_a_row_of_exactly_the_length_stays_whole() -> None:
    (row,) = rows(record())
    (same,), told = encode([record()], TOKENIZER, template="{prompt}\n", max_length=len(row.tokens))
    assert same.tokens.tolist() == row.tokens.tolist()
    assert (told.truncated, told.dropped_long) == (0, 0)


@pytest.mark.parametrize("less", [1, 2, 3])
def test_a_longer_row_is_cut_at_its_end_and_loses_its_eos(less: int) -> None:
    (row,) = rows(record())
    length = len(row.tokens) - less
    (cut,), told = encode([record()], TOKENIZER, template="{prompt}\n", max_length=length)
    assert cut.tokens.tolist() == row.tokens.tolist()[:length]
    assert cut.response_start == row.response_start
    assert told.truncated == 1
    assert "1 truncated (they lose their EOS)" in told.summary()


def test_the_bos_counts_as_length() -> None:
    (row,) = rows(record(), tokenizer=adding(True))
    (cut,), told = encode([record()], adding(True), template="{prompt}\n", max_length=len(row.tokens) - 1)
    assert cut.tokens.tolist() == row.tokens.tolist()[:-1]
    assert told.truncated == 1


def test_dropping_leaves_long_rows_out_and_counts_them() -> None:
    short, long = record("a", "b"), record("a", "b" * 50)
    got, told = encode([long, short, long], TOKENIZER, template="{prompt}\n", max_length=10, on_long_row="drop")
    assert [row.tokens.tolist() for row in got] == [rows(short)[0].tokens.tolist()]
    assert (told.rows, told.dropped_long, told.truncated) == (1, 2, 0)
    assert "2 dropped as too long" in told.summary()


def test_a_dropped_row_is_not_counted_as_straddling() -> None:
    assert (
        report(
            record("xd", "ef" * 50), record("a", "b"), template="{prompt}", max_length=9, on_long_row="drop"
        ).straddling
        == 0
    )


def test_an_error_names_the_problem_and_both_lengths() -> None:
    with pytest.raises(DataError, match=r"'add': 9 tokens, data\.max_length is 5"):
        rows(record("add", "12345"[:4]), max_length=5, on_long_row="error")


def test_a_prompt_that_fills_the_length_is_an_error_and_not_an_empty_row() -> None:
    with pytest.raises(DataError, match=r"its prompt alone has 8 tokens, data\.max_length is 8.*on_long_row=drop"):
        rows(record("1234567", "x"), max_length=8)
    (row,) = rows(record("1234567", "x"), max_length=9)
    assert row.response_start == 8
    assert len(row.tokens) == 9


def test_a_set_of_which_every_row_is_dropped_is_an_error() -> None:
    with pytest.raises(DataError, match=r"all 2 are longer than data\.max_length = 3"):
        rows(record(), record(), max_length=3, on_long_row="drop")


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), st.integers(2, 30))
@settings(max_examples=60)
def test_no_row_is_longer_than_allowed_and_each_has_a_trainable_token(
    texts: list[tuple[str, str]], max_length: int
) -> None:
    records = [record(prompt, response) for prompt, response in texts]
    for policy in ("truncate", "drop", "error"):
        try:
            got, told = encode(records, TOKENIZER, template="{prompt}\n", max_length=max_length, on_long_row=policy)
        except DataError:
            continue
        assert all(0 < row.response_start < len(row.tokens) <= max_length for row in got)
        assert told.rows + told.dropped_long == len(records)
        assert told.rows == len(got)
        assert told.truncated == sum(row.tokens[-1] != EOS for row in got)
        assert told.tokens == sum(len(row.tokens) for row in got)
        assert told.longest == max(len(row.tokens) for row in got)


def test_a_report_says_what_there_is() -> None:
    told = report(record("a", "b"), record("a", "bcd"))
    assert told == TextReport(rows=2, tokens=10, longest=6)
    assert told.summary() == "2 rows, 10 tokens, longest 6"


# template


@pytest.mark.parametrize("template", ["{prompt}", "{prompt}\n", "{{{prompt}}}", "a {prompt} b {prompt}", "ü {prompt}"])
def test_a_template_with_a_prompt_and_nothing_else_in_braces_is_fine(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "prompt",
        "{{prompt}}",
        "{prompt} {response}",
        "{}",
        "{0}",
        "{",
        "}",
        "{prompt",
        "{prompt!r}",
        "{prompt:>10}",
        "{prompt:.1}",
        "{prompt[0]}",
        "{prompt[a]}",
        "{prompt.upper}",
        "{prompt.nothing}",
        "{prompt:{prompt}}",
        "{ prompt }",
    ],
)
def test_any_other_template_is_refused_and_shown(template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_template(template)
    assert repr(template) in str(caught.value)
    assert "{prompt}" in str(caught.value)


@given(st.text(alphabet="{}prompt!:.[]0 ", max_size=15))
def test_a_template_that_passes_puts_the_whole_prompt_in(template: str) -> None:
    try:
        check_template(template)
    except ConfigError:
        return
    assert "whole \0 prompt" in template.format(prompt="whole \0 prompt")
