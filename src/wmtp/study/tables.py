"""A study in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from wmtp.storage import Place
from wmtp.study.settings import Study
from wmtp.wording import counted

MISSING = "-"
COLUMNS = ("arm", "mean", "difference", "p", "effect")


def study_table(figures: Mapping[str, Any], path: Place | None) -> None:
    """Arms, what they spent, what may be said, and what went wrong; and the file that says it, if one was written."""
    console = Console()
    table = Table(title=_title(figures["metric"]))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in figures["arms"]:
        table.add_row(*_cells(row))
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
    if path is not None:
        console.print(f"wrote {path}", **say)  # type: ignore[arg-type]


def markdown(figures: Mapping[str, Any]) -> str:
    """The arms, what may be said and what must be known as Markdown, for a log of experiments."""
    columns = (*COLUMNS, "seeds", "FLOPs")
    rows = [(*_cells(row), str(len(row["values"])), _amount(row["spent"], "flops", ".3g")) for row in figures["arms"]]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
    said = [*(row["sentence"] for row in figures["arms"] if "sentence" in row), *figures["notes"]]
    return f"{_title(figures['metric'])}\n\n{table}\n\n" + "\n".join(f"- {text}" for text in said)


def _title(metric: Mapping[str, Any]) -> str:
    which = {"last": "", "best": ", best evaluation of each run", "mean": ", mean of each run's evaluations"}
    return f"{metric['name']}{which[metric['at']]} ({metric['better']} is better): mean and 95 % interval over seeds"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Of an arm, one for each of `COLUMNS`."""
    compared = "p_holm" in row
    return (
        f"{row['arm']} {row['about']}".strip(),
        _interval(row["mean"]),
        _interval(row["difference"], "+") if compared else MISSING,
        f"{row['p_holm']:.3g}" if compared else MISSING,
        f"{row['effect']:+.2f}" if compared else MISSING,
    )


def _amount(spent: Mapping[str, Any] | None, name: str, form: str) -> str:
    """What an arm spent of something; an online run's FLOPs are not known."""
    return MISSING if spent is None or spent.get(name) is None else f"{spent[name]:{form}}"


def _spent(figures: Mapping[str, Any]) -> Table:
    table = Table(title="Spent on training, mean over seeds")
    for name in ("arm", "seeds", "steps", "tokens", "FLOPs", "seconds"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in figures["arms"]:
        cells = [_amount(row["spent"], name, form) for name, form in _FORMS.items()]
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
        f"{config.name}: {counted(len(study.arms), 'arm')} x {counted(len(config.seeds), 'seed')} = "
        f"{counted(len(study.runs), 'run')}; {budget}; "
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
