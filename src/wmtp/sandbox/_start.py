"""Starts a zygote and finds out what it is worth: small attacks on it, judged from inside and from outside."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from typing import Any

from wmtp.errors import UsageError
from wmtp.sandbox._exchange import Child
from wmtp.sandbox._worker import Worker, WorkerLost
from wmtp.sandbox.verdict import Isolation, Limits, SandboxError

MECHANISMS = ("namespaces", "Landlock", "seccomp", "unprivileged user")
"""What can be switched off, for tests and for machines where one misbehaves."""
_ALWAYS = ("environment", "descriptors")
_FILTERED = (
    "memory",
    "write files",
    "change files",
    "network",
    "local sockets",
    "processes",
    "signals",
    "shared memory",
)
PROMISES = {0: _ALWAYS, 1: _ALWAYS + _FILTERED, 2: (*_ALWAYS, *_FILTERED, "read files")}
PROMISES[3] = PROMISES[2]
"""What a level holds back, in words of `Isolation.held_back`."""
_IDS, _NOBODY = range(61184, 65520), 65534
"""User ids that systems give to no account of their own."""
_numbers = count(secrets.randbelow(len(_IDS)))
"""No two zygotes of this process take the same one."""


@dataclass(frozen=True)
class Plan:
    """What all zygotes of a sandbox have in common.

    Raises:
        UsageError: an unknown mechanism, a package that is not installed, a scratch size or hash seed out of range.
    """

    without: frozenset[str] = frozenset()
    packages: tuple[str, ...] = ()
    scratch_bytes: int = 0
    hash_seed: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a mechanism is not even tried."""

    def __post_init__(self) -> None:
        unknown = sorted(self.without - set(MECHANISMS))
        if unknown:
            raise UsageError(f"unknown mechanisms {unknown}; known are {', '.join(MECHANISMS)}")
        if self.scratch_bytes < 0:
            raise UsageError(f"scratch_bytes must be 0 (no scratch folder) or a size, got {self.scratch_bytes}")
        if not 0 <= self.hash_seed < 2**32:
            raise UsageError(f"hash_seed must be from 0 to 2**32 - 1, got {self.hash_seed}")
        self.found_packages()

    def found_packages(self) -> list[dict[str, Any]]:
        """Each package with the folder it is imported from and the paths that must then be readable."""
        found = []
        for name in self.packages:
            spec = find_spec(name) if name.isidentifier() else None
            if spec is None or spec.origin is None:
                raise UsageError(f"package {name!r} is not installed, so programs cannot be given it; install it")
            path = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
            folder = path.parent
            libraries = [str(folder / f"{name}.libs")]  # where wheels keep the shared libraries they bring
            found.append({"name": name, "folder": str(folder), "paths": [str(path), *libraries]})
        return found


@dataclass(eq=False)
class Started:
    """A zygote that is ready, and what it is worth."""

    worker: Worker
    isolation: Isolation
    scratch: str | None = None

    def close(self) -> None:
        """Ends it; nothing of it remains."""
        self.worker.close()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


def start(plan: Plan) -> Started:
    """A new zygote.

    Raises:
        SandboxError: none can be started on this machine.
        WorkerLost: this one died; another may not.
    """
    try:
        started = _attempt(plan)
        if isinstance(started, str):
            plan = replace(plan, without=plan.without | {"namespaces"}, reasons={**plan.reasons, "namespaces": started})
            started = _attempt(plan)
    except OSError as error:
        raise WorkerLost(f"no folder, process or descriptor for it: {error}") from error
    if isinstance(started, str):
        raise SandboxError(f"the sandbox cannot be started: {started}")
    return started


def _attempt(plan: Plan) -> Started | str:
    """A zygote, or why it gave up."""
    scratch = tempfile.mkdtemp(prefix="wmtp-scratch-") if plan.scratch_bytes else None
    config = {
        "without": sorted(plan.without),
        "packages": plan.found_packages(),
        "scratch_bytes": plan.scratch_bytes,
        "scratch_folder": scratch,
        "unprivileged_id": _unprivileged_id(),
    }
    with ExitStack() as undo:
        if scratch is not None:
            undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        worker = Worker(config, plan.hash_seed)
        undo.callback(worker.close)
        if worker.failed is not None:
            return worker.failed
        started = Started(worker, _measured(worker, plan), scratch)
        if scratch is not None and started.isolation.level == 1:
            reasons = _joined(started.isolation.missing)
            raise SandboxError(f"a scratch folder needs confined files, which this machine cannot give: {reasons}")
        undo.pop_all()
    return started


def _unprivileged_id() -> int | None:
    """A user id that no account has: its processes are then counted, and can be signalled, apart from all others.

    For the zygotes of root; None for another user's. The grader finds it, since what a system loads to look up
    accounts would be copied at every fork of a zygote.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd  # not everywhere where the other modules are

    for number in islice(_numbers, len(_IDS)):
        try:
            pwd.getpwuid(_IDS[number % len(_IDS)])
        except KeyError:
            return _IDS[number % len(_IDS)]
    return _NOBODY


def _joined(missing: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in missing.items())


def _measured(worker: Worker, plan: Plan) -> Isolation:
    facts = dict(worker.facts)
    mechanisms = tuple(facts.pop("mechanisms"))
    missing: dict[str, str] = {**facts.pop("missing"), **plan.reasons}
    level = 0
    if "seccomp" in mechanisms:
        level = 3 if "namespaces" in mechanisms else 2 if "Landlock" in mechanisms else 1
    held_back = _self_test(worker)
    threads = held_back.pop("threads", False)
    if not threads:
        missing["threads"] = "programs cannot start any here"
    if not held_back.get("memory"):
        missing["memory"] = "this system does not bound the memory of a process"
    while not all(held_back.get(promise) for promise in PROMISES[level]):
        failed = [promise for promise in PROMISES[level] if not held_back.get(promise)]
        missing[f"level {level}"] = f"the self-test got through: {', '.join(failed)}"
        if level == 0:
            raise SandboxError(f"not even a clean environment can be had on this machine: {_joined(missing)}")
        level -= 1
    return Isolation(level, mechanisms, missing, held_back, {**facts, "platform": sys.platform})


def _self_test(worker: Worker) -> dict[str, bool]:
    """`{attack: held back?}`; an attack that left something behind was not, whatever it says."""
    limits = Limits()
    token = secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="wmtp-self-test-"))
    try:
        secret = folder / "secret"
        secret.write_text(token, encoding="ascii")
        secret.chmod(0o666)
        folder.chmod(0o777)  # so that only the sandbox, not the owner of the file, can be what holds back
        job = {
            "role": "canary",
            "folder": str(folder),
            "secret": str(secret),
            "token": token,
            "victim": os.getpid(),
            "memory_bytes": limits.memory_bytes + 2**30,
            "environment": [*worker.environment, "LC_CTYPE", "__CF_USER_TEXT_ENCODING"],
        }
        [ended] = worker.exchange([Child(job, limits)], limits).children
        if len(ended.messages) != 1:
            raise WorkerLost(f"the self-test did not end (status {ended.status})")
        held_back = {str(name): held is True for name, held in ended.messages[0].items()}
        held_back["write files"] &= [path.name for path in folder.iterdir()] == ["secret"]
        held_back["change files"] &= secret.stat().st_mode & 0o777 == 0o666 and secret.read_text("ascii") == token
    finally:
        shutil.rmtree(folder)
    return held_back
