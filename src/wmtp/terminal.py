"""What people see: progress, tables. A bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from wmtp.config import Config
from wmtp.decoding import Generation
from wmtp.doctor import Finding
from wmtp.estimate import Estimate
from wmtp.progress import is_live
from wmtp.quickstart import PAGE, ArmResult
from wmtp.trainer import Reporter, RunResult, Silent
from wmtp.wording import counted, size

LINES = 20
"""Progress lines per run where there is no terminal."""


def reporter(name: str, *, quiet: bool = False) -> Reporter:
    """Progress on stderr: a bar, or lines where stderr is no terminal."""
    if quiet:
        return Silent()
    console = Console(stderr=True)
    return Bar(name, console) if is_live(console) else Lines(name, console)


class Lines:
    """A line now and then."""

    def __init__(self, name: str, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.console, self.clock = name, console, clock
        self.first, self.steps, self.every, self.began = 1, 0, 1, 0.0

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self.console.print(f"[{self.name}] {text}", markup=False, highlight=False, soft_wrap=True)

    def start(self, first_step: int, steps: int) -> None:
        """The loop begins."""
        self.first, self.steps, self.every = first_step, steps, max(1, steps // LINES)
        self.began = self.clock()

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """A step is done."""
        if step % self.every == 0 or step == self.steps:
            self.note(f"step {step}/{self.steps}, {self._left(step)}: {_figures(metrics)}")

    def _left(self, step: int) -> str:
        """How long the rest takes if it goes on as it did so far, evaluations and saves included."""
        each = (self.clock() - self.began) / (step - self.first + 1)
        return f"{duration(each * (self.steps - step))} left"

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        """An evaluation is done."""
        self.note(f"step {step}: held out: {_figures(metrics)}")

    def stop(self) -> None:
        """The loop ended."""


class Bar:
    """A progress bar with the last figures."""

    def __init__(self, name: str, console: Console) -> None:
        self.name = name
        self.progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
            console=console,
        )
        self.task: TaskID | None = None

    def note(self, text: str) -> None:
        """Something worth knowing, above the bar."""
        self.progress.console.print(f"[{self.name}] {text}", markup=False, highlight=False)

    def start(self, first_step: int, steps: int) -> None:
        """Show the bar."""
        self.progress.start()
        self.task = self.progress.add_task(self.name, total=steps, completed=first_step - 1, figures="")

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Move it."""
        if self.task is not None:
            self.progress.update(self.task, completed=step, figures=_short(metrics))

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        """A line above it."""
        self.note(f"step {step}: held out: {_figures(metrics)}")

    def stop(self) -> None:
        """Leave it as it is."""
        self.progress.stop()


def _figures(metrics: dict[str, Any]) -> str:
    """The few figures worth a line."""
    parts = []
    if "loss/nll" in metrics:
        heads = [v for k, v in metrics.items() if k.startswith("loss/nll_head_")]
        parts.append("nll " + " ".join(f"{v:.3f}" for v in heads))
        if abs(metrics["loss/weighted"] - metrics["loss/nll"]) > 1e-6:
            parts.append(f"weighted {metrics['loss/weighted']:.3f}")
    else:
        parts.append(f"loss {metrics['loss/weighted']:.3f}")
    if "value/pair_accuracy" in metrics:
        parts.append(f"pairs {metrics['value/pair_accuracy']:.0%}")
    if "time/tokens_per_s" in metrics:
        parts.append(f"{metrics['time/tokens_per_s']:,.0f} tok/s")
    if "mem/peak_bytes" in metrics:
        parts.append(f"peak {size(metrics['mem/peak_bytes'])}")
    return "  ".join(parts)


def _short(metrics: dict[str, Any]) -> str:
    """What fits beside a bar in 80 columns."""
    heads = [v for k, v in metrics.items() if k.startswith("loss/nll_head_")]
    loss = f"nll {heads[0]:.2f}..{heads[-1]:.2f}" if heads else f"loss {metrics['loss/weighted']:.3f}"
    return f"{loss} {metrics['time/tokens_per_s']:,.0f} tok/s {size(metrics['mem/peak_bytes'])}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds for people: 0:07, 12:30, 3:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def result_table(result: RunResult) -> None:
    """What a finished run reached: per head, on held-out rows where there are some; speed and memory."""
    console = Console()
    figures, where = (result.validation, "held-out rows") if result.validation else (result.train, "the last step")
    heads = sum(1 for name in figures if name.startswith("loss/nll_head_"))
    if heads:
        table = Table(title=f"On {where}")
        for name in ("head", "nll", "accuracy"):
            table.add_column(name, justify="right")
        for k in range(1, heads + 1):
            accuracy = figures.get(f"acc/head_{k}")  # losses of libraries count no hits
            table.add_row(
                f"+{k}", f"{figures[f'loss/nll_head_{k}']:.3f}", "-" if accuracy is None else f"{accuracy:.1%}"
            )
        console.print(table)
    if "value/pair_accuracy" in figures:
        console.print(f"on {where}: {figures['value/pair_accuracy']:.1%} of the pairs ranked right", highlight=False)
    console.print(f"{result.tokens_per_s:,.0f} tokens/s, peak memory {size(result.peak_bytes)}", highlight=False)


