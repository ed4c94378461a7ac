"""What is wrong in a configuration, and where: one line for each problem, all of them in one error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wmtp.errors import ConfigError
from wmtp.wording import counted

MAX_SHOWN = 80

Key = str | int
KeyPath = tuple[Key, ...]

_BARE_KEY = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a key was written: a file and line, or an override (line 0)."""

    source: str
    order: int
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """One line of the report; `order` sorts it by source and line."""

    order: tuple[float, float]
    text: str


class Refused(Exception):
    """A source could not be read; carries the one problem found in it."""

    def __init__(self, origin: Origin, text: str) -> None:
        super().__init__(text)
        self.problem = located(origin, text)


def located(origin: Origin, text: str) -> Problem:
    """Return a problem as its line of the report: place, then text."""
    return Problem((origin.order, origin.line), f"{origin}: {text}")


def raise_any(problems: Sequence[Problem]) -> None:
    """Raise one `ConfigError` that lists `problems` in the order of their sources; do nothing for none."""
    if not problems:
        return
    lines = [_printable(problem.text) for problem in sorted(problems, key=lambda problem: problem.order)]
    raise ConfigError("\n  ".join([f"{counted(len(lines), 'problem')} in the configuration", *lines]))


def _printable(text: str) -> str:
    """Return `text` on one line, with control characters written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def dotted(path: KeyPath) -> str:
    """Return the key path as the user writes it; keys that hold other characters are quoted."""
    return ".".join(str(key) if _BARE_KEY.fullmatch(str(key)) else repr(key) for key in path) or "configuration"


def clipped(text: str) -> str:
    """Return `text`, cut to `MAX_SHOWN` characters."""
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
