"""`scores.json`: what stored scores are scores of, and the refusal of any that are not what a run asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from wmtp.errors import DataError, first_line
from wmtp.storage import Place

CARD = "scores.json"
CODE = 1
"""Version of the code that scores: raised whenever the same model would give the same row other scores."""
Key = Mapping[str, str | int]
"""What a score depends on beside the row and the model, by the name that a user knows it by."""


class ColumnCard(BaseModel):
    """One column: which model it comes from, and what was asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str
    """Fingerprint of the model folder."""
    source: str
    """Where that was, for messages."""
    alignment: Literal["", "next", "matched"] = ""
    """Of a reference."""
    width: int = 1
    """Scores per token, or row."""
    of: Literal["token", "row"] = "token"
    """What a score is of: a reward is of the row."""


class Card(BaseModel):
    """The whole of `scores.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = 1
    key: dict[str, str | int]
    data: str
    """sha256 over the keys of the rows, sorted."""
    columns: dict[str, ColumnCard]
    dtype: Literal["float32", "float16"]
    batch_tokens: int
    """Positions of a scoring batch: sums depend on its shape in the last bit."""
    rows: int
    tokens: int
    """Tokens that have a score; rows, where scores are of rows."""
    sha256: dict[str, str] = {}
    """Of the other files; empty while they are being made."""


def read_card(folder: Place) -> Card:
    """The card of a folder of scores.

    Raises:
        DataError: none is there, or it is damaged.
    """
    path = folder / CARD
    try:
        return Card.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError as problem:
        raise DataError(
            f"no scores in {folder}; make them with: wmtp score --recipe RECIPE --out {folder}"
        ) from problem
    except (OSError, ValueError, RecursionError, ValidationError) as problem:
        raise DataError(
            f"{path} is no card of scores that this version of wmtp understands ({first_line(problem)}); {_AGAIN}"
        ) from problem


def check_key(folder: Place, card: Card, wanted: Key) -> None:
    """Raise `DataError` naming the first key whose value is another than the run's."""
    for name, value in wanted.items():
        if card.key.get(name) != value:
            raise _other(folder, name, card.key.get(name), value)


def check_column(folder: Place, card: Card, name: str, wanted: ColumnCard) -> None:
    """Raise `DataError` unless the folder has this column, from this model, with at least so many scores a token."""
    column = card.columns.get(name)
    if column is None:
        raise DataError(f"{folder} has scores {', '.join(card.columns)}, but the run needs {name}; {_AGAIN}")
    if column.model != wanted.model:
        raise _other(folder, f"model of {name}", f"{column.source} ({column.model[:12]})", _named(wanted))
    if column.alignment != wanted.alignment:
        raise _other(folder, "alignment", column.alignment, wanted.alignment)
    if column.width < wanted.width:
        raise _other(folder, "model.heads.num_heads (alignment 'matched')", column.width, wanted.width)


_AGAIN = "score again with: wmtp score --recipe RECIPE --out ANOTHER_FOLDER"


def _named(column: ColumnCard) -> str:
    return f"{column.source} ({column.model[:12]})"


def _other(folder: Place, name: str, theirs: object, ours: object) -> DataError:
    return DataError(
        f"the scores in {folder} were made with another {name}: {theirs!r}, the run has {ours!r}; {_AGAIN}"
    )
