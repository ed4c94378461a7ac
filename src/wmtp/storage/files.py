"""How files and objects are written, so that a crash leaves the old or the new content, never a mixture; and read.

Failures of the file system become `WmtpError`, with the `OSError` as their cause.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from wmtp.errors import WmtpError
from wmtp.storage.objects import ObjectPath, Snapshot, uploaded
from wmtp.storage.paths import Place

_BLOCK = 2**16
AHEAD = 4
"""Blocks of an object that are fetched while others are used."""
BLOCK = 8 << 20


class Sink(Protocol):
    """What takes bytes."""

    def write(self, data: bytes | memoryview, /) -> int: ...


@contextmanager
def created(path: Place) -> Iterator[Sink]:
    """A new file, written in a stream; whole and on the disk, or in the store, when the block ends.

    If the block fails an object is not there; of a file there may be a beginning.

    Raises:
        OSError: the disk's, `FileExistsError` among them; an object is replaced.
        StorageError: the store's.
    """
    if isinstance(path, ObjectPath):
        with uploaded(path) as upload:
            yield upload
        return
    with open(path, "xb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def blocks(path: Place) -> Iterator[bytes | bytearray]:
    """The content, a block at a time; of an object the next ones are on their way.

    Raises:
        OSError: it cannot be read.
        StorageError: the store's.
    """
    if isinstance(path, Path):
        with open(path, "rb") as stream:
            while block := stream.read(_BLOCK * 16):
                yield block
        return
    snapshot, under_way = path.snapshot(), deque[Future[bytearray]]()
    with ThreadPoolExecutor(AHEAD, "wmtp-read") as threads:
        for start in range(0, snapshot.size, BLOCK):
            if len(under_way) == AHEAD:
                yield under_way.popleft().result()
            under_way.append(threads.submit(_range, snapshot, start, min(BLOCK, snapshot.size - start)))
        while under_way:
            yield under_way.popleft().result()


def _range(snapshot: Snapshot, start: int, count: int) -> bytearray:
    block = bytearray(count)
    snapshot.read_into(start, memoryview(block))
    return block


def matches(folder: Place, pattern: str) -> list[Place]:
    """What in a folder has such a name, sorted."""
    found: list[Place] = [*folder.glob(pattern)]
    return sorted(found, key=str)


def copy(source: Place, target: Place) -> None:
    """The same content once more, in a stream. Raises as `created` and `blocks` do."""
    with created(target) as stream:
        for block in blocks(source):
            stream.write(memoryview(block))


def remove_objects(folder: ObjectPath, first: str | None = None) -> None:
    """Remove all that is below a folder; what `first` names before the rest, so that a reader does not trust it."""
    if first is not None:
        (folder / first).unlink()
    folder.store.remove([path.key for path in folder.files()])


def write_atomic(path: Place, data: bytes | str) -> None:
    """Make `data` (text as UTF-8) the content of `path`; a reader or a crash sees all of it or none of it.

    The new content is on the disk before the rename makes it visible, and the rename is on the disk before
    this returns. On any error `path` is as it was and the temporary file is gone. A link at `path` is replaced.
    """
    content = data.encode() if isinstance(data, str) else data
    if isinstance(path, ObjectPath):
        path.store.put(path.key, content)
        return
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(8)}"
    with _told("write", path):
        try:
            with open(temporary, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:  # whatever ends it, an interrupt too, leaves no litter; it is raised again
            temporary.unlink(missing_ok=True)
            raise
    fsync_folder(path.parent)


def fsync_folder(path: Place) -> None:
    """Put the names in folder `path` on the disk: without it a power cut can undo a rename that has returned.

    A file system that has no such call for folders (it answers EINVAL) is taken at its word, and so is a store.
    """
    if isinstance(path, ObjectPath):
        return
    with _told("sync", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(descriptor)


def drop_torn_line(path: Path) -> None:
    """Cut off what follows the last newline: the line that an interrupted writer left incomplete."""
    with _told("mend", path), open(path, "rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                stream.truncate(start + newline + 1)
                return
            end = start
        stream.truncate(0)


def sha256_file(path: Place) -> str:
    """The SHA-256 of the file's content in hexadecimal, read in pieces."""
    with _told("read", path):
        if isinstance(path, ObjectPath):
            digest = hashlib.sha256()
            for block in blocks(path):
                digest.update(block)
            return digest.hexdigest()
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _told(action: str, path: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WmtpError(f"cannot {action} {path}: {error.strerror or error}") from error
