"""Objects of a store, behind the part of `pathlib.Path` that this package uses.

A store has keys and bytes; folders are prefixes of keys that end with a slash, so they need not be made and are gone
with the last object in them. An object appears whole or not at all. What is missing is a `FileNotFoundError`, as it is
on a disk; every other failure of a store is a `StorageError`.
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import IO, Any, Literal, NoReturn, Protocol, overload

from wmtp.errors import StorageError, UsageError

READ_BLOCK = 4 << 20
"""Bytes that a reader asks for at once."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class Upload(Protocol):
    """An object in the making; memory is bounded whatever its size."""

    def write(self, data: bytes | memoryview) -> int: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class Store(Protocol):
    """One bucket.

    Raises:
        FileNotFoundError: `get` and `read_into` of a key that is not there.
        StorageError: the store refuses, or is not reached after all attempts.
    """

    def status(self, key: str) -> Status | None:
        """What is known of an object without reading it; None if there is none."""

    def listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Key and bytes of all objects whose keys start so, in the order of their keys; not of those that end with a
        slash, which mark empty folders."""

    def children(self, prefix: str) -> Iterator[str]:
        """The next component of all keys that start so: each once, with a slash behind it if more follows."""

    def get(self, key: str) -> bytes:
        """A whole object, for small ones."""

    def read_into(self, key: str, start: int, view: memoryview, version: str | None = None) -> None:
        """Fill memory with the bytes from `start` on, which must be there; they are of one version of the object.

        Raises:
            StorageError: that version is not the one that is named; it was replaced.
        """

    def put(self, key: str, data: bytes) -> None:
        """Make or replace an object, a small one."""

    def create(self, key: str, data: bytes) -> bool:
        """Make an object unless there is one; whether it was made."""

    def replace(self, key: str, old: bytes, new: bytes) -> bool:
        """Replace an object if it is still the old one; whether it is the new one now."""

    def upload(self, key: str) -> Upload:
        """Make or replace an object of any size, in a stream."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are gone already."""

    def abandon(self, prefix: str, *, below: bool = True) -> None:
        """Drop what interrupted uploads of such keys have left; `below` says whether also of those in folders there."""


def _s3(bucket: str) -> Store:
    from wmtp.storage.s3 import S3Store

    return S3Store(bucket)


STORES: dict[str, Callable[[str], Store]] = {"s3": _s3}
"""What opens a bucket, by scheme."""


