"""What a store of runs must be able to do, and what it is told about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from wmtp.storage import Place
from wmtp.tracking.points import Point

Ended = Literal["FINISHED", "KILLED", "FAILED"]
"""How a run ended: done; stopped by a signal with its state saved; in any other way."""


@dataclass(frozen=True)
class RunCard:
    """What a store knows of a run beside its figures."""

    key: str
    """`run_id` of provenance.json: a store has at most one run with it."""
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelVersion:
    """A registered model."""

    name: str
    version: str
    source: str
    """Where its files are."""
    stored_bytes: int
    """What the store took for it: 0 if it was registered where it lies."""


class Store(Protocol):
    """Somewhere runs are kept. Every method may take as long as its time-outs, and raises `TrackingError`."""

    uri: str
    """For people and for comparing: credentials are left out."""
    experiment: str

    def open(self, card: RunCard, run_id: str | None) -> str:
        """The run of this card, made if there is none; it is running again. Its id in the store."""
        ...

    def attach(self, run_id: str, files: Sequence[Place]) -> None:
        """Copy small files into the store; those that are there are replaced."""
        ...

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Add points; those that are there already, with the same time and value, stay single."""
        ...

    def end(self, run_id: str, how: Ended) -> None:
        """The run is over."""
        ...

    def register(self, run_id: str, name: str, model: Place, tags: Mapping[str, str]) -> ModelVersion:
        """The version of registered model `name` that is this run's, made if there is none."""
        ...
