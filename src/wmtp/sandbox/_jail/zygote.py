"""The process that programs are forked from: confined once, imports done, and without a single secret.

It reads orders from the grader, never a program, a test or a result: those go from the grader straight to the child,
through descriptors that pass through here unread. So nothing of one program can be found in the memory of the next,
and nothing that a child could find by walking its frames is worth finding.

What a child has used is read from its CPU clock, so that a limit means the same on an idle and on a loaded machine;
a process that neither runs nor waits for a processor is told from a starved one by that clock, too.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from . import child, codec, kernel
from .confine import State, confine, make_filter

CONTROL_FD = 0
"""Where orders come from. It is low because children close what is above their own only up to OPEN_FILES, and none
keeps it: their standard input takes its place."""
WINDOW_S = 1.0
"""A process that uses no CPU for this long is asleep: even a starved one gets a slice within it."""
STOP = b"!"
"""The grader's wish to end the current run; its end, too, is one."""
_OWN_TASKS = 8
"""Tasks of this process's user that are no program's: both halves of the zygote, the children's first threads."""


def main() -> NoReturn:
    """Confines this process as its first message says, reports what is active, and serves until the grader is gone."""
    kernel.die_with_parent()
    control = socket.socket(fileno=CONTROL_FD)
    config = codec.receive(control.fileno())
    try:
        state = confine(config)
    except OSError as error:
        codec.send(control.fileno(), {"failed": f"{type(error).__name__}: {error}"})
        os._exit(1)
    try:
        codec.send(control.fileno(), {"ready": state.facts()})
        serve(control, state)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the grader is gone, and nobody to be told
    os._exit(0)


def serve(control: socket.socket, state: State) -> None:
    """Carries out orders, one at a time, until the grader is gone."""
    code = make_filter(state) if "seccomp" in state.mechanisms else None
    while _carry_out_next(control, state, code):
        if state.scratch is not None:
            _empty(state.scratch)


def _carry_out_next(control: socket.socket, state: State, code: kernel.Filter | None) -> bool:
    """One order; False if there are no more. A function of its own, whose frame ends with it: a child walks the frames
    that it was forked in, and how the child before it ended would be in a local variable."""
    order, fds = _next_order(control)
    if order is None:
        return False
    started = time.monotonic()
    try:
        children = _fork_all(order["children"], fds, state, code)
    finally:
        for fd in fds:  # or no child would learn that another has ended
            os.close(fd)
    try:
        _watch(children, started, order, control)
    finally:
        for running in children:
            running.kill("done")
        _reap(children, state)
    reports = [running.report() for running in children]
    codec.send(control.fileno(), {"children": reports, "wall_s": time.monotonic() - started})
    return True


