"""A run folder before and between runs: where it is, what can be resumed, who may write.

Everything here answers before anything is trained.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from wmtp import checkpoint
from wmtp.config import Config, DataConfig, load
from wmtp.errors import CheckpointError, ConfigError, UsageError
from wmtp.formats.hf import folder_of
from wmtp.storage import ObjectPath, Place, held, place
from wmtp.wording import counted, size

MAY_CHANGE = (
    "device",
    "num_threads",
    "distributed",
    "runs",
    "run_name",
    "tags",
    "tracking",
    "checkpoint",
    "data.cache",
    "data.workers",
    "train.log_every",
    "train.max_nonfinite",
    "train.watchdog_s",
    "train.watchdog_grace_s",
)
"""Keys that a resumed run may set otherwise; any other difference would make it another run."""

DEFAULT_TEMPLATE: str = DataConfig.model_fields["template"].default
"""`data.template`, where nobody set it."""


def check_writable(folder: Place) -> None:
    """Raise `UsageError` if the run folder could not be made; a store is asked when the first object is written."""
    if isinstance(folder, ObjectPath):
        return
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(
            f"the run folder {folder} cannot be made: {nearest} is not a writable folder; choose another --out"
        )


def check_disk(folder: Place, config: Config, steps: int, checkpoint_bytes: int) -> None:
    """Raise `UsageError` if the disk cannot hold the checkpoints that a run of so many steps keeps, and one in the
    making, beside those that are there."""
    if isinstance(folder, ObjectPath):
        return
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    saved = checkpoint.list_steps(folder / "checkpoints")
    ahead = steps - (int(saved[-1].name.removeprefix("step_")) if saved else 0)
    to_make = ceil(ahead / (config.checkpoint.every or steps))
    wanted = min(to_make, max(config.checkpoint.keep_last + 1 - len(saved), 1))
    free = shutil.disk_usage(nearest).free
    if wanted * checkpoint_bytes > free:
        raise UsageError(
            f"{counted(wanted, 'checkpoint')} of {size(checkpoint_bytes)} do not fit on the disk of {folder}: "
            f"{size(free)} are free; free some, choose another --out, or lower checkpoint.keep_last"
        )


def run_folder(config: Config, out: str | Place | None, resume: str | None) -> Place:
    """Where the run lives."""
    given = None if out is None else place(out)
    if resume in (None, "auto"):
        return given if given is not None else place(config.runs) / config.name
    path = place(str(resume))
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    if given is not None and given.resolve() != folder.resolve():
        raise UsageError(f"--resume {resume} goes on in {folder}, --out says {out}; leave one of them out")
    return folder


def template_of(source: str) -> str | None:
    """The `data.template` that the model of a run folder (`RUN/final`) was trained with; None for other models."""
    folder = folder_of(source).parent
    is_run = all((folder / name).is_file() for name in ("config.yaml", "provenance.json"))
    return load([folder / "config.yaml"]).data.template if is_run else None


def find_start(folder: Place, resume: str | None, note: Callable[[str], None]) -> Place | None:
    """The checkpoint to go on from; None to start at step 1.

    Raises:
        UsageError: the folder has a run and `resume` is None; what `resume` names is not there; there are steps or a
            final model but no good checkpoint (starting again would destroy them).
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"the run folder {folder} is a file; name another with --out")
    if resume is None:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"the run folder {folder} is not empty; go on with --resume auto, or choose another --run-name or --out"
            )
        return None
    named = place(resume) if resume != "auto" else None
    if named is not None and named.parent.name == "checkpoints":
        return _named_checkpoint(named)
    if named is not None and not named.is_dir():
        raise UsageError(f"no run folder at {named}; --resume takes auto, a run folder, or one of its checkpoints")
    found = _newest(folder / "checkpoints", note)
    if found is None and (named is not None or (folder / "final").exists()):
        raise UsageError(f"{folder} has no checkpoint to resume from; to train again, choose another --out")
    if found is None:
        note("no checkpoint to resume from: starting at step 1")
    return found


def _named_checkpoint(path: Place) -> Place:
    if not (path / checkpoint.MANIFEST).is_file():
        raise UsageError(f"no checkpoint at {path}: it has no {checkpoint.MANIFEST}; --resume auto finds the newest")
    later = [other for other in checkpoint.list_steps(path.parent) if other.name > path.name]
    if later:
        raise UsageError(
            f"{later[-1]} is newer than {path}: going on from here would leave two histories in one run folder. Resume "
            "with auto, or move the newer checkpoints away"
        )
    return path


def _newest(checkpoints: Place, note: Callable[[str], None]) -> Place | None:
    found = checkpoint.newest(
        checkpoints, on_bad=lambda path, reason: note(f"passed over the damaged checkpoint {path}: {reason}")
    )
    if found is not None or isinstance(checkpoints, ObjectPath) or not checkpoints.is_dir():
        return found
    unfinished = sorted(checkpoints.glob("step_*"))
    if unfinished:
        raise CheckpointError(
            f"no checkpoint in {checkpoints} can be read: {unfinished[-1]} has no manifest, so its writing did "
            "not end. To train again, choose another --out"
        )
    return found


def check_same_run(config: Config, path: Place) -> None:
    """Raise `ConfigError` if the checkpoint belongs to a run with other settings; names every one."""
    facts = facts_of(path)
    before, now = facts.get("config"), config.model_dump(mode="json")
    if not isinstance(before, dict):
        raise CheckpointError(
            f"{path} does not say which config it was saved with, so `wmtp train` did not write it; resume from another"
        )
    different = [
        f"{key}: {_at(before, key)!r} in the checkpoint, {_at(now, key)!r} now"
        for key in sorted(_leaves(before) | _leaves(now))
        if _at(before, key) != _at(now, key) and not _may_change(key)
    ]
    if different:
        raise ConfigError(
            f"{path} is a checkpoint of another run:\n  "
            + "\n  ".join(different)
            + "\nTo train on with other settings, "
            "start a new run with model.path set to this run's final/ folder"
        )


def facts_of(path: Place) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return checkpoint.load(path, parts=[]).facts


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)


def _leaves(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict) or not tree:
        return {prefix}
    return {leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))}


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


@contextmanager
def only_trainer(folder: Place) -> Iterator[None]:
    """Make the run folder, and hold its lock.

    Raises:
        UsageError: it cannot be made or written, or another process is training in it.
    """
    if isinstance(folder, ObjectPath):
        with held(folder / ".lock", f"another process is training in {folder}"):
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / ".lock").open("w")
    except OSError as problem:
        raise UsageError(
            f"the run folder {folder} cannot be made or written: {problem.strerror or problem}; choose another --out"
        ) from problem
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise UsageError(
                f"another process is training in {folder}; wait until it ends, or choose another --out"
            ) from problem
        yield
