"""A tester's view of a program that lives in another process.

Functions of the program are stand-ins: a call goes to the program's process as data, and what comes back is rebuilt
from data. Its objects are held by number. They can be made, given attributes and handed back; what they would answer
by themselves, when compared or asked, is not believed.
"""

from __future__ import annotations

import builtins
from collections import deque
from collections.abc import Callable
from typing import Any

from . import codec
from .program import RPC_FD, Message

_ENDS_ITERATION = ("StopIteration", "StopAsyncIteration")
_OPERATORS = """
eq ne lt le gt ge len iter next getitem setitem delitem contains bool int float index str repr hash add radd sub
rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow and rand or ror xor rxor neg pos abs invert enter
"""


class ProgramGone(BaseException):
    """The program's process ended. Not an Exception: tests that swallow exceptions must not swallow this."""


class NeedsObjects(BaseException):
    """A test does something with one of its own or of the program's objects that does not go over a wire."""


class Uncarried(Exception):
    """The program's result is too large or too deep."""


class _Remote:
    """An object of the program, held by its number.

    `origin` is `made` for what a test made from a class and for the attributes of that, `result` for what a function
    gave, `part` for the attributes of a result.
    """

    def __init__(self, bridge: Bridge, number: int, origin: str) -> None:
        object.__setattr__(self, "_own", (bridge, number, origin))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        bridge, number, origin = object.__getattribute__(self, "_own")
        return bridge.ask({"get": [number, name]}, "made" if origin == "made" else "part")

    def __setattr__(self, name: str, value: Any) -> None:
        bridge, number, _ = object.__getattribute__(self, "_own")
        bridge.ask({"set": [number, name, bridge.encode(value)]}, "result")

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """A function that a function gave is called like that one; a method is not, its object might be a lie."""
        bridge, number, origin = object.__getattribute__(self, "_own")
        if origin != "result":
            return _refuse("__call__")(self)
        return bridge.call(number, arguments, keywords, "result")


def _is_made(value: Any) -> bool:
    return type(value) is _Remote and object.__getattribute__(value, "_own")[2] == "made"


def _refuse(name: str) -> Callable[..., Any]:
    """An operator of `_Remote`: it may not answer for the program, which could make it agree with anything.

    On an object that a test itself made from a class, using it is what the test is about: the whole test then has to
    run beside the program. On anything else it is a wrong result, or every wrong result could choose its judge.
    """

    def operator(self: _Remote, *others: Any, **_: Any) -> Any:
        if any(_is_made(one) for one in (self, *others)):
            raise NeedsObjects(f"a test uses an object of the program ({name})")
        if name == "__eq__":
            return self is others[0]
        if name == "__ne__":
            return self is not others[0]
        if name == "__hash__":
            return id(self)
        if name == "__bool__":
            return True
        if name in ("__repr__", "__str__"):
            return "<object of the program>"
        raise TypeError(f"the program gave an object where the tests use {name}")

    return operator


for _name in _OPERATORS.split():
    setattr(_Remote, f"__{_name}__", _refuse(f"__{_name}__"))


