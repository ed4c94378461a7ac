"""A forked child, from the fork to the untrusted code: descriptors, limits, filter, then what its job says.

The job is read after the filter is in place, so a mistake in reading it is made inside the jail.
"""

from __future__ import annotations

import fcntl
import math
import os
import resource
from typing import Any, NamedTuple, NoReturn

from . import canary, codec, kernel, plain, program, syscalls, tester

JOB_FD = 3
"""Where the job comes from and, if its role has one, the result goes."""
OPEN_FILES = 64
_FIRST_FREE = 40
"""Descriptors from here are free in a zygote, which has few."""
_SAME = {
    "RLIMIT_NOFILE": OPEN_FILES,
    "RLIMIT_STACK": 64 * 2**20,
    "RLIMIT_CORE": 0,
    "RLIMIT_MEMLOCK": 0,
    "RLIMIT_MSGQUEUE": 0,
    "RLIMIT_SIGPENDING": OPEN_FILES,
}

ROLES = {
    "serve": program.serve,
    "calls": program.calls,
    "script": program.script,
    "in_process": program.in_process,
    "test": tester.run_tests,
    "read": plain.read_all,
    "canary": canary.try_all,
}


class Resources(NamedTuple):
    """What a child may use, in the kernel's terms."""

    cpu_s: float
    address_bytes: int
    file_bytes: int
    tasks: int


def main(parent: int, fds: dict[int, int], limits: Resources, code: syscalls.Filter | None) -> NoReturn:
    """Never returns: what the child leaves behind is its exit and what it wrote to its descriptors."""
    try:
        _arrange(fds)
        os.setsid()
        kernel.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        _limit(limits)
        if code is not None:
            kernel.install_filter(code.for_process(os.getpid()))
        job: dict[str, Any] = codec.receive(JOB_FD, codec.MAX_JOB)
        ROLES[job["role"]](job)
    finally:
        os._exit(program.NO_RESULT)


def _arrange(fds: dict[int, int]) -> None:
    """Each descriptor to its number; standard streams that have none go nowhere; all others are closed."""
    moved = {target: fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST_FREE) for target, fd in fds.items()}
    nowhere = os.open(os.devnull, os.O_RDWR)  # an own one: its flags are shared with whoever has it, too
    for target, fd in {**dict.fromkeys(range(3), nowhere), **moved}.items():
        os.dup2(fd, target)
    os.closerange(max(2, *fds) + 1, OPEN_FILES)


def limit_once() -> None:
    """Limits that are the same for every program; the zygote has them, too, and its children inherit them."""
    for name, value in _SAME.items():
        if hasattr(resource, name):
            _set_limit(getattr(resource, name), value)


def _limit(limits: Resources) -> None:
    _set_limit(resource.RLIMIT_CPU, math.ceil(limits.cpu_s) + 1)
    _set_limit(resource.RLIMIT_AS, limits.address_bytes)
    _set_limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _set_limit(resource.RLIMIT_NPROC, limits.tasks)


def _set_limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (most, most))
    except (ValueError, OSError):
        if kernel.LINUX:  # macOS refuses some, and promises none of them
            raise


def probe_filter(code: syscalls.Filter) -> NoReturn:
    """Ends with 0 if the filter is installed and does what a filter does."""
    try:
        kernel.gain_nothing_by_exec()
        kernel.install_filter(code.for_process(os.getpid()))
        os.kill(os.getppid(), 0)
    except PermissionError:
        os._exit(0)
    finally:
        os._exit(1)
