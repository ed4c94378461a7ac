"""Small attacks that a new zygote makes on itself, so that a level is what was measured, not what was asked for.

Each says whether it was held back. The grader looks from outside, too, at what they would have left behind.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from . import codec

JOB_FD = 3


def try_all(job: dict[str, Any]) -> NoReturn:
    """Sends `{attack: held back?}`."""
    attacks: dict[str, Callable[[], object]] = {
        "read files": lambda: _read(job["secret"]),
        "write files": lambda: _write(job["folder"]),
        "change files": lambda: os.chmod(job["secret"], 0o777),
        "network": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "local sockets": lambda: socket.socket(socket.AF_UNIX).bind(f"\0{job['token']}"),
        "processes": _fork,
        "signals": lambda: os.kill(job["victim"], 0),
        "shared memory": _shared_memory,
        "memory": lambda: mmap.mmap(-1, job["memory_bytes"]),
        "environment": lambda: _expect(not set(os.environ) <= set(job["environment"])),
        "descriptors": lambda: _expect(any(_is_open(fd) for fd in range(JOB_FD + 1, 256))),
    }
    codec.send(JOB_FD, {name: _held_back(attack) for name, attack in attacks.items()} | {"threads": _threads_work()})
    os._exit(0)


def _held_back(attack: Callable[[], object]) -> bool:
    try:
        attack()
    except (OSError, MemoryError, ValueError):
        return True
    return False


def _expect(happened: bool) -> None:
    if not happened:
        raise ValueError("held back")


def _read(path: str) -> None:
    with open(path, "rb") as file:
        _expect(bool(file.read()))


def _write(folder: str) -> None:
    with open(os.path.join(folder, "written"), "w", encoding="ascii") as file:
        file.write("written")


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _shared_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0, 4096, 0o1600)
    if segment < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    libc.shmctl(segment, 0, None)  # IPC_RMID


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _threads_work() -> bool:
    """The one thing that must not be held back: many programs use threads."""
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(signal.SIGKILL))
    thread.start()
    thread.join()
    return bool(done)
