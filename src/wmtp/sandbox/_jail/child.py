"""A forked child, from the fork to the untrusted code: descriptors, limits, filter, then what its job says.

The job is read after the filter is in place, so a mistake in reading it is made inside the jail.
"""

from __future__ import annotations

import gc
import math
import os
import resource
from typing import Any, NoReturn

from . import canary, codec, kernel, plain, program, tester

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


Bounds = list[tuple[int, int]]
"""Kinds of limits, in the kernel's numbers, with their values."""


def bounds(cpu_s: float, address_bytes: int, file_bytes: int, tasks: int) -> Bounds:
    """The limits of one child, worked out in the zygote: what a child does, it does in memory that has to be copied."""
    wanted = [
        (resource.RLIMIT_CPU, math.ceil(cpu_s) + 1),
        (resource.RLIMIT_AS, address_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, tasks),
    ]
    return [(which, _at_most(which, value)) for which, value in wanted]


def main(parent: int, fds: dict[int, int], limits: Bounds, code: kernel.Filter | None) -> NoReturn:
    """Never returns: what the child leaves behind is its exit and what it wrote to its descriptors."""
    try:
        _arrange(fds)
        os.setsid()
        kernel.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        for which, value in limits:
            _set_limit(which, value)
        if code is not None:
            code.install()
        gc.enable()
        job: dict[str, Any] = codec.receive(JOB_FD, codec.MAX_JOB)
        ROLES[job["role"]](job)
    finally:
        os._exit(program.NO_RESULT)


def _arrange(fds: dict[int, int]) -> None:
    """Each descriptor to its number; standard streams that have none go nowhere; all others are closed."""
    for target, fd in fds.items():
        os.dup2(fd, _FIRST_FREE + target)
    nowhere = os.open("/dev/null", os.O_RDWR)  # an own one: its flags are shared with whoever has it, too
    for target in (0, 1, 2):
        os.dup2(nowhere, target)
    for target in fds:
        os.dup2(_FIRST_FREE + target, target)
    os.closerange(max(fds) + 1, OPEN_FILES)


def limit_once() -> None:
    """Limits that are the same for every program; the zygote has them, too, and its children inherit them."""
    for name, value in _SAME.items():
        if hasattr(resource, name):
            which = getattr(resource, name)
            _set_limit(which, _at_most(which, value))


def _at_most(which: int, value: int) -> int:
    """`value`, or what this process may have where that is less."""
    hard = resource.getrlimit(which)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _set_limit(which: int, value: int) -> None:
    try:
        resource.setrlimit(which, (value, value))
    except (ValueError, OSError):
        if kernel.LINUX:  # macOS refuses some, and promises none of them
            raise


def probe_filter(code: kernel.Filter) -> NoReturn:
    """Ends with 0 if the filter is installed and does what a filter does."""
    try:
        kernel.gain_nothing_by_exec()
        code.install()
        os.kill(os.getppid(), 0)
    except PermissionError:
        os._exit(0)
    finally:
        os._exit(1)
