"""The tracking of one run: which store, what it is told, what is said of it at the end.

Tracking may fail in any way and at any time: that costs no step, no checkpoint and no log point. With
`tracking.required` a run fails where its store does not answer before step 1, or has not everything at the end.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from wmtp import provenance
from wmtp.config import Config, TrackingConfig, WhereConfig
from wmtp.errors import Interrupted, TrackingError, UsageError, WmtpError
from wmtp.outcome import LEFT_ALONE
from wmtp.redaction import HIDDEN, looks_secret
from wmtp.storage import ObjectPath, Place, place, write_atomic
from wmtp.tracking.delivered import JOURNAL, cut_back, delivered_to
from wmtp.tracking.journal import cut
from wmtp.tracking.mlflow_store import MISSING, MlflowStore
from wmtp.tracking.sink import Sink
from wmtp.tracking.store import Ended, ModelVersion, RunCard, Store

FILES = ("config.yaml", "provenance.json")
"""Of a run folder, copied into the store."""
LOADER = "wmtp.mlflow_flavor"
"""What `mlflow.pyfunc.load_model` imports to load a model of ours."""
LOOK_S = 0.1
"""Between two looks for a signal while a model is registered."""


@dataclass(frozen=True)
class Tracked:
    """What the store has of a finished run."""

    uri: str
    run_id: str | None
    model: ModelVersion | None
    problem: str | None
    """What it has not, and the command that mends it; None if it has everything."""


def check_installed(config: WhereConfig) -> None:
    """Raise `UsageError` if the config asks for tracking and what it needs is not installed."""
    if config.tracking is None:
        return
    needed = ["mlflow"] if store_of(config, config.tracking).is_server else ["mlflow", "sqlalchemy", "alembic"]
    if not all(find_spec(name) for name in needed):
        raise UsageError(MISSING)


def store_of(config: WhereConfig, tracking: TrackingConfig) -> MlflowStore:
    """Where the config says the run is tracked.

    Raises:
        UsageError: it does not say, and the runs are in an object store.
    """
    runs = place(config.runs)
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        if isinstance(runs, ObjectPath):
            raise UsageError(f"no database can lie in {runs}: give tracking.uri, or MLFLOW_TRACKING_URI")
        uri = f"sqlite:///{runs.absolute()}/mlflow.db"
    return MlflowStore(
        uri,
        tracking.experiment,
        artifacts=f"{runs}/mlartifacts",
        timeout_s=tracking.timeout_s,
        upload_timeout_s=tracking.upload_timeout_s,
    )


def card_of(config: Config, folder: Place) -> RunCard:
    """What a store is told of a run, from its config and `provenance.json`. Values under secret names are hidden.

    Raises:
        CheckpointError: `provenance.json` is damaged.
    """
    facts = provenance.read(folder / "provenance.json")
    tags = {"wmtp.run_id": str(facts["run_id"]), "wmtp.arm": config.arm}
    start = (facts["starts"] or [{}])[-1]
    for tag, section, name in (("wmtp.version", "versions", "wmtp"), ("mlflow.source.git.commit", "git", "commit")):
        found = (start.get(section) or {}).get(name)
        if found is not None:
            tags[tag] = str(found)
    for tag in config.tags:
        name, _, value = tag.partition("=")
        tags[name] = value or "true"
    return RunCard(str(facts["run_id"]), config.name, dict(_leaves(config.model_dump(mode="json"))), tags)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values; what is not set has none."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif tree is not None:
        yield prefix, HIDDEN if looks_secret(prefix) else tree if isinstance(tree, str) else json.dumps(tree)


def model_name(config: Config) -> str:
    """Of the registered model that a run's final model is a version of."""
    return "wmtp_critic_value_head" if config.arm == "critic" else f"wmtp_{config.arm}"


def register(config: Config, folder: Place, store: Store, run_id: str, key: str) -> ModelVersion:
    """One version of the final model, registered where it lies if the store can see it there.

    Raises:
        TrackingError: the store did not take it.
        WmtpError: there is no final model.
    """
    final = folder / "final"
    if not (final / "config.json").is_file():
        raise UsageError(f"{folder} has no final/ to register; the run must be done, with checkpoint.save_final")
    write_atomic(final / "MLmodel", f'flavors:\n  python_function:\n    loader_module: {LOADER}\nrun_id: "{run_id}"\n')
    return store.register(run_id, model_name(config), final, {"wmtp.run_id": key, "wmtp.arm": config.arm})


