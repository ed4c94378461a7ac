"""Whether a folder of an object store can be used, tried."""

from __future__ import annotations

import secrets

from wmtp.errors import StorageError
from wmtp.storage.objects import ObjectPath

ACTS = ("listed", "written", "read", "read by ranges", "created once", "removed")
"""What is tried, in this order."""


def probe(folder: ObjectPath) -> list[str]:
    """Do with one small object all that a run does; nothing is left behind. Gives those of `ACTS` that do not work
    though the store says that they do: `created once`, where a store ignores conditions and so has no locks.

    Raises:
        StorageError: the store refuses one of them, or gives back something else.
    """
    path, content = folder / f".wmtp-probe-{secrets.token_hex(8)}", secrets.token_bytes(64)
    any(True for _ in folder.store.listed(folder.prefix))
    path.store.put(path.key, content)
    try:
        part = bytearray(16)
        path.snapshot().read_into(8, memoryview(part))
        if path.read_bytes() != content or part != content[8:24]:
            raise StorageError(f"{path} does not read back as it was written")
        created_twice = path.store.create(path.key, content[::-1])
        folder.store.abandon(path.key)  # lists unfinished uploads, as every save does
    finally:
        path.unlink()
    if path.is_file():
        raise StorageError(f"{path} is still there after it was removed")
    return ["created once"] if created_twice else []
