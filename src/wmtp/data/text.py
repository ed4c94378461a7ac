"""From records to token ids: prompt template, trainable mask, EOS.

docs/math.md (1). Prompt and response are tokenised as one string and the boundary is found by character offsets, so
that training sees the ids that inference sees. A token is trainable if it holds any character of the response; the
EOS after a complete response is trainable too. Padding never is, even where its id equals EOS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wmtp.data.records import Record
from wmtp.errors import ConfigError, DataError, first_line
from wmtp.wording import counted

if TYPE_CHECKING:
    from wmtp.data.judged import RewardText


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
    judged: NDArray[np.int32] | None = None
    """The whole record as ids of the reward model's tokenizer, where the run has a reward model."""


Offsets = Sequence[tuple[int, int]]
"""Where the characters of each token begin and end."""


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

    def count(self, length: int, straddles: bool) -> None:
        """One more row."""
        self.rows += 1
        self.tokens += length
        self.longest = max(self.longest, length)
        self.straddling += straddles

    def summary(self) -> str:
        """One line for people."""
        text = f"{counted(self.rows, 'row')}, {counted(self.tokens, 'token')}, longest {self.longest:,}"
        if self.truncated:
            text += f"; {self.truncated:,} truncated (they lose their EOS)"
        if self.dropped_long:
            text += f"; {self.dropped_long:,} dropped as too long"
        if self.straddling:
            text += f"; {self.straddling:,} share a token between prompt and response"
        return text


def check_template(template: str, names: Sequence[str] = ("prompt",), where: str = "data.template") -> None:
    """Raise `ConfigError` unless the template has each of the names in braces and nothing else."""
    wanted = " and ".join(f"{{{name}}}" for name in names)
    rule = f"{where} = {template!r}: only {wanted} may stand in braces"
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as problem:
        raise ConfigError(f"{rule} ({problem}); write {{{{ for a brace") from problem
    for name, spec, conversion in fields:
        if name not in names or spec or conversion:
            raise ConfigError(f"{rule} (got {name!r}, format {spec!r}); write {{{{ for a brace")
    for name in names:
        if name not in {field[0] for field in fields}:
            raise ConfigError(f"{where} = {template!r}: {{{name}}} is missing; put it where that text belongs")


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer makes of a prompt in its template and the response behind it."""

    ids: Sequence[int]
    first: int | None
    """The first token that holds a character of the response."""
    straddles: bool
    """Whether that token also holds one of the prompt."""


def tokenised(encoding: Iterable[tuple[Sequence[int], Offsets]], prompt_lengths: Iterable[int]) -> list[Tokens]:
    """From ids and character offsets of each text, and the characters of its prompt."""
    found = []
    for (ids, offsets), length in zip(encoding, prompt_lengths, strict=True):
        first = _boundary(offsets, length)
        found.append(Tokens(ids, first, first is not None and offsets[first][0] < length))
    return found


class Encoder:
    """Rows of records, one after another; `report` says what was changed or left out.

    Args: as `encode`, and
        judge: of a reward model, whose ids the rows have too.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str,
        max_length: int,
        on_long_row: str = "truncate",
        judge: RewardText | None = None,
    ) -> None:
        self.tokenizer, self.template, self.judge = tokenizer, template, judge
        self.max_length, self.on_long_row = max_length, on_long_row
        self.before, self.after = bos(tokenizer), [tokenizer.eos_token_id]
        self.problems: dict[str, int] = {}
        """Numbers of the problems that have rows."""
        self.report = TextReport()

    def texts(self, record: Record) -> tuple[str, str]:
        """Of prompt and response, as `render` makes them."""
        return render(record, self.tokenizer, self.template)

    def tokens(self, records: Sequence[Record]) -> list[Tokens]:
        """What the tokenizer makes of them."""
        texts = [self.texts(record) for record in records]
        joined = [prompt + response for prompt, response in texts]
        encoded = self.tokenizer(joined, return_offsets_mapping=True, add_special_tokens=False)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return tokenised(pairs, (len(prompt) for prompt, _ in texts))

    def row(self, record: Record, tokens: Tokens) -> Row | None:
        """A record as it is trained on; None if it is left out.

        Raises:
            DataError: it is too long (`error`; for a reward model also `truncate`, since a response that is cut is
                another one), or has no response token, or none that is left.
        """
        ids = [*self.before, *tokens.ids, *self.after]
        if tokens.first is None:
            raise DataError(
                f"problem {record.problem_id!r}: the tokenizer makes no token of {record.response!r:.60}; leave the "
                "row out, or use a tokenizer that knows its characters"
            )
        start = tokens.first + len(self.before)
        judged = None if self.judge is None else self.judge.ids(record)
        unread = self.judge is not None and judged is not None and len(judged) > self.judge.context
        if self.on_long_row == "drop" and (len(ids) > self.max_length or unread):
            self.report.dropped_long += 1
            return None
        if unread:
            raise DataError(
                f"problem {record.problem_id!r}: prompt and response are longer than the context of the reward model, "
                "which must read all of them (data.on_long_row=drop leaves such rows out)"
            )
        if len(ids) > self.max_length:
            _check_cut(record, len(ids), start, self.max_length, self.on_long_row)
            ids = ids[: self.max_length]
            self.report.truncated += 1
        self.report.count(len(ids), tokens.straddles)
        problem = self.problems.setdefault(record.problem_id, len(self.problems))
        reward = nan if record.is_correct is None else float(record.is_correct)
        tokens_T = np.asarray(ids, dtype=np.int32)
        return Row(tokens_T, start, problem, reward, record.difficulty, record.problem_id, judged=judged)

    def check_any(self) -> None:
        """Raise `DataError` if no row was made."""
        if not self.report.rows:
            raise all_too_long(self.report.dropped_long, self.max_length)


