"""What saving a run took, beside what it would have taken to upload every save to the tracker as well."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from wmtp.storage import Place, matches
from wmtp.wording import counted


@dataclass(frozen=True)
class Saved:
    """Bytes of a run's checkpoints, and of models in its store of runs."""

    saves: int
    kept: int
    save_bytes: int
    """Of the newest one."""
    kept_bytes: int
    tracker_bytes: int
    """Copies of the final model that the store took; 0 where it is registered where it lies."""

    @property
    def bytes(self) -> int:
        """What the run takes."""
        return self.kept_bytes + self.tracker_bytes

    @property
    def uploaded_bytes(self) -> int:
        """What it would take with every save in the store too: as many as there were, each as large as the newest."""
        return self.saves * self.save_bytes + self.kept_bytes

    def __str__(self) -> str:
        return (
            f"{counted(self.saves, 'save')} of {_size(self.save_bytes)}; {self.kept} kept: {_size(self.kept_bytes)}; "
            f"models in the tracker: {_size(self.tracker_bytes)}. Every save uploaded too: "
            f"{_size(self.uploaded_bytes)}; this is {1 - self.bytes / self.uploaded_bytes:.0%} less"
        )


def saved_by(folder: Place) -> Saved | None:
    """Of a run folder; None if there is no checkpoint that says how many there were."""
    steps = matches(folder / "checkpoints", "step_*")
    manifests = [
        found for step in steps if (found := _json(step / "manifest.json")) and found.keys() >= {"files", "facts"}
    ]
    sizes = [sum(entry["size"] for entry in manifest["files"].values()) for manifest in manifests]
    saves = manifests[-1]["facts"].get("saves", 0) if manifests else 0
    if not saves or not sizes[-1]:
        return None
    tracked = _json(folder / "tracking.json") or {}
    return Saved(saves, len(sizes), sizes[-1], sum(sizes), (tracked.get("model") or {}).get("stored_bytes", 0))


def _json(path: Place) -> dict[str, Any] | None:
    """None if it is not there or cannot be read: a page shows what there is."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
