"""Runs in MLflow: a real SQLite store, stores that hang or refuse, kills, secrets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests_recipe import with_few_rows

from wmtp import delivery, load_model, run_tracking, trainer
from wmtp.bench import runs_server
from wmtp.config import Config, load
from wmtp.errors import ConfigError, Interrupted, TrackingError, UsageError
from wmtp.run_tracking import Tracked
from wmtp.runfolder import only_trainer
from wmtp.tracking import read_journal
from wmtp.tracking.delivered import Delivered, read_delivered
from wmtp.tracking.mlflow_store import RETRIES, MlflowStore
from wmtp.tracking.points import Point
from wmtp.tracking.sink import Sink
from wmtp.tracking.store import RunCard
from wmtp.trainer import RunResult, Silent, run

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow, SQLAlchemy 2.1

SAVES, KEPT = 30, 5
FEW = [
    *("train.steps=4", "train.batch_size=2", "train.micro_batch_size=2", "train.eval_every=2", "train.eval_batches=1"),
    "checkpoint={every: 2, keep_last: 2}",
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe on few rows."""
    return with_few_rows(tmp_path_factory.mktemp("recipe"), train=40, validation=20)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that MLflow has made its tables in, which takes seconds: tests copy it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    sqlite(path).probe()
    return path


@pytest.fixture
def database(empty_store: Path, tmp_path: Path) -> Path:
    """An empty store of this test's own."""
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def sqlite(path: Path) -> MlflowStore:
    return MlflowStore(
        f"sqlite:///{path}", "wmtp", artifacts=str(path.parent / "mlartifacts"), timeout_s=5, upload_timeout_s=5
    )


def client(database: Path) -> Any:
    return sqlite(database)._connected()


def config_for(recipe: Path, database: Path, *overrides: str) -> Config:
    tracking = f"tracking={{uri: 'sqlite:///{database}', flush_s: 0.05}}"
    return load([recipe], [*FEW, f"runs='{database.parent}'", tracking, *overrides])


def points_in(database: Path, run_id: str) -> Counter[tuple[str, int, float]]:
    """Every point that the store has of a run."""
    store = client(database)
    names = store.get_run(run_id).data.metrics
    return Counter((m.key, m.step, m.value) for name in names for m in store.get_metric_history(run_id, name))