@cache
def store(root: str) -> Store:
    """The store of `scheme://bucket`, opened once."""
    scheme, _, bucket = root.partition("://")
    return STORES[scheme](bucket)


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or a folder of objects. It is a value: it can be compared, sorted, pickled and sent to other ranks."""

    root: str
    """`scheme://bucket`."""
    key: str
    """Without slashes at its ends; empty for the bucket itself."""

    @property
    def store(self) -> Store:
        """Where it is."""
        return store(self.root)

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else self.root

    def __truediv__(self, relative: str) -> ObjectPath:
        return ObjectPath(self.root, f"{self.key}/{relative}" if self.key else relative)

    @property
    def name(self) -> str:
        """The last component."""
        return self.key.rpartition("/")[2]

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket, then the components."""
        return (self.root, *self.key.split("/")) if self.key else (self.root,)

    @property
    def parent(self) -> ObjectPath:
        """The folder it is in; the bucket is in itself."""
        return ObjectPath(self.root, self.key.rpartition("/")[0])

    @property
    def prefix(self) -> str:
        """What the keys of all that is in this folder start with."""
        return f"{self.key}/" if self.key else ""

    def with_name(self, name: str) -> ObjectPath:
        """Another one in the same folder."""
        return self.parent / name

    def absolute(self) -> ObjectPath:
        """Itself."""
        return self

    def resolve(self) -> ObjectPath:
        """Itself: there are no links."""
        return self

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return bool(self.key) and self.store.status(self.key) is not None

    def is_dir(self) -> bool:
        """Whether anything is in this folder."""
        return any(True for _ in self.store.listed(self.prefix))

    def exists(self) -> bool:
        """Either of them."""
        return self.is_file() or self.is_dir()

    def stat(self) -> Status:
        """Its size and version. Raises `FileNotFoundError`."""
        found = self.store.status(self.key)
        return found if found is not None else _missing(self)

    def snapshot(self) -> Snapshot:
        """The object as it is now, to be read by ranges. Raises `FileNotFoundError`."""
        found = self.stat()
        return Snapshot(self, found.st_size, found.version)

    def iterdir(self) -> Iterator[ObjectPath]:
        """What is in this folder, each once: a name may be an object and a folder too."""
        seen = {""}
        for child in self.store.children(self.prefix):
            name = child.rstrip("/")
            if name not in seen:
                seen.add(name)
                yield self / name

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """What in this folder, or below it, matches a pattern of so many components."""
        first, _, rest = pattern.partition("/")
        for child in self.iterdir():
            if fnmatchcase(child.name, first):
                yield from child.glob(rest) if rest else (child,)

    def files(self) -> Iterator[ObjectPath]:
        """All objects below this folder."""
        for key, _ in self.store.listed(self.prefix):
            yield ObjectPath(self.root, key)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there when something is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        self.store.remove([self.key])

    def read_bytes(self) -> bytes:
        """All of a small object."""
        return self.store.get(self.key)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The same as text."""
        return self.read_bytes().decode(encoding, errors)

    @overload
    def open(self, mode: Literal["rb"], buffering: int = READ_BLOCK) -> io.BufferedReader: ...
    @overload
    def open(
        self, mode: str = "r", buffering: int = READ_BLOCK, encoding: str | None = None, errors: str | None = None
    ) -> IO[Any]: ...
    def open(
        self, mode: str = "r", buffering: int = READ_BLOCK, encoding: str | None = None, errors: str | None = None
    ) -> IO[Any]:
        """Open it for reading, a block at a time; writing is `wmtp.storage.created`."""
        if mode not in ("r", "rb"):
            raise ValueError(f"an object is read, not changed; got mode {mode!r} for {self}")
        stream = io.BufferedReader(_Reader(self), buffering)
        return stream if mode == "rb" else io.TextIOWrapper(stream, encoding=encoding or "utf-8", errors=errors)


@dataclass(frozen=True)
class Status:
    """What is known of an object without reading it."""

    st_size: int
    version: str | None = None
    """Differs from that of another content under the same key; None where the store does not say."""


@dataclass(frozen=True)
class Snapshot:
    """One version of an object: whatever is read is of this one."""

    path: ObjectPath
    size: int
    version: str | None

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill memory with the bytes from `start` on. Raises `StorageError` if the object was replaced meanwhile."""
        self.path.store.read_into(self.path.key, start, view, self.version)


def _missing(path: ObjectPath) -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, "no such object", str(path))


def replaced(name: str) -> StorageError:
    """What a reader is told whose object became another one."""
    return StorageError(f"{name} was replaced while it was read; what was read is not used: try again when it is whole")


class _Reader(io.RawIOBase):
    """Bytes of an object as they are asked for; each read is one range, tried again by the store if it is cut off."""

    def __init__(self, path: ObjectPath) -> None:
        self._snapshot, self._at = path.snapshot(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._snapshot.size - self._at))
        if count:
            self._snapshot.read_into(self._at, view[:count])
            self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._snapshot.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at


def parse(url: str, scheme: str, rest: str) -> ObjectPath:
    """The object that `scheme://rest` names.

    Raises:
        UsageError: no bucket, a key that is no plain path, or credentials where the bucket should be.
    """
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise UsageError(
            f"a {scheme}:// location must hold no credentials; it is {scheme}://bucket/key, and they come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), a profile (AWS_PROFILE) or the machine's role"
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{url!r} names no bucket; write {scheme}://bucket/key")
    key = key.rstrip("/")
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise UsageError(f"{url!r} is no plain location; leave '.', '..' and doubled slashes out")
    if len(key.encode()) > 1024:
        raise UsageError(f"{url[:60]!r}... has a key of {len(key.encode())} bytes; at most 1024 are possible")
    return ObjectPath(f"{scheme}://{bucket}", key)


@contextmanager
def uploaded(path: ObjectPath) -> Iterator[Upload]:
    """A new object in a stream: there and whole when the block ends, and not there if it fails."""
    upload = path.store.upload(path.key)
    try:
        yield upload
        upload.finish()
    except BaseException:  # an interrupt too: what was sent is of no use to anybody
        upload.abort()
        raise
