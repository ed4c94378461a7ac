"""A study's folder on the page: `study.json` as it is, and the runs of its first seed.

A page of all runs would be large, and what they have in common over seeds is in `study.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from wmtp.errors import UsageError
from wmtp.report.evaluations import rounded_tree
from wmtp.storage import Place

STUDY = "study.json"
"""A folder with this file is a study."""
NEEDED = ("study", "baseline", "metric", "seeds", "arms", "curves", "runs", "notes")


def opened(folders: Sequence[Place]) -> tuple[list[Place], list[dict[str, Any]]]:
    """Run folders, each study's in its place, and the studies.

    Raises:
        UsageError: a `study.json` that is none.
    """
    runs: list[Place] = []
    studies: list[dict[str, Any]] = []
    for folder in folders:
        if not (folder / STUDY).is_file():
            runs.append(folder)
            continue
        study = _read(folder / STUDY)
        first = [run["run"] for run in study["runs"] if run["seed"] == study["seeds"][0] and run["state"] == "done"]
        runs += [folder / "runs" / name for name in first]
        studies.append({**rounded_tree({name: study[name] for name in NEEDED}), "shown": len(first)})
    return runs, studies


def _read(path: Place) -> dict[str, Any]:
    try:
        study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in NEEDED if name not in study]
    except (OSError, ValueError, RecursionError, TypeError) as problem:
        raise UsageError(f"{path} cannot be read: {problem}; `wmtp study` writes it anew") from problem
    if missing or not study["seeds"]:
        raise UsageError(f"{path} is no study: it has no {', '.join(missing) or 'seeds'}; `wmtp study` writes it anew")
    return study
