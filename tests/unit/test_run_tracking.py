"""Tracking around a run: what is cut is not sent, and what fails costs the run nothing."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp import delivery, run_tracking
from wmtp.config import Config, dump, load
from wmtp.delivery import register_later, sync
from wmtp.errors import Interrupted, TrackingError, UsageError
from wmtp.redaction import without_credentials
from wmtp.run_tracking import Tracking, store_of
from wmtp.storage import ObjectPath
from wmtp.tracking import Journal, mlflow_store
from wmtp.tracking.delivered import JOURNAL, Delivered, read_delivered
from wmtp.tracking.mlflow_store import MlflowStore
from wmtp.tracking.points import Point, Tail, points_of
from wmtp.tracking.sink import Sink, deliver
from wmtp.tracking.store import ModelVersion, RunCard

RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"


class Here:
    """A store in memory."""

    uri, experiment = "here", "all"

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.status = ""
        self.refuses = False

    def open(self, card: Any, run_id: str | None) -> str:
        self.status = "RUNNING"
        return run_id or "run"

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        if self.refuses:
            raise TrackingError("here refuses")
        self.points.extend(points)

    def attach(self, run_id: str, files: Any) -> None:
        pass

    def end(self, run_id: str, how: Any) -> None:
        self.status = how


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
    found = tracking.finish(lambda: None)
    assert found is not None
    assert not notes
    losses = {point.step: point.value for point in store.points if point.name.endswith("loss")}
    assert sorted(losses) == list(range(1, 21))
    assert [losses[step] for step in range(13, 21)] == [500 + step for step in range(13, 21)]
    assert len([point for point in store.points if point.name.endswith("loss")]) == len(points_of_journal(folder))


def points_of_journal(folder: Path) -> list[Point]:
    return [point for point in points_of(Tail(folder / JOURNAL, 0).read()) if point.name.endswith("loss")]


def test_a_sync_that_fails_leaves_no_run_that_seems_to_go_on_and_the_next_sends_the_rest(
    tmp_path: Path, store: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "store_of", lambda config, tracking: store)
    monkeypatch.setattr(delivery, "check_installed", lambda config: None)
    folder = run_folder(tmp_path)
    (folder / "config.yaml").write_text(dump(config()))
    with Journal(folder / JOURNAL) as journal:
        log(journal, range(1, 4), 100)
    Delivered("elsewhere", "all", ended="KILLED").write(folder)  # a store that was tried first
    store.refuses = True
    with pytest.raises(TrackingError, match="refuses"):
        sync(folder)
    assert (store.status, store.points) == ("KILLED", [])
    store.refuses = False
    assert [sync(folder)[1], sync(folder)[1]] == [3, 0]
    assert store.status == "KILLED"


class Hanging(Here):
    """It answers when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.free = threading.Event(), threading.Event()

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        self.reached.set()
        self.free.wait()
        super().log(run_id, points)


@pytest.mark.parametrize("folder_hangs", [False, True])
def test_the_end_waits_for_a_store_and_a_folder_that_hang_no_longer_than_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_hangs: bool
) -> None:
    """How the run ended is written down though the store has not answered; what it answers later is not."""
    folder, store, write = run_folder(tmp_path), Hanging(), Delivered.write
    with Journal(folder / JOURNAL) as journal:
        log(journal, range(1, 4), 100)
    sink = Sink(folder, store, RunCard("key", "name"), Delivered("here", "all"), [], flush_s=0.01, end_s=0.2)
    monkeypatch.setattr("wmtp.tracking.sink.START_S", 0.01)
    sink.start()
    store.reached.wait()
    if folder_hangs:
        monkeypatch.setattr(Delivered, "write", lambda self, to: (store.free.wait(), write(self, to)))
    sink.close("KILLED")
    assert sink.problem is not None
    assert "here did not answer within 0.2 s (tracking.end_s)" in sink.problem
    assert sink.delivered.ended == "KILLED"
    found = read_delivered(folder)
    assert found is not None
    assert (found.run_id, found.lines, found.ended) == ("run", 0, None if folder_hangs else "KILLED")
    store.free.set()
    sink._thread.join()
    after = read_delivered(folder)
    assert after is not None
    assert (after.lines, after.sending) == (0, 3)


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
    found = tracking.finish(lambda: None)
    assert found is not None
    assert "damaged" in str(found.problem)


