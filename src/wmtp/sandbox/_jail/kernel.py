"""The kernel's isolation, called through ctypes: processes' attributes, capabilities, seccomp and Landlock.

Every function raises OSError with the errno of the call that failed, or does nothing where the platform has no such
call and the docstring says so. There is no policy in here.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable

LINUX = sys.platform == "linux"

_PDEATHSIG, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVS, _SECCOMP, _KEEPCAPS = 1, 4, 36, 38, 22, 8
MAY_READ_ALL = 1 << 2
"""CAP_DAC_READ_SEARCH: passes over file modes when reading; Landlock still has its say."""
_CAPSET = {"x86_64": 126, "aarch64": 91}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE, IOCTL_DEVICE = 1 << 2, 1 << 3, 1 << 1, 1 << 14, 1 << 15
_FILE_RIGHTS = 1 | READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEVICE
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE = 1 << 4, 1 << 5, 1 << 7, 1 << 8
WRITE_TREE = WRITE_FILE | READ_FILE | READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE | TRUNCATE
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file rights that a version of Landlock knows."""

libc = ctypes.CDLL(None, use_errno=True)
if LINUX:
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def call(number: int, *arguments: object) -> int:
    """A system call by number; OSError if it fails."""
    words = [value if isinstance(value, (bytes, ctypes.Array)) else ctypes.c_long(value) for value in arguments]  # type: ignore[arg-type]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def prctl(option: int, first: int, second: int = 0) -> None:
    """prctl(2); OSError if it fails."""
    if libc.prctl(option, first, second, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that made it ends. Only Linux has this."""
    if LINUX:
        prctl(_PDEATHSIG, 9)


def hide_from_tracers(hidden: bool = True) -> None:
    """No ptrace, no core, and /proc files that belong to root. Only Linux has this."""
    if LINUX:
        prctl(_DUMPABLE, int(not hidden))


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process. Only Linux has this."""
    if LINUX:
        prctl(_SUBREAPER, 1)


def gain_nothing_by_exec() -> None:
    """No set-user-id program raises the privileges of this process or of its children again."""
    prctl(_NO_NEW_PRIVS, 1)


def keep_capabilities() -> None:
    """The next change of user leaves the permitted capabilities, for `drop_capabilities` to choose from."""
    prctl(_KEEPCAPS, 1)


def drop_capabilities(machine: str, keep: int = 0) -> None:
    """Gives up every capability but those in the bit mask `keep`; with `gain_nothing_by_exec`, for good."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    call(_CAPSET[machine], header, ctypes.create_string_buffer(struct.pack("=6I", keep, keep, 0, 0, 0, 0)))


class Filter:
    """A seccomp filter in the kernel's form, made before the fork: a child only writes its own id where `holes` are."""

    def __init__(self, code: bytes, holes: Iterable[int] = ()) -> None:
        self._code = ctypes.create_string_buffer(code, len(code))
        self._holes = [ctypes.c_uint32.from_buffer(self._code, offset) for offset in holes]
        self._program = ctypes.create_string_buffer(
            struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(self._code))
        )
        self._at = ctypes.addressof(self._program)

    def install(self) -> None:
        """For this process and all that come from it; needs `gain_nothing_by_exec` before."""
        pid = os.getpid()
        for hole in self._holes:
            hole.value = pid
        prctl(_SECCOMP, 2, self._at)


def landlock_version() -> int:
    """The kernel's Landlock ABI, from 1.

    Raises:
        OSError: ENOSYS, the kernel has none; EOPNOTSUPP, it is switched off.
    """
    return call(_LANDLOCK_CREATE, 0, 0, 1)


class Landlock:
    """A set of rules: everything about files that is not allowed is denied, and TCP, and signals to the outside."""

    def __init__(self) -> None:
        self.version = landlock_version()
        self._rights = (1 << _RIGHTS_BY_ABI.get(self.version, 16)) - 1
        attributes = struct.pack(
            "=QQQ",
            self._rights,
            0b11 if self.version >= 4 else 0,  # bind and connect
            0b11 if self.version >= 6 else 0,  # abstract sockets and signals
        )
        size = 24 if self.version >= 6 else 16 if self.version >= 4 else 8
        self._fd = call(_LANDLOCK_CREATE, ctypes.create_string_buffer(attributes), size, 0)

    def allow(self, paths: Iterable[str], rights: int) -> None:
        """Allows `rights` on each path and, for a folder, on all below it. What does not exist is left out."""
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                wanted = rights & self._rights
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    wanted &= _FILE_RIGHTS
                rule = ctypes.create_string_buffer(struct.pack("=Qi", wanted, fd))
                call(_LANDLOCK_ADD, self._fd, 1, rule, 0)
            finally:
                os.close(fd)

    def enforce(self) -> None:
        """Applies the rules to this process and all that come from it; needs `gain_nothing_by_exec` before."""
        try:
            call(_LANDLOCK_RESTRICT, self._fd, 0)
        finally:
            os.close(self._fd)
