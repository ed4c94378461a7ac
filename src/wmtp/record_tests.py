"""How the sandbox judges a record's response: by its own tests, within its own limits; and what of it is a program."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from wmtp.data.records import Record
from wmtp.errors import DataError
from wmtp.sandbox import FunctionTests, Limits, StdinTests, Tests

_FENCED = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def tests_of(record: Record) -> Tests | None:
    """Python statements, or inputs and outputs of a whole program; None where the record has neither."""
    if record.cases:
        return StdinTests(record.cases)
    return FunctionTests(record.tests) if record.tests else None


def check_any(records: Iterable[Record], source: object) -> None:
    """Raise `DataError` unless one of the records of a source can be judged; none after it is read."""
    if all(tests_of(record) is None for record in records):
        raise DataError(
            f"no row of {source} has tests (Python statements) or cases (inputs and outputs), by which responses are "
            "judged: `wmtp data prepare --problems FILE` adds them by problem_id (docs/data.md)"
        )


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
