"""The results of `wmtp eval` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wmtp.wording import counted


def evaluation_table(suite: str | None, result: Mapping[str, Any], path: Path) -> None:
    """The result of `wmtp eval`."""
    if suite is None:
        benchmark_table(result)
    else:
        {"heads": heads_table, "perplexity": perplexity_table, "speed": speed_table}[suite](result)
    Console().print(f"wrote {path}", highlight=False, soft_wrap=True)


def benchmark_table(result: Mapping[str, Any]) -> None:
    """pass@k of every temperature and suite, and what qualifies it."""
    console = Console()
    ks = list(dict.fromkeys(k for row in result["results"] for k in row["pass_at_k"]))
    table = Table(
        title=f"{result['benchmark']}: {counted(result['problems'], 'problem')}, 95 % intervals over problems"
    )
    for name in ("temperature", "tests", "samples", *(f"pass@{k}" for k in ks), "exact match"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["results"]:
        warm = "-" if row["temperature"] is None else f"{row['temperature']:g}"
        cells = [_share(row["pass_at_k"].get(k)) for k in ks]
        table.add_row(warm, row["suite"], f"{row['samples']:,}", *cells, _share(row["exact_match"]))
    console.print(table)
    for row in result["results"]:
        found = ", ".join(f"{count:,} {status}" for status, count in row["statuses"].items())
        console.print(f"{row['suite']}: {found}", highlight=False)
        if row["weak_trust"]:
            console.print(f"  {row['weak_trust']:,} judged by their own process (tests that need its objects)")
        if row["tests_that_cannot_judge"]:
            console.print(f"  left out, their tests cannot judge: {', '.join(row['tests_that_cannot_judge'])}")
    if result["problems_without_samples"]:
        console.print(f"{counted(result['problems_without_samples'], 'problem')} left out: no sample")
    isolation = result["isolation"]
    active = ", ".join(isolation["mechanisms"])
    console.print(f"isolation level {isolation['level']} of 3: {active}", highlight=False)


def _share(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "-"
    return f"{interval['mean']:.1%} ({interval['low']:.1%}-{interval['high']:.1%})"


def heads_table(result: Mapping[str, Any]) -> None:
    """Every head over all tokens, then its accuracy by token class and by position."""
    console = Console()
    table = Table(title=f"Prediction heads on {counted(result['rows'], 'row')}")
    for name in ("head", "tokens", "accuracy", "perplexity", "confidence"):
        table.add_column(name, justify="right")
    for head in result["heads"]:
        shares = (f"{head['accuracy']:.1%}", f"{head['perplexity']:.2f}", f"{head['confidence']:.1%}")
        table.add_row(f"+{head['head']}", f"{head['tokens']:,}", *shares)
    console.print(table)
    console.print(_by(result["heads"], "by_class", "token class"))
    console.print(_by(result["heads"], "by_position", "position"))


def _by(heads: Sequence[Mapping[str, Any]], group: str, label: str) -> Table:
    table = Table(title=f"Accuracy by {label}")
    table.add_column(label)
    for head in heads:
        table.add_column(f"token +{head['head']}", justify="right")
    for name in heads[0][group]:
        cells = [f"{head[group][name]['accuracy']:.0%}" if name in head[group] else "-" for head in heads]
        table.add_row(name, *cells)
    return table


def perplexity_table(result: Mapping[str, Any]) -> None:
    """One line."""
    of = result["perplexity"]
    Console().print(
        f"perplexity {of['mean']:.3f} ({of['low']:.3f}-{of['high']:.3f}) over {result['tokens']:,} response tokens of "
        f"{counted(result['rows'], 'row')}; {result['bits_per_byte']:.3f} bits per byte",
        highlight=False,
    )


def speed_table(result: Mapping[str, Any]) -> None:
    """Plain and self-speculative decoding side by side."""
    table = Table(title="Greedy decoding, tokens per second")
    for name in ("batch", "prompt", "plain", "with heads", "ratio (lowest-highest)", "tokens/forward"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        both = "speedup" in row
        table.add_row(
            str(row["batch"]),
            str(row["prompt_tokens"]),
            f"{row['plain_tokens_per_s']:,.0f}",
            f"{row['speculative_tokens_per_s']:,.0f}" if both else "-",
            f"{row['speedup']:.2f} ({row['speedup_lowest']:.2f}-{row['speedup_highest']:.2f})" if both else "-",
            f"{row['tokens_per_forward']:.2f}" if both else "-",
        )
    Console().print(table)
