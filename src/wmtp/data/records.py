"""One record: a problem and one response to it. The schema every source is turned into.

Rows are validated one by one; a bad row is reported with its file and line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from wmtp.errors import UsageError

_MAP = "map others with data.*.fields, or with --field of wmtp data prepare"
MESSAGE = ("role", "content")
"""What a message of a conversation has."""


@dataclass(frozen=True)
class Record:
    """One response to one problem."""

    problem_id: str
    prompt: str
    response: str
    is_correct: bool | None = None
    """Whether the response passes its problem's tests; None when nobody ran them."""
    difficulty: int = 0
    """0 means unknown."""
    tests: tuple[str, ...] = ()
    """Python statements, run in this order after the response; each raises if the response is wrong."""
    cases: tuple[tuple[str, str], ...] = ()
    """(standard input, expected output) pairs, for a response that is a whole program. Such a record has no `tests`."""
    time_limit_s: float = 0.0
    """CPU seconds that a program may take, for each single case; 0: as much as whoever runs it allows."""
    messages: tuple[Mapping[str, str], ...] = field(default=(), hash=False)
    """A conversation that the response answers, each message with `role` and `content`; rendered by the model's own
    chat template where there is one of these, and `prompt` is then its text for people."""
    source: str = ""
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What is known of how the response came about, a verdict or a mutation say; training does not read it."""

    def row(self) -> dict[str, Any]:
        """The record as a JSON object that `parse` reads; what has its default is left out."""
        values = asdict(self) | {
            "tests": list(self.tests),
            "cases": [list(case) for case in self.cases],
            "messages": [dict(message) for message in self.messages],
        }
        return {name: value for name, value in values.items() if value not in (None, 0, [], {}, "") or value is False}


class BadRow(ValueError):
    """A row that is no record; the message says which field, what was got and what was expected."""


def parse(row: Any) -> Record:
    """A record from a decoded JSON object in our own schema.

    `prompt` and `response` are required and must not be blank; `problem_id` defaults to the prompt, so that rows of
    one prompt are solutions of one problem. Unknown keys are an error: a misspelt `is_correct` must not vanish.

    Raises:
        BadRow: what is wrong with it.
    """
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, got {_kind(row)}")
    if not row.keys() <= _FIELDS.keys():
        unknown = min(row.keys() - _FIELDS.keys())
        raise BadRow(f"unknown field {_kind(unknown)}; a record has {', '.join(_FIELDS)} ({_MAP})")
    values: dict[str, Any] = {name: _FIELDS[name](value, name) for name, value in row.items()}
    for name in ("prompt", "response"):
        if name not in values:
            raise BadRow(f"field {name!r} is missing; a record has prompt and response ({_MAP})")
    if values.get("tests") and values.get("cases"):
        raise BadRow(
            "a record has tests (Python statements) or cases (inputs and outputs of a program), not both; leave one out"
        )
    values.setdefault("problem_id", values["prompt"])
    values.setdefault("about", {})
    record = object.__new__(Record)
    vars(record).update(values)  # as `__init__` does, but not one by one; the class has the other defaults
    return record


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} must be a string, got {_kind(value)}")
    if not value or value.isspace():
        raise BadRow(f"field {name!r} is blank; it must have a text")
    return value if value.isascii() else _unicode(value, name)


def _unicode(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        raise BadRow(f"field {name!r} holds half of a surrogate pair: it must be valid Unicode text") from problem
    return value


def _identifier(value: Any, name: str) -> str:
    return _text(str(value) if isinstance(value, int) and not isinstance(value, bool) else value, name)


def _verdict(value: Any, name: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise BadRow(f"field {name!r} must be true, false or null, got {_kind(value)}")
    return value


def _level(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRow(f"field {name!r} must be an integer >= 0 (0: unknown), got {_kind(value)}")
    return value


def _statements(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRow(f"field {name!r} must be a list of strings, got {_kind(value)}")
    return tuple(_unicode(item, name) for item in value)


def _pairs(value: Any, name: str) -> tuple[tuple[str, str], ...]:
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow(f"field {name!r} must be a list of [input, expected output] texts, got {_kind(value)}")
    return tuple((_unicode(given, name), _unicode(expected, name)) for given, expected in pairs)


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        raise BadRow(f"field {name!r} must be a number >= 0 (0: no limit of its own), got {_kind(value)}")
    return float(value)


def conversation(value: Any, name: str) -> tuple[dict[str, str], ...]:
    """The messages of a decoded JSON value.

    Raises:
        BadRow: it is no list of messages, which is named.
    """
    messages = value if isinstance(value, list) else [value]
    for message in messages:
        if not (isinstance(message, dict) and all(isinstance(message.get(key), str) for key in MESSAGE)):
            raise BadRow(f"field {name!r} must be a list of objects with role and content texts, got {_kind(value)}")
    return tuple({key: _unicode(message[key], name) for key in MESSAGE} for message in messages)


def _label(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} must be a string, got {_kind(value)}")
    return _unicode(value, name)


def _facts(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(f"field {name!r} must be an object, got {_kind(value)}")
    return value


_FIELDS = {
    "problem_id": _identifier,
    "prompt": _text,
    "response": _text,
    "is_correct": _verdict,
    "difficulty": _level,
    "tests": _statements,
    "cases": _pairs,
    "time_limit_s": _seconds,
    "messages": conversation,
    "source": _label,
    "about": _facts,
}


def field_map(pairs: Sequence[str]) -> dict[str, str]:
    """`OURS=THEIRS` texts as a map from a record's field to a row's.

    Raises:
        UsageError: a text is no such pair, or a record has no such field.
    """
    fields = dict(pair.partition("=")[::2] for pair in pairs)
    for ours, theirs in fields.items():
        if ours not in _FIELDS or not theirs:
            raise UsageError(
                f"--field {ours}={theirs}: expected OURS=THEIRS, where OURS is one of {', '.join(_FIELDS)}"
            )
    return fields


def _kind(value: Any) -> str:
    """A JSON value for a message: short, and never a whole document."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
