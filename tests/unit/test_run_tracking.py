"""Tracking around a run: what is cut is not sent, and what fails costs the run nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from wmtp import run_tracking
from wmtp.config import Config, load
from wmtp.errors import TrackingError, UsageError
from wmtp.redaction import without_credentials
from wmtp.run_tracking import Tracking, store_of
from wmtp.tracking import Journal
from wmtp.tracking.delivered import JOURNAL, Delivered
from wmtp.tracking.points import Point, Tail, points_of
from wmtp.tracking.sink import deliver

RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"


class Here:
    """A store in memory."""

    uri, experiment = "here", "all"

    def __init__(self) -> None:
        self.points: list[Point] = []

    def open(self, card: Any, run_id: str | None) -> str:
        return run_id or "run"

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        self.points.extend(points)

    def attach(self, run_id: str, files: Any) -> None:
        pass

    def end(self, run_id: str, how: Any) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(run_tracking, "store_of", lambda config, tracking: here)
    return here


def config(*extra: str) -> Config:
    return load([RECIPE], ["tracking.experiment=all", *extra])


def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "provenance.json").write_text(json.dumps({"run_id": "r", "starts": [{}]}))
    (tmp_path / "config.yaml").write_text("")
    return tmp_path


def log(journal: Journal, steps: range, of: float) -> None:
    """Lines of many lengths."""
    for step in steps:
        journal.log(step, "train", {"loss": of + step, "x" * (1 + step * 7 % 5): 1.0})


def test_a_resumed_run_sends_no_line_that_is_cut_and_every_line_that_follows(tmp_path: Path, store: Here) -> None:
    folder, notes = run_folder(tmp_path), list[str]()
    with Journal(folder / JOURNAL) as journal:
        log(journal, range(1, 13), 100)
        delivered = Delivered("here", "all", run_id="run")
        deliver(store, "run", delivered, Tail(folder / JOURNAL, 0), lambda: delivered.write(folder))  # type: ignore[arg-type]
        log(journal, range(13, 16), 100)  # not sent, and after the checkpoint
    tracking = Tracking(config("tracking.flush_s=0.05"), folder, notes.append)
    tracking.start(10)
    with tracking, Journal(folder / JOURNAL, keep_until=10) as journal:
        log(journal, range(11, 21), 500)
    found = tracking.finish()
    assert found is not None
    assert not notes
    losses = {point.step: point.value for point in store.points if point.name.endswith("loss")}
    assert sorted(losses) == list(range(1, 21))
    assert [losses[step] for step in range(13, 21)] == [500 + step for step in range(13, 21)]
    assert len([point for point in store.points if point.name.endswith("loss")]) == len(points_of_journal(folder))


def points_of_journal(folder: Path) -> list[Point]:
    return [point for point in points_of(Tail(folder / JOURNAL, 0).read()) if point.name.endswith("loss")]


@pytest.mark.parametrize("required", [False, True])
def test_a_damaged_file_of_tracking_stops_a_run_only_if_tracking_is_required(
    tmp_path: Path, store: Here, required: bool
) -> None:
    folder, notes = run_folder(tmp_path), list[str]()
    (folder / "tracking.json").write_text("{")
    tracking = Tracking(config(f"tracking.required={str(required).lower()}"), folder, notes.append)
    if required:
        with pytest.raises(TrackingError, match="damaged"):
            tracking.start(0)
        return
    with tracking:
        tracking.start(0)
    assert "training goes on without it" in notes[0]
    found = tracking.finish()
    assert found is not None
    assert "damaged" in str(found.problem)


def test_runs_in_a_store_need_a_database_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = config("runs=s3://bucket/runs")
    assert settings.tracking is not None
    with pytest.raises(UsageError, match=r"no database can lie in s3://bucket/runs: give tracking\.uri"):
        store_of(settings, settings.tracking)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:pa/ss@h/db", "postgresql://***@h/db"),
        ("http://u:p@ss@h:5000/x failed", "http://***@h:5000/x failed"),
        ("s3://bucket/a@b/key", "s3://bucket/a@b/key"),
        ("s3://key:word@bucket/x", "s3://***@bucket/x"),
    ],
)
def test_a_password_is_hidden_whatever_it_holds(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