class Tracking:
    """Of one run, from before its first step to after its last, on the one rank that writes the journal.

    Args:
        config: with or without tracking; without, only what an earlier start delivered is kept right.
        note: is told, before step 1, of a store that does not answer.
    """

    def __init__(self, config: Config, folder: Place, note: Callable[[str], None]) -> None:
        self.config, self.folder, self.note = config, folder, note
        self._store: Store | None = None
        self._sink: Sink | None = None
        self._refused: str | None = None

    def start(self, from_step: int) -> None:
        """Begin to copy the journal, which goes on after step `from_step`.

        Raises:
            TrackingError: the store is required and does not answer.
        """
        tracking = self.config.tracking
        self._store = None if tracking is None else store_of(self.config, tracking)
        try:
            cut_back(self.folder, from_step)
            cut(self.folder / JOURNAL, from_step)  # before anything reads it: what is repeated is not sent twice
            if tracking is None or self._store is None:
                return
            delivered = delivered_to(self.folder, self._store.uri, self._store.experiment)
            card, files = card_of(self.config, self.folder), [self.folder / name for name in FILES]
        except WmtpError as problem:
            if tracking is not None and tracking.required:
                raise
            self._refused = str(problem)
            self.note(f"tracking: {problem}; training goes on without it")
            return
        self._sink = Sink(
            self.folder, self._store, card, delivered, files, flush_s=tracking.flush_s, end_s=tracking.end_s
        )
        self._sink.start()
        if self._sink.problem is None:
            return
        if tracking.required:
            why = self._sink.problem
            self._sink.close("FAILED")
            raise TrackingError(f"tracking.required, but {why}")
        self.note(f"tracking: {self._sink.problem}; training goes on, and it is tried again")

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sink is not None:
            self._sink.close(_ended(error))

    def finish(self, stopped: Callable[[], int | None]) -> Tracked | None:
        """Register the final model of a run that is done; what the store has now.

        Args:
            stopped: the signal that asked the run to end, if one did.

        Raises:
            Interrupted: one did, before the store had said that the model is registered.
            TrackingError: the store is required and has not everything.
        """
        tracking = self.config.tracking
        if tracking is None or self._store is None:
            return None
        if self._sink is None:
            return None if self._refused is None else Tracked(self._store.uri, None, None, self._refused)
        delivered, problems = self._sink.delivered, []
        if self._sink.problem is not None:
            problems.append(f"{self._sink.problem}; `wmtp track sync {self.folder}` sends what is missing")
        if self.config.checkpoint.save_final:
            try:
                if delivered.run_id is None:
                    raise TrackingError("the store has no run to register it with")
                delivered.model = self._registered(self._store, delivered.run_id, self._sink.card.key, stopped)
                delivered.write(self.folder)
            except Interrupted as stop:
                raise Interrupted("; ".join([str(stop), *problems]), stop.exit_code - 128) from None
            except WmtpError as problem:
                problems.append(
                    f"the final model is not registered: {problem}; `wmtp track register {self.folder}` does that"
                )
        missing = "; ".join(problems) or None
        if missing is not None and tracking.required:
            raise TrackingError(f"the run is done, but tracking is required and not complete: {missing}")
        return Tracked(self._store.uri, delivered.run_id, delivered.model, missing)

    def _registered(self, store: Store, run_id: str, key: str, stopped: Callable[[], int | None]) -> ModelVersion:
        """The model's version, from a thread: a registry may take minutes, and a stop may not.

        The thread is left alone after a signal. What it still does is nothing that `wmtp track register` does not find.
        """
        done: Future[ModelVersion] = Future()

        def work() -> None:
            try:
                done.set_result(register(self.config, self.folder, store, run_id, key))
            except BaseException as problem:  # noqa: BLE001 it is raised where the thread is waited for
                done.set_exception(problem)

        received = stopped()
        if not received:
            threading.Thread(target=work, name=LEFT_ALONE, daemon=True).start()
        while not received and not done.done():
            wait([done], LOOK_S)
            received = stopped()
        if not received or done.done():
            return done.result()
        raise Interrupted(
            f"{signal.Signals(received).name}: the run is done, but its final model may not be registered; "
            f"`wmtp track register {self.folder}` finds its version, or makes it",
            received,
        )


def _ended(error: BaseException | None) -> Ended:
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt, SystemExit)) else "FAILED"
