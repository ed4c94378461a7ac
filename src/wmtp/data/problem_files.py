"""Files of problems: statements and tests that belong to programs in another file.

JSON Lines (or any container of `wmtp.data.containers`) whose rows have `problem_id` and other fields of a record; or
the `tests.json` of Refactory (Hu et al. 2019), an object from a question's number to its description, its globals and
its cases: a call, and the result as Python prints it.
"""

from __future__ import annotations

import json
from typing import Any

from wmtp.data.containers import MAX_LINE_BYTES, rows
from wmtp.data.records import BadRow, parse
from wmtp.errors import DataError
from wmtp.storage import Place


def read_problems(path: Place) -> dict[str, dict[str, Any]]:
    """Fields of records by problem id. The whole file is held.

    Raises:
        DataError: the file cannot be read, a row is bad, or a problem is there twice; with file and row.
    """
    problems = _refactory(path)
    if problems:
        return problems
    for number, decode in rows(path):
        try:
            row = decode()
            record = parse({"prompt": "-", "response": "-", **row} if isinstance(row, dict) else row)
            if "problem_id" not in row:
                raise BadRow("field 'problem_id' is missing; a problem needs it, since programs name theirs by it")
            if record.problem_id in problems:
                raise BadRow(f"the problem {record.problem_id!r:.60} is there twice; keep one row of it")
        except BadRow as problem:
            raise DataError(f"{path}:{number}: {problem}") from problem
        problems[record.problem_id] = row
    return problems


def _refactory(path: Place) -> dict[str, dict[str, Any]]:
    """The problems of Refactory; empty if the file is something else, or cannot be read."""
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_LINE_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(one, dict) and "cases" in one for one in found.values()):
        return {}
    return {f"refactory/{question}": _assignment(path, question, one) for question, one in found.items()}


def _assignment(path: Place, question: str, row: dict[str, Any]) -> dict[str, Any]:
    try:
        tests = [f"assert {case['i'].strip()} == {case['o'].strip()}" for case in row["cases"]]
        statement = row["description"].removeprefix("Task: ").strip()
        given = row["globals"].strip()
    except (AttributeError, KeyError, TypeError) as problem:
        raise DataError(
            f"{path}: question {question!r} is not as Refactory publishes them ({problem!r}); expected description, "
            "globals and cases of i and o"
        ) from problem
    return {"prompt": statement, "tests": [given, *tests] if given else tests}