def all_too_long(dropped: int, max_length: int) -> DataError:
    """What to raise where `drop` leaves no row."""
    return DataError(f"no rows left: all {dropped:,} are longer than data.max_length = {max_length}; raise it")


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
    encoder = Encoder(tokenizer, template=template, max_length=max_length, on_long_row=on_long_row)
    made = [encoder.row(*pair) for pair in zip(records, encoder.tokens(records), strict=True)]
    encoder.check_any()
    return [row for row in made if row is not None], encoder.report


def render(record: Record, tokenizer: Any, template: str) -> tuple[str, str]:
    """The texts of prompt and response, without BOS and EOS.

    A conversation is rendered by the tokenizer's own chat template, and `template` is not put around it. What the chat
    template closes an answer with belongs to the response, so that it is learned.

    Raises:
        DataError: the tokenizer has no chat template, or one that does not render this conversation.
    """
    if not record.messages:
        return template.format(prompt=record.prompt), record.response
    name = f"problem {record.problem_id!r:.60}"
    if not has_chat_template(tokenizer):
        raise DataError(
            f"{name} is a conversation, and the tokenizer has no chat template; use a chat model's tokenizer, or map "
            "the text with data.*.fields"
        )
    answered = [*record.messages, {"role": "assistant", "content": record.response}]
    before = _in_chat(record.messages, tokenizer, name, unanswered=True)
    whole = _in_chat(answered, tokenizer, name, unanswered=False)
    response = whole[len(before) :].rstrip().removesuffix(tokenizer.eos_token)
    if not whole.startswith(before) or record.response.strip() not in response:
        raise DataError(
            f"{name}: the chat template does not end with prompt and response, so what is to be learned cannot be "
            "told; map the text with data.*.fields instead"
        )
    return _without_bos(before, tokenizer), response


def chat_prompt(messages: Sequence[Mapping[str, str]], tokenizer: Any, name: str) -> str:
    """A conversation as `render` makes it, without its answer: up to where one begins.

    Args:
        tokenizer: with a chat template.
        name: of the conversation, for messages of errors.

    Raises:
        DataError: the chat template refuses it.
    """
    return _without_bos(_in_chat(messages, tokenizer, name, unanswered=True), tokenizer)


def has_chat_template(tokenizer: Any) -> bool:
    """Whether it can render conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def _in_chat(messages: Sequence[Mapping[str, str]], tokenizer: Any, name: str, *, unanswered: bool) -> str:
    given = [dict(message) for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=unanswered)
    except Exception as problem:  # templates raise what they like
        raise DataError(
            f"{name}: the chat template refuses it: {first_line(problem)}; mend its messages, or leave it out"
        ) from problem
    return text


def _without_bos(text: str, tokenizer: Any) -> str:
    """Encoding puts it there again, where the tokenizer has one."""
    return text.removeprefix(tokenizer.bos_token) if bos(tokenizer) else text


def prompt_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids of prompts in their template, as `encode` makes them: the BOS in front that the tokenizer adds, no EOS."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[*bos(tokenizer), *ids] for ids in encoded]


def bos(tokenizer: Any) -> list[int]:
    """The BOS that the tokenizer puts before a text at inference, if it does."""
    special = tokenizer("")["input_ids"]
    return special[:1] if special and special[0] == tokenizer.bos_token_id else []


def _boundary(offsets: Offsets, prompt_length: int) -> int | None:
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