class Registry(Here):
    """It takes a model when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.free, self.answered = threading.Event(), threading.Event(), threading.Event()
        self.versions: dict[str, str] = {}

    def register(self, run_id: str, name: str, model: Path, tags: Any) -> ModelVersion:
        self.asked.set()
        self.free.wait()
        version = self.versions.setdefault(run_id, str(len(self.versions) + 1))
        self.answered.set()
        return ModelVersion(name, version, str(model), 0)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_run_that_is_stopped_before_its_model_is_registered_says_what_registers_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    registry = Registry()
    for module in (run_tracking, delivery):
        monkeypatch.setattr(module, "store_of", lambda config, tracking: registry)
    monkeypatch.setattr(delivery, "check_installed", lambda config: None)
    folder = run_folder(tmp_path)
    (folder / "config.yaml").write_text(dump(config()))
    (folder / "final").mkdir()
    (folder / "final" / "config.json").write_text("{}")
    tracking = Tracking(config(), folder, lambda note: None)
    with tracking:
        tracking.start(0)
    with pytest.raises(Interrupted, match=r"^SIGTERM: the run is done.*`wmtp track register") as told:
        tracking.finish(lambda: signal.SIGTERM if when == "before" or registry.asked.is_set() else None)
    assert told.value.exit_code == 143
    assert registry.asked.is_set() == (when == "meanwhile")
    stopped = read_delivered(folder)
    assert stopped is not None
    assert (stopped.ended, stopped.model) == ("FINISHED", None)
    registry.free.set()
    assert when == "before" or registry.answered.wait(60)
    assert [register_later(folder).model, register_later(folder).model] == [
        ModelVersion("wmtp_baseline", "1", str(folder / "final"), 0)
    ] * 2
    after = read_delivered(folder)
    assert after is not None
    assert after.model is not None
    assert list(registry.versions.values()) == [after.model.version] == ["1"]


class TwiceAsked:
    """A client of MLflow whose registry does every request twice: it was repeated, since the first answer was late."""

    def __init__(self) -> None:
        self.versions: list[Any] = []

    def search_model_versions(self, wanted: str) -> list[Any]:
        return [one for one in reversed(self.versions) if wanted == f"name = '{one.name}' and run_id = '{one.run_id}'"]

    def create_registered_model(self, name: str) -> None: ...

    def create_model_version(self, name: str, source: str, *, run_id: str, **_: Any) -> Any:
        number = len(self.versions) + 1
        self.versions += [
            SimpleNamespace(name=name, source=source, run_id=run_id, version=str(n), aliases=[])
            for n in (number, number + 1)
        ]
        return self.versions[-1]

    def get_model_version(self, name: str, version: str) -> Any:
        return next(one for one in self.versions if (one.name, one.version) == (name, version))

    def delete_model_version(self, name: str, version: str) -> None:
        self.versions = [one for one in self.versions if one.version != version]


def test_a_registry_that_was_asked_twice_has_one_version_of_each_run(tmp_path: Path) -> None:
    store = MlflowStore("sqlite:///x", "all", artifacts="", timeout_s=1, upload_timeout_s=1)
    store._client = client = TwiceAsked()
    found = [store.register(run, "wmtp_baseline", tmp_path, {}).version for run in ("a", "b", "a")]
    assert found == ["1", "2", "1"]
    assert [(one.run_id, one.version) for one in client.versions] == [("a", "1"), ("b", "2")]


def test_versions_with_an_alias_or_of_other_files_are_left_alone(tmp_path: Path) -> None:
    store = MlflowStore("sqlite:///x", "all", artifacts="", timeout_s=1, upload_timeout_s=1)
    store._client = client = TwiceAsked()
    for version, source, aliases in (("1", str(tmp_path), []), ("2", str(tmp_path), ["champion"]), ("3", "/other", [])):
        made = SimpleNamespace(name="wmtp_baseline", source=source, run_id="a", version=version, aliases=aliases)
        client.versions.append(made)
    assert store.register("a", "wmtp_baseline", tmp_path, {}).version == "1"
    assert [one.version for one in client.versions] == ["1", "2", "3"]


@pytest.mark.parametrize("uri", ["sqlite:///x", "http://here"])
def test_a_model_in_a_store_is_registered_where_it_lies(uri: str) -> None:
    store = MlflowStore(uri, "all", artifacts="", timeout_s=1, upload_timeout_s=1)
    store._client = TwiceAsked()
    found = store.register("a", "wmtp_baseline", ObjectPath("s3://bucket", "run/final"), {})
    assert (found.source, found.stored_bytes) == ("s3://bucket/run/final", 0)


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


@given(st.text(st.characters() | st.sampled_from("./ a"), max_size=300))
def test_any_name_becomes_one_that_mlflow_takes_and_those_that_it_takes_stay(name: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_tag_name

    allowed = mlflow_store._name(name)
    _validate_tag_name(allowed)
    assert len(allowed) <= mlflow_store.MAX_NAME_LENGTH
    if len(name) <= mlflow_store.MAX_NAME_LENGTH and not name.endswith("\n"):  # which its pattern overlooks
        with suppress(MlflowException):
            _validate_tag_name(name)
            assert allowed == name
