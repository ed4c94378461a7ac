"""Confines the zygote, from the outside in, by whatever the machine allows, and notes what it does not.

Everything here holds for all programs alike and is inherited by them; only limits and the filter, which knows its
process, are left to each child. What fails is recorded in `State.missing`; nothing is assumed to have worked.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import resource
import sys
from importlib import import_module
from typing import Any, NoReturn

from . import child, files, kernel, namespaces, syscalls

PRELOADED = (
    "bisect", "collections.abc", "contextlib", "copy", "datetime", "functools", "heapq", "io", "itertools", "json",
    "math", "operator", "random", "re", "string", "threading", "time", "typing",
)  # fmt: skip
"""What generated programs import most. A module not loaded here is loaded in the child, from disk, which costs that
program a few milliseconds; one that is costs every program some microseconds."""
_TASK_ROOM = 1024
"""Where the kernel counts all tasks of a user together, others may start this many without effect on a program."""


class State:
    """What is active, in words of `wmtp.sandbox.Isolation`."""

    def __init__(self) -> None:
        self.mechanisms = ["fresh process", "limits", "environment"]
        self.missing: dict[str, str] = {}
        self.landlock = 0
        self.private_root = self.process_one = False
        self.uid = os.geteuid()
        self.base_bytes = self.task_base = self.kept = 0
        self.scratch: str | None = None
        self.children_fd: int | None = None
        """/proc's list of this process's children, opened before /proc is out of reach."""

    def facts(self) -> dict[str, Any]:
        """As JSON data for the grader."""
        return {
            "mechanisms": self.mechanisms,
            "missing": self.missing,
            "landlock": self.landlock,
            "uid": self.uid,
            "scratch": self.scratch,
            "python": sys.version.split()[0],
        }


def confine(config: dict[str, Any]) -> State:
    """Everything that holds for all programs of this zygote, from the outside in."""
    state, without = State(), set(config["without"])
    machine = os.uname().machine
    scratch_bytes = int(config["scratch_bytes"])
    unprivileged = config["unprivileged_id"] if kernel.LINUX and os.geteuid() == 0 else None
    if kernel.LINUX:
        _offer_for_memory(state)
        _enter_namespaces(state, without)
    _preload(config["packages"])
    packages = [path for package in config["packages"] for path in package["paths"]]
    readable = files.readable(packages, whole=state.private_root)
    state.base_bytes = _address_space()
    if not kernel.LINUX:
        reason = f"this is {sys.platform}; only Linux has it"
        state.missing |= dict.fromkeys(("namespaces", "Landlock", "seccomp"), reason)
    shared_user = not state.process_one
    if state.private_root:
        covered = files.installed()
        namespaces.change_root(readable, covered, files.links(), files.DEVICES, scratch_bytes, machine)
        state.scratch = namespaces.SCRATCH if scratch_bytes else None
    elif scratch_bytes:
        state.scratch = config["scratch_folder"]
    landlock = _landlock(state, without, readable)
    if unprivileged is not None and "unprivileged user" not in without:
        shared_user = not _become(unprivileged, state) and shared_user
    if kernel.LINUX:
        _check_seccomp(state, without)
        if shared_user:
            state.task_base = _tasks_of(os.geteuid()) + (_TASK_ROOM if "seccomp" in state.mechanisms else 0)
        state.children_fd = _children_list()
        kernel.gain_nothing_by_exec()
        if landlock is not None:
            landlock.enforce()
        _drop_capabilities(state)
        kernel.die_with_parent()  # a change of user has cleared it
        kernel.hide_from_tracers()
        kernel.adopt_orphans()
    os.chdir(state.scratch or "/")
    child.limit_once()
    gc.collect()
    gc.freeze()
    gc.disable()  # for this process, which makes next to no garbage; its children go through theirs
    return state


def _offer_for_memory(state: State) -> None:
    """When the machine is out of memory, the kernel ends a program, and not what it was run for."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError as error:
        state.missing["first to go when memory runs out"] = str(error)


def _enter_namespaces(state: State, without: set[str]) -> None:
    reason = "switched off" if "namespaces" in without else syscalls.supported()
    if reason is not None:
        state.missing["namespaces"] = reason
        return
    uid, gid = os.geteuid(), os.getegid()
    try:
        namespaces.unshare(own_users=uid != 0)
    except OSError as error:
        state.missing["namespaces"] = f"unshare: {error.strerror}; this system keeps them from this user"
        return
    if uid != 0:
        namespaces.become_nobody(uid, gid)
    inner = os.fork()
    if inner:
        _wait_for(inner)
    kernel.die_with_parent()
    if os.getpid() != 1:  # `_reap` signals everybody
        raise OSError("a new process namespace does not begin with process 1")
    state.private_root = state.process_one = True
    state.mechanisms.append("namespaces")


