"""A lock in an object store, where nobody notices that its holder died.

The lock is an object that its holder changes every few seconds. Who wants it and sees no change for `LEASE_S` takes it;
of a holder on the same machine the process table tells at once. No clock is compared with another. A store that ignores
conditions (`If-None-Match`, `If-Match`) cannot keep two away from each other.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wmtp import outcome
from wmtp.errors import LockedError, StorageError
from wmtp.storage.objects import ObjectPath
from wmtp.storage.processes import is_gone

LEASE_S = 30.0
BEATS = 6
"""In the time of a lease."""


@contextmanager
def held(path: ObjectPath, taken: str) -> Iterator[None]:
    """Hold the lock. A process that loses it, because it could not be reached for so long, ends at once.

    Args:
        taken: what to say where another process holds it.

    Raises:
        LockedError: that.
        StorageError: the store's.
    """
    mine = {"owner": secrets.token_hex(8), "machine": _machine(), "pid": os.getpid()}
    first = _content(mine, 0)
    if not path.store.create(path.key, first):
        _take_over(path, first, taken)
    over = threading.Event()
    thread = threading.Thread(target=_keep, args=(path, mine, first, over), name="wmtp-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(StorageError):  # the work is done; the lock runs out by itself
            if _holder(_read(path)).get("owner") == mine["owner"]:
                path.unlink()


def _content(mine: dict[str, object], beat: int) -> bytes:
    return json.dumps({**mine, "beat": beat}).encode()


def _take_over(path: ObjectPath, first: bytes, taken: str) -> None:
    found = _read(path)
    who = _holder(found)
    deadline = time.monotonic() + LEASE_S
    while not _is_dead(who) and found is not None and time.monotonic() < deadline:
        time.sleep(LEASE_S / BEATS / 2)
        now = _read(path)
        if now is not None and now != found:
            raise LockedError(f"{taken}: process {who.get('pid')} on {who.get('machine', 'another machine')}")
        found = now
    got = path.store.create(path.key, first) if found is None else path.store.replace(path.key, found, first)
    if not got:
        raise LockedError(taken)


def _read(path: ObjectPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _holder(content: bytes | None) -> dict[str, object]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(who: dict[str, object]) -> bool:
    """Whether a process of this machine is gone; of another one nothing is known."""
    pid = who.get("pid")
    return who.get("machine") == _machine() and isinstance(pid, int) and is_gone(pid)


def _machine() -> str:
    """Name, start and process table: the same number of a process means the same process."""
    facts = [platform.node()]
    with suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(facts)


def _keep(path: ObjectPath, mine: dict[str, object], now: bytes, over: threading.Event) -> None:
    """Change the lock until it is over."""
    beat = 0
    while not over.wait(LEASE_S / BEATS):
        beat += 1
        following = _content(mine, beat)
        try:
            found = following if path.store.replace(path.key, now, following) else _read(path)
        except Exception:  # noqa: BLE001 whatever it is, the lock was not renewed, and the next beat tries again
            continue
        if found is None or _holder(found).get("owner") != mine["owner"]:
            message = f"another process has taken {path}: this one could not be reached for {LEASE_S:g} s"
            outcome.end(1, message, "Lease")
            sys.stderr.write(f"wmtp: {message}\n")
            sys.stderr.flush()
            os._exit(1)
        now = found  # an earlier one where that was written though nobody heard of it
