"""What passes between the grader and the children of one run, all of it bounded before it is kept."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from wmtp.errors import DataError
from wmtp.sandbox._jail import codec
from wmtp.sandbox.verdict import Limits

JOB_FD, RPC_FD = 3, 4
_JOB_S = 30.0
"""A child reads its job before it does anything else; one that does not within this time is lost."""
_CHUNK = 2**16


@dataclass
class Child:
    """One process to be forked: its job, its limits, and what it is to be connected with."""

    job: dict[str, Any]
    limits: Limits
    paired: bool = False
    """Whether a line joins it with the other paired child."""
    stdin: bytes | None = None
    """With it the child is a script: descriptor 0 gives this, descriptor 1 is kept."""


@dataclass
class Ended:
    """How a child ended, as the zygote saw it, and what it said, which is only its word."""

    status: int
    cpu_s: float
    killed: str | None
    filtered: bool = True
    """Whether the child could not have killed itself."""
    messages: list[Any] = field(default_factory=list)
    output: bytes = b""
    overflow: str = ""

    @property
    def signal(self) -> int:
        """The signal it died of, or 0."""
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    @property
    def code(self) -> int:
        """Its exit code, or -1."""
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else -1


@dataclass
class Outcome:
    """One run."""

    children: list[Ended]
    wall_s: float


OnMessage = Callable[[Any], bool]
"""Gets each message of a child; False ends the run."""


class Line:
    """The grader's ends of what connects it with one child, and the child's ends until they are passed on."""

    def __init__(self, child: Child, on_message: OnMessage | None) -> None:
        try:
            self._job = codec.pack(child.job, codec.MAX_JOB)
        except codec.CodecError as error:
            raise DataError(f"a program with its tests is too large to be run: {error}; leave it out") from error
        self._on_message, self._most = on_message, child.limits.output_bytes
        self._input = memoryview(child.stdin or b"")
        self._buffer = bytearray()
        self.messages: list[Any] = []
        self.output = bytearray()
        self.overflow = ""
        self.enough = False
        self.theirs: dict[int, int] = {}
        self._ours: dict[str, int] = {}
        try:
            self._socket, theirs = socket.socketpair()
            self.theirs[JOB_FD] = theirs.detach()
            if child.stdin is not None:
                self.theirs[0], self._ours["input"] = os.pipe()
                self._ours["output"], self.theirs[1] = os.pipe()
                for fd in self._ours.values():
                    os.set_blocking(fd, False)
        except BaseException:  # raised again: an interrupt too must leave no descriptor open
            self.close()
            raise

    def passed_on(self) -> None:
        """The child has its ends now."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs.clear()

    def close(self) -> None:
        """Closes whatever is open."""
        self.passed_on()
        if hasattr(self, "_socket"):
            self._socket.close()
        for fd in self._ours.values():
            os.close(fd)
        self._ours.clear()

    def start(self) -> None:
        """Gives the child its job; how it ends will tell whether it took it."""
        self._socket.settimeout(_JOB_S)
        with suppress(OSError):
            self._socket.sendall(self._job)
        self._socket.setblocking(False)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Each descriptor with the function that serves it and says whether it is to be kept."""
        selector.register(self._socket, selectors.EVENT_READ, self._read_messages)
        if self._ours:
            selector.register(self._ours["output"], selectors.EVENT_READ, self._read_output)
            selector.register(self._ours["input"], selectors.EVENT_WRITE, self._write_input)

    @property
    def feeds(self) -> bool:
        """Whether the child waits for what it is given while it runs."""
        return bool(self._ours)

    @property
    def to_stop(self) -> bool:
        """Whether nothing more is wanted of the child."""
        return self.enough or bool(self.overflow)

    def drain(self) -> None:
        """Reads what an ended child has left behind."""
        while not self.to_stop and (data := _pull(self._socket.fileno())):
            self._take(data)
        while self._ours and not self.to_stop and (data := _pull(self._ours["output"])):
            self._keep(data)

    def _read_messages(self) -> bool:
        data = _pull(self._socket.fileno())
        if data:
            self._take(data)
        return data != b"" and not self.to_stop

    def _read_output(self) -> bool:
        data = _pull(self._ours["output"])
        if data:
            self._keep(data)
        return data != b"" and not self.to_stop

    def _keep(self, data: bytes) -> None:
        self.output += data
        if len(self.output) > self._most:
            self.overflow = f"more than {self._most} bytes of output"

    def _write_input(self) -> bool:
        try:
            self._input = self._input[os.write(self._ours["input"], self._input[:_CHUNK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # a program need not read its input
            self._input = self._input[:0]
        if self._input:
            return True
        os.close(self._ours.pop("input"))
        return False

    def _take(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4 and not self.to_stop:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > codec.MAX_FRAME:
                self.overflow = f"a result of {size} bytes; at most {codec.MAX_FRAME} are carried"
                return
            if len(self._buffer) < 4 + size:
                return
            body = self._buffer[4 : 4 + size]
            if body.count(b",") > codec.MAX_PARTS:
                self.overflow = f"a result of more than {codec.MAX_PARTS} parts"
                return
            try:
                message = codec.unpack(body)
            except codec.CodecError as error:
                self.overflow = str(error)
                return
            del self._buffer[: 4 + size]
            if self._on_message is None:
                self.messages.append(message)
                self.enough = len(self.messages) > 1  # none has more than one thing to say
            else:
                self.enough = not self._on_message(message)


def _pull(fd: int) -> bytes | None:
    """What can be read now; None if nothing, empty at the end."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def connect(children: list[Child], on_message: OnMessage | None) -> list[Line]:
    """A line to each child, and one between the two that are paired. `on_message` is for the first child's messages."""
    lines: list[Line] = []
    try:
        for child in children:
            lines.append(Line(child, None if lines else on_message))
        ends = [end.detach() for end in socket.socketpair()] if any(child.paired for child in children) else []
        for child, line in zip(children, lines, strict=True):
            if child.paired:
                line.theirs[RPC_FD] = ends.pop()
    except BaseException:  # raised again: an interrupt too must leave no descriptor open
        for line in lines:
            line.close()
        raise
    return lines
