"""CodeContests (Li et al. 2022, arXiv 2203.07814): one row per problem, with many people's solutions.

A group of fields, `solutions` say, is published as lists side by side (`{"language": [3], "solution": ["..."]}`) or as
a list of objects; both are read. Languages and difficulties are published as numbers or names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from wmtp.data.records import BadRow

FIELDS = frozenset({"name", "description", "public_tests", "private_tests", "generated_tests"})
LANGUAGES = ("UNKNOWN_LANGUAGE", "PYTHON", "CPP", "PYTHON3", "JAVA")
LEVELS = ("UNKNOWN_DIFFICULTY", "EASY", "MEDIUM", "HARD", "HARDER", "HARDEST", "EXTERNAL", *"ABCDEFGHIJKLMNOPQRSTUV")
"""Letters are the places of problems in Codeforces' contests; EXTERNAL: graded by a scale that is not published."""
_VERDICTS = {"solutions": True, "incorrect_solutions": False}


def records(row: Mapping[str, Any], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """A record for every solution in Python 3; `dropped` gets the others, by reason.

    Raises:
        BadRow: a field is not as it is published.
    """
    level = _number(row.get("difficulty") or 0, LEVELS, "difficulty")
    problem = {
        "problem_id": f"codecontests/{text(row, 'name')}",
        "prompt": text(row, "description").strip(),
        "difficulty": 0 if LEVELS[level] == "EXTERNAL" else level,
        "cases": [list(case) for case in cases(row)],
        "time_limit_s": time_limit_s(row),
        "source": "codecontests",
    }
    reads_files = bool(row.get("input_file") or row.get("output_file"))
    for name, is_correct in _VERDICTS.items():
        for language, program in solutions(row, name):
            if language != "PYTHON3":
                dropped[f"solution in {language}, not PYTHON3"] += 1
            elif reads_files:
                dropped["solution of a problem that reads or writes files"] += 1
            else:
                yield problem | {"response": unix_lines(program), "is_correct": is_correct}


def cases(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(input, expected output) pairs: the public tests, then the private and the generated ones."""
    return [
        (given, expected)
        for name in ("public_tests", "private_tests", "generated_tests")
        for given, expected in _group(row, name, "input", "output")
    ]


def solutions(row: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """(language, program) pairs of a group of solutions; none if the row has no such group."""
    found = _group(row, name, "language", "solution") if row.get(name) else []
    return [(LANGUAGES[_number(language, LANGUAGES, "language")], program) for language, program in found]


def time_limit_s(row: Mapping[str, Any]) -> float:
    """The contest's limit; 0 where none is known."""
    limit = row.get("time_limit") or {}
    if not isinstance(limit, dict):
        raise BadRow(f"field 'time_limit' must be an object of seconds and nanos, got {limit!r:.60}")
    return float((limit.get("seconds") or 0) + (limit.get("nanos") or 0) / 1e9)


def text(row: Mapping[str, Any], name: str) -> str:
    """A field that must be a text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} must be a string, got {value!r:.60}")
    return value


def unix_lines(program: str) -> str:
    """A program with newlines as Python writes them."""
    return program.replace("\r\n", "\n").replace("\r", "\n")


def _group(row: Mapping[str, Any], name: str, one: str, other: str) -> list[tuple[Any, str]]:
    group = row.get(name)
    try:
        if isinstance(group, dict):
            pairs = list(zip(group[one], group[other], strict=True))
        else:
            pairs = [(item[one], item[other]) for item in group or []]
    except (KeyError, TypeError, ValueError) as problem:
        raise BadRow(f"field {name!r} must have as many {one} as {other} values, got {group!r:.60}") from problem
    if not all(isinstance(value, str) for _, value in pairs):
        raise BadRow(f"field {name!r} must have texts as {other}, got {group!r:.60}")
    return pairs


def _number(value: Any, names: tuple[str, ...], field: str) -> int:
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return value
    raise BadRow(f"field {field!r} must be one of {', '.join(names)} or its number, got {value!r:.60}")
