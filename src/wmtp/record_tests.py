"""How the sandbox judges a record's response: by its own tests, within its own limits."""

from __future__ import annotations

from dataclasses import replace

from wmtp.data.records import Record
from wmtp.sandbox import FunctionTests, Limits, StdinTests, Tests


def tests_of(record: Record) -> Tests | None:
    """Python statements, or inputs and outputs of a whole program; None where the record has neither."""
    if record.cases:
        return StdinTests(record.cases)
    return FunctionTests(record.tests) if record.tests else None


def limits_of(record: Record, limits: Limits) -> Limits:
    """`limits` with the record's own time, where it has one."""
    return replace(limits, cpu_s=record.time_limit_s) if record.time_limit_s else limits
