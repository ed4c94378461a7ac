"""An object store in memory, for tests: no server, no network, nothing on the disk."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256

from wmtp.storage.objects import STORES, ObjectPath, Status, replaced, store


@contextmanager
def memory_storage(bucket: str = "bucket") -> Iterator[ObjectPath]:
    """A bucket, empty and gone with the block; within it `memory://BUCKET/key` names an object in this process."""
    STORES["memory"] = lambda name: MemoryStore()
    store.cache_clear()
    try:
        yield ObjectPath(f"memory://{bucket}", "")
    finally:
        del STORES["memory"]
        store.cache_clear()


class MemoryStore:
    """See `wmtp.storage.objects.Store`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._versions: dict[str, str] = {}
        """By key; the same content is the same version, as it is in S3."""
        self._alone = threading.Lock()

    def status(self, key: str) -> Status | None:
        """See the protocol; so for all others."""
        found = self.objects.get(key)
        return None if found is None else Status(len(found), self._versions[key])

    def listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """In the order of keys."""
        there = (item for item in sorted(self.objects.items()) if item[0].startswith(prefix) and item[0][-1] != "/")
        yield from ((key, len(data)) for key, data in there)

    def children(self, prefix: str) -> Iterator[str]:
        """Folders end with a slash."""
        names = (key[len(prefix) :].partition("/") for key in sorted(self.objects) if key.startswith(prefix))
        yield from dict.fromkeys(first + slash for first, slash, _ in names if first)

    def get(self, key: str) -> bytes:
        """All of it."""
        if key not in self.objects:
            raise FileNotFoundError(errno.ENOENT, "no such object", key)
        return self.objects[key]

    def read_into(self, key: str, start: int, view: memoryview, version: str | None = None) -> None:
        """Some of it."""
        found = self.get(key)
        if version not in (None, self._versions[key]) or start + len(view) > len(found):
            raise replaced(key)
        view[:] = found[start : start + len(view)]

    def put(self, key: str, data: bytes) -> None:
        """Make or replace."""
        self._keep(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Make, unless it is there."""
        with self._alone:
            if key in self.objects:
                return False
            self._keep(key, data)
            return True

    def replace(self, key: str, old: bytes, new: bytes) -> bool:
        """Compare and set."""
        with self._alone:
            if self.objects.get(key) != old:
                return False
            self._keep(key, new)
            return True

    def upload(self, key: str) -> MemoryUpload:
        """In a stream."""
        return MemoryUpload(self, key)

    def remove(self, keys: Sequence[str]) -> None:
        """Whatever is there of them."""
        for key in keys:
            self.objects.pop(key, None)

    def abandon(self, prefix: str, *, below: bool = True) -> None:
        """Nothing is left behind here."""

    def _keep(self, key: str, data: bytes) -> None:
        self._versions[key] = sha256(data).hexdigest()
        self.objects[key] = bytes(data)


class MemoryUpload:
    """See `wmtp.storage.objects.Upload`."""

    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store, self._key, self._data = store, key, bytearray()

    def write(self, data: bytes | memoryview) -> int:
        """Take some bytes."""
        self._data += data
        return len(data)

    def finish(self) -> None:
        """Make the object."""
        self._store.put(self._key, bytes(self._data))

    def abort(self) -> None:
        """Forget it."""
