"""`wmtp track`: what a run could not send, sent later."""

from __future__ import annotations

from collections.abc import Sequence

from wmtp.config import Config, load
from wmtp.errors import UsageError
from wmtp.run_tracking import FILES, Tracked, card_of, check_installed, register, store_of
from wmtp.runfolder import only_trainer
from wmtp.storage import Place
from wmtp.tracking.delivered import JOURNAL, Delivered, delivered_to
from wmtp.tracking.mlflow_store import MlflowStore
from wmtp.tracking.points import Tail
from wmtp.tracking.sink import deliver
from wmtp.tracking.store import Ended, RunCard


def sync(folder: Place, overrides: Sequence[str] = ()) -> tuple[Tracked, int]:
    """Send every log point that the store has not, once; the run's config and end too. How many lines that were.

    A run that ended without a word (a kill, a power cut) and has no final model ends as FAILED.

    Raises:
        UsageError: no such run, no store, or the run is still going on.
        TrackingError: the store did not take everything; what it took is not sent again.
    """
    config, store, delivered = _of(folder, overrides)
    with only_trainer(folder):
        card = card_of(config, folder)
        run_id = _opened(store, card, delivered, folder)
        before = delivered.lines
        deliver(store, run_id, delivered, Tail(folder / JOURNAL, before), lambda: delivered.write(folder))
        store.attach(run_id, [folder / name for name in FILES])
    return Tracked(store.uri, run_id, delivered.model, None), delivered.lines - before


def register_later(folder: Place, overrides: Sequence[str] = ()) -> Tracked:
    """Register the final model of a finished run, if the registry does not have it.

    Raises:
        UsageError: no such run, no store, no final model, or the run is still going on.
        TrackingError: the store did not take it.
    """
    config, store, delivered = _of(folder, overrides)
    with only_trainer(folder):
        card = card_of(config, folder)
        run_id = _opened(store, card, delivered, folder)
        delivered.model = register(config, folder, store, run_id, card.key)
        delivered.write(folder)
    return Tracked(store.uri, run_id, delivered.model, None)


def _of(folder: Place, overrides: Sequence[str]) -> tuple[Config, MlflowStore, Delivered]:
    if not (folder / "config.yaml").is_file() or not (folder / "provenance.json").is_file():
        raise UsageError(f"{folder} is no run folder: config.yaml or provenance.json is missing; name another")
    config = load([folder / "config.yaml"], list(overrides))
    if config.tracking is None:
        raise UsageError(
            f"the run in {folder} was not tracked: name a store, for example `wmtp track sync {folder} "
            "tracking.uri=sqlite:///runs/mlflow.db`"
        )
    check_installed(config)
    store = store_of(config, config.tracking)
    return config, store, delivered_to(folder, store.uri, store.experiment)


def _opened(store: MlflowStore, card: RunCard, delivered: Delivered, folder: Place) -> str:
    """The run in the store, which is told first how it ended: whatever fails later, it does not seem to go on."""
    run_id = delivered.run_id = store.open(card, delivered.run_id)
    delivered.write(folder)
    store.end(run_id, _ended(delivered, folder))
    return run_id


def _ended(delivered: Delivered, folder: Place) -> Ended:
    """How the run ended; from what it left, if it could not say or was not tracked."""
    return delivered.ended or ("FINISHED" if (folder / "final").is_dir() else "FAILED")
