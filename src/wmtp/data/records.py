"""One record: a problem and one response to it. The schema every source is turned into.

Rows are validated one by one; a bad row is reported with its file and line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
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
    source: str = ""
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What is known of how the response came about, a verdict or a mutation say; training does not read it."""

    def row(self) -> dict[str, Any]:
        """The record as a JSON object that `parse` reads; what has its default is left out."""
        values = asdict(self) | {"tests": list(self.tests)}
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
    unknown = sorted(set(row) - set(_FIELDS))
    if unknown:
        raise BadRow(
            f"unknown field {_kind(unknown[0])}; a record has {', '.join(_FIELDS)} (map others with data.*.fields)"
        )
    values: dict[str, Any] = {name: check(row[name], name) for name, check in _FIELDS.items() if name in row}
    for name in ("prompt", "response"):
        if name not in values:
            raise BadRow(f"field {name!r} is missing")
    values.setdefault("problem_id", values["prompt"])
    return Record(**values)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} must be a string, got {_kind(value)}")
    if not value.strip():
        raise BadRow(f"field {name!r} is blank")
    return _unicode(value, name)


def _unicode(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        raise BadRow(f"field {name!r} holds half of a surrogate pair: it is not valid Unicode text") from problem
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
    "source": _label,
    "about": _facts,
}


def _kind(value: Any) -> str:
    """A JSON value for a message: short, and never a whole document."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
