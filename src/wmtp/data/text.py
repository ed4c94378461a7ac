"""From records to token ids: prompt template, trainable mask, EOS.

docs/math.md (1). Prompt and response are tokenised as one string and the boundary is found by character offsets, so
that training sees the ids that inference sees. A token is trainable if it holds any character of the response; the
EOS after a complete response is trainable too. Padding never is, even where its id equals EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from string import Formatter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmtp.data.records import Record
from wmtp.errors import ConfigError, DataError


@dataclass(frozen=True)
class Row:
    """One record as ids."""

    tokens: NDArray[np.int32]
    response_start: int
    """Index of the first trainable token; everything from here on is trainable."""
    problem: int
    """Rows of one problem share it."""
    reward: float
    """1 correct, 0 incorrect, NaN unknown."""
    difficulty: int
    name: str = ""
    """The problem's id."""
    group: tuple[float, float] = (nan, nan)
    """Mean and standard deviation of the rewards of the labelled responses to the problem; NaN: nobody looked."""


@dataclass
class TextReport:
    """What encoding changed or left out."""

    rows: int = 0
    tokens: int = 0
    longest: int = 0
    truncated: int = 0
    dropped_long: int = 0
    straddling: int = 0
    """Rows whose first response token also holds prompt characters."""

    def summary(self) -> str:
        """One line for people."""
        text = f"{self.rows:,} rows, {self.tokens:,} tokens, longest {self.longest:,}"
        if self.truncated:
            text += f"; {self.truncated:,} truncated (they lose their EOS)"
        if self.dropped_long:
            text += f"; {self.dropped_long:,} dropped as too long"
        if self.straddling:
            text += f"; {self.straddling:,} share a token between prompt and response"
        return text


def check_template(template: str) -> None:
    """Raise `ConfigError` unless the template has `{prompt}` and nothing else in braces."""
    rule = f"data.template = {template!r}: only {{prompt}} may stand in braces"
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as problem:
        raise ConfigError(f"{rule} ({problem}); write {{{{ for a brace") from problem
    for name, spec, conversion in fields:
        if (name, spec, conversion) != ("prompt", "", None):
            raise ConfigError(f"{rule} (got {name!r}, format {spec!r}); write {{{{ for a brace")
    if not fields:
        raise ConfigError(f"data.template = {template!r}: {{prompt}} is missing")


def encode(
    records: Sequence[Record], tokenizer: Any, *, template: str, max_length: int, on_long_row: str = "truncate"
) -> tuple[list[Row], TextReport]:
    """Token ids of all records.

    Args:
        tokenizer: a fast (offset-giving) Hugging Face tokenizer with an EOS.
        max_length: in tokens, EOS included.
        on_long_row: `truncate` cuts the end, `drop` counts and leaves out, `error` stops.

    Raises:
        DataError: a row too long (`error`), no response token in it or left of it, or no row left at all.
    """
    rendered = [render(record, tokenizer, template) for record in records]
    prompts, texts = [prompt for prompt, _ in rendered], [prompt + response for prompt, response in rendered]
    encoded = tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
    before, after = bos(tokenizer), [tokenizer.eos_token_id]
    problems: dict[str, int] = {}
    rows: list[Row] = []
    report = TextReport()
    for i, record in enumerate(records):
        ids, offsets = [*before, *encoded["input_ids"][i], *after], encoded["offset_mapping"][i]
        first = _boundary(offsets, len(prompts[i]))
        if first is None:
            raise DataError(f"problem {record.problem_id!r}: the tokenizer makes no token of {record.response!r:.60}")
        start = first + len(before)
        if len(ids) > max_length:
            if on_long_row == "drop":
                report.dropped_long += 1
                continue
            _check_cut(record, len(ids), start, max_length, on_long_row)
            ids = ids[:max_length]
            report.truncated += 1
        report.straddling += offsets[first][0] < len(prompts[i])
        problem = problems.setdefault(record.problem_id, len(problems))
        reward = float("nan") if record.is_correct is None else float(record.is_correct)
        rows.append(Row(np.asarray(ids, dtype=np.int32), start, problem, reward, record.difficulty, record.problem_id))
    if not rows:
        raise DataError(f"no rows left: all {len(records):,} are longer than data.max_length = {max_length}")
    report.rows, report.tokens = len(rows), sum(len(row.tokens) for row in rows)
    report.longest = max(len(row.tokens) for row in rows)
    return rows, report


def render(record: Record, tokenizer: Any, template: str) -> tuple[str, str]:
    """The texts of prompt and response, without BOS and EOS.

    A conversation is rendered by the tokenizer's own chat template, and `template` is not put around it. What the chat
    template closes an answer with belongs to the response, so that it is learned.

    Raises:
        DataError: the tokenizer has no chat template, or one that does not render this conversation.
    """
    if not record.messages:
        return template.format(prompt=record.prompt), record.response
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"problem {record.problem_id!r:.60} is a conversation, and the tokenizer has no chat template; use a chat "
            "model's tokenizer, or map the text with data.*.fields"
        )
    given = [dict(message) for message in record.messages]
    answered = [*given, {"role": "assistant", "content": record.response}]
    try:
        before: str = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        whole: str = tokenizer.apply_chat_template(answered, tokenize=False)
    except Exception as problem:
        raise DataError(f"problem {record.problem_id!r:.60}: the chat template refuses it: {problem}") from problem
    response = whole[len(before) :].rstrip().removesuffix(tokenizer.eos_token)
    if not whole.startswith(before) or record.response.strip() not in response:
        raise DataError(f"problem {record.problem_id!r:.60}: the chat template does not end with prompt and response")
    return before.removeprefix(tokenizer.bos_token) if bos(tokenizer) else before, response


def prompt_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids of prompts in their template, as `encode` makes them: the BOS in front that the tokenizer adds, no EOS."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[*bos(tokenizer), *ids] for ids in encoded]


def bos(tokenizer: Any) -> list[int]:
    """The BOS that the tokenizer puts before a text at inference, if it does."""
    special = tokenizer("")["input_ids"]
    return special[:1] if special and special[0] == tokenizer.bos_token_id else []


def _boundary(offsets: list[tuple[int, int]], prompt_length: int) -> int | None:
    """Index of the first token that holds a response character; None if no token does."""
    return next((i for i, (_, end) in enumerate(offsets) if end > prompt_length), None)


def _check_cut(record: Record, length: int, start: int, max_length: int, on_long_row: str) -> None:
    if on_long_row == "error":
        raise DataError(
            f"problem {record.problem_id!r}: {length} tokens, data.max_length is {max_length} "
            "(raise it, or set data.on_long_row to truncate or drop)"
        )
    if start >= max_length:
        raise DataError(
            f"problem {record.problem_id!r}: its prompt alone has {start} tokens, data.max_length is {max_length}: no "
            "response token would be left (raise it, or set data.on_long_row=drop)"
        )
