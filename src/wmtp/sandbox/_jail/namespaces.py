"""A private view of the machine: own processes, network, mounts and users, made by one unshare(2).

The network has no device, not even a loopback that is up. The root is an empty tmpfs into which the readable files
are bound, read-only; the real one is unmounted, so that a path outside is not forbidden but absent. The zygote is
process 1 of its own process namespace: nothing inside can signal it, and when it ends the kernel kills the rest.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable, Mapping

from . import kernel

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_ALL = _NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_READ_ONLY = 1
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_RECURSIVE = 0x8000
_DETACH = 2
_NOBODY = 65534
_BASE = "/proc"
"""Where the new root is put together: it exists everywhere and nothing that is bound lies below it."""
SCRATCH = "/scratch"


def unshare(own_users: bool) -> None:
    """New namespaces: by privilege, or inside a new user namespace.

    Raises:
        OSError: they are kept from this user, as ordinary users' are by default container profiles and by some
            distributions. Nothing has changed then.
    """
    if own_users:
        kernel.hide_from_tracers(False)  # a hidden process may not write its own maps
    if kernel.libc.unshare(ctypes.c_int(_ALL | (_NEWUSER if own_users else 0))) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def become_nobody(uid: int, gid: int) -> None:
    """Inside the new user namespace the user `uid` is nobody in particular.

    Raises:
        OSError: the maps cannot be written; this process is then of no use.
    """
    for name, text in (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {uid} 1"), ("gid_map", f"{_NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def change_root(
    paths: Iterable[str],
    covered: Iterable[str],
    links: Mapping[str, str],
    devices: Iterable[str],
    scratch_bytes: int,
    machine: str,
) -> None:
    """Replaces the file system by `paths` (read-only), `devices` and, if it has a size, an own scratch folder.

    Of what lies in the folders `covered` there is only what `paths` names.

    Raises:
        OSError: a mount was refused; the namespace must then be given up.
    """
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", _BASE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=4m")
    for path, target in links.items():
        os.makedirs(os.path.dirname(_BASE + path), mode=0o755, exist_ok=True)
        os.symlink(target, _BASE + path)
    folders: set[str] = set()
    inside = [path for path in paths if any(path.startswith(f"{folder}/") for folder in covered)]
    around = [path for path in paths if path not in inside]
    bound, devices = ([path for path in some if _made_target(path, folders)] for some in (around, devices))
    os.makedirs(_BASE + "/tmp", exist_ok=True)  # or a program would be told that there is none, not that it may not
    if scratch_bytes:
        os.mkdir(_BASE + SCRATCH)
    for path in bound:
        _mount(path, _BASE + path, None, _MS_BIND | _MS_REC)
    for path in covered:
        _mount("tmpfs", _BASE + path, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=4m")
    for path in inside:
        if _made_target(path, folders):
            _mount(path, _BASE + path, None, _MS_BIND | _MS_REC)
    _set_attributes(_BASE, _READ_ONLY | _MS_NOSUID | _MS_NODEV)  # and all in it; what is mounted later has its own
    for path in devices:
        _mount(path, _BASE + path, None, _MS_BIND | _MS_REC)
        _set_attributes(_BASE + path, _MS_NOSUID)
    if scratch_bytes:
        room = f"mode=777,size={scratch_bytes},nr_inodes=4096"
        _mount("tmpfs", _BASE + SCRATCH, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, room)
    os.chdir(_BASE)
    kernel.call(_PIVOT_ROOT[machine], b".", b".")
    if kernel.libc.umount2(b".", _DETACH) < 0:
        raise OSError(ctypes.get_errno(), "the old root stays mounted: " + os.strerror(ctypes.get_errno()))
    os.chdir("/")


def _made_target(path: str, folders: set[str]) -> bool:
    """Makes what `path` can be bound on, if there is such a path. `folders` are those that have been made."""
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False
    folder = path if is_folder else os.path.dirname(path)
    if folder not in folders:
        os.makedirs(_BASE + folder, mode=0o755, exist_ok=True)
        folders.add(folder)
    if not is_folder:
        os.close(os.open(_BASE + path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    return True


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    data = None if options is None else options.encode()
    if kernel.libc.mount(*texts, ctypes.c_ulong(flags), data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {target}: {os.strerror(code)}")


def _set_attributes(path: str, attributes: int) -> None:
    """Of the mount at `path` and of all below it."""
    change = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0))
    kernel.call(_MOUNT_SETATTR, -100, path.encode(), _RECURSIVE, change, 32)
