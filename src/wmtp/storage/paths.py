"""Where things are: what a user wrote, or a file said, becomes a path of the disk or of an object store."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote_to_bytes

from wmtp.errors import UsageError, first_line
from wmtp.storage.objects import STORES, ObjectPath, parse

Place = Path | ObjectPath
"""Where a file or a folder is. What both of them can, `pathlib.Path` names."""

SCHEMES = ("file", "embedded")
"""Beside those of `objects.STORES`."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LOST_SLASH = re.compile(r"(file|embedded|s3):/(?!/)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def place(location: str | Place) -> Place:
    """What `location` names; the scheme alone decides how it is read.

    Plain text is a local path (`~` is expanded), `file://` is a URL of one, `embedded://name/...` is a file that ships
    with the package, `s3://bucket/key` is an object or a folder of objects. None of them needs to be there, but what
    is embedded.

    Raises:
        UsageError: it names nothing that could be there.
    """
    if isinstance(location, ObjectPath):
        return location
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
    if scheme in STORES:
        return parse(text, scheme, rest)
    known = ", ".join(f"{name}://" for name in (*SCHEMES, *STORES))
    raise UsageError(f"unknown scheme {scheme}:// in {text!r}; known are {known} and plain local paths")


def resolve(location: str | Path) -> Path:
    """`place`, for what must be on a disk: files that are mapped into memory or locked.

    Raises:
        UsageError: it is elsewhere.
    """
    found = place(location)
    if isinstance(found, ObjectPath):
        raise UsageError(f"this must be on a local disk, got {found}; name a local file or folder")
    return found


def safe_join(root: Path, relative: str) -> Path:
    """`root / relative` with links resolved, or UsageError when that could lie outside `root`.

    For names that come out of files. Absolute names, `.`, `..`, empty components, NUL and backslashes are
    refused as written; a link that leads outside is refused after it has been resolved.
    """
    _require_name(relative)
    if "\\" in relative or any(part in ("", ".", "..") for part in relative.split("/")):
        raise UsageError(f"{relative!r} is not a plain relative path; leave '..', backslashes and a leading '/' out")
    try:
        base = root.resolve()
        joined = (base / relative).resolve()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{relative!r} in {root} cannot be resolved: {first_line(error)}; name another") from error
    if not joined.is_relative_to(base):
        raise UsageError(f"{relative!r} leads outside {root}, to {joined}; it must stay inside")
    return joined


def _require_name(text: str) -> None:
    if not text:
        raise UsageError("an empty path was given; name a file or folder")
    if "\0" in text:
        raise UsageError(f"{text!r} holds a NUL character, which no path can hold; leave it out")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!r} cannot be a path: {error.reason}; name a file or folder") from error


def _local(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"cannot expand {text!r}: {error}; write the path out") from error


def _from_file_url(url: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host.lower() not in ("", "localhost"):
        raise UsageError(f"{url!r} names the host {host!r}; a file:// URL needs three slashes: file:///folder/file")
    if not slash:
        raise UsageError(f"{url!r} names no file; write file:///folder/file")
    if "?" in path or "#" in path or _BAD_ESCAPE.search(path):
        raise UsageError(f"{url!r} is ambiguous; write %3F for '?', %23 for '#' and %25 for '%' in a file:// URL")
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
