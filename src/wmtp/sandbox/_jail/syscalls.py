"""The system calls a program may make, as a seccomp-BPF filter for x86_64 and aarch64.

An allow-list: what is not named fails with EPERM, so a kernel's new calls are refused before anybody has heard of
them. Only calls that act on the calling process and on descriptors it already has are named; those that could reach
further are allowed by argument: signals to itself, threads but no processes, sockets that are a connected pair.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from typing import NamedTuple

_ANY = """
access:21:- alarm:37:- arch_prctl:158:- brk:12:214 chdir:80:49 clock_getres:229:114 clock_gettime:228:113
clock_nanosleep:230:115 close:3:57 close_range:436:436 dup:32:23 dup2:33:- dup3:292:24 epoll_create:213:-
epoll_create1:291:20 epoll_ctl:233:21 epoll_pwait:281:22 epoll_wait:232:- eventfd2:290:19 exit:60:93 exit_group:231:94
faccessat:269:48 faccessat2:439:439 fadvise64:221:223 fstat:5:80 fstatfs:138:44 futex:202:98 getcpu:309:168 getcwd:79:17
getdents64:217:61 getegid:108:177 geteuid:107:175 getgid:104:176 getgroups:115:158 getitimer:36:102 getpeername:52:205
getpgid:121:155 getpgrp:111:- getpid:39:172 getppid:110:173 getpriority:140:141 getrandom:318:278 getresgid:120:150
getresuid:118:148 getrlimit:97:163 getrusage:98:165 getsid:124:156 getsockname:51:204 getsockopt:55:209 gettid:186:178
gettimeofday:96:169 getuid:102:174 lseek:8:62 lstat:6:- madvise:28:233 membarrier:324:283 mmap:9:222 mprotect:10:226
mremap:25:216 munmap:11:215 nanosleep:35:101 newfstatat:262:79 pause:34:- pipe:22:- pipe2:293:59 poll:7:- ppoll:271:73
pread64:17:67 pselect6:270:72 pwrite64:18:68 read:0:63 readlink:89:- readlinkat:267:78 readv:19:65 recvfrom:45:207
restart_syscall:219:128 rseq:334:293 rt_sigaction:13:134 rt_sigpending:127:136 rt_sigprocmask:14:135
rt_sigreturn:15:139 rt_sigsuspend:130:133 rt_sigtimedwait:128:137 sched_getaffinity:204:123 sched_yield:24:124
select:23:- set_robust_list:273:99 set_tid_address:218:96 setitimer:38:103 shutdown:48:210 sigaltstack:131:132
stat:4:- statfs:137:43 statx:332:291 sysinfo:99:179 time:201:- times:100:153 umask:95:166 uname:63:160 wait4:61:260
waitid:247:95 write:1:64 writev:20:66
"""
_SCRATCH = """
fdatasync:75:83 fsync:74:82 ftruncate:77:46 mkdir:83:- mkdirat:258:34 rename:82:- renameat:264:38 renameat2:316:276
rmdir:84:- sendfile:40:71 truncate:76:45 unlink:87:- unlinkat:263:35
"""
"""With a scratch folder. Modes, owners, times and links stay refused: Landlock does not confine those."""
_ABSENT = "clone3:435:435 openat2:437:437"
"""Newer forms of calls that libraries try first: their arguments lie in memory, where a filter cannot look."""
_CHECKED = """
clone:56:220 fcntl:72:25 ioctl:16:29 kill:62:129 open:2:- openat:257:56 prctl:157:167 prlimit64:302:261 sendto:44:206
socketpair:53:199 tgkill:234:131
"""

SELF = -1
"""Stands for the process's own id among the accepted values."""
_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
"""What pthread_create of glibc and of musl passes: memory, files and signal handlers shared, no new namespace."""
_WRITE_FLAGS = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND; O_TMPFILE needs one of the first two."""
_AF_UNIX, _SOCK_STREAM = 1, 1
_UNANSWERABLE = (9, 19)
"""SIGKILL and SIGSTOP, even to itself: a killed program must be one that was killed from outside."""
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_Code = list[tuple[int, int, int, int]]
"""Instructions: operation, jump if true, jump if false, operand."""
_X32 = 0x40000000


class _Check(NamedTuple):
    """One argument of a call: equal to one of `values`, or to none of `except_for`, or without any bit of `without`."""

    argument: int
    values: tuple[int, ...] = ()
    except_for: tuple[int, ...] = ()
    without: int = 0
    wide: bool = False


def _checks(writable: bool) -> dict[str, tuple[_Check, ...]]:
    stream = tuple(_SOCK_STREAM | flags for flags in (0, 0o4000, 0o2000000, 0o2004000))
    read_only = 0 if writable else _WRITE_FLAGS
    return {
        "clone": (_Check(0, _THREAD_FLAGS),),
        "fcntl": (_Check(1, (0, 1, 2, 3, 4, 1030)),),  # duplicates and flags: no locks, no owner, no pipe size
        "ioctl": (_Check(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),),  # terminal? size? bytes? flags
        "kill": (_Check(0, (SELF,)), _Check(1, except_for=_UNANSWERABLE)),
        "open": (_Check(1, without=read_only),),
        "openat": (_Check(2, without=read_only),),
        "prctl": (_Check(0, (15, 16)),),  # the thread's name
        "prlimit64": (_Check(0, (0, SELF)), _Check(2, (0,), wide=True)),  # asks only
        "sendto": (_Check(4, (0,), wide=True),),  # to its peer, not to an address
        "socketpair": (_Check(0, (_AF_UNIX,)), _Check(1, stream)),
        "tgkill": (_Check(0, (SELF,)), _Check(2, except_for=_UNANSWERABLE)),
    }


class Code(NamedTuple):
    """A BPF program with holes, given as offsets, where the process's own id goes."""

    program: bytes
    holes: tuple[int, ...]


