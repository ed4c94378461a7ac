"""A study in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wmtp.study.settings import Study

MISSING = "-"


def study_table(figures: Mapping[str, Any], path: Path) -> None:
    """Arms, what they spent, what may be said, and what went wrong."""
    console = Console()
    metric = figures["metric"]
    table = Table(title=f"{metric['name']} ({metric['better']} is better): mean and 95 % interval over seeds")
    for name in ("arm", "mean", "difference", "p", "effect"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in figures["arms"]:
        compared = "p_holm" in row
        table.add_row(
            f"{row['arm']} {row['about']}".strip(),
            _interval(row["mean"]),
            _interval(row["difference"], "+") if compared else MISSING,
            f"{row['p_holm']:.3g}" if compared else MISSING,
            f"{row['effect']:+.2f}" if compared else MISSING,
        )
    console.print(table)
    console.print(_spent(figures))
    say = {"highlight": False, "markup": False, "soft_wrap": True}
    for row in figures["arms"]:
        if "sentence" in row:
            console.print(row["sentence"], **say)  # type: ignore[arg-type]
    for note in figures["notes"]:
        console.print(f"note: {note}", **say)  # type: ignore[arg-type]
    left = [run for run in figures["runs"] if run["state"] != "done"]
    for run in left:
        console.print(f"{run['state']}: {run['run']}", **say)  # type: ignore[arg-type]
    console.print(f"wrote {path}", **say)  # type: ignore[arg-type]


def _spent(figures: Mapping[str, Any]) -> Table:
    table = Table(title="Spent on training, mean over seeds")
    for name in ("arm", "seeds", "steps", "tokens", "FLOPs", "seconds"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in figures["arms"]:
        spent = row["spent"]
        known = spent or {}
        cells = [MISSING if known.get(name) is None else f"{known[name]:{form}}" for name, form in _FORMS.items()]
        table.add_row(row["arm"], str(len(row["values"])), *cells)
    return table


_FORMS = {"steps": ",.0f", "tokens": ",.0f", "flops": ".4g", "seconds": ",.1f"}


def _interval(value: Mapping[str, float] | None, sign: str = "") -> str:
    if value is None:
        return MISSING
    return f"{value['mean']:{sign}.4f} [{value['low']:{sign}.4f}, {value['high']:{sign}.4f}]"


def plan_table(study: Study) -> None:
    """What `wmtp study --dry-run` found."""
    config, console = study.config, Console()
    budget = "the recipe's own length"
    if config.budget is not None:
        ((name, amount),) = config.budget.model_dump(exclude_none=True).items()
        budget = f"{amount:,.6g} {name} each"
    console.print(
        f"{config.name}: {len(study.arms)} arms x {len(config.seeds)} seeds = {len(study.runs)} runs; {budget}; "
        f"compared by {config.metric.name} with {config.baseline}; in {study.folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for arm in study.arms.values():
        needs = f", needs {', '.join(sorted(study.needs[arm.name]))}" if study.needs[arm.name] else ""
        compared = "" if arm.compare else ", not compared"
        about = f" ({arm.about})" if arm.about else ""
        console.print(f"  {arm.name}{about}{compared}{needs}", highlight=False, markup=False, soft_wrap=True)
