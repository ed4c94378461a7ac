"""The folder of a run's checkpoints: manifests and what they vouch for, the commit, the order, the litter.

Nothing here knows what a state is. A checkpoint is a folder `step_00000120` of files and a `manifest.json`, written
last, with the size and SHA-256 of each. What a crash at any instant leaves behind: files are made in a hidden folder,
each synced, the manifest last, then the folder; only then does one rename give it its name. So a visible step folder
is complete, and damage that comes later is found by the checksums. Hidden folders carry the process id of the one
who made them, rank 0: `.tmp-` unfinished, `.del-` being removed, `.old-` replaced, `.bad-` damaged, kept as evidence.

An object store renames nothing. There the files get their names at once and the manifest is the commit; a step that is
removed loses its manifest first. So a prefix without one is litter of an interrupted save, and the next save clears it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from wmtp.errors import CheckpointError, StorageError, WmtpError, first_line
from wmtp.faults import fault
from wmtp.storage import ObjectPath, Place, fsync_folder, is_gone, remove_objects, sha256_file

FORMAT = 2
MANIFEST, STATE = "manifest.json", "state.json"
MAX_MANIFEST = 16 << 20

_STEP = re.compile(r"step_(\d{8,})")
_HIDDEN = re.compile(r"\.(tmp|del|old)-(step_\d{8,})-(\d+)-[0-9a-f]+")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


# Committing and pruning


def begin(final: Place) -> Place:
    """The empty folder that the files of a new checkpoint are written into.

    Raises:
        CheckpointError: it is to be in an object store, where a whole checkpoint cannot be replaced at once.
    """
    if isinstance(final, ObjectPath):
        if _is_whole(final, hashes=True):
            raise CheckpointError(f"{final} is there and whole; an object store cannot replace it: remove it first")
        remove_objects(final, first=MANIFEST)
        return final
    temporary = _hidden("tmp", final)
    temporary.mkdir()
    return temporary


def _hidden(kind: str, step_folder: Path) -> Path:
    """A new name for a folder that is not, or no longer, a checkpoint."""
    return step_folder.parent / f".{kind}-{step_folder.name}-{os.getpid()}-{secrets.token_hex(4)}"


def commit(temporary: Place, final: Place) -> None:
    """Give the complete folder its name; in an object store it has it.

    If the name is taken by a whole checkpoint that differs, the old one steps aside (1), the new one takes the
    name (2), the old one is removed (3). A crash before 1 leaves the old one in place; between 1 and 2 it is
    whole as `.old-`, and `newest`, `save` and `remove_litter` put it back; after 2 the new one is in place.
    """
    if isinstance(temporary, ObjectPath) or isinstance(final, ObjectPath):
        return
    taken = os.path.lexists(final)
    whole = taken and _is_whole(final, hashes=True)
    if whole and (temporary / MANIFEST).read_bytes() == (final / MANIFEST).read_bytes():
        shutil.rmtree(temporary)
        return
    aside = _hidden("old" if whole else "bad", final)
    if taken:
        _rename(final, aside)
    _rename(temporary, final)
    if whole:
        shutil.rmtree(aside)


def undo(temporary: Place, error: BaseException) -> None:
    """Clear up after a failed save; what cannot be cleared is told with the error that caused it."""
    try:
        if isinstance(temporary, ObjectPath):
            remove_objects(temporary, first=MANIFEST)
            return
        if temporary.exists():
            shutil.rmtree(temporary)
        _put_back(temporary.parent)
    except (OSError, WmtpError) as second:
        error.add_note(f"clearing up after it failed too: {second}")


def prune(folder: Place, saved: Place, keep_last: int) -> None:
    """Remove old steps, never the one just saved.

    Steps whose files are missing or cut do not count, so they never push out a good one, and they stay for
    `newest` to report. The rename comes first: a crash leaves a hidden rest, never a visible half.
    """
    others = [path for path in list_steps(folder) if path != saved and _is_whole(path, hashes=False)]
    for path in others[: max(0, len(others) - (keep_last - 1))]:
        fault("prune")
        if isinstance(path, ObjectPath):
            remove_objects(path, first=MANIFEST)
            continue
        doomed = _hidden("del", path)
        _rename(path, doomed)
        shutil.rmtree(doomed)


def make_folder(folder: Place) -> None:
    """Create the folder and its parents, and put their names on the disk, so that a power cut keeps them."""
    if isinstance(folder, ObjectPath):
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        fsync_folder(path.parent)


def require_space(needed: int, folder: Place) -> None:
    """Raise `CheckpointError` if so many bytes do not fit."""
    if _space(folder) < needed:
        raise CheckpointError(disk_full(needed, folder))


def disk_full(needed: int, folder: Place) -> str:
    """What a full disk is called; sizes in bytes."""
    return f"disk full: need {needed / 2**20:.1f} MiB, have {_space(folder) / 2**20:.1f} MiB at {folder}"


def _space(folder: Place) -> float:
    """Bytes free for this user; endless where the file system does not say."""
    if isinstance(folder, ObjectPath):
        return math.inf
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize if found.f_blocks else math.inf


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    fsync_folder(target.parent)


# Listing and clearing up


def list_steps(folder: Place) -> list[Place]:
    """The step folders that have a manifest, oldest first; without one a folder is not a checkpoint."""
    with as_checkpoint_error(f"cannot list {folder}"):
        if not folder.is_dir():
            return []
        found = [path for path in _steps(folder) if (path / MANIFEST).is_file()]
    return sorted(found, key=_step_of)


def _steps(folder: Place) -> list[Place]:
    return [path for path in folder.iterdir() if _STEP.fullmatch(path.name)]


def newest(folder: Place, *, on_bad: Callable[[Place, str], None]) -> Place | None:
    """The newest checkpoint whose every checksum holds; `on_bad(path, reason)` for each newer one passed over.

    Of several ranks one should ask and tell the others. None if there is no checkpoint; CheckpointError if there are
    some and none is whole, because starting afresh without a word would throw the run away.
    """
    with as_checkpoint_error(f"cannot read {folder}"):
        _put_back(folder)
    reasons = []
    for path in reversed(list_steps(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            _not_if_unreachable(error)
            reasons.append(str(error))
            on_bad(path, str(error))
        else:
            return path
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole:\n" + "\n".join(reasons) + "\nPut one back from a copy, or train anew "
            "into another --out"
        )
    return None


def remove_litter(folder: Place) -> None:
    """Remove what dead processes, and earlier failed saves of this one, left unfinished in `folder`.

    A replaced checkpoint (`.old-`) whose successor never took its place is put back first. Only for rank 0 of the
    run that saves into `folder`: the litter of a writer on another machine cannot be told from a dead one's.
    """
    with as_checkpoint_error(f"cannot clear up {folder}"):
        if isinstance(folder, ObjectPath):
            folder.store.abandon(folder.prefix)
            for step in _steps(folder):
                if not (step / MANIFEST).is_file():
                    remove_objects(folder / step.name)
            return
        _put_back(folder)
        for path, _, _ in _litter(folder):
            shutil.rmtree(path)


def _put_back(folder: Place) -> None:
    if isinstance(folder, ObjectPath):
        return
    for path, kind, step in _litter(folder):
        if kind == "old" and not os.path.lexists(folder / step):
            _rename(path, folder / step)


def _litter(folder: Path) -> list[tuple[Path, str, str]]:
    """Hidden folders nobody is working on: (path, kind, step name)."""
    if not folder.is_dir():
        return []
    matches = [(path, _HIDDEN.fullmatch(path.name)) for path in folder.iterdir()]
    return [(path, found[1], found[2]) for path, found in matches if found and _is_over(int(found[3]))]


def _is_over(pid: int) -> bool:
    """Whether that process works on its folders no more; this one does not when it asks."""
    return pid == os.getpid() or is_gone(pid)


def _step_of(path: Place) -> int:
    return int(path.name.removeprefix("step_"))


# The manifest and what it vouches for


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself; every byte of it is as written."""

    step: int
    ranks: int
    facts: dict[str, Any]
    files: dict[str, tuple[int, str]]
    """Name -> size in bytes, SHA-256."""


