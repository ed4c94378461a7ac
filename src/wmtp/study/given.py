"""What an earlier call gave a run, which is not to be passed off as what the study says now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wmtp.config import Config, dump, load
from wmtp.errors import UsageError
from wmtp.storage import Place, place, write_atomic
from wmtp.study.settings import POINTER, Run, Study


def budget_of(study: Study, run: Run) -> dict[str, Any] | None:
    """The budget of a run; None where it has the recipe's own length."""
    budget = study.config.budget
    return budget.model_dump(exclude_none=True) if budget is not None and run.arm.compare else None


def given_before(study: Study, run: Run, *, copied: bool = False) -> Config | None:
    """The stored config of a run; None if it was given none yet. A folder without budgets is of an earlier version.

    Args:
        copied: take what was given in another folder, of which this is a copy: good for figures, not for going on.

    Raises:
        UsageError: the study says otherwise now, of the run or of one that it needs.
    """
    for name in sorted(study.needs[run.arm.name]):
        given_before(study, Run(study.arms[name], run.seed), copied=copied)
    file, of_budget = study.file("configs", run.name), study.file("budgets", run.name)
    if not file.exists():
        return None
    stored, budget = load([file]), budget_of(study, run)
    try:
        before = json.loads(of_budget.read_text()) if of_budget.exists() else budget
    except ValueError as problem:
        raise UsageError(f"{of_budget} is damaged: {problem}; remove it, if {file} was made for {budget}") from problem
    now = study.run_config(run, None if budget is None else stored.train.steps)
    moved = copied and stored.runs != now.runs
    same = _alike(_anywhere(stored), _anywhere(now)) if moved else stored == now
    if before != budget or not same:
        what = "" if before == budget else f" (budget {json.dumps(before)}, now {json.dumps(budget)})"
        raise UsageError(
            f"{file} is what an earlier call gave this run, and the study says otherwise now{what}; choose another "
            f"--out, or remove that file, runs/{run.name}, trials/{run.name} if it is there, and its result to run it "
            "anew"
        )
    return stored


def _anywhere(config: Config) -> dict[str, Any]:
    """What a config says, wherever its study is: what is in the study's folder is told from there, and where rows are
    cached is left out."""
    folder = f"{place(config.runs).parent}/"

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: told(part) for name, part in value.items()}
        if isinstance(value, list):
            return [told(part) for part in value]
        inside = isinstance(value, str) and value.startswith(folder)
        return POINTER + value.removeprefix(folder) if inside else value

    found = config.model_dump(mode="json")
    return dict(told(found | {"data": found["data"] | {"cache": None}}))


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, or paths on disks with the same last part; of models that runs wrote, with the
    same two, since all are called `final` or `best`. A folder that is not on this machine may look like a hub id here.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    texts = isinstance(one, str) and isinstance(other, str) and "://" not in one + other
    if texts and (one.startswith("/") or other.startswith("/")):
        return _last_parts(one) == _last_parts(other)
    return bool(one == other)


def _last_parts(path: str) -> tuple[str, ...]:
    parts = Path(path).parts
    return parts[-2:] if parts[-1:] in (("final",), ("best",)) else parts[-1:]


def give(study: Study, run: Run, config: Config) -> None:
    """Store the config of a run, with the budget that it was made for."""
    write(study.file("budgets", run.name), json.dumps(budget_of(study, run)) + "\n")
    write(study.file("configs", run.name), dump(config))


def write(file: Place, text: str) -> None:
    """Write a file of the study, in a folder that need not be there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text)
