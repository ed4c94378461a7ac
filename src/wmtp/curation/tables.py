"""The reports of `wmtp data label` and `wmtp data mutate` as text and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def curation_table(report: Mapping[str, Any], out: str) -> None:
    """What `wmtp data label` or `wmtp data mutate` wrote, and what it left out."""
    console = Console()
    console.print(
        f"{report['input_rows']:,} rows read, {report['rows']:,} written to {out}", highlight=False, soft_wrap=True
    )
    for reason, count in report["dropped"].items():
        console.print(f"  dropped, {reason}: {count:,}", highlight=False, markup=False)
    if "operators" in report:
        full, none = report["solutions_with_all_variants"], report["solutions_without_any"]
        console.print(
            f"{full:,} of {report['solutions']:,} correct responses got all the variants asked for, {none:,} got none",
            highlight=False,
        )
        table = Table(title="Operators")
        for name in ("operator", "run", "wrong"):
            table.add_column(name, justify="left" if name == "operator" else "right")
        for name, counts in report["operators"].items():
            table.add_row(name, f"{counts['run']:,}", f"{counts['wrong'] / counts['run']:.0%}")
        console.print(table)
    statuses = ", ".join(f"{count:,} {status}" for status, count in report["statuses"].items())
    console.print(f"verdicts: {statuses}", highlight=False)
    if report.get("verdict_differs_from_label"):
        console.print(f"{report['verdict_differs_from_label']:,} differ from the label that was there", highlight=False)
    console.print(f"isolation level {report['isolation']['level']} of 3", highlight=False)
