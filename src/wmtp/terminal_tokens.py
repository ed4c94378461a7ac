"""Solutions as coloured code in a terminal: what `wmtp inspect` and `wmtp critic inspect` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

HOT, COLD, PAPER = (240, 163, 92), (134, 182, 232), (253, 252, 249)
MIDDLE = {"weight": 1.0, "advantage": 0.0}
"""The figure that has no colour; else the lowest."""
COLUMNS = {"value": "{:7.3f}", "advantage": "{:+7.3f}", "weight": "{:7.2f}"}
"""What a critic's view says of each line, and how: 21 cells, and 3 for the mark, so that tabs end where they would."""
FIGURES = {"value": "{:7.3f}", "advantage": "{:+7.3f}", "weight": "{:7.2f}", "nll": "{:7.3f}", "excess": "{:+7.3f}"}
"""What any run's view says of each line where there are no colours."""
CHANGED, AS_IT_WAS = " ~ ", "   "
HOW = (
    "Beside a line: the value at its end, mean advantage and mean weight of its tokens; ~ and underlining: what "
    "differs from the other solution. The code is coloured by {by}."
)


class Scale(NamedTuple):
    """From a figure to a colour."""

    low: float
    high: float
    middle: float

    def style(self, figure: float) -> str:
        """Warm above the middle, cold below it."""
        reach = max(self.high - self.middle, self.middle - self.low) or 1.0
        part = (figure - self.middle) / reach
        towards = HOT if part > 0 else COLD
        red, green, blue = (round(p + (t - p) * min(1.0, abs(part))) for p, t in zip(PAPER, towards, strict=True))
        return f"black on rgb({red},{green},{blue})"


def token_view(result: dict[str, Any]) -> None:
    """Every solution, coloured by the first head's weight; by nll where all weigh the same, by value for a critic.

    Where no terminal shows colours, each line of code has its figures before it, those of head 1: the value at its end,
    means of the others.
    """
    console = Console()
    name = telling(result)
    for problem in result["problems"]:
        console.print(Text(shown(problem["prompt"].strip()), style="italic"))
        scale = _scale(problem, name)
        for variant in problem["variants"]:
            if console.is_terminal:
                console.print(Text(_verdict(variant), style="bold"))
                console.print(_coloured(variant, first_head(variant[name]), scale), soft_wrap=True)
                continue
            told = {figure: form for figure, form in FIGURES.items() if figure in variant}
            console.print("".join(f"{figure[:6]:>7}" for figure in told) + AS_IT_WAS + _verdict(variant))
            scales = {figure: _scale(problem, figure) for figure in told}
            for line in _lines(variant, scales, name, told):
                console.print(line, soft_wrap=True)
        head = " of head 1" if result["heads"] and name in ("weight", "nll") else ""
        console.print(Text.assemble(_legend(name + head, scale), "; changed tokens are underlined\n"))
    _weight_tables(console, result)


def critic_view(result: dict[str, Any], by: str) -> None:
    """Every solution line by line, with the critic's value, advantage and weight; then what the changed tokens got.

    Args:
        by: what colours the tokens, one of `COLUMNS`.
    """
    console = Console()
    console.print(Text(f"{HOW.format(by=by)} {result['about']}\n"))
    for problem in result["problems"]:
        console.print(Text(shown(problem["prompt"].strip()), style="italic"))
        scales = {name: _scale(problem, name) for name in COLUMNS}
        for variant in problem["variants"]:
            head = f"{'value':>7}{'adv.':>7}{'weight':>7}{AS_IT_WAS}"
            told = f"{_verdict(variant)}, mean value {fmean(variant['value']):.4f}"
            console.print(Text.assemble("\n", (head, "dim"), (told, "bold")), soft_wrap=True)
            for line in _lines(variant, scales, by, COLUMNS):
                console.print(line, soft_wrap=True)
        good, bad = (fmean(variant["value"]) for variant in problem["variants"])
        ranked = f"; margin {good - bad:+.4f}, ranked {'right' if good > bad else 'wrong'}\n"
        console.print(Text.assemble(_legend(by, scales[by]), ranked))
    console.print(_credit_table(result["credit"]))
    console.print(
        f"values rank {result['pairs']['right']} of {result['pairs']['count']} pairs right\n", highlight=False
    )
    _weight_tables(console, result)


