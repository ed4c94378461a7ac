"""A store of runs in MLflow: a database, or a server. The one module that imports mlflow, and only when it is used.

MLflow takes its time-outs from the environment, where they are set here: its own let one call block for minutes. Its
telemetry is off. Whatever mlflow raises becomes a `TrackingError` without credentials in it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from wmtp.errors import TrackingError, UsageError
from wmtp.redaction import HIDDEN, without_credentials
from wmtp.storage import Place
from wmtp.tracking.points import Point
from wmtp.tracking.store import Ended, ModelVersion, RunCard

KEY_TAG = "wmtp.run_id"
"""Of a run: `run_id` of its provenance."""
MODEL_FOLDER = "model"
"""Where a run's artifacts have its final model, if they have it."""
MAX_METRICS, MAX_PARAMS = 1000, 100
"""Of one request; MLflow's own bounds."""
MAX_NAME_LENGTH, MAX_PARAM_LENGTH = 250, 6000
RETRIES = 1

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(RETRIES),
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Environment variables whose values are in no message."""

T = TypeVar("T")

MISSING = "tracking needs mlflow: pip install 'wmtp[mlflow]', or leave `tracking` out of the config"


class MlflowStore:
    """Runs of one experiment.

    Args:
        uri: `sqlite:///FILE`, another database, or `http(s)://` of a server.
        artifacts: where a database keeps artifacts of an experiment that is made here; a server decides itself.
        timeout_s: of one request, which is made twice at most.
        upload_timeout_s: the same, of a file of a model.
    """

    def __init__(self, uri: str, experiment: str, *, artifacts: str, timeout_s: int, upload_timeout_s: int) -> None:
        self.uri, self.experiment = without_credentials(uri), experiment
        self._uri, self._artifacts = uri, artifacts
        self._timeout_s, self._upload_timeout_s = timeout_s, upload_timeout_s
        self._client: Any = None

    @property
    def is_server(self) -> bool:
        """Whether somebody else keeps the files, who cannot read ours."""
        return self._uri.startswith(("http://", "https://"))

    @property
    def file(self) -> Path | None:
        """Of an SQLite database; None of any other store."""
        return Path(urlsplit(self._uri).path[1:]) if self._uri.startswith("sqlite") else None

    def open(self, card: RunCard, run_id: str | None) -> str:
        """The run of this card, made if there is none; it is running again. Its id.

        Raises:
            TrackingError: the store does not answer, or no longer has the run `run_id`.
        """
        with self._told("open the run"):
            client = self._connected()
            run = client.get_run(run_id) if run_id is not None else self._found(card) or self._made(card)
            known, run_id = run.data.params, str(run.info.run_id)
            new = {_name(name): value for name, value in card.params.items() if _name(name) not in known}
            for some in _in_parts(list(new.items()), MAX_PARAMS):
                client.log_batch(run_id, params=[_param(name, value) for name, value in some])
            for name, value in card.tags.items():
                client.set_tag(run_id, _name(name), value)
            client.update_run(run_id, status="RUNNING")
            return run_id

    def attach(self, run_id: str, files: Sequence[Place]) -> None:
        """Copy small files into the run's artifacts."""
        with self._told("store the files of the run"):
            for file in files:
                self._connected().log_text(run_id, file.read_text(), file.name)

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Add points; a database keeps those once that are equal in name, value, step and time."""
        from mlflow.entities import Metric

        with self._told("log metrics"):
            for some in _in_parts(points, MAX_METRICS):
                metrics = [Metric(_name(point.name), point.value, point.at_ms, point.step) for point in some]
                self._connected().log_batch(run_id, metrics=metrics)

    def end(self, run_id: str, how: Ended) -> None:
        """The run is over."""
        with self._told("end the run"):
            self._connected().set_terminated(run_id, how)

    def register(self, run_id: str, name: str, model: Place, tags: Mapping[str, str]) -> ModelVersion:
        """The version of `name` that is this run's, made if there is none.

        The model is registered where it lies; only a server that cannot see this machine's disk is given a copy. Where
        there are several, since a registry did what it was asked after nobody waited for its answer any more, the
        oldest stays.
        """
        with self._told(f"register {name}", self._upload_timeout_s):
            there = self._versions(name, run_id)
            if not there:
                made = self._version(name, self._placed(run_id, model), run_id, tags)
                there = self._versions(name, run_id) or [made]
            version, *others = there
            for other in others:
                if str(other.source) == str(version.source):  # another one is what somebody else registered
                    self._removed(name, other.version)
            copied = self.is_server and isinstance(model, Path)
            stored = sum(file.stat().st_size for file in model.iterdir() if file.is_file()) if copied else 0
            return ModelVersion(name, str(version.version), str(version.source), stored)

    def probe(self) -> str:
        """Ask for runs and for registered models, change nothing; what answered.

        Raises:
            TrackingError: it does not answer.
        """
        with self._told("list experiments and models"):
            client = self._connected()
            known = client.get_experiment_by_name(self.experiment)
            client.search_registered_models(max_results=1)
        return f"experiment {self.experiment!r} {'is there' if known else 'will be made'}"

    def _connected(self) -> Any:
        if self._client is None:
            os.environ.update(ENVIRONMENT)
            try:
                from mlflow import MlflowClient
            except ImportError as problem:
                raise UsageError(MISSING) from problem
            logging.getLogger("alembic").setLevel(logging.WARNING)
            self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._client

    def _found(self, card: RunCard) -> Any:
        """A run that was made, but whose id was not written down: the process ended in between."""
        runs = self._connected().search_runs(
            [self._experiment_id()], filter_string=f"tags.`{KEY_TAG}` = '{card.key}'", max_results=1
        )
        return runs[0] if runs else None

    def _made(self, card: RunCard) -> Any:
        return self._connected().create_run(self._experiment_id(), run_name=card.name, tags={KEY_TAG: card.key})

    def _experiment_id(self) -> str:
        client = self._connected()
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            return str(client.create_experiment(self.experiment, None if self.is_server else self._artifacts))
        return str(found.experiment_id)

    def _placed(self, run_id: str, model: Place) -> str:
        """Where the registry finds the model's files."""
        if not isinstance(model, Path):
            return str(model)
        if not self.is_server:
            return model.absolute().as_uri()
        self._connected().log_artifacts(run_id, str(model), MODEL_FOLDER)
        return f"{self._connected().get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"

    def _versions(self, name: str, run_id: str) -> list[Any]:
        """Those of a run, the oldest first."""
        found = self._connected().search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        return sorted(found, key=lambda version: int(version.version))

    def _removed(self, name: str, version: str) -> None:
        """Take a version away, which may be gone already, and is kept where somebody has given it an alias."""
        from mlflow.exceptions import MlflowException

        client = self._connected()
        try:
            if not client.get_model_version(name, version).aliases:
                client.delete_model_version(name, version)
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _version(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> Any:
        from mlflow.exceptions import MlflowException

        client = self._connected()
        try:
            client.create_registered_model(name)
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return client.create_model_version(
            name, source, run_id=run_id, tags=dict(tags), await_creation_for=self._upload_timeout_s
        )

    @contextmanager
    def _told(self, action: str, timeout_s: int | None = None) -> Iterator[None]:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_s or self._timeout_s)
        try:
            yield
        except (TrackingError, UsageError):
            raise
        except Exception as problem:  # noqa: BLE001 mlflow, its drivers and its HTTP client have no common base class
            raise TrackingError(f"{self.uri}: cannot {action}: {self._safe(problem)}") from None

    def _safe(self, problem: Exception) -> str:
        """What it says, on one line, without secrets."""
        text = " ".join(f"{type(problem).__name__}: {problem}".split())
        for secret in (urlsplit(self._uri).password, *(os.environ.get(name) for name in SECRETS)):
            text = text.replace(secret, HIDDEN) if secret else text
        return without_credentials(text)[:500]


def _name(name: str) -> str:
    """As MLflow allows it, which wants a plain relative path: what it does not would have a whole batch refused, again
    and again. A name that loses more than characters ends with a hash of itself, so that no two become one."""
    parts = re.sub(r"[^\w.\- :/]", "_", name).split("/")
    path = re.sub(r"^\.\.", "__", "/".join(part for part in parts if part not in ("", ".", "..")))
    if path and len(path) <= MAX_NAME_LENGTH and path.count("/") == name.count("/"):
        return path
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{path[: MAX_NAME_LENGTH - 9].rstrip('/')}_{digest}"


def _param(name: str, value: str) -> Any:
    from mlflow.entities import Param

    return Param(name, value[:MAX_PARAM_LENGTH])


def _in_parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    return (items[start : start + most] for start in range(0, len(items), most))