def points_logged(folder: Path) -> Counter[tuple[str, int, float]]:
    """Every figure of the journal, as a point."""
    return Counter(
        (f"{line['split']}/{name}", line["step"], value)
        for line in read_journal(folder / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("step", "split", "time/unix_s") and value is not None
    )


def tracked(result: RunResult) -> Tracked:
    assert result.tracked is not None
    return result.tracked


# A store that works


@pytest.fixture(scope="module")
def many_saves(recipe: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    """A run that saves 30 times and keeps 5, and its store."""
    database = Path(shutil.copy(empty_store, tmp_path_factory.mktemp("many") / "mlflow.db"))
    saves = [f"train.steps={SAVES}", "train.eval_every=15", f"checkpoint={{every: 1, keep_last: {KEPT}}}"]
    config = config_for(recipe, database, *saves, "tags=[first, size=small]")
    return run(config, out=database.parent / "run"), database


def test_a_store_has_the_whole_journal_the_config_and_how_the_run_ended(many_saves: tuple[RunResult, Path]) -> None:
    result, database = many_saves
    stored = client(database).get_run(tracked(result).run_id)
    assert points_in(database, stored.info.run_id) == points_logged(result.folder)
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "baseline-seed7")
    assert stored.data.params["train.batch_size"] == "2"
    assert (stored.data.tags["first"], stored.data.tags["size"]) == ("true", "small")
    files = {file.path for file in client(database).list_artifacts(stored.info.run_id)}
    assert files == {"config.yaml", "provenance.json"}
    assert tracked(result).problem is None


def test_a_finished_run_is_one_model_version_without_a_second_copy(many_saves: tuple[RunResult, Path]) -> None:
    result, database = many_saves
    [version] = client(database).search_model_versions("name = 'wmtp_baseline'")
    assert version.source == (result.folder / "final").as_uri()
    assert (version.run_id, version.tags["wmtp.arm"]) == (tracked(result).run_id, "baseline")
    assert not list((database.parent / "mlartifacts").rglob("*.safetensors"))


def test_the_report_says_what_the_saves_took_and_what_uploading_them_would_have(
    many_saves: tuple[RunResult, Path], wmtp_command: Callable[..., Any]
) -> None:
    result, _ = many_saves
    _, said, _ = wmtp_command("report", result.folder)
    _, out, _ = wmtp_command("report", result.folder, "--json")
    saved = json.loads(out)["saved"][str(result.folder)]
    assert (saved["saves"], saved["kept"], saved["tracker_bytes"]) == (SAVES, KEPT, 0)
    assert f"{SAVES} saves of " in said
    assert "this is 86% less" in said.replace("\n", " ")


def test_what_mlflow_downloads_is_the_final_model(
    many_saves: tuple[RunResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import artifacts

    result, database = many_saves
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    folder = artifacts.download_artifacts("models:/wmtp_baseline/1", dst_path=str(tmp_path))
    ours, theirs = load_model(str(result.folder / "final")).state_dict(), load_model(folder).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def fails_at(point: str, time: int) -> Callable[[str], None]:
    left = iter(range(time - 1))

    def fault(reached: str) -> None:
        if reached == point and next(left, None) is None:
            raise RuntimeError("at the sixth step")

    return fault


def test_a_run_that_fails_and_goes_on_is_one_run_with_every_point_once(
    recipe: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = config_for(recipe, database, "train.steps=6", "checkpoint.every=4"), database.parent / "run"
    with monkeypatch.context() as during:
        during.setattr(trainer, "fault", fails_at("step_begin", 6))
        with pytest.raises(RuntimeError, match="at the sixth step"):
            run(config, out=folder)
    delivered = read_delivered(folder)
    assert delivered is not None
    assert client(database).get_run(delivered.run_id).info.status == "FAILED"
    result = run(config, out=folder, resume="auto")
    again = run(config, out=folder, resume="auto")
    assert tracked(result).run_id == tracked(again).run_id == delivered.run_id
    stored, logged = points_in(database, str(delivered.run_id)), points_logged(folder)
    assert {point[:2] for point in stored} == {point[:2] for point in logged}
    assert stored.total() == logged.total()
    assert len(client(database).search_runs([client(database).get_run(delivered.run_id).info.experiment_id])) == 1
    assert len(client(database).search_model_versions("name = 'wmtp_baseline'")) == 1


def test_a_run_whose_id_was_never_written_down_is_found_again(database: Path) -> None:
    store, card = sqlite(database), RunCard("the key", "name", {"lr": "1"}, {"wmtp.run_id": "the key"})
    assert store.open(card, None) == sqlite(database).open(card, None)


def test_a_name_that_mlflow_does_not_allow_is_written_with_an_underscore(database: Path) -> None:
    store = sqlite(database)
    run_id = store.open(RunCard("key", "name", {"a@b": "1"}, {"c@d": "2"}), None)
    store.log(run_id, [Point("pass@1", 0.5, 1, 1000)])
    found = client(database).get_run(run_id).data
    assert found.metrics == {"pass_1": 0.5}
    assert (found.params, found.tags["c_d"]) == ({"a_b": "1"}, "2")


@pytest.mark.exhaustive
def test_two_ranks_are_one_run(recipe: Path, database: Path) -> None:
    folder = database.parent / "run"
    tracking = f"tracking={{uri: 'sqlite:///{database}', flush_s: 0.05}}"
    command = ["train", "--recipe", str(recipe), "--out", str(folder), "--ranks", "2", *FEW, tracking]
    subprocess.run([sys.executable, "-P", "-m", "wmtp", *command], check=True, timeout=500)
    [stored] = client(database).search_runs([sqlite(database)._experiment_id()])
    assert points_in(database, stored.info.run_id) == points_logged(folder)
    assert len(client(database).search_model_versions("name = 'wmtp_baseline'")) == 1


# Stores that do not


class Fake:
    """A store that hangs, or refuses, until told otherwise."""

    uri, experiment, is_server = "fake://store", "wmtp", True

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs, self.free = hangs, threading.Event()
        self.points: list[Point] = []
        self.answered = 0

    def _answer(self) -> None:
        if self.hangs:
            self.free.wait()
        if not self.free.is_set():
            raise TrackingError(f"{self.uri} refused")
        self.answered += 1

    def open(self, card: RunCard, run_id: str | None) -> str:
        self._answer()
        return run_id or "an id"

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        self._answer()
        self.points += points

    def attach(self, run_id: str, files: Sequence[Path]) -> None:
        self._answer()

    def end(self, run_id: str, how: str) -> None:
        self._answer()

    def register(self, *arguments: Any) -> Any:
        self._answer()


def use(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_tracking, "store_of", lambda config, tracking: fake)
    monkeypatch.setattr(delivery, "store_of", lambda config, tracking: fake)
    monkeypatch.setattr("wmtp.tracking.sink.START_S", 0.01)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_store_that_hangs_or_refuses_holds_up_no_step_and_sync_sends_everything_later(
    hangs: bool, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wmtp_command: Callable[..., Any]
) -> None:
    fake = Fake(hangs=hangs)
    use(fake, monkeypatch)
    folder = tmp_path / "run"
    result = run(config_for(recipe, tmp_path / "mlflow.db", "tracking.end_s=0.01"), out=folder)
    assert (result.steps, fake.answered) == (4, 0)  # every step was done while the store had answered nothing
    assert f"`wmtp track sync {folder}` sends what is missing" in str(tracked(result).problem)
    assert f"`wmtp track register {folder}` does that" in str(tracked(result).problem)
    later = Fake()
    later.free.set()
    use(later, monkeypatch)
    assert wmtp_command("track", "sync", folder)[0] == 0
    assert wmtp_command("track", "sync", folder)[0] == 0
    assert Counter((p.name, p.step, p.value) for p in later.points) == points_logged(folder)
    fake.free.set()


def test_nobody_else_can_take_the_run_folder_until_the_final_model_is_registered(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    class Registers(Fake):
        def register(self, *arguments: Any) -> Any:
            with pytest.raises(UsageError, match="another process is training") as told, only_trainer(tmp_path / "run"):
                pass
            tried.append(str(told.value))

    store = Registers()
    store.free.set()
    use(store, monkeypatch)
    result = run(config_for(recipe, tmp_path / "mlflow.db", "train.steps=2"), out=tmp_path / "run")
    assert len(tried) == 1
    assert tracked(result).problem is None


def test_a_signal_while_a_slow_registry_takes_the_model_ends_the_run_which_is_done_and_can_be_repaired(
    recipe: Path, database: Path, monkeypatch: pytest.MonkeyPatch, wmtp_command: Callable[..., Any]
) -> None:
    """The registry does what it was asked after the run has ended; there is one version all the same."""
    free, registered, register = threading.Event(), threading.Event(), MlflowStore.register

    def slow(self: MlflowStore, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        free.wait()
        found = register(self, *arguments)
        registered.set()
        return found

    config, folder = config_for(recipe, database, "train.steps=2"), database.parent / "run"
    monkeypatch.setattr(MlflowStore, "register", slow)
    with pytest.raises(Interrupted, match="wmtp track register") as told:
        run(config, out=folder)
    assert told.value.exit_code == 143
    monkeypatch.undo()
    free.set()
    assert registered.wait(60)
    code, out, _ = wmtp_command("track", "register", folder, "--json")
    assert (code, json.loads(out)["model"]["version"]) == (0, "1")
    [version] = client(database).search_model_versions("name = 'wmtp_baseline'")
    assert client(database).get_run(version.run_id).info.status == "FINISHED"


def test_a_run_folder_that_vanishes_is_told_and_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    fake.free.set()
    sink = Sink(tmp_path / "gone", fake, RunCard("key", "name"), Delivered("u", "e"), [], flush_s=0.01, end_s=30)
    sink.start()
    sink.close("FINISHED")
    assert "gone" in str(sink.problem)


def test_a_required_store_that_does_not_answer_ends_the_run_before_step_1(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Fake(), monkeypatch)
    with pytest.raises(TrackingError, match="required, but fake://store refused"):
        run(config_for(recipe, tmp_path / "mlflow.db", "tracking.required=true"), out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@contextmanager
def listening(answer: bytes | None) -> Iterator[tuple[int, list[int]]]:
    """A socket that takes connections and answers with these bytes, or never; its port and a list with one entry a
    connection."""
    taken: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(1)
                held.append(connection)
                if answer is not None:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], taken
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
)
def test_a_server_that_never_answers_or_is_busy_is_asked_twice_and_no_more(answer: bytes | None) -> None:
    with listening(answer) as (port, taken):
        store = MlflowStore(f"http://127.0.0.1:{port}", "wmtp", artifacts="", timeout_s=1, upload_timeout_s=1)
        with pytest.raises(TrackingError, match=f"127.0.0.1:{port}: cannot list experiments"):
            store.probe()
    assert len(taken) == 1 + RETRIES


# Secrets


PLANTED = "hunter2hunter2"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{PLANTED}@127.0.0.1:1",
        f"postgresql://me:{PLANTED}@host/db",
        f"https://{PLANTED}@host",
        f"postgresql://host/db?user=me&password={PLANTED}",
    ],
)
def test_credentials_in_the_config_are_refused_and_not_shown(uri: str, recipe: Path) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        load([recipe], [f"tracking.uri={uri}"])
    assert PLANTED not in str(caught.value)


def test_credentials_of_the_environment_are_in_no_file_and_no_message(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PLANTED}@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PLANTED)
    reporter = Silent()
    result = run(load([recipe], [*FEW, "tracking={timeout_s: 1}"]), out=tmp_path / "run", reporter=reporter)
    said = [*reporter.notes, str(result)]
    assert "http://***@127.0.0.1:1" in str(tracked(result).problem)
    files = [file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not any(PLANTED in text for text in said)
    assert not any(PLANTED.encode() in content for content in files)


class Guarded(runs_server.Handler):
    """A server behind a login, which repeats what it refuses."""

    def parse_request(self) -> bool:
        """Look at who asks."""
        known = super().parse_request()
        shown = self.headers["Authorization"] if known else ""
        if not known or shown in (f"Bearer {PLANTED}", f"Basic {b64encode(f'me:{PLANTED}'.encode()).decode()}"):
            return known
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send_error(401, explain=f"{shown} of {self.headers}")
        return False


@pytest.mark.parametrize(
    "login",
    [{"MLFLOW_TRACKING_TOKEN": PLANTED}, {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": PLANTED}],
)
def test_a_server_behind_a_login_takes_a_run_and_what_it_repeats_of_a_refused_login_is_not_shown(
    login: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guarded, "runs", runs_server.Runs(tmp_path), raising=False)
    with closing(Guarded.runs.file), ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        store = MlflowStore(uri, "wmtp", artifacts="", timeout_s=5, upload_timeout_s=5)
        for name, value in login.items():
            monkeypatch.setenv(name, value)
        store.log(store.open(RunCard("key", "name"), None), [Point("train/loss", 1.0, 1, 1)])
        for name in login:
            monkeypatch.setenv(name, f"{PLANTED}-old")
        with pytest.raises(TrackingError, match="401") as told:
            store.open(RunCard("other", "name"), None)
        server.shutdown()
    assert [len(points) for points in Guarded.runs.points.values()] == [1]
    assert PLANTED not in str(told.value)


@pytest.mark.parametrize("uri", ["file:./mlruns", "mlruns", "sqlite://", "sqlite:///a?mode=ro"])
def test_what_is_no_store_is_refused_with_the_way_out(uri: str, recipe: Path) -> None:
    with pytest.raises(ConfigError, match="sqlite:///FILE"):
        load([recipe], [f"tracking.uri='{uri}'"])


def test_a_run_without_tracking_is_synced_to_a_store_that_is_named_later(
    recipe: Path, database: Path, wmtp_command: Callable[..., Any]
) -> None:
    folder = database.parent / "run"
    run(load([recipe], FEW), out=folder)
    assert wmtp_command("track", "sync", folder)[0] == 2
    code, out, _ = wmtp_command("track", "register", folder, f"tracking.uri=sqlite:///{database}", "--json")
    assert (code, json.loads(out)["model"]["version"]) == (0, "1")
    code, out, _ = wmtp_command("track", "sync", folder, f"tracking.uri=sqlite:///{database}", "--json")
    assert code == 0
    run_id = json.loads(out)["run_id"]
    assert points_in(database, run_id) == points_logged(folder)
    assert client(database).get_run(run_id).info.status == "FINISHED"
