"""Solutions as coloured code in a terminal: what `wmtp inspect` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

HOT, COLD, PAPER = (240, 163, 92), (134, 182, 232), (253, 252, 249)
MIDDLE = {"weight": 1.0}
"""The figure that has no colour; else the lowest."""


def token_view(result: dict[str, Any]) -> None:
    """Every solution, coloured by the first head's weight; by nll where all weigh the same, by value for a critic."""
    console = Console()
    name = telling(result)
    for problem in result["problems"]:
        console.print(Text(problem["prompt"].strip(), style="italic"))
        figures = [_first_head(variant[name]) for variant in problem["variants"]]
        low, high = _range(figures)
        for variant, own in zip(problem["variants"], figures, strict=True):
            console.print(Text("correct" if variant["correct"] else "incorrect", style="bold"))
            console.print(coloured(variant, own, low, high, MIDDLE.get(name, low)), soft_wrap=True)
        head = " of head 1" if result["heads"] and name in ("weight", "nll") else ""
        legend = Text.assemble(
            f"{name}{head}: ",
            (f" {low:.2f} ", _style(low, low, high, MIDDLE.get(name, low))),
            " to ",
            (f" {high:.2f} ", _style(high, low, high, MIDDLE.get(name, low))),
            "; changed tokens are underlined\n",
        )
        console.print(legend)
    for title, groups in result["weights"].items():
        console.print(_weight_table(title.replace("_", " "), groups))


def _weight_table(title: str, groups: dict[str, Any]) -> Table:
    """Mean weights of every head by group of tokens."""
    table = Table(title=f"Mean weight {title}")
    table.add_column("tokens")
    table.add_column("count", justify="right")
    heads = max((len(group["weight"]) for group in groups.values()), default=0)
    for k in range(1, heads + 1):
        table.add_column(f"head {k}", justify="right")
    for name, group in groups.items():
        table.add_row(
            name, f"{group['tokens']:,}", *("-" if mean is None else f"{mean:.3f}" for mean in group["weight"])
        )
    return table


def telling(result: dict[str, Any]) -> str:
    """The figure that says most about this run."""
    if not result["heads"]:
        return "value"
    return "nll" if result["scheme"] == "uniform" else "weight"


def coloured(variant: dict[str, Any], figures: Sequence[float | None], low: float, high: float, middle: float) -> Text:
    """The code of one solution."""
    code = Text()
    for text, figure, changed in zip(variant["tokens"], figures, variant["changed"], strict=True):
        style = "" if figure is None else _style(figure, low, high, middle)
        code.append(text, f"{style} underline" if changed else style)
    return code


def _first_head(figure: list[Any]) -> list[float | None]:
    return figure[0] if figure and isinstance(figure[0], list) else figure


def _range(figures: Sequence[Sequence[float | None]]) -> tuple[float, float]:
    known = [figure for row in figures for figure in row if figure is not None]
    return min(known), max(known)


def _style(figure: float, low: float, high: float, middle: float) -> str:
    reach = max(high - middle, middle - low) or 1.0
    part = (figure - middle) / reach
    towards = HOT if part > 0 else COLD
    red, green, blue = (round(p + (t - p) * min(1.0, abs(part))) for p, t in zip(PAPER, towards, strict=True))
    return f"black on rgb({red},{green},{blue})"
