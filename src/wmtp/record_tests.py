"""How the sandbox judges a record's response: by its own tests, within its own limits; and what of it is a program."""

from __future__ import annotations

import re
from dataclasses import replace

from wmtp.data.records import Record
from wmtp.sandbox import FunctionTests, Limits, StdinTests, Tests

_FENCED = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def tests_of(record: Record) -> Tests | None:
    """Python statements, or inputs and outputs of a whole program; None where the record has neither."""
    if record.cases:
        return StdinTests(record.cases)
    return FunctionTests(record.tests) if record.tests else None


def limits_of(record: Record, limits: Limits) -> Limits:
    """`limits` with the record's own time, where it has one."""
    return replace(limits, cpu_s=record.time_limit_s) if record.time_limit_s else limits


def fenced_code(answer: str) -> str | None:
    """The first block of fenced code, which is how chat models give programs; None where there is none."""
    found = _FENCED.search(answer)
    return None if found is None else found[1]


def program_in(answer: str) -> str:
    """The program of an answer to a record's prompt: its first block of fenced code, or else all of it."""
    code = fenced_code(answer)
    return answer if code is None else code
