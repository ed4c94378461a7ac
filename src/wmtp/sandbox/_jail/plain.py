"""Tests that need not be run as code: assertions that a function, given constants, returns a constant.

Most tests of the common data sets are of this kind. They are read here, inside the jail, because parsing is no less
of a risk than running; as data they can then be put to any program without a second process. Constants, one call and
one comparison leave nothing that running them could add.
"""

from __future__ import annotations

import ast
import builtins
import os
from collections.abc import Iterable
from typing import Any, NoReturn

from . import codec
from .program import JOB_FD

Message = dict[str, Any]


class _NotPlain(Exception):
    """A statement of any other kind."""


def read_all(job: Message) -> NoReturn:
    """The role of a process that reads several sets of tests and runs none; one message with what became of each."""
    codec.send(JOB_FD, [read(tests) for tests in job["sets"]])
    os._exit(0)


def read(job: Message) -> Message | None:
    """`{"name": ..., "inputs": [[...], ...], "expected": [...]}` with values encoded, or None."""
    try:
        statements = [statement for text in job["tests"] for statement in ast.parse(text).body]
        if job["entry_point"] is not None:
            name, called, asserts = job["entry_point"], *_check(statements)
        elif not job["setup"].strip():
            name = called = None
            asserts = statements
        else:
            return None
        calls = [call for statement in asserts if (call := _call(statement)) is not None]
        names = {function for function, _, _ in calls}
        if len(names) != 1 or (called is not None and names != {called}):
            return None
        name = name or names.pop()
        if name in dir(builtins):
            return None
        return {
            "name": name,
            "inputs": [[codec.encode(argument) for argument in arguments] for _, arguments, _ in calls],
            "expected": [codec.encode(expected) for _, _, expected in calls],
        }
    except (_NotPlain, codec.CodecError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None  # `literal_eval` raises most of these for what is no constant


def _check(statements: Iterable[ast.stmt]) -> tuple[str, list[ast.stmt]]:
    """The parameter and the body of `check(candidate)`, if there is nothing beside it but constants."""
    found: ast.FunctionDef | None = None
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == "check" and found is None:
            found = statement
        elif isinstance(statement, ast.Assign):
            if any(getattr(target, "id", "check") == "check" for target in statement.targets):
                raise _NotPlain
            ast.literal_eval(statement.value)
        elif not _is_constant(statement):
            raise _NotPlain
    if (
        found is None
        or found.decorator_list
        or len(found.args.args) != 1
        or ast.unparse(found.args) != found.args.args[0].arg
    ):
        raise _NotPlain
    return found.args.args[0].arg, found.body


def _is_constant(statement: ast.stmt) -> bool:
    """`pass`, a docstring, or `assert True`."""
    if isinstance(statement, ast.Assert):
        return isinstance(statement.test, ast.Constant) and bool(statement.test.value)
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _call(statement: ast.stmt) -> tuple[str, list[Any], Any] | None:
    """Name, arguments and result of `assert name(arguments) == result`; None for what asserts nothing."""
    if _is_constant(statement):
        return None
    match statement:
        case ast.Assert(
            test=ast.Compare(
                left=ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]),
                ops=[ast.Eq()],
                comparators=[expected],
            )
        ):
            return name, [ast.literal_eval(argument) for argument in arguments], ast.literal_eval(expected)
    raise _NotPlain
