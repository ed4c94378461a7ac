"""The role of the process that runs the tests, against a program that lives in another one.

The tests come from a data set, so they are as little trusted as the program and as tightly confined. They have the
expected answers; the program has this process only as a line that asks it questions.
"""

from __future__ import annotations

import builtins
import os
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from types import CodeType
from typing import Any, NoReturn

from . import codec
from .program import JOB_FD, Message, job_names, run_code
from .remote import Bridge, NeedsObjects, ProgramGone, Uncarried, is_class_name

_ALIASES = {"np": "numpy", "pd": "pandas"}
"""Modules that tests use by another name."""


def run_tests(job: Message) -> NoReturn:
    """Runs the tests and says how they ended; this alone decides about the program."""
    bridge = Bridge()
    report = _outcome(job, bridge) | {"asked": bridge.asked}
    if bridge.gone and report["outcome"] == "passed":
        report = {"outcome": "gone"}  # the tests swallowed it
    codec.send(JOB_FD, report)
    os._exit(0)


def _outcome(job: Message, bridge: Bridge) -> Message:
    texts = {"<setup>": job["setup"]} | {f"<test {number}>": text for number, text in enumerate(job["tests"], 1)}
    try:
        codes = [compile(text, name, "exec", dont_inherit=True) for name, text in texts.items()]
    except (SyntaxError, ValueError, RecursionError) as error:
        return {"outcome": "bad_tests", "text": f"{type(error).__name__}: {error}"[:300]}
    try:
        provided = _run_all(job, bridge, codes, texts)
    except BaseException as error:  # noqa: BLE001 every way in which tests can end is an outcome
        return _ended(error, bridge, texts)
    return {"outcome": "passed", "provided": provided}


def _run_all(job: Message, bridge: Bridge, codes: list[CodeType], texts: dict[str, str]) -> list[str]:
    """Runs all tests in one namespace; the names of the program that may judge one another: functions, values, and
    classes that did more than make arguments."""
    space: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    named = {name for code in codes for name in _names(code)}
    wanted, offer = named - set(dir(builtins)), bridge.start()
    functions, values = wanted & offer["functions"], wanted & offer["values"]
    if not functions and job["entry_point"] is None:  # then the tests must mean a function named like a builtin
        functions = named & offer["functions"]
    modules = {name for name in wanted - functions - values if name in sys.stdlib_module_names or name in _ALIASES}
    entry = {job["entry_point"]} - {None}
    if modules or values or len({name for name in functions if not is_class_name(name)} | entry) > 1:
        free = _free_names(texts)  # attributes and names that the tests define are among the others, too
        functions, values, modules = functions & free, values & free, modules & free
    for name in modules:
        _import_into(space, name)
    space |= {name: _stand_in(bridge, name) for name in functions}
    if values:
        space |= dict(zip(sorted(values), bridge.ask({"values": sorted(values)}, "result"), strict=True))
    for code in codes:
        run_code(code, space)
        if code is codes[0]:
            space |= job_names(job, lambda name: _stand_in(bridge, name))
    if job["entry_point"] is not None:
        space["check"](space["candidate"])
    return sorted({name for name in functions if bridge.made_tell or not is_class_name(name)} | values | entry)


def _names(code: CodeType) -> Iterator[str]:
    """Every name in a code object: globals, attributes and what it binds, told apart only where that matters."""
    yield from (name for name in code.co_names if not name.startswith("__"))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _stand_in(bridge: Bridge, name: str) -> Callable[..., Any]:
    def function(*arguments: Any, **keywords: Any) -> Any:
        return bridge.call(name, arguments, keywords, "made" if is_class_name(name) else "result")

    function.__name__ = function.__qualname__ = name
    return function


def _import_into(space: Message, name: str) -> None:
    """Modules that tests use without importing them, as they could beside a program that did."""
    try:
        space[name] = import_module(_ALIASES.get(name, name))
    except ImportError:
        return  # the tests will say that they miss it


def _free_names(texts: dict[str, str]) -> set[str]:
    """Global names, builtin ones among them, that the texts read and nothing in them binds."""
    read: set[str] = set()
    bound: set[str] = set()
    for name, text in texts.items():
        table = symtable.symtable(text, name, "exec")
        for symbol in table.get_symbols():
            (bound if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace() else read).add(
                symbol.get_name()
            )
        read.update(_global_reads(table.get_children()))
    return read - bound


def _global_reads(tables: Iterable[symtable.SymbolTable]) -> set[str]:
    found: set[str] = set()
    for table in tables:
        found.update(symbol.get_name() for symbol in table.get_symbols() if symbol.is_global())
        found.update(_global_reads(table.get_children()))
    return found


def _ended(error: BaseException, bridge: Bridge, texts: dict[str, str]) -> Message:
    """How the tests ended, if not by reaching their end."""
    if isinstance(error, ProgramGone):
        return {"outcome": "gone"}
    at = _place(error, texts)
    if isinstance(error, NeedsObjects):
        return {"outcome": "needs_objects", "text": str(error), "at": at}
    if isinstance(error, Uncarried):
        return {"outcome": "uncarried", "text": str(error), "at": at}
    if bridge.failure is not None and bridge.failure[0] is error:
        return {"outcome": "raised", "at": at, **bridge.failure[1]}
    try:
        text = str(error)[:300]
    except BaseException:  # noqa: BLE001 a test's own exception class
        text = ""
    kind = type(error).__name__
    if isinstance(error, AssertionError):
        return {"outcome": "wrong", "at": at, "text": text}
    return {"outcome": "raised", "at": at, "type": kind, "builtin": kind, "text": text}


def _place(error: BaseException, texts: dict[str, str]) -> str:
    """The last line of the tests on the way to `error`: `test 2, line 1: assert f(3) == 4`."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        name, number = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        if name in texts:
            lines = texts[name].splitlines()
            line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
            place = f"{name.strip('<>')}, line {number}: {line}"[:200]
        trace = trace.tb_next
    return place
