"""The roles of the process that runs the program under test. It has the inputs, never an expected answer.

Everything in here may have been replaced by the program before it is called. Nothing that matters depends on it: what
this process says is data for others to judge, and a lie is worth no more than a wrong answer.
"""

from __future__ import annotations

import atexit
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, NoReturn

from . import codec

JOB_FD, RPC_FD = 3, 4
NO_RESULT = 70
"""Exit status of a child that ended without what it was made for."""
_RESERVE = mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
"""Given back when memory runs out, so that this can still be said."""
TEXT = 300
"""Characters kept of an error's message."""

Message = dict[str, Any]


def run_code(text: str | CodeType, namespace: dict[str, Any], name: str = "<program>") -> None:
    """Executes untrusted text: the one place where that happens. It inherits no `__future__` from here."""
    exec(compile(text, name, "exec", dont_inherit=True) if isinstance(text, str) else text, namespace)


def new_module(name: str) -> ModuleType:
    """An empty module that `sys.modules` knows, as dataclasses and typing expect of the one they are used in."""
    module = ModuleType(name)
    sys.modules[name] = module
    return module


def describe(error: BaseException) -> Message:
    """An exception as data: the builtin type it is, its own name, the beginning of its message."""
    try:
        text = str(error)[:TEXT]
    except BaseException:  # noqa: BLE001 the message is the program's own code
        text = ""
    builtin = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
    if isinstance(error, OSError) and error.errno == errno.EROFS:  # how a private root refuses
        builtin = "PermissionError"
    return {"raise": [builtin, str(type(error).__name__)[:64], text]}


def _guarded(action: Callable[[], Message]) -> Message:
    """What `action` returns, or the exception it ends with."""
    try:
        return action()
    except MemoryError as error:
        _RESERVE.close()
        return describe(error)
    except codec.CodecError as error:
        return {"uncarried": str(error)}
    except BaseException as error:  # noqa: BLE001 an exit is an outcome, too
        return describe(error)


def _load(source: str, module: ModuleType, offer: bool = False) -> Message:
    """Runs the program; with `offer` the answer holds the names that it defines."""

    def action() -> Message:
        run_code(source, module.__dict__, "<program>")
        return {"ready": _names(module) if offer else True}

    return _guarded(action)


def _send(fd: int, message: Message) -> None:
    """A message that is too long is replaced by the fact that it was."""
    try:
        codec.send(fd, message)
    except codec.CodecError as error:
        codec.send(fd, {"uncarried": str(error)})


def _find(module: ModuleType, name: str) -> Any:
    """`f`, or the method `C.f` of a new `C()`."""
    first, *rest = name.split(".")
    found = module.__dict__[first] if first in module.__dict__ else _missing(first)
    for attribute in rest:
        found = getattr(found() if isinstance(found, type) else found, attribute)
    return found


def _missing(name: str) -> NoReturn:
    raise NameError(f"name {name!r} is not defined")


# --- Calls from a tester ----------------------------------------------------------------------------------------------


class _Objects:
    """What the tester holds only by number: the program's objects that are no plain data."""

    def __init__(self) -> None:
        self._all: list[Any] = []
        self._number: dict[int, int] = {}

    def refer(self, value: Any) -> Message:
        number = self._number.setdefault(id(value), len(self._all))
        if number == len(self._all):
            self._all.append(value)  # kept, so that its id stays its own
        return {"object": number}

    def __getitem__(self, number: int) -> Any:
        return self._all[number]


def serve(job: Message) -> NoReturn:
    """Loads the program, then answers the tester until it is gone."""
    module, objects = new_module("solution"), _Objects()
    first = _load(job["source"], module, offer=True)
    _send(RPC_FD, first)
    while "ready" in first:
        try:
            request = codec.receive(RPC_FD)
        except EOFError:
            os._exit(0)
        _send(RPC_FD, _guarded(lambda request=request: _answer(request, module, objects)))  # type: ignore[misc]
    os._exit(NO_RESULT)


