"""Every log point reaches a store once, whatever fails and whenever the process ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.errors import TrackingError
from wmtp.tracking import Journal
from wmtp.tracking.delivered import JOURNAL, cut_back, delivered_to
from wmtp.tracking.points import Point, Tail, lines_in, points_of
from wmtp.tracking.sink import deliver


class Killed(Exception):
    """The process ended there."""


class Points:
    """A store that keeps equal points once, as MLflow's does, and fails on command."""

    def __init__(self) -> None:
        self.kept: set[Point] = set()
        self.fault = "none"

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        if self.fault == "refused":
            raise TrackingError("refused")
        self.kept.update(points)
        if self.fault == "answer lost":
            raise TrackingError("the answer was lost")
        if self.fault == "killed after":
            raise Killed

    def at_step(self) -> Counter[tuple[str, int]]:
        return Counter((point.name, point.step) for point in self.kept)


class Run:
    """A run folder whose lines never say the same twice, and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.step, self.clock = folder, Points(), 0, 0

    def log(self, steps: int) -> None:
        with Journal(self.folder / JOURNAL, keep_until=self.step) as journal:
            for _ in range(steps):
                self.step, self.clock = self.step + 1, self.clock + 1
                journal.log(self.step, "train", {"loss": 1 / self.step, "time": self.clock})
                if self.step % 3 == 0:
                    journal.log(self.step, "warning", {"a": 1.0})
                    journal.log(self.step, "warning", {"b": 1.0})

    def deliver(self, fault: str) -> None:
        delivered = delivered_to(self.folder, "here", "all")
        self.store.fault = fault
        try:
            tail = Tail(self.folder / JOURNAL, delivered.lines)
            deliver(self.store, "run", delivered, tail, lambda: delivered.write(self.folder))  # type: ignore[arg-type]
        except (TrackingError, Killed):
            pass

    def resume(self, back: int, *, killed_before_the_cut: bool) -> None:
        self.step = max(0, self.step - back)
        cut_back(self.folder, self.step)
        if killed_before_the_cut:
            cut_back(self.folder, self.step)
        self.log(0)


EVENTS = st.one_of(
    st.tuples(st.just("log"), st.integers(1, 4)),
    st.tuples(st.just("deliver"), st.sampled_from(["none", "refused", "answer lost", "killed after"])),
    st.tuples(st.just("resume"), st.integers(0, 5), st.booleans()),
)


@settings(max_examples=80)
@given(st.lists(EVENTS, max_size=12))
def test_every_point_of_the_journal_is_in_the_store_once(events: list[tuple[object, ...]]) -> None:
    with TemporaryDirectory() as folder:
        run, furthest = Run(Path(folder)), 0
        for kind, *rest in events:
            if kind == "log":
                run.log(int(rest[0]))  # type: ignore[call-overload]
            elif kind == "deliver":
                run.deliver(str(rest[0]))
            else:
                run.resume(int(rest[0]), killed_before_the_cut=bool(rest[1]))  # type: ignore[call-overload]
            furthest = max(furthest, run.step)
        run.log(furthest - run.step)
        run.deliver("none")
        wanted = Counter((point.name, point.step) for point in points_of(list(lines_in(run.folder / JOURNAL))))
        assert run.store.at_step() == wanted