def supported() -> str | None:
    """Why there is no filter for this machine, or None."""
    if sys.platform != "linux":
        return f"seccomp is a part of Linux, this is {sys.platform}"
    if os.uname().machine not in _ARCHITECTURES or struct.calcsize("P") != 8 or sys.byteorder != "little":
        return f"no table of system calls for {os.uname().machine} with {8 * struct.calcsize('P')}-bit pointers"
    return None


_ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}


def numbers(names: str, machine: str) -> dict[str, int]:
    """The system calls of a table that `machine` has, by name."""
    column = _ARCHITECTURES[machine][0]
    rows = [row.split(":") for row in names.split()]
    return {row[0]: int(row[column]) for row in rows if len(row) > column and row[column] != "-"}


def build(*, writable: bool, read_only_opens: bool, machine: str | None = None) -> Code:
    """What a filter consists of.

    Args:
        writable: there is a scratch folder, so files may be made, renamed and removed where files are confined.
        read_only_opens: nothing else confines files, so opening one for writing is refused here.
        machine: as `os.uname()` names it.
    """
    machine = machine or os.uname().machine
    refuse = [(_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    absent = [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    allowed = numbers(_ANY + (_SCRATCH if writable else ""), machine).values()
    checks = _checks(not read_only_opens)
    actions = {number: [(_RETURN, 0, 0, _ALLOW)] for number in allowed}
    actions |= {number: _block(checks[name]) for name, number in numbers(_CHECKED, machine).items()}
    actions |= dict.fromkeys(numbers(_ABSENT, machine).values(), absent)
    code = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQ, 1, 0, _ARCHITECTURES[machine][1]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        *([(_JUMP_GE, 0, 1, _X32), (_RETURN, 0, 0, _KILL)] if machine == "x86_64" else []),
        *_search(_segments(actions, refuse)),
    ]
    holes = tuple(8 * at + 4 for at, step in enumerate(code) if step[3] == SELF)
    return Code(b"".join(struct.pack("=HBBI", *step[:3], max(0, step[3])) for step in code), holes)


def _segments(actions: dict[int, _Code], refuse: _Code) -> list[tuple[int, _Code]]:
    """The number line cut where the action changes: each piece's first number and its action."""
    pieces: list[tuple[int, _Code]] = [(0, actions.get(0, refuse))]
    for number in range(1, max(actions) + 2):
        action = actions.get(number, refuse)
        if action != pieces[-1][1]:
            pieces.append((number, action))
    return pieces


def _search(pieces: list[tuple[int, _Code]]) -> _Code:
    """A binary search: the kernel tries a new filter on every number there is, which a list makes slow."""
    if len(pieces) == 1:
        return pieces[0][1]
    middle = len(pieces) // 2
    left, right = _search(pieces[:middle]), _search(pieces[middle:])
    if len(left) <= 255:
        return [(_JUMP_GE, len(left), 0, pieces[middle][0]), *left, *right]
    return [(_JUMP_GE, 0, 1, pieces[middle][0]), (_JUMP, 0, 0, len(left)), *left, *right]


def _block(checks: tuple[_Check, ...]) -> _Code:
    """Allows the call if every check holds; the kernel reads only the low half of narrow arguments, so do we."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    code: _Code = []
    for check in checks:
        if check.wide:
            code += [(_LOAD, 0, 0, 20 + 8 * check.argument), (_JUMP_EQ, 1, 0, 0), refuse]
        code.append((_LOAD, 0, 0, 16 + 8 * check.argument))
        if check.values:
            after = len(check.values)
            code += [(_JUMP_EQ, after - at, 0, value) for at, value in enumerate(check.values)]
            code.append(refuse)
        for value in check.except_for:
            code += [(_JUMP_EQ, 0, 1, value), refuse]
        if check.without:
            code += [(_JUMP_SET, 0, 1, check.without), refuse]
    return [*code, (_RETURN, 0, 0, _ALLOW)]