def render_manifest(step: int, ranks: int, facts: Mapping[str, Any], files: Mapping[str, tuple[int, str]]) -> bytes:
    """The manifest of a checkpoint that these files are all of."""
    listed = {name: {"size": size, "sha256": digest} for name, (size, digest) in files.items()}
    head = {"format": FORMAT, "wmtp": _version(), "step": step, "ranks": ranks, "facts": facts}
    return _sealed({**head, "files": listed})


def _version() -> str:
    try:
        return version("wmtp")
    except PackageNotFoundError:
        return "unknown"


def _sealed(body: Mapping[str, Any]) -> bytes:
    """The manifest's bytes; the last entry is the checksum of the others, as they stand without it."""
    digest = hashlib.sha256(_render(body)).hexdigest()
    return _render({**body, "sha256": digest})


def _render(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")


def read_manifest(path: Place) -> Manifest:
    """The manifest, if it is as written.

    Raises:
        CheckpointError: it is missing, damaged or of another format.
    """
    file = path / MANIFEST
    with as_checkpoint_error(f"{file} cannot be read"):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing{_what_else(path)}")
        if file.stat().st_size > MAX_MANIFEST:
            raise CheckpointError(f"{file} is larger than {MAX_MANIFEST:,} bytes, so it is no manifest")
        content = file.read_bytes()
    body = parse(file, content)
    body.pop("sha256", None)
    _check_format(file, body)
    with well_formed(file):
        if _sealed(body) != content:
            raise CheckpointError(f"{file} is damaged: it does not match its own checksum")
        files = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in body["files"].items()}
        manifest = Manifest(int(body["step"]), int(body["ranks"]), dict(body["facts"]), files)
    _check_names(path, manifest)
    return manifest