class Bridge:
    """The tester's end of the line to the program."""

    def __init__(self) -> None:
        self.asked = 0
        self.gone = False
        self.failure: tuple[BaseException, Message] | None = None
        """The last exception that came from the program, and what it said."""
        self.made_tell = False
        """Whether what tests made from a class gave them data, or changed theirs: it may then judge a function."""
        self._remotes: dict[tuple[int, str], _Remote] = {}

    def start(self) -> dict[str, set[str]]:
        """The names of the functions and of the values that the program has, once it is loaded."""
        offer = self._receive()
        if "raise" in offer:
            raise self.raised(offer["raise"])
        return {kind: {str(name) for name in offer["ready"][kind]} for kind in ("functions", "values")}

    def ask(self, request: Message, origin: str) -> Any:
        """The decoded answer; an exception of the program is raised here."""
        return self._value(self._exchange(request), origin)

    def call(self, target: str | int, arguments: tuple[Any, ...], keywords: dict[str, Any], origin: str) -> Any:
        """Calls a function of the program, then makes its changes to the arguments here."""
        request = {
            "call": target,
            "arguments": [self.encode(argument) for argument in arguments],
            "keywords": {key: self.encode(argument) for key, argument in keywords.items()},
        }
        answer = self._exchange(request)
        value = self._value(answer, origin)
        for position, data in answer.get("changed", {}).items():
            self.made_tell |= origin == "made"
            _merge(arguments[int(position)], codec.decode(data, self._known))
        return value

    def encode(self, value: Any) -> Any:
        """A test's own value, on its way to the program."""
        return codec.encode(value, self._refer)

    def _exchange(self, request: Message) -> Message:
        """One question and its answer, still encoded."""
        self.asked += 1
        if self.gone:
            raise ProgramGone
        try:
            codec.send(RPC_FD, request)
        except OSError as error:
            self.gone = True
            raise ProgramGone from error
        return self._receive()

    def _receive(self) -> Message:
        try:
            answer = codec.receive(RPC_FD)
        except (EOFError, OSError, codec.CodecError) as error:
            self.gone = True
            raise ProgramGone from error
        if type(answer) is not dict:
            self.gone = True
            raise ProgramGone
        return answer

    def _value(self, answer: Message, origin: str) -> Any:
        if "raise" in answer:
            raise self.raised(answer["raise"])
        if "value" not in answer:
            raise Uncarried(str(answer.get("uncarried"))[:200])
        try:
            value = codec.decode(answer["value"], lambda number: self._remote(number, origin))
        except codec.CodecError as error:
            raise Uncarried(str(error)) from error
        self.made_tell |= origin == "made" and type(value) is not _Remote
        return value

    def raised(self, said: Any) -> BaseException:
        """The program's exception as one of ours. None that ends an iteration: it would end `all(map(...))` as true."""
        builtin, name, text = (str(part) for part in said)
        kind = getattr(builtins, builtin, None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)) or builtin in _ENDS_ITERATION:
            kind = RuntimeError
        try:
            error = kind(text)
        except TypeError:  # UnicodeDecodeError and its like take more
            error = RuntimeError(text)
        self.failure = (error, {"type": name, "builtin": builtin, "text": text})
        return error

    def _remote(self, number: Any, origin: str) -> _Remote:
        """One for each number and origin: what a function gives is never what the tests made, even if it is."""
        return self._remotes.setdefault((number, origin), _Remote(self, number, origin))

    def _known(self, number: Any) -> _Remote:
        """An object in an argument that has changed: the tests' own stay that."""
        return self._remote(number, "made" if (number, "made") in self._remotes else "result")

    def _refer(self, value: Any) -> Any:
        if type(value) is _Remote:
            return {"object": object.__getattribute__(value, "_own")[1]}
        raise NeedsObjects(f"a test hands the program a {type(value).__name__[:64]}")


def is_class_name(name: str) -> bool:
    """Whether tests mean a class by it: a matter of how they are written, not of what the program says it is."""
    return "." not in name and name.lstrip("_")[:1].isupper()


def _merge(old: Any, new: Any) -> Any:
    """`new`, in the object `old` where that can hold it; what is unchanged inside keeps its identity."""
    if type(old) is not type(new) or type(old) is _Remote:
        return new
    if type(old) is list:
        old[:] = [_merge(one, other) for one, other in zip(old, new, strict=False)] + new[len(old) :]
    elif isinstance(old, dict):
        kept = {key: _merge(old[key], item) if key in old else item for key, item in new.items()}
        old.clear()
        old.update(kept)
    elif type(old) is tuple and len(old) == len(new):
        for one, other in zip(old, new, strict=True):
            _merge(one, other)
        return old if old == new else new
    elif type(old) is set:
        old.clear()
        old.update(new)
    elif type(old) is bytearray:
        old[:] = new
    elif type(old) is deque:
        old.clear()
        old.extend(new)
    else:
        return new
    return old
