"""What a task is: where its rows come from, how they are tokenised, and what is asked about those held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from wmtp.data.records import Record
from wmtp.data.text import Row

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNKNOWN)
"""Ids 0 to 3 of every task's tokenizer."""

Role = Literal["train", "validation"]


class Question(NamedTuple):
    """Tokens of a row that all have to be head 1's first choice, each after the true tokens before it."""

    group: str
    """What its answer is counted under: the metric `task/GROUP`."""
    tokens: Sequence[int]
    """Their places in the row, 1 or later."""


class Task(Protocol):
    """Rows from a seed. Two tasks of the same arguments give the same rows, on any machine."""

    groups: tuple[str, ...]
    """Of its questions."""

    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer` with the `SPECIALS`; see `word_level`."""
        ...

    def records(self, role: Role) -> Iterator[Record]:
        """One after another, without an end; the two roles share none."""
        ...

    def questions(self, row: Row) -> Iterator[Question]:
        """About a row that is held out, tokenised with the task's own tokenizer."""
        ...


PARTS = ("groups", "tokenizer", "records", "questions")
"""What `Task` asks for."""


def word_level(words: Sequence[str], *, characters: bool = False) -> Any:
    """A tokenizer of given words, one id each behind the `SPECIALS`; white space parts them and is no token.

    Args:
        characters: every character is a word; else punctuation parts words, too.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {word: place for place, word in enumerate((*SPECIALS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    parts = pre_tokenizers.Split(Regex("."), "isolated") if characters else pre_tokenizers.Punctuation()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), parts])
    if characters:
        tokenizer.decoder = decoders.Fuse()
    return tokenizer
