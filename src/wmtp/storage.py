"""Where files are, and how they are written so that a crash leaves the old or the new content, never a mixture.

This version reads and writes local paths. Whatever names a file goes through `resolve` (what a user wrote) or
`safe_join` (a name read from a file), so there is one place that knows schemes and one that knows escapes.
Failures of the file system become `WmtpError`, with the `OSError` as their cause.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote_to_bytes

from wmtp.errors import UsageError, WmtpError

SCHEMES = ("file", "embedded")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LOST_SLASH = re.compile(r"(file|embedded|s3):/(?!/)", re.IGNORECASE)
_BLOCK = 2**16
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def resolve(location: str | Path) -> Path:
    """The local path that `location` names; the scheme alone decides how it is read.

    Plain text is a local path (`~` is expanded), `file://` is a URL of one, `embedded://name/...` is a file
    that ships with the package. A local path need not exist; an embedded one must.
    """
    text = str(location)
    _require_name(text)
    if _LOST_SLASH.match(text):
        raise UsageError(f"{text!r} has one slash after its scheme; write two, and pass text rather than a Path")
    found = _SCHEME.fullmatch(text)
    if found is None:
        return _local(text)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return _from_file_url(text, rest)
    if scheme == "embedded":
        return _embedded(rest)
    if scheme == "s3":
        raise UsageError(f"this version reads local paths only, got {text!r}; copy it to a local folder first")
    known = ", ".join(f"{name}://" for name in SCHEMES)
    raise UsageError(f"unknown scheme {scheme}:// in {text!r}; known are {known} and plain local paths")


def safe_join(root: Path, relative: str) -> Path:
    """`root / relative` with links resolved, or UsageError when that could lie outside `root`.

    For names that come out of files. Absolute names, `.`, `..`, empty components, NUL and backslashes are
    refused as written; a link that leads outside is refused after it has been resolved.
    """
    _require_name(relative)
    if "\\" in relative or any(part in ("", ".", "..") for part in relative.split("/")):
        raise UsageError(f"{relative!r} is not a plain relative path; '..', backslashes and a leading '/' are refused")
    try:
        base = root.resolve()
        joined = (base / relative).resolve()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{relative!r} in {root} cannot be resolved: {error}") from error
    if not joined.is_relative_to(base):
        raise UsageError(f"{relative!r} leads outside {root}, to {joined}")
    return joined


def write_atomic(path: Path, data: bytes | str) -> None:
    """Make `data` (text as UTF-8) the content of `path`; a reader or a crash sees all of it or none of it.

    The new content is on the disk before the rename makes it visible, and the rename is on the disk before
    this returns. On any error `path` is as it was and the temporary file is gone. A link at `path` is replaced.
    """
    content = data.encode() if isinstance(data, str) else data
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


def fsync_folder(path: Path) -> None:
    """Put the names in folder `path` on the disk: without it a power cut can undo a rename that has returned.

    A file system that has no such call for folders (it answers EINVAL) is taken at its word.
    """
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


def sha256_file(path: Path) -> str:
    """The SHA-256 of the file's content in hexadecimal, read in pieces."""
    with _told("read", path), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_name(text: str) -> None:
    if not text:
        raise UsageError("an empty path was given; name a file or folder")
    if "\0" in text:
        raise UsageError(f"{text!r} holds a NUL character, which no path can hold")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!r} cannot be a path: {error.reason}") from error


def _local(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"cannot expand {text!r}: {error}") from error


def _from_file_url(url: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host.lower() not in ("", "localhost"):
        raise UsageError(f"{url!r} names the host {host!r}; a file:// URL has three slashes: file:///folder/file")
    if not slash:
        raise UsageError(f"{url!r} names no file; write file:///folder/file")
    if "?" in path or "#" in path or _BAD_ESCAPE.search(path):
        raise UsageError(f"{url!r} is ambiguous; in a file:// URL write %3F for '?', %23 for '#' and %25 for '%'")
    decoded = os.fsdecode(unquote_to_bytes(path))
    _require_name("/" + decoded)
    return Path("/" + decoded)


def _embedded(name: str) -> Path:
    root = Path(str(files("wmtp") / "embedded"))
    path = safe_join(root, name.rstrip("/"))
    if not path.exists():
        shipped = ", ".join(sorted(entry.name for entry in root.iterdir())) if root.is_dir() else ""
        raise UsageError(f"embedded://{name} does not ship with wmtp; there is: {shipped or 'nothing'}")
    return path


@contextmanager
def _told(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WmtpError(f"cannot {action} {path}: {error.strerror or error}") from error
