"""From the files of data sets to one file of records: read, checked, without duplicates and without the benchmarks."""

from __future__ import annotations

import hashlib
import json
import statistics
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from wmtp.curation.duplicates import ExactDuplicates, NearDuplicates
from wmtp.curation.overlap import Overlap, benchmark_records
from wmtp.curation.writing import Made, Report, RowFile, source_sha256
from wmtp.data.containers import MAX_LINE_BYTES
from wmtp.data.problem_files import read_problems
from wmtp.data.records import Record
from wmtp.data.sources import SourceReport, stream_records
from wmtp.errors import UsageError
from wmtp.storage import Place

LONGEST = MAX_LINE_BYTES // 2
"""Bytes of a record as JSON: what is found out about it later must fit beside it in a line that can be read."""
_EVERY = 1000
"""Records between two lines of progress."""


@dataclass(frozen=True)
class Plan:
    """What becomes of the rows of the sources.

    Attributes:
        fields: Our field name -> the sources', for rows of an unknown kind.
        split: Only this official split; None takes all rows.
        problems: A file with the statements and tests of the sources' problems, see `wmtp.data.problem_files`.
        against: Benchmarks; records that share words with their problems are left out, see `wmtp.curation.overlap`.
        near: Leave out near duplicates from this similarity on, see `wmtp.curation.duplicates`; None keeps them.
        max_solutions: Responses to a problem of each verdict, the first ones; None keeps all.
        max_cases: Cases of each record, the first ones; None keeps all.
        on_bad_row: `error` stops at the first bad row, `skip` counts it.

    Raises:
        UsageError: a number is below 1, or a word is none of those above.
    """

    fields: Mapping[str, str] | None = None
    split: str | None = None
    problems: Place | None = None
    against: Sequence[Place] = ()
    near: float | None = None
    max_solutions: int | None = None
    max_cases: int | None = None
    on_bad_row: str = "error"

    def __post_init__(self) -> None:
        for name in ("max_solutions", "max_cases"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if self.on_bad_row not in ("error", "skip"):
            raise UsageError(f"on_bad_row must be error or skip, got {self.on_bad_row!r}")

    def about(self, sources: Sequence[Place]) -> dict[str, Any]:
        """What a file is made from, for `RowFile`; rows before a bad one are the same, whatever is done about it."""
        return {
            "sources_sha256": [source_sha256(path) for path in sources],
            "fields": dict(self.fields or {}),
            "split": self.split,
            "problems_sha256": source_sha256(self.problems) if self.problems else None,
            "against_sha256": [source_sha256(path) for path in self.against],
            "near": self.near,
            "max_solutions": self.max_solutions,
            "max_cases": self.max_cases,
        }


def prepare(sources: Sequence[Place], out: Path, plan: Plan, report: Report = lambda text: None) -> dict[str, Any]:
    """Write the records of `sources`, in their order, and a report beside them.

    Rows are read one by one. Held are a hash per record (exact duplicates), one per problem, its verdicts' counts, and
    what `plan.near` and `plan.against` need, see there. An interrupted call goes on where it was: sources are read
    again from their start, and what is written is not written again.

    Returns:
        The report: what each source gave and lost, what was left out of that and why, counts and lengths.

    Raises:
        DataError: a file cannot be read, a row is bad, or a problem has two prompts; with file and row.
        UsageError: `out` is there, or was begun from something else.
        WmtpError: the disk does not take it.
    """
    file = RowFile(out, plan.about(sources))
    reports = [SourceReport(str(path), skip="--on-bad-row skip") for path in sources]
    sieve = _Sieve(plan)
    problems = read_problems(plan.problems) if plan.problems else None

    def made() -> Iterator[Made]:
        for path, source in zip(sources, reports, strict=True):
            for record in stream_records(
                path, source, fields=plan.fields, split=plan.split, problems=problems, on_bad_row=plan.on_bad_row
            ):
                problem = sieve.other_prompt(record)
                if problem:
                    source.kept -= 1
                    source.bad_row(problem, plan.on_bad_row)
                    continue
                if source.kept % _EVERY == 0:
                    report(f"{source.path}: {source.kept:,} records")
                yield sieve.made(record)

    file.extend(islice(made(), file.done, None))
    return file.finish(lambda rows: {"sources": [one.to_dict() for one in reports], **sieve.summary, **_summary(rows)})


class _Sieve:
    """What a record may be, after those before it."""

    def __init__(self, plan: Plan) -> None:
        self._overlap = Overlap(benchmark_records(plan.against))
        self._exact = ExactDuplicates()
        self._near = NearDuplicates(plan.near) if plan.near is not None else None
        self._max_solutions, self._max_cases = plan.max_solutions, plan.max_cases
        self._prompts: dict[str, bytes] = {}
        self._solutions: Counter[tuple[str, bool | None]] = Counter()
        self.summary = {"cases_left_out": 0}

    def other_prompt(self, record: Record) -> str:
        """What is wrong with a record of a problem that had another prompt before."""
        prompt = hashlib.blake2b(record.prompt.encode(), digest_size=8).digest()
        if self._prompts.setdefault(record.problem_id, prompt) == prompt:
            return ""
        return f"the problem {record.problem_id!r:.60} has another prompt than before; is its id used twice?"

    def made(self, record: Record) -> Made:
        """The record as it is written, or why it is not."""
        short = replace(record, cases=record.cases[: self._max_cases])
        row = short.row()
        reason, other = self._refused(record, row)
        if reason:
            return Made(dropped=reason, name=f"{record.problem_id:.60}{f' as {other:.60}' if other else ''}")
        self.summary["cases_left_out"] += len(record.cases) - len(short.cases)
        return Made([row])

    def _refused(self, record: Record, row: Mapping[str, Any]) -> tuple[str, str | None]:
        """Why the record is left out, if it is, and because of which other problem.

        What is left out by itself comes first, so that nothing is the duplicate of it.
        """
        shown = self._overlap.find(record)
        if shown is not None:
            return "shares an n-gram of words with a benchmark", shown
        if len(json.dumps(row, ensure_ascii=False).encode()) > LONGEST:
            return f"longer than {LONGEST:,} bytes", None
        key = (record.problem_id, record.is_correct)
        if self._max_solutions is not None and self._solutions[key] == self._max_solutions:
            return f"more than {self._max_solutions} responses of one verdict to its problem", None
        reason = self._exact.reason(record)
        if reason:
            return reason, None
        like = self._near.find(record) if self._near else None
        if like is not None:
            return "near duplicate", like
        self._solutions[key] += 1
        return "", None


def _summary(rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    verdicts: dict[str, set[bool | None]] = {}
    counts: Counter[str] = Counter()
    lengths = {"prompt": array("Q"), "response": array("Q")}
    for row in rows:
        is_correct = row.get("is_correct")
        verdicts.setdefault(row["problem_id"], set()).add(is_correct)
        counts["correct" if is_correct else "unlabelled" if is_correct is None else "incorrect"] += 1
        counts["with tests"] += bool(row.get("tests") or row.get("cases"))
        for name, found in lengths.items():
            found.append(len(row[name]))
    return {
        "problems": len(verdicts),
        "problems_with_both_verdicts": sum({True, False} <= found for found in verdicts.values()),
        "labels": {name: counts[name] for name in ("correct", "incorrect", "unlabelled")},
        "with_tests": counts["with tests"],
        "characters": {name: _quantiles(found) for name, found in lengths.items()},
    }


def _quantiles(found: Sequence[int]) -> dict[str, float]:
    if not found:
        return {}
    ordered = sorted(found)
    names = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {"mean": statistics.fmean(ordered)} | {
        name: ordered[round(share * (len(ordered) - 1))] for name, share in names.items()
    }
