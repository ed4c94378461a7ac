"""The best model of a run so far, kept until `final/` is made of it.

On a disk it is the folder `best/`, which a rename replaces. An object store renames nothing: there every model gets a
folder of its own below `best/`; `current.json` beside them is written when the model is whole and says which one
counts, and only then the one before is removed. So once there was a best model there always is a whole one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from contextlib import suppress

from wmtp.errors import ModelError, StorageError
from wmtp.formats.kind import CONFIG
from wmtp.storage import ObjectPath, Place, write_atomic

FOLDER, CURRENT = "best", "current.json"
_OWN = re.compile(r"step_\d{8,}-[0-9a-f]{8}")


def keep(run: Place, step: int, write: Callable[[Place], object]) -> None:
    """Make the best model of a run folder the one that `write` writes into the folder it is given.

    Raises:
        WmtpError: what `write` raised, or the store did; then the one before is still the best.
    """
    folder = run / FOLDER
    if not isinstance(folder, ObjectPath):
        write(folder)
        return
    own = folder / f"step_{step:0>8}-{secrets.token_hex(4)}"
    write(own)
    write_atomic(folder / CURRENT, json.dumps({"folder": own.name}) + "\n")
    with suppress(StorageError):  # the model is kept; what is left of others goes with the next, or at the next start
        clear_up(run)


def find(run: Place) -> Place | None:
    """The folder of the best model; None if there is none yet.

    Raises:
        ModelError: the file that says which one it is is damaged.
        StorageError: the store's.
    """
    folder = run / FOLDER
    if isinstance(folder, ObjectPath):
        return _current(folder)
    return folder if (folder / CONFIG).is_file() else None


def clear_up(run: Place) -> None:
    """Remove what is not the best model: the ones before it, and what interrupted writes have left. For its trainer.

    Raises:
        ModelError, StorageError: as `find`.
    """
    folder = run / FOLDER
    if not isinstance(folder, ObjectPath):
        return
    best = _current(folder)
    folder.store.abandon(folder.prefix)
    there = [path for path in folder.files() if path != folder / CURRENT]
    folder.store.remove([path.key for path in there if best is None or not path.key.startswith(best.prefix)])


def _current(folder: ObjectPath) -> ObjectPath | None:
    """The one that counts; in a run that began before models had folders of their own, the folder itself."""
    if (folder / CURRENT).is_file():
        return folder / _named(folder / CURRENT)
    return folder if (folder / CONFIG).is_file() else None


def _named(file: ObjectPath) -> str:
    try:
        name = json.loads(file.read_bytes())["folder"]
        if not _OWN.fullmatch(name):
            raise ValueError(f"{name!r} is no name of such a folder")
    except (ValueError, TypeError, KeyError) as problem:
        raise ModelError(
            f'{file} is damaged: {problem}; it should say {{"folder": NAME}}, where NAME is that of the best model\'s '
            "folder beside it. Mend it, or remove it: then the next model that is better is kept"
        ) from problem
    return str(name)