def _answer(request: Message, module: ModuleType, objects: _Objects) -> Message:
    def given(data: Any) -> Any:
        return codec.decode(data, objects.__getitem__)

    if "values" in request:
        return {"value": [codec.encode(module.__dict__[name]) for name in request["values"]]}
    if "get" in request:
        number, attribute = request["get"]
        return {"value": codec.encode(getattr(objects[number], attribute), objects.refer)}
    if "set" in request:
        number, attribute, value = request["set"]
        setattr(objects[number], attribute, given(value))
        return {"value": None}
    arguments = [given(argument) for argument in request["arguments"]]
    keywords = {name: given(argument) for name, argument in request["keywords"].items()}
    target = request["call"]
    function = _find(module, target) if isinstance(target, str) else objects[target]
    result = codec.encode(function(*arguments, **keywords), objects.refer)
    return {"value": result, "changed": _changed(request["arguments"], arguments, objects)}


def _names(module: ModuleType) -> Message:
    """What a program has to offer to tests; they choose, so that it does not learn what they ask about."""
    names = [name for name in module.__dict__ if not name.startswith("__")]
    functions = [name for name in names if callable(module.__dict__[name])]
    values = [name for name in names if name not in functions and not isinstance(module.__dict__[name], ModuleType)]
    return {"functions": functions, "values": values}


def _changed(before: list[Any], arguments: list[Any], objects: _Objects) -> Message:
    """The arguments that the call changed in place, by position."""
    changed = {}
    for position, (data, argument) in enumerate(zip(before, arguments, strict=True)):
        if isinstance(data, (list, dict)) and "iterator" not in data and "object" not in data:
            after = codec.encode(argument, objects.refer)
            if after != data:
                changed[str(position)] = after
    return changed


# --- Calls with given inputs ------------------------------------------------------------------------------------------


def calls(job: Message) -> NoReturn:
    """Calls one function with each input in turn; one message for each."""
    module = new_module("solution")
    first = _load(job["source"], module)
    _send(JOB_FD, first)
    if "ready" in first:
        for arguments in job["inputs"]:
            _send(JOB_FD, _guarded(lambda given=arguments: _called(module, job["name"], given)))  # type: ignore[misc]
    os._exit(0)


def _called(module: ModuleType, name: str, arguments: list[Any]) -> Message:
    result = _find(module, name)(*(codec.decode(argument) for argument in arguments))
    return {"value": codec.encode(result, lambda _: {"object": 0})}


# --- A whole script ---------------------------------------------------------------------------------------------------


def script(job: Message) -> NoReturn:
    """Runs the program as `__main__` on its standard input, to the end of its last thread, as the interpreter would."""
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 open to the end
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout  # type: ignore[misc]
    sys.argv = ["program.py"]
    module = new_module("__main__")
    status = 0

    def action() -> Message:
        nonlocal status
        try:
            run_code(job["source"], module.__dict__, "<program>")
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        return {"ready": True}

    outcome = _guarded(action)
    if "ready" not in outcome:
        status = 1
        _guarded(lambda: {"ready": sys.stdout.flush()})
        _send(JOB_FD, outcome)
    os._exit(status & 0xFF)


# --- Everything in one process ----------------------------------------------------------------------------------------


def in_process(job: Message) -> NoReturn:
    """Program and tests in one namespace, where any test can be made to agree: for tests that need its objects."""
    module = new_module("solution")
    outcome = _load(job["source"], module)
    space = module.__dict__
    if "ready" in outcome:

        def action() -> Message:
            run_code(job["setup"], space, "<setup>")
            space.update(job_names(job, lambda name: _find(module, name)))
            for number, text in enumerate(job["tests"], 1):
                run_code(text, space, f"<test {number}>")
            if job["entry_point"] is not None:
                space["check"](space["candidate"])
            return {"passed": True}

        outcome = _guarded(action)
    _send(JOB_FD, outcome)
    os._exit(0)


def job_names(job: Message, find: Callable[[str], Any]) -> Message:
    """The names by which tests with an entry point know it."""
    name = job["entry_point"]
    if name is None:
        return {}
    found = find(name)
    return {"candidate": found, name: found}
