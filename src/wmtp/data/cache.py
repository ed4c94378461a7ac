"""Tokenised rows on the disk, made once and found again by whatever needs the same ones.

A cache folder holds one folder for each key. The key is all that decides what the rows are, and its hash is the
folder's name. Whoever comes first, whatever rank or run, holds a lock while it makes them; the others wait for it,
which is no collective and may take as long as it must. From a store every process has the rows in its memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from wmtp.data import columns, containers, contests, groups, judged, kinds, records, sources, stored, text, tokenising
from wmtp.data.columns import HEADER, Columns, ColumnWriter, new_folder, open_folder
from wmtp.errors import DataError, LockedError, UsageError
from wmtp.storage import ObjectPath, Place, held

KIND, VERSION = "tokenised rows", 1
_CODE = (columns, containers, contests, groups, judged, kinds, records, sources, stored, text, tokenising)


@cache
def code_version() -> str:
    """sha256 over the modules that decide what a row is: another version of them makes its rows anew."""
    return _sha256_of(_CODE)


@cache
def token_code_version() -> str:
    """sha256 over the modules that decide which ids a record becomes."""
    return _sha256_of((text, tokenising))


def _sha256_of(modules: Iterable[ModuleType]) -> str:
    files = [Path(str(module.__file__)).read_bytes() for module in modules]
    return hashlib.sha256(b"\0".join(files)).hexdigest()


def cached_rows(
    folder: Place, key: Mapping[str, Any], write: Callable[[ColumnWriter], Mapping[str, Any]]
) -> tuple[Columns, bool]:
    """The columns of a key, and whether they were made just now.

    Args:
        folder: of the cache; is made.
        key: all that decides what is in the columns; JSON values.
        write: fills them, and returns what else is to be known of them.

    Raises:
        UsageError: the folder cannot be made or written.
        DataError: columns that are there, but damaged.
    """
    wanted = json.loads(json.dumps(key))
    name = f"rows-{hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]}"
    made = False

    def is_there() -> bool:  # the header is written last, and removed first
        return (folder / name / HEADER).exists()

    with _alone_in_store(folder, is_there) if isinstance(folder, ObjectPath) else _alone(folder):
        if not is_there():
            if isinstance(folder, Path):
                for unfinished in folder.glob(f".{name}.making-*"):
                    shutil.rmtree(unfinished, ignore_errors=True)
            with new_folder(folder / name, KIND) as writer:
                about = write(writer)
                writer.finish({"kind": KIND, "version": VERSION, "key": wanted, **about})
            made = True
    found = open_folder(folder / name, KIND, VERSION, "remove it, and it is made anew")
    if found.about.get("key") != wanted:
        raise DataError(f"{folder / name} holds rows of something else than its name says; remove it: it is made anew")
    return found, made


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache folder, when it is free."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as problem:
        raise UsageError(
            f"data.cache = {folder} cannot be made or written: {problem.strerror or problem}; name another folder, or "
            "leave it out"
        ) from problem
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _alone_in_store(folder: ObjectPath, is_there: Callable[[], bool]) -> Iterator[None]:
    """The same in a store, unless the rows are there: many processes would wait for one another there for long."""
    with ExitStack() as lock:
        while not is_there():
            try:
                lock.enter_context(held(folder / ".lock", f"rows are being made in {folder}"))
                break
            except LockedError:  # after a while in which its holder showed that it lives
                continue
        yield
