"""Wrong but plausible responses, made from correct ones by one small change, and run to be sure that they are wrong.

So any data set with tests becomes training data for a critic. The operators are those of `wmtp.data.mutate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from wmtp.curation.writing import Made, Report, RowFile, in_order, source_sha256
from wmtp.data.mutate import Mutant, mutants, normalize
from wmtp.data.records import Record
from wmtp.data.sources import SourceReport, stream_records
from wmtp.errors import DataError, UsageError, WmtpError
from wmtp.record_tests import check_any, limits_of, tests_of
from wmtp.sandbox import Limits, Requirement, Sandbox, Tests, Verdict
from wmtp.storage import Place
from wmtp.wording import counted

TRIES = 12
"""Programs that are run for each wrong one that is wanted, at most."""


def mutate(
    source: Place,
    out: Path,
    *,
    variants: int = 5,
    seed: int = 0,
    fields: Mapping[Any, str] | None = None,
    split: str | None = None,
    limits: Limits | None = None,
    require: Requirement = "best",
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Write every correct response of `source` in one formatting, and after it up to `variants` wrong ones.

    Records that are labelled wrong are passed over. A response that does not parse, has no tests or does not pass them
    is dropped, with the reason. Each wrong row says in `about.mutation` which operator made it, the line and the
    characters (`span`) that differ from the correct one, and how it failed; programs that only give a wrong answer come
    before those that crash. The order is that of the source and the choice depends on `seed`, the problem and the
    response alone; an interrupted call goes on where it was.

    Returns:
        The report: how many problems got how many variants, and for every operator how many programs were run and how
        many of them were wrong.

    Raises:
        As `wmtp.curation.label.label`; UsageError: `variants` is below 1.
    """
    if variants < 1:
        raise UsageError(f"variants must be at least 1, got {variants}")
    limits = limits or Limits()
    about = {
        "source_sha256": source_sha256(source), "fields": dict(fields or {}), "split": split, "variants": variants,
        "seed": seed, "limits": asdict(limits),
    }  # fmt: skip
    check_any(stream_records(source, SourceReport(str(source)), fields=fields, split=split), source)
    file = RowFile(out, about)
    read = SourceReport(str(source))
    records = stream_records(source, read, fields=fields, split=split)
    with Sandbox(require=require, limits=limits) as sandbox:

        def one(record: Record) -> Made:
            made = _mutated(record, sandbox, limits_of(record, limits), variants, seed)
            report(f"{record.problem_id}: {made.dropped or counted(len(made.rows) - 1, 'wrong variant')}")
            return made

        file.extend(in_order(one, islice(records, file.done, None)))
        isolation = sandbox.isolation.to_dict()
    return file.finish(lambda made: _summary(made, variants) | {"sources": [read.to_dict()], "isolation": isolation})


def _mutated(record: Record, sandbox: Sandbox, limits: Limits, variants: int, seed: int) -> Made:
    tests = tests_of(record)
    if record.is_correct is False:
        return Made(dropped="labelled wrong", name=record.problem_id)
    if tests is None:
        return Made(dropped="no tests", name=record.problem_id)
    try:
        correct = normalize(record.response)
    except DataError:
        return Made(dropped="not valid Python", name=record.problem_id)
    verdict = _run(sandbox, record, correct, tests, limits)
    if not verdict.passed:
        return Made(dropped=f"does not pass its own tests ({verdict.status})", name=record.problem_id)
    tried: Counter[str] = Counter()
    wrong: list[tuple[Mutant, Verdict]] = []
    for mutant in islice(_spread(correct, Random(f"{seed} {record.problem_id} {correct}")), TRIES * variants):
        tried[mutant.operator] += 1
        verdict = _run(sandbox, record, mutant.source, tests, limits)
        if verdict.decided and not verdict.passed:
            wrong.append((mutant, verdict))
        if sum(verdict.status == "wrong" for _, verdict in wrong) == variants:
            break
    found = Counter(mutant.operator for mutant, _ in wrong)
    chosen = sorted(wrong, key=lambda one: one[1].status != "wrong")[:variants]
    counts = {name: [tried[name], found[name]] for name in sorted(tried)}
    original = replace(record, response=correct, is_correct=True, about={**record.about, "mutants": counts})
    return Made([original.row(), *(_row(record, correct, mutant, verdict) for mutant, verdict in chosen)])


def _run(sandbox: Sandbox, record: Record, program: str, tests: Tests, limits: Limits) -> Verdict:
    verdict = sandbox.run(program, tests, limits)
    if verdict.status == "sandbox_error":
        raise WmtpError(f"{record.problem_id}: {verdict.reason}. What is done is kept; run the command again to go on")
    return verdict


def _spread(correct: str, draws: Random) -> Iterator[Mutant]:
    """All mutants, one of each operator in turn, in random order."""
    by_operator: dict[str, list[Mutant]] = {}
    for mutant in mutants(correct):
        by_operator.setdefault(mutant.operator, []).append(mutant)
    groups = list(by_operator.values())
    draws.shuffle(groups)
    for group in groups:
        draws.shuffle(group)
    while groups:
        yield from (group.pop() for group in groups)
        groups = [group for group in groups if group]


def _row(record: Record, correct: str, mutant: Mutant, verdict: Verdict) -> dict[str, Any]:
    mutation = {
        "operator": mutant.operator,
        "line": mutant.line,
        "span": list(changed_span(correct, mutant.source)),
        "status": verdict.status,
        "reason": verdict.reason,
    }
    about = {**record.about, "mutation": mutation}
    return replace(record, response=mutant.source, is_correct=False, about=about).row()


def changed_span(before: str, after: str) -> tuple[int, int]:
    """The characters of `after` that are not those of `before`: all but the longest common start and end.

    Where something was only taken out, it is the one character that follows.
    """
    start = _common(before, after)
    tail = _common(before[start:][::-1], after[start:][::-1])
    return start, max(len(after) - tail, min(start + 1, len(after)))


def _common(one: str, other: str) -> int:
    """Length of the common start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _summary(made: Iterator[dict[str, Any]], variants: int) -> dict[str, Any]:
    operators: Counter[tuple[str, int]] = Counter()
    statuses: Counter[str] = Counter()
    per_solution: list[int] = []
    for row in made:
        if row.get("is_correct"):
            per_solution.append(0)
            for name, (tried, wrong) in row["about"]["mutants"].items():
                operators[name, 0] += tried
                operators[name, 1] += wrong
        else:
            per_solution[-1] += 1
            statuses[row["about"]["mutation"]["status"]] += 1
    names = sorted({name for name, _ in operators}, key=lambda name: -operators[name, 0])
    return {
        "solutions": len(per_solution),
        "solutions_with_all_variants": sum(count >= variants for count in per_solution),
        "solutions_without_any": sum(count == 0 for count in per_solution),
        "statuses": dict(statuses.most_common()),
        "operators": {name: {"run": operators[name, 0], "wrong": operators[name, 1]} for name in names},
    }
