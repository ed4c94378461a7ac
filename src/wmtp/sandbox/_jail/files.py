"""Which files a program may read: the standard library and the shared libraries it loads, and nothing else.

Never the interpreter's site-packages: they hold this package with the tests of its embedded data, and whatever else
the user installed. Symbolic links are followed by hand, since both a Landlock rule and a bind mount need real files.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_INSTALLED = ("site-packages", "dist-packages")
_SYSTEM = ("/lib", "/lib64", "/usr/lib64", "/usr/lib32")
_DATA = ("/etc/ld.so.cache", "/usr/share/zoneinfo", "/usr/lib/locale")


def standard_library() -> list[str]:
    """The folders (usually one, and one inside it) of the running interpreter's own modules."""
    return sorted({os.path.realpath(path) for path in sys.path if os.path.isdir(path)})


def installed() -> list[str]:
    """The folders of installed packages inside the standard library's."""
    folders = standard_library()
    found = {os.path.realpath(os.path.join(folder, name)) for folder in folders for name in _INSTALLED}
    return sorted(path for path in found if os.path.isdir(path) and any(path.startswith(f"{f}/") for f in folders))


def readable(packages: Iterable[str], whole: bool) -> list[str]:
    """Real paths that a program may read; folders with all below them. `packages` are folders or files to add.

    With `whole` the standard library is one folder and not each of its entries but `installed()`, which whoever uses
    the paths then has to cover.
    """
    found: set[str] = set()
    for folder in standard_library():
        found.update([folder] if whole else (one.path for one in os.scandir(folder) if one.name not in _INSTALLED))
    found.update(_mapped())
    found.update(_shared_libraries())
    found.update(os.path.realpath(path) for path in (*_DATA, *packages) if os.path.exists(path))
    covered = set(installed())
    return sorted(path for path in found if not _is_in(path, found, covered))


def _is_in(path: str, folders: set[str], covered: set[str]) -> bool:
    """Whether one of `folders` has `path` in it, in no folder of `covered`."""
    for parent in _parents(path):
        if parent in folders:
            return True
        if parent in covered:
            return False
    return False


def links() -> dict[str, str]:
    """Links that a new root needs too: those of a merged /usr, and to the library if it is reached through one."""
    found = {path: os.readlink(path) for path in _SYSTEM if os.path.islink(path)}
    for path in sys.path:
        if path != os.path.realpath(path) and not any(path.startswith(f"{link}/") for link in found):
            found[path] = os.path.realpath(path)
    return found


def readable_by_others(paths: Iterable[str]) -> bool:
    """Whether a user who owns nothing could read `paths`, by the mode bits on the way."""
    for path in paths:
        for parent in _parents(path):
            if not os.stat(parent).st_mode & stat.S_IXOTH:
                return False
        if not os.stat(path).st_mode & stat.S_IROTH:
            return False
    return True


def _parents(path: str) -> Iterator[str]:
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        yield path


def _mapped() -> Iterator[str]:
    """Files mapped into this process: its interpreter and libraries, wherever they are."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            paths = {line.split(maxsplit=5)[-1].strip() for line in lines}
    except FileNotFoundError:
        return
    for path in paths:
        if path.startswith("/") and os.path.isfile(path):
            yield os.path.realpath(path)


def _shared_libraries() -> Iterator[str]:
    """Where extension modules that are not loaded yet find theirs."""
    multiarch = getattr(sys.implementation, "_multiarch", "")
    for folder in (*_SYSTEM, "/usr/lib"):
        for path in (f"{folder}/{multiarch}", folder if folder.endswith(("64", "32")) else None):
            if path is not None and os.path.isdir(path):
                yield os.path.realpath(path)
    for folder in {os.path.join(sys.base_prefix, "lib"), "/lib", "/usr/lib", "/usr/local/lib"}:
        if os.path.isdir(folder):
            yield from (
                os.path.realpath(entry.path)
                for entry in os.scandir(folder)
                if ".so" in entry.name and os.path.isfile(entry.path)
            )
