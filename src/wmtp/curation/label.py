"""Verdicts for records: every response is run against its problem's tests, in the sandbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from wmtp.curation.writing import Made, Report, RowFile, in_order, source_sha256
from wmtp.data.records import Record
from wmtp.data.sources import SourceReport, stream_records
from wmtp.errors import WmtpError
from wmtp.record_tests import check_any, limits_of, tests_of
from wmtp.sandbox import Limits, Requirement, Sandbox, Verdict
from wmtp.storage import Place


def label(
    source: Place,
    out: Path,
    *,
    fields: Mapping[Any, str] | None = None,
    split: str | None = None,
    limits: Limits | None = None,
    require: Requirement = "best",
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Write the records of `source` with `is_correct` as their tests found it, and why, in `about.verdict`.

    A record without tests keeps what it had; a file without any is refused. Where the tests cannot judge any program,
    `is_correct` is left unknown.
    The order is that of the source; an interrupted call goes on where it was.

    Returns:
        The report: counts of statuses, and of verdicts that differ from a label that was there.

    Raises:
        DataError: a row of the source is bad, or none has tests.
        WmtpError: the sandbox failed, which says nothing about the program; what is done is kept.
        SandboxError: the isolation that is required cannot be had.
    """
    limits = limits or Limits()
    about = {
        "source_sha256": source_sha256(source),
        "fields": dict(fields or {}),
        "split": split,
        "limits": asdict(limits),
    }
    check_any(stream_records(source, SourceReport(str(source)), fields=fields, split=split), source)
    file = RowFile(out, about)
    read = SourceReport(str(source))
    records = stream_records(source, read, fields=fields, split=split)
    with Sandbox(require=require, limits=limits) as sandbox:

        def one(record: Record) -> Made:
            tests = tests_of(record)
            if tests is None:
                return Made([record.row()])
            verdict = sandbox.run(record.response, tests, limits_of(record, limits))
            if verdict.status == "sandbox_error":
                raise WmtpError(f"{record.problem_id}: {verdict.reason}. What is done is kept; run it again to go on")
            report(f"{record.problem_id}: {verdict.status}")
            return Made([_judged(record, verdict).row()])

        file.extend(in_order(one, islice(records, file.done, None)))
        isolation = sandbox.isolation.to_dict()
    return file.finish(lambda made: _summary(made) | {"sources": [read.to_dict()], "isolation": isolation})


def _judged(record: Record, verdict: Verdict) -> Record:
    found = {"status": verdict.status, "reason": verdict.reason, "trust": verdict.trust}
    if record.is_correct is not None and verdict.decided and verdict.passed != record.is_correct:
        found["label_before"] = str(record.is_correct)
    return replace(
        record,
        is_correct=verdict.passed if verdict.decided else None,
        about={**record.about, "verdict": found},
    )


def _summary(made: Iterator[dict[str, Any]]) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    weak = 0
    differ: list[str] = []
    for row in made:
        verdict = row.get("about", {}).get("verdict")
        statuses[verdict["status"] if verdict else "no tests"] += 1
        if verdict:
            weak += verdict["trust"] == "weak"
            if "label_before" in verdict:
                differ.append(row["problem_id"])
    return {
        "statuses": dict(statuses.most_common()),
        "weak_trust": weak,
        "verdict_differs_from_label": len(differ),
        "verdict_differs_from_label_examples": differ[:20],
    }