def _wait_for(inner: int) -> NoReturn:
    """The outer half: it only carries the end of process 1 to the grader, and the grader's end to process 1."""
    os.closerange(0, 64)
    kernel.gain_nothing_by_exec()
    kernel.drop_capabilities(os.uname().machine)
    _, status = os.waitpid(inner, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


def _preload(packages: list[dict[str, Any]]) -> None:
    for name in PRELOADED:
        import_module(name)
    for package in packages:
        sys.path.append(package["folder"])
        module = import_module(package["name"])
        sys.path.remove(package["folder"])
        if hasattr(module, "random") and hasattr(module.random, "seed"):
            module.random.seed(0)
    random.seed(0)  # what a program decides by chance, without a seed of its own, it decides alike in each run
    sys.dont_write_bytecode = True
    sys.argv, sys.orig_argv = ["program.py"], ["python", "program.py"]  # no paths of ours


def _landlock(state: State, without: set[str], readable: list[str]) -> kernel.Landlock | None:
    if not kernel.LINUX:
        return None
    if "Landlock" in without:
        state.missing["Landlock"] = "switched off"
        return None
    try:
        landlock = kernel.Landlock()
    except OSError as error:
        absent = {
            errno.ENOSYS: "the kernel has none (5.13 or newer is needed)",
            errno.EOPNOTSUPP: "switched off at boot",
        }
        state.missing["Landlock"] = absent.get(error.errno or 0, str(error))
        return None
    landlock.allow(files.standard_library(), kernel.READ_DIR)
    landlock.allow(readable, kernel.READ_FILE | kernel.READ_DIR)
    landlock.allow(files.DEVICES, kernel.READ_FILE | kernel.WRITE_FILE)
    if state.scratch is not None:
        landlock.allow([state.scratch], kernel.WRITE_TREE)
    state.landlock = landlock.version
    state.mechanisms.append("Landlock")
    return landlock


def _become(uid: int, state: State) -> bool:
    """Root gives up its id. Where the interpreter is closed to others it keeps the capability to read all files, if
    Landlock says which those are, and stays root otherwise."""
    keep = 0
    if not state.private_root and not files.readable_by_others(files.standard_library()):
        if not state.landlock:
            state.missing["unprivileged user"] = f"{sys.base_prefix} is closed to others; root without capabilities"
            return False
        keep = kernel.MAY_READ_ALL
    try:
        if state.scratch is not None and not state.private_root:
            os.chown(state.scratch, uid, uid)
        os.setgroups([])
        if keep:
            kernel.keep_capabilities()
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        state.missing["unprivileged user"] = f"no change of user: {error.strerror}"
        return False
    state.uid, state.kept = uid, keep
    state.mechanisms.append("unprivileged user")
    return True


def _drop_capabilities(state: State) -> None:
    try:
        kernel.drop_capabilities(os.uname().machine, state.kept)
    except (OSError, KeyError) as error:
        state.missing["capabilities"] = f"they stay: {error}"


def _check_seccomp(state: State, without: set[str]) -> None:
    reason = "switched off" if "seccomp" in without else syscalls.supported()
    if reason is None:
        pid = os.fork()
        if pid == 0:
            child.probe_filter(make_filter(state))
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            state.mechanisms.append("seccomp")
            return
        reason = "the kernel refuses the filter"
    state.missing["seccomp"] = reason


def make_filter(state: State) -> kernel.Filter:
    """Where files are confined otherwise, only what acts on files by path is refused; elsewhere all opening to write.

    Landlock before version 3 lets a file be truncated that may only be read.
    """
    confined = state.private_root or state.landlock >= 3
    return kernel.Filter(*syscalls.build(writable=confined and state.scratch is not None, read_only_opens=not confined))


def _children_list() -> int | None:
    try:
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _address_space() -> int:
    """Bytes of address space that the interpreter has before any program starts."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


def _tasks_of(uid: int) -> int:
    """Tasks that `uid` has now, or 0 where /proc does not tell."""
    total = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as file:
                    facts = dict(line.split(":", 1) for line in file if ":" in line)
            except OSError:
                continue  # ended meanwhile
            if int(facts["Uid"].split()[0]) == uid:
                total += int(facts["Threads"])
    return total
