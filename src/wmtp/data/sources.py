"""From a data file to records, row by row, whatever the file's kind.

`containers` takes rows from bytes, `kinds` makes records of rows; here official splits are kept apart, bad rows are
told, and nothing is left out without being counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wmtp.data.containers import rows
from wmtp.data.kinds import SPLITS, Found, Problems, read_row
from wmtp.data.records import BadRow, Record
from wmtp.errors import DataError
from wmtp.storage import Place
from wmtp.wording import counted


@dataclass
class SourceReport:
    """What reading a source left out. Nothing is left out without a line here."""

    path: str
    rows: int = 0
    kept: int = 0
    other_splits: Counter[str] = field(default_factory=Counter)
    """Rows of official splits that were not asked for."""
    bad: list[str] = field(default_factory=list)
    """One message per bad row (at most 20 are kept)."""
    num_bad: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """What good rows hold beside their records, by reason."""
    at: int = 0
    """The row that is read: its line in JSON Lines."""
    skip: str = ""
    """What its user sets to leave bad rows out, for messages; empty where nothing does."""

    def bad_row(self, problem: object, on_bad_row: str) -> None:
        """Count the row that is read as a bad one.

        Raises:
            DataError: `on_bad_row` is `error`; with file and row.
        """
        message = f"{self.path}:{self.at}: {problem}"
        if on_bad_row == "error":
            way = f"; or {self.skip} leaves such rows out, counted" if self.skip else ""
            raise DataError(f"{message}\n(mend the row{way})")
        self.num_bad += 1
        self.bad = [*self.bad, message][:20]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, for report files."""
        return {
            "path": self.path,
            "rows": self.rows,
            "records": self.kept,
            "other_split": self.other_splits.total(),
            "dropped": dict(self.dropped.most_common()),
            "bad_rows": self.num_bad,
            "bad_rows_examples": self.bad,
        }

    def summary(self) -> str:
        """One line for people."""
        text = f"{self.path}: {counted(self.kept, 'record')} of {counted(self.rows, 'row')}"
        if self.other_splits:
            counts = ", ".join(f"{name} {count:,}" for name, count in self.other_splits.items())
            text += f"; {self.other_splits.total():,} of another split ({counts})"
        for reason, count in self.dropped.most_common():
            text += f"; {count:,} dropped: {reason}"
        if self.num_bad:
            text += f"; {counted(self.num_bad, 'bad row')} skipped, the first: {self.bad[0]}"
        return text


def read_records(
    path: Place,
    *,
    role: str = "train",
    split: str | None = None,
    fields: Mapping[Any, str] | None = None,
    on_bad_row: str = "error",
    allow_evaluation: bool = False,
    option: str | None = None,
) -> tuple[list[Record], SourceReport]:
    """All records of a file, as `stream_records` gives them, and what was left out."""
    report = SourceReport(str(path))
    records = stream_records(
        path, report, role=role, split=split, fields=fields, on_bad_row=on_bad_row, allow_evaluation=allow_evaluation,
        option=option,
    )  # fmt: skip
    return list(records), report


def stream_records(
    path: Place,
    report: SourceReport,
    *,
    role: str | None = None,
    split: str | None = None,
    fields: Mapping[Any, str] | None = None,
    problems: Problems | None = None,
    on_bad_row: str = "error",
    allow_evaluation: bool = False,
    option: str | None = None,
) -> Iterator[Record]:
    """The records of a file, one after another.

    Args:
        report: is filled on the way.
        role: what the records are for, `train`, `validation` or `test`: the split taken where the data set has official
            ones. None takes the rows of all splits.
        split: another official split than the role's own; an error where the data set has none.
        fields: our field name -> the row's; the row's other fields are then ignored.
        problems: what completes records of their problem id, see `wmtp.data.problem_files`.
        on_bad_row: `error` stops at the first bad row, `skip` counts it.
        allow_evaluation: without it, training on an official test split, and so on all of HumanEval, is refused.
        option: what its user chooses the split with, for messages; default `data.ROLE.split`, without a role `--split`.

    Raises:
        DataError: the file cannot be read, has no usable row, or a row is bad; with file and row.
    """
    option = option or (f"data.{role}.split" if role else "--split")
    for report.at, decode in rows(path):
        report.rows += 1
        try:
            found = read_row(decode(), fields, problems)
            _check_split(found, split, role, allow_evaluation, option)
        except BadRow as problem:
            report.bad_row(problem, on_bad_row)
            continue
        if found.split is not None and (split or role or found.split) != found.split:
            report.other_splits[found.split] += 1
            continue
        report.dropped.update(found.dropped)
        report.kept += len(found.records)
        yield from found.records
    if not report.kept and report.other_splits:
        names = " or ".join(report.other_splits)
        raise DataError(
            f"no usable rows: {report.summary()}; "
            + ("expected rows of its test split" if role == "test" else f"set {option} to a split it has: {names}")
        )
    if not report.kept:
        raise DataError(
            f"no usable rows: {report.summary()}; expected rows with prompt and response, or those of a known data set"
        )


def _check_split(found: Found, split: str | None, role: str | None, allow_evaluation: bool, option: str) -> None:
    known = SPLITS.get(found.data_set, ())
    if split is not None and not known:
        raise BadRow(f"{option} is {split!r}, but this row's data set has no official splits; leave it out")
    if split is not None and split not in known:
        raise BadRow(f"this is a row of {found.data_set}: {option} must be one of {', '.join(known)}, got {split!r}")
    no_other = split is None and known == ("test",)
    if role == "train" and not allow_evaluation and (split == "test" or no_other):
        raise BadRow(
            f"{found.data_set}'s test split is for evaluation{', and it has no other' if no_other else ''}; training "
            "on it would spoil every later score. To do it all the same, set data.train.split=test "
            "data.allow_evaluation_data=true"
        )
