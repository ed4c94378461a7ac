"""What kind of Python token each character and each model token of a program belongs to."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Sequence
from itertools import accumulate

CLASSES = ("keyword", "identifier", "operator", "literal", "comment", "whitespace", "other", "end")
"""`operator` has brackets and punctuation too; `other` is what Python's tokenizer does not reach, because the text is
no Python from some point on; `end` is the token that ends a response."""

_CONSTANTS = frozenset({"True", "False", "None"})
_SPACE = frozenset({tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER})
_FSTRING = frozenset(
    getattr(tokenize, name) for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END") if hasattr(tokenize, name)
)


def character_classes(code: str) -> list[str]:
    """One of `CLASSES` for every character."""
    classes = ["whitespace" if character.isspace() else "other" for character in code]
    starts = [0, *accumulate(map(len, io.StringIO(code, newline="")))]
    try:
        for token in tokenize.generate_tokens(io.StringIO(code, newline="").readline):
            if (name := _class(token)) is not None:
                begin = starts[token.start[0] - 1] + token.start[1]
                end = starts[token.end[0] - 1] + token.end[1]
                classes[begin:end] = [name] * (end - begin)
    except (tokenize.TokenError, SyntaxError, IndexError):
        pass  # not Python from here on: what is left stays `other`
    return classes[: len(code)]


def token_classes(code: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The class of each model token, by its (start, end) in `code`: that of its first character that is no space.

    A token that has none of the code's characters is `other`.
    """
    classes = character_classes(code)
    found = []
    for begin, end in spans:
        part = range(max(begin, 0), min(end, len(code)))
        inside = next((classes[at] for at in part if not code[at].isspace()), "whitespace")
        found.append(inside if part or begin == end else "other")
    return found


def _class(token: tokenize.TokenInfo) -> str | None:
    if token.type in _SPACE:
        return None
    if token.type == tokenize.NAME:
        if token.string in _CONSTANTS:
            return "literal"
        return "keyword" if keyword.iskeyword(token.string) else "identifier"
    if token.type == tokenize.OP:
        return "operator"
    if token.type == tokenize.COMMENT:
        return "comment"
    return "literal" if token.type in (tokenize.NUMBER, tokenize.STRING) or token.type in _FSTRING else None