def telling(result: dict[str, Any]) -> str:
    """The figure that says most about this run."""
    if not result["heads"]:
        return "value"
    return "nll" if result["scheme"] == "uniform" else "weight"


def first_head(figure: list[Any]) -> list[float | None]:
    """A figure by token; of one by head and token that of head 1."""
    return figure[0] if figure and isinstance(figure[0], list) else figure


def shown(text: str) -> str:
    """What a terminal may be given: line ends and tabs as they are, whatever else cannot be printed escaped.

    Carriage returns go: where lines end with them, one in every line would say nothing.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text.replace("\r", ""))


def lines_of(tokens: Sequence[str]) -> list[tuple[list[tuple[int, str]], list[int]]]:
    """The lines of a solution: the pieces of tokens in each, and the tokens that count for it.

    A token over several lines counts for the one that its last character belongs to; a line end belongs to the line
    that it ends.
    """
    lines: list[tuple[list[tuple[int, str]], list[int]]] = [([], [])]
    for place, text in enumerate(tokens):
        first, *others = text.split("\n")
        lines[-1][0].append((place, first))
        lines += [([(place, part)], []) for part in others]
        lines[-2 if text.endswith("\n") else -1][1].append(place)
    return lines if any(text for _, text in lines[-1][0]) else lines[:-1]


def _lines(variant: dict[str, Any], scales: dict[str, Scale], by: str, columns: Mapping[str, str]) -> list[Text]:
    figures = {name: first_head(variant[name]) for name in columns}
    pieces = _styles(variant, figures[by], scales[by])
    found = []
    for parts, own in lines_of(variant["tokens"]):
        line = Text()
        for name, form in columns.items():
            known = [figure for figure in (figures[name][place] for place in own) if figure is not None]
            figure = (known[-1] if name == "value" else fmean(known)) if known else None
            line.append(*((" " * 7, "") if figure is None else (form.format(figure), scales[name].style(figure))))
        line.append(CHANGED if any(variant["changed"][place] for place in own) else AS_IT_WAS)
        for place, text in parts:
            line.append(shown(text), pieces[place])
        found.append(line)
    return found


def _coloured(variant: dict[str, Any], figures: Sequence[float | None], scale: Scale) -> Text:
    """The code of one solution."""
    code = Text()
    for text, style in zip(variant["tokens"], _styles(variant, figures, scale), strict=True):
        code.append(shown(text), style)
    return code


def _styles(variant: dict[str, Any], figures: Sequence[float | None], scale: Scale) -> list[str]:
    styles = ["" if figure is None else scale.style(figure) for figure in figures]
    return [
        f"{style} underline" if changed else style for style, changed in zip(styles, variant["changed"], strict=True)
    ]


def _verdict(variant: dict[str, Any]) -> str:
    return "correct" if variant["correct"] else "incorrect"


def _scale(problem: dict[str, Any], name: str) -> Scale:
    """That of both solutions of a problem."""
    known = [f for variant in problem["variants"] for f in first_head(variant[name]) if f is not None]
    return Scale(min(known), max(known), MIDDLE.get(name, min(known)))


def _legend(name: str, scale: Scale) -> Text:
    ends = [(f" {figure:.2f} ", scale.style(figure)) for figure in (scale.low, scale.high)]
    return Text.assemble(f"{name}: ", ends[0], " to ", ends[1])


def _credit_table(credit: Sequence[dict[str, Any]]) -> Table:
    """What the tokens got that differ between a problem's solutions, beside the others."""
    table = Table(title="Mean over tokens of the solutions shown")
    table.add_column("tokens")
    for name in ("count", *COLUMNS):
        table.add_column(name, justify="right")
    for row in credit:
        what = f"{_verdict(row)}, {'changed' if row['changed'] else 'as in the other'}"
        figures = ("-" if row[name] is None else form.format(row[name]).strip() for name, form in COLUMNS.items())
        table.add_row(what, f"{row['tokens']:,}", *figures)
    return table


def _weight_tables(console: Console, result: dict[str, Any]) -> None:
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
