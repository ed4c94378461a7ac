"""Where a continuation ends on text that was agreed on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from wmtp.errors import UsageError


class Stop(Protocol):
    """Tells whether new tokens have come to an end."""

    def end(self, tokens: Sequence[int], since: int) -> int | None:
        """How many of a row's new tokens to keep; None to go on. The first `since` have been asked about before."""
        ...


class StopStrings:
    """Ends a row at the token that completes one of some strings.

    The text is looked at, never the ids: a string may begin and end inside tokens. It is looked at after every token,
    however many come at once: a tokenizer that tidies its text may take back a string that was there.

    Raises:
        UsageError: an empty string, which every text contains.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        if not all(strings):
            raise UsageError("a stop string must have at least one character")
        self.tokenizer = tokenizer
        self.strings = tuple(strings)

    def end(self, tokens: Sequence[int], since: int) -> int | None:
        """See `Stop`."""
        return next((n for n in range(since + 1, len(tokens) + 1) if self._found(tokens[:n])), None)

    def _found(self, tokens: Sequence[int]) -> bool:
        text = self._decoded(tokens)
        return any(string in text for string in self.strings)

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def text(self, tokens: Sequence[int]) -> str:
        """The text of new tokens, special tokens left out, up to the first stop string."""
        text = self._decoded(tokens)
        return text[: min((text.find(s) for s in self.strings if s in text), default=len(text))]
