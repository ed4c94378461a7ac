"""Samples -> verdicts -> figures. Every program is judged once, however many samples are the same."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from wmtp.data.containers import rows
from wmtp.errors import DataError, UsageError, WmtpError
from wmtp.evaluation.passk import pass_at_k
from wmtp.evaluation.problems import Problem
from wmtp.evaluation.samples import Sample
from wmtp.sandbox import Job, Sandbox
from wmtp.statistics import Interval, bootstrap
from wmtp.wording import counted

Key = tuple[str, str, str]
"""Task id, fingerprint of the program, name of the suite."""


@dataclass(frozen=True)
class Judged:
    """How one program did in one suite."""

    task_id: str
    program: str
    """The first 16 hexadecimal digits of its SHA-256."""
    suite: str
    status: str
    reason: str
    trust: str
    cpu_s: float
    level: int
    """Of the isolation it ran in, see `Isolation.level`."""

    @property
    def key(self) -> Key:
        """What it is a verdict about."""
        return self.task_id, self.program, self.suite


def fingerprint(program: str) -> str:
    """Sixteen hexadecimal digits that name a program."""
    return hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def judge(
    samples: Mapping[str, Sequence[Sample]],
    problems: Sequence[Problem],
    sandbox: Sandbox,
    known: Mapping[Key, Judged] | None = None,
) -> Iterator[Judged]:
    """Verdicts of all programs that are not known yet, as they are reached.

    A suite is run on what passed the suite before it. What fails through no fault of the program is not yielded, and
    what was judged with less isolation than there is now is judged again.

    Raises:
        WmtpError: at the end, if programs could not be judged; the others' verdicts have been yielded.
    """
    level = sandbox.isolation.level
    verdicts = {key: judged for key, judged in (known or {}).items() if judged.level >= level}
    failures: list[str] = []
    suites = max((len(problem.suites) for problem in problems), default=0)
    for at in range(suites):
        for job, verdict in sandbox.map(_jobs(samples, problems, at, verdicts), ordered=False):
            task, program, suite = cast(Key, job.id)
            if verdict.status == "sandbox_error":
                failures.append(f"{task}: {verdict.reason}")
                continue
            judged = Judged(
                task, program, suite, verdict.status, verdict.reason, verdict.trust, round(verdict.cpu_s, 4), level
            )
            verdicts[judged.key] = judged
            yield judged
    if failures:
        raise WmtpError(
            f"{counted(len(failures), 'program')} could not be judged, the first: {failures[0]}. The other verdicts "
            "are kept; run the command again to judge the rest"
        )


def _jobs(
    samples: Mapping[str, Sequence[Sample]], problems: Sequence[Problem], at: int, verdicts: Mapping[Key, Judged]
) -> Iterator[Job]:
    asked: set[Key] = set()
    for problem in problems:
        if at >= len(problem.suites):
            continue
        suite = problem.suites[at]
        for sample in samples[problem.id]:
            program = sample.program(problem)
            name = fingerprint(program)
            key = (problem.id, name, suite.name)
            before = [verdicts.get((problem.id, name, earlier.name)) for earlier in problem.suites[:at]]
            if key in verdicts or key in asked or not all(one is not None and one.status == "passed" for one in before):
                continue
            asked.add(key)
            yield Job(program, suite.tests, suite.limits, key)


def read_verdicts(path: Path) -> dict[Key, Judged]:
    """The verdicts of a file.

    Raises:
        DataError: the file cannot be read or has a row that is no verdict.
    """
    verdicts: dict[Key, Judged] = {}
    for line, decode in rows(path):
        try:
            judged = Judged(**decode())
        except (TypeError, ValueError) as problem:
            raise DataError(f"{path}:{line}: not a verdict of this version ({problem}); remove the file") from problem
        verdicts[judged.key] = judged
    return verdicts


def figures(
    samples: Mapping[str, Sequence[Sample]],
    problems: Sequence[Problem],
    verdicts: Mapping[Key, Judged],
    ks: Sequence[int],
) -> list[dict[str, Any]]:
    """One entry per temperature and suite: pass@k with intervals, statuses, exact match, and what was left out.

    Greedy answers are all the same, so that at temperature 0 one sample is enough and there is pass@1 only, if
    other temperatures have more.

    Raises:
        UsageError: a problem has fewer samples than the largest k.
    """
    found = []
    for at in sorted({one.temperature for group in samples.values() for one in group}, key=lambda t: (t is None, t)):
        chosen = {task: [one for one in group if one.temperature == at] for task, group in samples.items()}
        once = at == 0 and len(ks) > 1 and all(len(group) <= 1 for group in chosen.values())
        for suite in dict.fromkeys(suite.name for problem in problems for suite in problem.suites):
            found.append(_figures(chosen, problems, verdicts, [1] if once else ks, suite) | {"temperature": at})
    return found


def _figures(
    samples: Mapping[str, Sequence[Sample]],
    problems: Sequence[Problem],
    verdicts: Mapping[Key, Judged],
    ks: Sequence[int],
    suite: str,
) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    weak, counts, exact, undecided = 0, [], [], []
    for problem in problems:
        group = samples[problem.id]
        found = [_last(problem, fingerprint(sample.program(problem)), suite, verdicts) for sample in group]
        if any(one.status == "bad_tests" for one in found):
            undecided.append(problem.id)
            continue
        statuses.update(one.status for one in found)
        weak += sum(one.trust == "weak" for one in found)
        counts.append((problem.id, len(group), sum(one.status == "passed" for one in found)))
        if problem.reference is not None and group:
            wanted = _normal(problem.program(problem.reference))
            exact.append(sum(_normal(sample.program(problem)) == wanted for sample in group) / len(group))
    return {
        "suite": suite,
        "samples": sum(n for _, n, _ in counts),
        "pass_at_k": {str(k): _interval(_pass_at(counts, k)) for k in ks},
        "statuses": dict(sorted(statuses.items())),
        "weak_trust": weak,
        "exact_match": _interval(bootstrap(exact)) if exact else None,
        "tests_that_cannot_judge": undecided,
    }


def _pass_at(counts: Sequence[tuple[str, int, int]], k: int) -> Interval:
    short = next(((task, n) for task, n, _ in counts if n < k), None)
    if short is not None:
        raise UsageError(f"pass@{k} needs {k} samples of each problem at each temperature; {short[0]} has {short[1]}")
    return bootstrap([pass_at_k(n, c, k) for _, n, c in counts])


def _interval(value: Interval) -> dict[str, float]:
    return {"mean": value.mean, "low": value.low, "high": value.high, "problems": value.count}


def _last(problem: Problem, program: str, suite: str, verdicts: Mapping[Key, Judged]) -> Judged:
    """The verdict of the suite, or of the first one before it that the program did not pass."""
    names = [one.name for one in problem.suites]
    upto = names[: names.index(suite) + 1] if suite in names else names
    for name in upto:
        judged = verdicts[problem.id, program, name]
        if judged.status != "passed":
            return judged
    return judged


def _normal(text: str) -> str:
    """A program without what does not matter to Python: blank lines, and space at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def unsampled(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Problems without a sample."""
    return [task for task, group in samples.items() if not group]


def only(problems: Iterable[Problem], samples: Mapping[str, Sequence[Sample]]) -> list[Problem]:
    """The problems that have a sample."""
    return [problem for problem in problems if samples[problem.id]]
