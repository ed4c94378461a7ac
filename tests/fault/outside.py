"""The world outside the sandbox, for tests that watch whether anything reaches it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import hypothesis

import wmtp

SECRET = "b9b1c2f3-canary-in-the-environment"
MARK = b"_jail.boot"
"""In the command line of every zygote, and so of everything forked from one."""


def jailed() -> set[int]:
    """Processes of sandboxes that come from this process, or whose parent is gone."""
    parents, marked = {}, set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            if MARK in Path(f"/proc/{name}/cmdline").read_bytes():
                marked.add(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return {pid for pid in marked if _comes_from_here(pid, parents, marked)}


def settled(before: set[int], within_s: float = 20.0) -> bool:
    """Whether no more processes than `before` are left, once orphans of other tests have had time to end."""
    deadline = time.monotonic() + within_s
    while len(jailed()) > len(before):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _comes_from_here(pid: int, parents: dict[int, int], marked: set[int]) -> bool:
    while parents.get(pid) in marked:
        pid = parents[pid]
    if parents.get(pid) == 1:
        return True  # an orphan: ours, or that of another test, which the kernel is about to end
    while pid in parents and pid != os.getpid():
        pid = parents[pid]
    return pid == os.getpid()


class Outside:
    """Files that anybody may change, listeners, and a process, all of which are to stay as they are."""

    def __init__(self) -> None:
        self._close = ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="wmtp-outside-"))
        self._close.callback(shutil.rmtree, self.folder)
        self.file = self.folder / "canary"
        self.listeners = {
            "TCP": self._socket(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "UDP": self._socket(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "SOCKET": self._socket(socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "stream")),
            "DATAGRAM": self._socket(socket.AF_UNIX, socket.SOCK_DGRAM, str(self.folder / "datagram")),
            "ABSTRACT": self._socket(socket.AF_UNIX, socket.SOCK_STREAM, f"\0wmtp-{os.getpid()}"),
        }
        self.victim = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(9999)"])
        self._close.callback(self._end_victim)
        self.names = {
            "DIR": str(self.folder),
            "FILE": str(self.file),
            "HOME": os.path.expanduser("~"),
            "GRADER": str(os.getpid()),
            "VICTIM": str(self.victim.pid),
            "PACKAGE": str(Path(wmtp.__file__)),
            "SITE": str(Path(hypothesis.__file__).parents[1]),
            "SECRET": SECRET,
            "TCP": str(self.listeners["TCP"].getsockname()[1]),
            "UDP": str(self.listeners["UDP"].getsockname()[1]),
            "SOCKET": str(self.folder / "stream"),
            "DATAGRAM": str(self.folder / "datagram"),
            "ABSTRACT": f"wmtp-{os.getpid()}",
        }
        self.restore()
        self._before = self._state()

    def _socket(self, family: int, kind: int, address: object) -> socket.socket:
        listener = self._close.enter_context(socket.socket(family, kind))
        listener.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)
        return listener

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.wait()

    def restore(self) -> None:
        """Everything as it was, and open to anybody: what holds an attack back then is the sandbox alone."""
        self.file.write_text("canary")
        self.file.chmod(0o666)
        os.utime(self.file, (10**9, 10**9))
        for path in self.folder.iterdir():
            path.chmod(0o666)
        self.folder.chmod(0o777)

    def fill(self, source: str) -> str:
        """`source` with its `@NAME@`s replaced."""
        for name, value in self.names.items():
            source = source.replace(f"@{name}@", value)
        return source

    def _state(self) -> dict[str, object]:
        status = self.file.stat()
        return {
            "names": sorted(path.name for path in self.folder.iterdir()),
            "text": self.file.read_text(),
            "mode": (status.st_mode, status.st_uid, status.st_gid, status.st_mtime, status.st_nlink),
            "attributes": os.listxattr(self.file),
            "littered": sorted(
                str(path)
                for folder in ("/tmp", "/dev/shm", os.path.expanduser("~"))
                for path in Path(folder).glob("wmtp-flood*")
            ),
            "visited": [name for name, listener in self.listeners.items() if _visited(listener)],
            "victim": self.victim.poll(),
            "bound": sorted(os.sched_getaffinity(self.victim.pid)),
            "priority": os.getpriority(os.PRIO_PROCESS, self.victim.pid),
            "limits": Path(f"/proc/{self.victim.pid}/limits").read_text(),
        }

    def changes(self) -> dict[str, object]:
        """What is not as it was."""
        now = self._state()
        return {name: value for name, value in now.items() if value != self._before[name]}

    def close(self) -> None:
        """Takes everything down."""
        self._close.close()


def _visited(listener: socket.socket) -> bool:
    try:
        if listener.type == socket.SOCK_STREAM:
            listener.accept()[0].close()
        else:
            listener.recv(9)
    except BlockingIOError:
        return False
    return True
