"""`tracking.json` of a run folder: what a store has of the run.

Every log point is to be in the store once, whatever ends the process and whenever. A store keeps points once that are
equal in name, step, value and time, so the same line may be sent again. But a resumed run cuts its journal back to its
checkpoint and logs the steps after that anew, with other times. So three things are written down, always before they
could be needed:

    lines     of the journal as it is now are in the store
    sending   the lines after those are on their way: they may be there or not
    ahead     log points that the store has and the journal, cut back, has not: logged again, they are passed over
    doubtful  whole lines that were cut off while on their way: they are sent again as they were, and then are `ahead`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from wmtp.errors import TrackingError
from wmtp.storage import Place, write_atomic
from wmtp.tracking.journal import told
from wmtp.tracking.points import lines_in
from wmtp.tracking.store import Ended, ModelVersion

FILE, JOURNAL = "tracking.json", "metrics.jsonl"


@dataclass
class Delivered:
    """What the store at `uri`, in `experiment`, has of a run."""

    uri: str
    experiment: str
    run_id: str | None = None
    """In the store."""
    lines: int = 0
    sending: int = 0
    ahead: list[tuple[str, int]] = field(default_factory=list)
    """(split, step), one entry a line."""
    doubtful: list[dict[str, Any]] = field(default_factory=list)
    ended: Ended | None = None
    """None while the run goes on, and after a kill."""
    model: ModelVersion | None = None

    def new(self, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the next lines of the journal that the store has not."""
        passed = Counter(self.ahead)
        found = []
        for line in lines:
            if passed[_place(line)]:
                passed[_place(line)] -= 1
            else:
                found.append(line)
        return found

    def sent(self, lines: Sequence[dict[str, Any]]) -> None:
        """The store has the next lines of the journal."""
        self.lines, self.sending = self.lines + len(lines), 0
        left = Counter(self.ahead)
        left.subtract(_place(line) for line in lines)
        self.ahead = sorted((+left).elements())

    def settled(self) -> None:
        """The store has the doubtful lines."""
        self.ahead = sorted([*self.ahead, *map(_place, self.doubtful)])
        self.doubtful = []

    def write(self, folder: Place) -> None:
        """Store it in a run folder."""
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")


def read_delivered(folder: Place) -> Delivered | None:
    """What was delivered of a run; None if nothing ever was.

    Raises:
        TrackingError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with told(path):
        text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        found["ahead"] = [(str(split), int(step)) for split, step in found["ahead"]]
        found["model"] = found["model"] and ModelVersion(**found["model"])
        return Delivered(**found)
    except (ValueError, TypeError, KeyError) as problem:
        raise TrackingError(
            f"{path} is damaged: {problem}; remove it, and everything is sent again (a store keeps equal points once)"
        ) from problem


def delivered_to(folder: Place, uri: str, experiment: str) -> Delivered:
    """What this store has of a run: as it was written down, or nothing but how it ended, if that was of another."""
    found = read_delivered(folder)
    if found is None:
        return Delivered(uri, experiment)
    same = (found.uri, found.experiment) == (uri, experiment)
    return found if same else Delivered(uri, experiment, ended=found.ended)


def cut_back(folder: Place, keep_until: int) -> None:
    """Before the journal of a run is cut back to a step: remember what the store has of the lines that go.

    A kill between this and the cut does no harm: the lines are then passed over where they stand.
    """
    found = read_delivered(folder)
    if found is None:
        return
    lines = list(lines_in(folder / JOURNAL))
    kept = sum(1 for line in lines if line["step"] <= keep_until)
    under_way = found.lines + found.sending
    found.ahead = sorted([*found.ahead, *map(_place, lines[kept : found.lines])])
    found.doubtful += found.new(lines[max(kept, found.lines) : under_way])
    found.lines, found.sending = min(found.lines, kept), max(0, min(under_way, kept) - found.lines)
    found.ended = None
    found.write(folder)


def _place(line: dict[str, Any]) -> tuple[str, int]:
    return str(line["split"]), int(line["step"])
