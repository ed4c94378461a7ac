"""A zygote as the grader holds it, and one exchange with it: jobs out, messages back, under a deadline."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wmtp.sandbox._exchange import Child, Ended, Line, OnMessage, Outcome, connect
from wmtp.sandbox._jail import codec
from wmtp.sandbox.verdict import Limits, SandboxError

GRACE = 1.5
"""A program is killed at this many times its CPU limit, so that one just above it is seen to be that."""
_SHORT_S = 0.02
"""Most programs have ended by then; what they said is then read at once, and not as they say it."""
_START_S = 60.0
_SLACK_S = 30.0
"""How long beyond a deadline an answer may take before the zygote counts as lost."""
_LEAVE_S = 5.0
"""How long a zygote has to end its children and itself before it is killed."""
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from _jail.boot import main; sys.path.pop(0); main()"
STOP = b"!"
"""As the zygote has it; it is not imported here, since it would load what only it needs."""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class WorkerLost(Exception):
    """The zygote died, fell silent or could not be asked; says nothing about a program."""


class Worker:
    """One zygote process. One exchange at a time; any thread may close it.

    Must be made by a thread that lives as long as it: the kernel ends a zygote together with its parent thread.
    """

    def __init__(self, config: Mapping[str, Any], hash_seed: int = 0) -> None:
        self.runs = 0
        self._busy = threading.Lock()
        if os.name != "posix":
            raise SandboxError(f"the sandbox needs a POSIX system, this is {sys.platform}; on Windows use WSL 2")
        executable = getattr(sys, "_base_executable", None) or sys.executable
        if not executable:
            raise SandboxError("there is no Python interpreter to start: sys.executable is empty")
        ours, theirs = socket.socketpair()
        inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self.environment = {**_ENVIRONMENT, "PYTHONHASHSEED": str(hash_seed), **inherited}
        # Without -E, for PYTHONHASHSEED: two zygotes then order a set alike. The environment is ours anyway.
        options = ["-P", "-s", "-S", *(["-B"] if sys.dont_write_bytecode else [])]
        command = [executable, *options, "-c", _BOOT, str(Path(__file__).parent)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=self.environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise WorkerLost(f"{executable} could not be started: {error}") from error
        finally:
            theirs.close()
        self._control = ours
        try:
            self._control.settimeout(_START_S)
            self._control.sendall(codec.pack(dict(config)))
            answer = self._answer()
        except BaseException:  # raised again: an interrupt too must leave no process behind
            self.close()
            raise
        self.failed: str | None = answer.get("failed")
        self.facts: dict[str, Any] = answer.get("ready", {})
        self.filtered = "seccomp" in self.facts.get("mechanisms", ())
        """Whether a program can neither kill itself nor anything else."""

    def _answer(self) -> dict[str, Any]:
        """The next message of the zygote, whole."""
        try:
            data = self._exactly(4)
            answer: dict[str, Any] = codec.unpack(self._exactly(int.from_bytes(data, "big")))
        except (OSError, EOFError, codec.CodecError) as error:
            raise WorkerLost(f"the zygote gave no answer ({type(error).__name__}){self._last_words()}") from error
        return answer

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._control.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        if self._process.poll() is None:
            return ""
        os.set_blocking(self._process.stderr.fileno(), False)
        words = (self._process.stderr.read() or b"").decode("utf-8", "replace").strip()
        return f", its last line is {words.splitlines()[-1][:200]!r}" if words else f", exit {self._process.returncode}"

    def hang_up(self) -> None:
        """Tells the zygote to end, and an exchange that is going on."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the zygote and all that came from it, and waits until it has ended."""
        self.hang_up()
        try:
            self._process.wait(timeout=_LEAVE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with self._busy:
            self._control.close()
            assert self._process.stderr is not None
            self._process.stderr.close()

    def exchange(self, children: list[Child], limits: Limits, on_message: OnMessage | None = None) -> Outcome:
        """Has `children` forked, gives them their jobs, and collects what they say until the last has ended.

        Raises:
            WorkerLost: the zygote cannot be used any more.
        """
        with self._busy:
            return self._exchange(children, limits, on_message)

    def _exchange(self, children: list[Child], limits: Limits, on_message: OnMessage | None) -> Outcome:
        self.runs += 1
        try:
            lines = connect(children, on_message)
        except OSError as error:
            raise WorkerLost(f"no descriptors for a child: {error}") from error
        try:
            self._order(children, lines, limits)
            for line in lines:
                line.start()
            answer = self._converse(lines, limits)
            for line in lines:
                line.drain()
        finally:
            for line in lines:
                line.close()
        ended = [
            Ended(
                **spec,
                filtered=self.filtered,
                messages=line.messages,
                output=bytes(line.output),
                overflow=line.overflow,
            )
            for spec, line in zip(answer["children"], lines, strict=True)
        ]
        return Outcome(ended, answer["wall_s"])

    def _order(self, children: list[Child], lines: list[Line], limits: Limits) -> None:
        specs = [
            {
                "fds": list(line.theirs),
                "cpu_s": child.limits.cpu_s * GRACE,
                "memory_bytes": child.limits.memory_bytes,
                "file_bytes": child.limits.file_bytes,
                "processes": child.limits.processes,
            }
            for child, line in zip(children, lines, strict=True)
        ]
        order = {"children": specs, "wall_s": limits.wall_or_default_s, "asleep_s": limits.asleep_or_default_s}
        try:
            socket.send_fds(self._control, [codec.pack(order)], [fd for line in lines for fd in line.theirs.values()])
        except OSError as error:
            raise WorkerLost(f"the zygote takes no orders: {error}{self._last_words()}") from error
        for line in lines:
            line.passed_on()

    def _converse(self, lines: list[Line], limits: Limits) -> dict[str, Any]:
        deadline = time.monotonic() + limits.wall_or_default_s + _SLACK_S
        stopped = False
        with selectors.PollSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            if not any(line.feeds for line in lines) and selector.select(_SHORT_S):
                return self._answer()
            for line in lines:
                line.register(selector)
            while True:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise WorkerLost(f"the zygote gave no answer within {_SLACK_S} s of the deadline")
                for key, _ in ready:
                    if key.data is not None and not key.data():
                        selector.unregister(key.fd)
                if any(key.data is None for key, _ in ready):
                    return self._answer()
                if not stopped and any(line.to_stop for line in lines):
                    stopped = True
                    self._stop()

    def _stop(self) -> None:
        """Asks for the end of the run; the answer comes as ever."""
        try:
            self._control.sendall(STOP)
        except OSError as error:
            raise WorkerLost(f"the zygote takes no orders: {error}") from error