def _what_else(path: Place) -> str:
    if (path / ".metadata").exists():
        return (
            f"; {path} looks like a checkpoint that torch.distributed.checkpoint wrote by itself, which can run "
            "programs when it is opened, so it is not; load it where you trust it and save the model as safetensors"
        )
    return ""


def _check_format(file: Place, body: Mapping[str, Any]) -> None:
    found = body.get("format")
    if found == FORMAT:
        return
    writer = body.get("wmtp", "0.1.0.dev0 before it knew several ranks" if found == 1 else "another version")
    raise CheckpointError(
        f"{file} has format {found!r}, written by wmtp {writer}; this is wmtp {_version()}, which reads "
        f"{FORMAT}. Finish the run with the version that wrote it, or start a new run from its final/ folder"
    )


def _check_names(path: Place, manifest: Manifest) -> None:
    """Names out of a file are used as paths, so they must be plain, and the step must be the folder's."""
    for name in manifest.files:
        if not _FILE.fullmatch(name):
            raise CheckpointError(f"{path / MANIFEST} lists {name!r}, which is not a plain file name")
    if STATE not in manifest.files:
        raise CheckpointError(f"{path / MANIFEST} does not list {STATE}")
    if _STEP.fullmatch(path.name) and _step_of(path) != manifest.step:
        raise CheckpointError(f"{path / MANIFEST} belongs to step {manifest.step}, not to this folder")


def verify(path: Place, *, hashes: bool = True) -> Manifest:
    """The manifest, after all files were checked against it."""
    manifest = read_manifest(path)
    check_files(path, manifest, manifest.files, hashes=hashes)
    return manifest


def check_files(path: Place, manifest: Manifest, names: Iterable[str], *, hashes: bool = True) -> None:
    """Check some files of a checkpoint against its manifest.

    Raises:
        CheckpointError: one is missing, of another size or (`hashes`) of other content; it is named.
    """
    for name in names:
        if name not in manifest.files:
            raise CheckpointError(f"{path / STATE} is malformed: it names {name!r}, which {MANIFEST} does not list")
        file, (size, digest) = path / name, manifest.files[name]
        with as_checkpoint_error(f"{file} cannot be read"):
            if not file.is_file():
                raise CheckpointError(f"{file} is missing")
            if file.stat().st_size != size:
                raise CheckpointError(f"{file} is damaged: it has {file.stat().st_size} bytes, not {size}")
            if hashes and sha256_file(file) != digest:
                raise CheckpointError(f"{file} is damaged: its content does not match its checksum {digest}")


def _is_whole(path: Place, *, hashes: bool) -> bool:
    try:
        verify(path, hashes=hashes)
    except CheckpointError as error:
        _not_if_unreachable(error)
        return False
    return True


def _not_if_unreachable(error: CheckpointError) -> None:
    """Raise it again if a store did not answer: that says nothing about the checkpoint."""
    if isinstance(error.__cause__, StorageError):
        raise error


def parse(file: Place, content: bytes) -> dict[str, Any]:
    """The JSON object in a file's content.

    Raises:
        CheckpointError: it is none.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is damaged: a JSON object was expected, got {str(value)[:60]}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Errors


@contextmanager
def as_checkpoint_error(context: str, full: Callable[[], str] | None = None) -> Iterator[None]:
    """What the system or torch raises becomes a CheckpointError that says where; `full` words a full disk."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, WmtpError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, WmtpError) else error
        is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = full() if is_full and full else first_line(error)
        raise CheckpointError(f"{context}: {reason}") from error


@contextmanager
def well_formed(file: Place) -> Iterator[None]:
    """Around code that trusts the shape of what it read: any surprise means that the file is malformed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError, SafetensorError) as error:
        raise CheckpointError(f"{file} is malformed: {type(error).__name__}: {error}") from error
