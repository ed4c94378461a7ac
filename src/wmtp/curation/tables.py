"""The reports of `wmtp data prepare`, `label` and `mutate` as text and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from wmtp.wording import counted


def prepared_table(report: Mapping[str, Any], out: str) -> None:
    """What `wmtp data prepare` read, left out and wrote."""
    console = Console()
    _say_rows(console, report, out)
    if report["cases_left_out"]:
        _say(console, f"  {counted(report['cases_left_out'], 'case')} left out")
    labels = ", ".join(f"{count:,} {name}" for name, count in report["labels"].items())
    both = report["problems_with_both_verdicts"]
    _say(console, f"{counted(report['problems'], 'problem')}, {both:,} with correct and incorrect responses; {labels}")
    table = Table(title="Characters")
    for name in ("", "mean", "min", "median", "p95", "max"):
        table.add_column(name, justify="right" if name else "left")
    for name, found in report["characters"].items():
        table.add_row(name, *(f"{value:,.0f}" for value in found.values()))
    console.print(table)


def curation_table(report: Mapping[str, Any], out: str) -> None:
    """What `wmtp data label` or `wmtp data mutate` wrote, and what it left out."""
    console = Console()
    _say_rows(console, report, out)
    if "operators" in report:
        full, none = report["solutions_with_all_variants"], report["solutions_without_any"]
        _say(
            console,
            f"{full:,} of {report['solutions']:,} correct responses got all the variants asked for, {none:,} got none",
        )
        table = Table(title="Operators")
        for name in ("operator", "run", "wrong"):
            table.add_column(name, justify="left" if name == "operator" else "right")
        for name, counts in report["operators"].items():
            table.add_row(name, f"{counts['run']:,}", f"{counts['wrong'] / counts['run']:.0%}")
        console.print(table)
    statuses = ", ".join(f"{count:,} {status}" for status, count in report["statuses"].items())
    _say(console, f"verdicts: {statuses}")
    if report.get("verdict_differs_from_label"):
        _say(console, f"{report['verdict_differs_from_label']:,} differ from the label that was there")
    _say(console, f"isolation level {report['isolation']['level']} of 3")


def _say_rows(console: Console, report: Mapping[str, Any], out: str) -> None:
    """What each source gave, what of it was written, and what was lost on both ways."""
    for source in report["sources"]:
        _say(console, f"{source['path']}: {counted(source['records'], 'record')} from {counted(source['rows'], 'row')}")
        lost = {"of another split": source["other_split"], "bad rows": source["bad_rows"], **source["dropped"]}
        for reason, count in lost.items():
            if count:
                _say(console, f"  dropped, {reason}: {count:,}")
    _say(console, f"{counted(report['rows'], 'record')} written to {out}")
    for reason, count in report["dropped"].items():
        _say(console, f"  dropped, {reason}: {count:,}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
