"""A run folder as the page shows it: as far as it goes, with a note on what is missing or broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from wmtp.errors import UsageError
from wmtp.report.evaluations import read_evaluations, rounded_tree
from wmtp.report.journal import SPLITS, Columns, read_columns
from wmtp.report.saved import saved_by
from wmtp.storage import Place, matches

MARKS = ("config.yaml", "provenance.json", "metrics.jsonl")
"""A folder with none of these is no run."""

MAX_CONFIG_CHARACTERS = 20_000

FACTS = (
    "started",
    "argv",
    "folder",
    "versions",
    "machine",
    "git",
    "seed",
    "data",
    "tokenizer",
    "device",
    "num_threads",
)


def read_runs(folders: Sequence[Place]) -> list[dict[str, Any]]:
    """What the page shows of each run.

    Raises:
        UsageError: a folder that is no run, or one that is named twice.
    """
    names = labels(folders)
    return [{"label": name, **read_run(folder)} for name, folder in zip(names, folders, strict=True)]


def labels(folders: Sequence[Place]) -> list[str]:
    """A short name for each folder: as many of its last parts as tell it from the others."""
    parts = [folder.absolute().resolve().parts for folder in folders]
    for i, path in enumerate(parts):
        if path in parts[:i]:
            raise UsageError(f"{folders[i]} is named twice; name each run once")
    names = []
    for path in parts:
        length = 1
        while sum(other[-length:] == path[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(part.strip("/") for part in path[-length:]))
    return names


def read_run(folder: Place) -> dict[str, Any]:
    """One run.

    Raises:
        UsageError: the folder is no run.
    """
    _check(folder)
    notes: list[str] = []
    columns = _columns(folder / "metrics.jsonl", notes)
    evaluations, problems = read_evaluations(folder / "eval")
    notes += problems
    facts = _facts(folder / "provenance.json", notes)
    config = _config(folder / "config.yaml", notes)
    if not (folder / "final").is_dir():
        notes.append(
            "there is no final/: the run is still going on, was interrupted, or was told not to keep its model"
        )
    tokens = evaluations.pop("tokens", None)
    saved = saved_by(folder)
    return {
        "folder": str(folder.absolute()),
        "notes": notes,
        "series": {split: columns[split].as_json() for split in SPLITS},
        "evaluations": evaluations,
        "tokens": tokens,
        "facts": facts,
        "saved": str(saved) if saved is not None else None,
        "config": config,
    }


def _check(folder: Place) -> None:
    if not folder.exists():
        raise UsageError(f"there is no run folder {folder}; name one, as wmtp train writes it")
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a run folder, as wmtp train writes one")
    if any((folder / name).is_file() for name in MARKS):
        return
    inside = [p for p in matches(folder, "*") if p.is_dir() and any((p / name).is_file() for name in MARKS)]
    names = " ".join(map(str, inside))
    raise UsageError(
        f"{folder} is no run folder: it has none of {', '.join(MARKS)}; "
        + (f"it holds runs, name them: {names}" if inside else "name one, as wmtp train writes it")
    )


def _columns(path: Place, notes: list[str]) -> dict[str, Columns]:
    try:
        columns, problems = read_columns(path)
    except FileNotFoundError:
        columns, problems = (
            {split: Columns() for split in SPLITS},
            ["there is no metrics.jsonl: nothing was logged yet"],
        )
    except OSError as problem:
        columns, problems = {split: Columns() for split in SPLITS}, [f"metrics.jsonl could not be read: {problem}"]
    notes += problems
    return columns


def _facts(path: Place, notes: list[str]) -> dict[str, Any] | None:
    """The facts of the last start, and how often the run was started."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        starts = whole["starts"]
        return {"run_id": str(whole["run_id"]), "starts": len(starts)} | _of_start(starts[-1])
    except FileNotFoundError:
        notes.append("there is no provenance.json: where the run came from is not known")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError) as problem:
        notes.append(f"provenance.json is damaged: {type(problem).__name__}: {problem}")
    return None


def _of_start(start: dict[str, Any]) -> dict[str, Any]:
    return {name: rounded_tree(start.get(name)) for name in FACTS}


def _config(path: Place, notes: list[str]) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.append("there is no config.yaml: the run cannot be repeated from its folder")
        return None
    except OSError as problem:
        notes.append(f"config.yaml could not be read: {problem}")
        return None
    if len(text) > MAX_CONFIG_CHARACTERS:
        notes.append(f"config.yaml: only the first {MAX_CONFIG_CHARACTERS:,} characters are shown")
    return text[:MAX_CONFIG_CHARACTERS]