def _next_order(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    data, fds = b"", []
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        more, passed, _, _ = socket.recv_fds(control, 2**16, 16)
        fds += passed
        if not more:
            return None, fds
        data = (data + more).lstrip(STOP)  # a wish that came too late; a length never begins like this
    return codec.unpack(data[4:]), fds


class _Running:
    """One forked child. `cpu_s` is what it may use before it is killed."""

    def __init__(self, pid: int, cpu_s: float) -> None:
        self.pid, self.cpu_s = pid, cpu_s
        self.used_s = 0.0
        self.status: int | None = None
        self.killed: str | None = None

    def look(self) -> None:
        """Reads the CPU clock, or collects the child if it has ended."""
        if self.status is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status, self.used_s = status, usage.ru_utime + usage.ru_stime
            elif kernel.LINUX:
                self.used_s = time.clock_gettime((~self.pid << 3) | 2)  # CPUCLOCK_SCHED of a process

    def kill(self, reason: str) -> None:
        """SIGKILL, once, if it still runs."""
        if self.status is None and self.killed is None:
            self.killed = reason
            os.kill(self.pid, signal.SIGKILL)

    def report(self) -> dict[str, Any]:
        """As JSON data for the grader. A child that had ended by itself when it was to be killed was not killed."""
        status = self.status or 0
        killed = self.killed if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else None
        return {"status": status, "cpu_s": self.used_s, "killed": killed}


def _fork_all(specs: list[dict[str, Any]], fds: list[int], state: State, code: kernel.Filter | None) -> list[_Running]:
    children: list[_Running] = []
    rest, parent = list(fds), os.getpid()
    for spec in specs:
        own, rest = rest[: len(spec["fds"])], rest[len(spec["fds"]) :]
        limits = child.bounds(
            cpu_s=spec["cpu_s"],
            address_bytes=state.base_bytes + spec["memory_bytes"],
            file_bytes=spec["file_bytes"],
            tasks=state.task_base + spec["processes"] + _OWN_TASKS,
        )
        pid = os.fork()
        if pid == 0:
            child.main(parent, dict(zip(spec["fds"], own, strict=True)), limits, code)
        children.append(_Running(pid, spec["cpu_s"]))
    return children


def _watch(children: list[_Running], started: float, order: dict[str, Any], control: socket.socket) -> None:
    """Until the last child, the one that decides, has ended: by itself, by a limit or by the grader's wish."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    by_fd: dict[int, _Running] = {}
    try:
        for running in children if kernel.LINUX else ():
            pidfd = os.pidfd_open(running.pid)
            by_fd[pidfd] = running
            poll.register(pidfd, select.POLLIN)
    except OSError:
        pass  # an old kernel: look often instead
    try:
        asleep = _Asleep(started, min(WINDOW_S, order["asleep_s"] / 2))
        while children[-1].status is None:
            room = min(running.cpu_s - running.used_s for running in children if running.status is None)
            tick = min(max(room, 0.005), 0.2) if by_fd else 0.002
            for fd, _ in poll.poll(1000 * tick):
                if fd == control.fileno():
                    control.recv(len(STOP))
                    for running in children:
                        running.kill("stopped")
                    poll.unregister(control)
                elif fd in by_fd:
                    poll.unregister(fd)
            _enforce(children, started, order, asleep)
    finally:
        for fd in by_fd:
            os.close(fd)


class _Asleep:
    """How long all children together have used no CPU, in whole windows."""

    def __init__(self, started: float, window_s: float) -> None:
        self._since, self._used_s, self._window_s = started, 0.0, window_s
        self.total_s = 0.0

    def note(self, now: float, used_s: float) -> None:
        if now - self._since >= self._window_s:
            if used_s - self._used_s < 0.001:
                self.total_s += self._window_s  # not the time that passed: the machine itself may have stood still
            self._since, self._used_s = now, used_s


def _enforce(children: list[_Running], started: float, order: dict[str, Any], asleep: _Asleep) -> None:
    for running in children:
        running.look()
        if running.used_s >= running.cpu_s:
            running.kill("cpu")
    now = time.monotonic()
    if kernel.LINUX:
        asleep.note(now, sum(running.used_s for running in children))
    reason = "asleep" if asleep.total_s >= order["asleep_s"] else "wall" if now - started >= order["wall_s"] else None
    if reason is not None:
        for running in children:
            running.kill(reason)


def _reap(children: list[_Running], state: State) -> None:
    """Ends and collects everything that came from the children, however far it has moved away."""
    for running in children:
        if running.status is None:
            _, running.status, usage = os.wait4(running.pid, 0)
            running.used_s = usage.ru_utime + usage.ru_stime
    comes_to_us = state.process_one or state.children_fd is not None  # whatever loses its parent becomes our child
    if comes_to_us and _is_childless():
        return  # as ever where programs start no processes; to signal "all" the kernel looks at every process it has
    while True:
        if state.process_one:
            _signal(-1)
        elif state.children_fd is not None:
            for pid in os.pread(state.children_fd, 2**16, 0).split():
                _signal(int(pid))
        else:
            for running in children:
                _signal(-running.pid)
        try:
            if os.waitpid(-1, 0 if comes_to_us else os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def _is_childless() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody left


def _empty(folder: str) -> None:
    """Removes all in it, step by step: a program may have nested folders deeper than any path or stack reaches."""
    os.chdir(folder)
    down: list[str] = []
    while True:
        inner = _remove_files()
        if inner is not None:
            os.chmod(inner, 0o700)
            os.chdir(inner)
            down.append(inner)
        elif down:
            os.chdir("..")
            os.rmdir(down.pop())
        else:
            return


def _remove_files() -> str | None:
    """Removes files of the current folder up to the first folder in it, and names that."""
    with os.scandir() as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                return entry.name
            os.unlink(entry.name)
    return None