def quickstart_table(results: Sequence[ArmResult], out: Path) -> None:
    """The comparison in two tables that fit 80 columns, and what it does not show."""
    console = Console()
    console.print(_quality_table([r for r in results if "loss/nll" in r.validation]))
    console.print(_cost_table(results))
    for result in results:
        if "value/pair_accuracy" in result.validation:
            console.print(_critic_line(result), highlight=False)
    console.print(
        "A model this small, trained for this short a time, shows that the machine works. It does not show that an arm "
        "wins: that takes a real model, several seeds and the controls.",
        highlight=False,
    )
    console.print(f"Runs and figures: {out}/", highlight=False, soft_wrap=True)
    console.print(f"The page: {out / PAGE}", highlight=False, soft_wrap=True)


def _quality_table(results: Sequence[ArmResult]) -> Table:
    heads = sum(1 for name in results[0].validation if name.startswith("acc/head_"))
    table = Table(title="Held-out problems: nll and top-1 accuracy per head")
    table.add_column("arm", no_wrap=True)
    for k in range(1, heads + 1):
        table.add_column(f"token +{k}", justify="right", no_wrap=True)
    for result in results:
        figures = result.validation
        cells = [f"{figures[f'loss/nll_head_{k}']:.3f} {figures[f'acc/head_{k}']:4.0%}" for k in range(1, heads + 1)]
        table.add_row(result.arm, *cells)
    return table


def _cost_table(results: Sequence[ArmResult]) -> Table:
    table = Table(title="Weights on held-out tokens, effective sample size, speed, process memory")
    table.add_column("arm", no_wrap=True)
    for name in ("weight mean ± std", "eff. share", "tokens/s", "peak memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        weights = result.weights
        spread = f"{weights['weight/mean']:.2f} ± {weights['weight/std']:.2f}" if weights else "-"
        share = f"{weights['weight/ess']:.0%}" if weights else "-"
        table.add_row(result.arm, spread, share, f"{result.tokens_per_s:,.0f}", size(result.peak_bytes))
    return table


def _critic_line(result: ArmResult) -> str:
    figures = result.validation
    return (
        f"critic (stage 1 of verifiable): {figures['value/pair_accuracy']:.1%} of held-out (correct, incorrect) pairs "
        f"ranked right, margin {figures['value/margin']:+.3f}"
    )


def estimate_table(config: Config, estimate: Estimate, notes: Sequence[str]) -> None:
    """What a run would do and need."""
    console = Console()
    for note in notes:
        console.print(note, highlight=False, markup=False)
    rows, length = estimate.longest_micro_batch
    console.print(
        f"{config.arm}: {counted(estimate.steps, 'step')} ({estimate.epochs:.2f} epochs), about {estimate.tokens:,} "
        f"tokens; largest micro-batch {rows} x {length}, at most {estimate.micro_batches} a step"
        + (f" on each of {estimate.ranks} ranks" if estimate.ranks > 1 else ""),
        highlight=False,
    )
    console.print(
        f"parameters: {estimate.parameters:,}, {estimate.trainable:,} trained"
        + (f", {estimate.frozen_parameters:,} of a frozen scorer" if estimate.frozen_parameters else ""),
        highlight=False,
    )
    console.print(_memory_table(estimate))
    held = ", ".join(f"{size(count)} {name}" for name, count in estimate.activation_bytes.items())
    console.print(f"activations of a micro-batch: {held}", highlight=False)
    if estimate.process_bytes is not None:
        console.print(f"Python and its libraries, beside that: {size(estimate.process_bytes)}", highlight=False)
    console.print(f"disk per checkpoint: {size(estimate.checkpoint_bytes)}", highlight=False)


STATES = {"ok": "[green]ok[/]", "absent": "[dim]absent[/]", "less": "[yellow]less[/]", "failed": "[red]failed[/]"}


def doctor_table(findings: Sequence[Finding]) -> None:
    """What the doctor found, a table per topic."""
    console = Console()
    for topic in dict.fromkeys(finding.topic for finding in findings):
        table = Table(title=topic, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column()
        table.add_column(overflow="fold")
        for finding in findings:
            if finding.topic == topic:
                remedy = f"\n-> {finding.remedy}" if finding.remedy and finding.state != "ok" else ""
                table.add_row(escape(finding.name), STATES[finding.state], escape(finding.text + remedy))
        console.print(table)
        console.print()


def _memory_table(estimate: Estimate) -> Table:
    """Parts of the peak, a column per strategy; the config's is marked."""
    where = "of each rank" if estimate.ranks > 1 else "of the process"
    table = Table(title=f"Expected memory {where} at the peak of a step")
    table.add_column("part")
    for needs in estimate.needs:
        chosen = "*" if estimate.ranks > 1 and needs.strategy == estimate.strategy else ""
        table.add_column(needs.strategy + chosen, justify="right")
    for name in dict.fromkeys(name for needs in estimate.needs for name in needs.bytes):
        table.add_row(name, *(size(needs.bytes[name]) if name in needs.bytes else "-" for needs in estimate.needs))
    table.add_section()
    table.add_row("together", *(size(needs.total) for needs in estimate.needs))
    if any(needs.host_bytes for needs in estimate.needs):
        table.add_row("in the host's memory", *(size(needs.host_bytes) for needs in estimate.needs))
    return table


def decoding_figures(generation: Generation) -> str:
    """Tokens per forward, and how many drafts were accepted at each place after the next token."""
    tokens, forwards = sum(map(len, generation.tokens)), sum(row.forwards for row in generation.rows)
    text = f"{tokens:,} tokens in {forwards:,} forwards: {generation.tokens_per_forward:.2f} tokens per forward"
    shares = [
        f"{accepted / drafted:.0%} of {drafted:,}" if drafted else "none drafted"
        for accepted, drafted in zip(generation.accepted, generation.drafted, strict=True)
    ]
    return f"{text}; drafts accepted: {', '.join(shares)}" if shares else text
