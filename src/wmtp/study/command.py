"""`wmtp study`, past its options."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from wmtp.errors import UsageError
from wmtp.storage import ObjectPath, write_atomic
from wmtp.study.analysis import figures
from wmtp.study.given import given_before
from wmtp.study.results import Result, read_result
from wmtp.study.running import Launch, Runner, check_metric, in_child
from wmtp.study.settings import Study
from wmtp.supervisor import Options

Say = Callable[[str], None]


def run_all(study: Study, options: Options, say: Say, launch: Launch = in_child) -> dict[str, Any]:
    """Run what has no result yet, and write `study.json` of all that has.

    Raises:
        UsageError: the folder cannot be made, or a run's config cannot be.
        Interrupted: a signal; the state was saved.
    """
    _make(study)
    runner = Runner(study, options, say, launch)
    runner.all()
    found = _figures(study, runner.failed)
    write_atomic(study.folder / "study.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    return found


def table_of(study: Study) -> dict[str, Any]:
    """What `study.json` would say of the results that are there. Nothing is run, and nothing written.

    Raises:
        UsageError: there is none.
    """
    check(study)
    if not results_of(study):
        raise UsageError(f"no run of the study in {study.folder} has a result yet; leave --table out to run them")
    return _figures(study, {})


def _figures(study: Study, failed: Mapping[str, str]) -> dict[str, Any]:
    """All that the study says; of runs that it says otherwise of now, only that."""
    results, refused = results_of(study), refusals(study)
    found = figures(study, [one for name, one in results.items() if name not in refused], {**refused, **failed})
    left_out = [name for name in results if name in refused]
    if left_out:
        found["notes"].append(
            f"left out, since they had another config or budget than the study says now: {', '.join(left_out)}"
        )
    return found


def run_only(study: Study, number: int, options: Options, say: Say, launch: Launch = in_child) -> Result:
    """Run number `number` of the list, counted from 1, for a job array.

    Raises:
        UsageError: there is no such run, or it has no figure of the study's name.
        WmtpError: it failed.
    """
    _make(study)
    runs = study.runs
    if not 1 <= number <= len(runs):
        raise UsageError(f"--only must be from 1 to {len(runs)}, the runs of the study (--list); got {number}")
    run = runs[number - 1]
    result = Runner(study, options, say, launch).one(run)
    check_metric(study, run, result)
    return result


def check(study: Study) -> None:
    """Raise `UsageError` if a run's config cannot be, or the folder is a run's, or not where samples can be written."""
    if (study.folder / "provenance.json").exists():
        raise UsageError(f"{study.folder} is the folder of a run; name another with --out")
    if isinstance(study.folder, ObjectPath) and study.config.evaluate:
        raise UsageError(
            f"evaluate needs the study's folder on a local disk, where samples are written to; got {study.folder}: "
            "leave evaluate out and run wmtp eval afterwards, or name a local folder with --out"
        )
    for run in study.runs:
        study.run_config(run)


def _make(study: Study) -> None:
    check(study)
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(
            f"the study's folder {study.folder} cannot be made: {problem.strerror or problem}; choose another --out"
        ) from problem


def results_of(study: Study) -> dict[str, Result]:
    """Every stored result, by run."""
    found = {run.name: read_result(study.file("results", run.name)) for run in study.runs}
    return {name: result for name, result in found.items() if result is not None}


def refusals(study: Study) -> dict[str, str]:
    """The runs of which the study says otherwise now than an earlier call did, and why."""
    found = {}
    for run in study.runs:
        try:
            given_before(study, run, copied=True)
        except UsageError as problem:
            found[run.name] = str(problem)
    return found


def plan(study: Study) -> dict[str, Any]:
    """What the file means, as JSON values."""
    return {
        "study": study.config.name,
        "folder": str(study.folder),
        "runs": [
            {"run": run.name, "arm": run.arm.name, "seed": run.seed, "needs": sorted(study.needs[run.arm.name])}
            for run in study.runs
        ],
        "waves": waves(study),
    }


def commands(study: Study, file: str) -> list[str]:
    """One command a line, each of which does one run."""
    common = ["wmtp", "study", "--study", file, "--out", str(study.folder)]
    return [shlex.join([*common, "--only", str(number)]) for number in range(1, len(study.runs) + 1)]


def waves(study: Study) -> list[list[int]]:
    """The numbers of the runs that can go at the same time, one wave after another."""
    depth: dict[str, int] = {}
    for name in study.arms:  # each after those that it needs
        depth[name] = 1 + max((depth[other] for other in study.needs[name]), default=-1)
    return [
        [number for number, run in enumerate(study.runs, 1) if depth[run.arm.name] == wave]
        for wave in range(max(depth.values()) + 1)
    ]
