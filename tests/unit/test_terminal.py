"""What people see while a run goes on, and what a command costs before it does anything."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_command

from wmtp import progress, terminal
from wmtp.cli import app
from wmtp.cli.training import _plain
from wmtp.trainer import RunResult

FIGURES = {
    "loss/nll": 2.0,
    "loss/weighted": 2.5,
    "loss/nll_head_1": 1.5,
    "loss/nll_head_2": 2.5,
    "time/tokens_per_s": 1234.5,
    "mem/peak_bytes": 3 * 2**30,
}


def shown(*, live: bool, **options: Any) -> Console:
    return Console(file=io.StringIO(), force_terminal=live, width=80, **options)


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_line_of_a_log_has_loss_per_head_speed_memory_and_the_time_that_is_left() -> None:
    console, clock = shown(live=False), iter([100.0, 160.0])
    lines = terminal.Lines("baseline", console, clock=lambda: next(clock))
    lines.start(11, 40)
    lines.step(20, FIGURES)
    line = "step 20/40, 2:00 left: nll 1.500 2.500  weighted 2.500  1,234 tok/s  peak 3.0 GiB"
    assert text_of(console) == f"[baseline] {line}\n"


def test_a_long_run_writes_no_more_than_some_twenty_lines_and_always_the_last() -> None:
    console, clock = shown(live=False), count()
    lines = terminal.Lines("long", console, clock=lambda: float(next(clock)))
    lines.start(1, 1010)
    for step in range(1, 1011):
        lines.step(step, FIGURES)
    written = text_of(console).splitlines()
    assert terminal.LINES <= len(written) <= terminal.LINES + 2
    assert written[-1].startswith("[long] step 1010/1010, 0:00 left")


def test_the_bar_fits_a_terminal_of_80_columns_with_loss_speed_and_memory() -> None:
    console = shown(live=True)
    bar = terminal.Bar("verifiable", console)
    bar.start(1, 2000)
    bar.step(1999, FIGURES)
    bar.stop()
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text_of(console))
    assert "nll 1.50..2.50 1,234 tok/s 3.0 GiB" in written
    assert max(map(len, re.split(r"[\r\n]", written))) <= 80


@pytest.mark.parametrize(
    ("environment", "live"),
    [({}, True), ({"CI": "true"}, False), ({"TERM": "dumb"}, False), ({"CI": ""}, True)],
)
def test_a_bar_is_drawn_for_people_and_not_for_ci_or_a_dumb_terminal(
    environment: dict[str, str], live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert progress.is_live(shown(live=True)) is live
    assert not progress.is_live(shown(live=False))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (7.6, "0:08"), (750, "12:30"), (3599.7, "1:00:00"), (10800, "3:00:00")]
)
def test_durations_are_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


def finished(**metrics: Any) -> RunResult:
    return RunResult(
        **{"folder": Path("runs/a"), "steps": 40, "train": {}, "validation": None, "stopped_early": False}
        | {"tokens_per_s": 1234.5, "peak_bytes": 3 * 2**30}
        | metrics
    )


def test_a_finished_run_ends_with_its_held_out_figures_per_head(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"loss/nll_head_1": 1.5, "acc/head_1": 0.25, "loss/nll_head_2": 2.5}
    terminal.result_table(finished(train=figures | {"acc/head_1": 0.9}, validation=figures))
    shown = capsys.readouterr().out
    assert "On held-out rows" in shown
    rows = [line.split() for line in shown.splitlines() if "+1" in line or "+2" in line]
    assert [[cell for cell in row if cell not in "│"] for row in rows] == [
        ["+1", "1.500", "25.0%"],
        ["+2", "2.500", "-"],
    ]
    assert shown.splitlines()[-1] == "1,234 tokens/s, peak memory 3.0 GiB"


def test_a_finished_critic_ends_with_its_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.result_table(finished(train={"value/pair_accuracy": 0.75, "loss/weighted": 0.5}))
    assert "on the last step: 75.0% of the pairs ranked right" in capsys.readouterr().out


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, one in getattr(command, "commands", {}).items():
        yield " ".join([*path, name]), one
        yield from commands(one, (*path, name))


def test_every_command_can_answer_in_json() -> None:
    """A benchmark writes a file, which its own --json names; `data` and `bench` only hold others."""
    ends = {name: one for name, one in commands(get_command(app)) if not hasattr(one, "commands")}
    lacking = [n for n, one in ends.items() if not any("--json" in p.opts for p in one.params)]
    assert [name for name in lacking if not name.startswith("bench ")] == []


HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", "rich", "wmtp.config", "wmtp.trainer")
PROBE = """
import json, sys
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


def imported(code: str, **environment: str) -> tuple[str, list[str]]:
    """What a fresh interpreter prints and imports for some lines."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


RUN = "from wmtp.cli import run_command; run_command([{0}])"


@pytest.mark.parametrize("arguments", ["'--help'", "'train', '--help'", "'--version'"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    """Half a second for `wmtp --help` was asked for; torch alone takes longer. Modules are counted, not seconds."""
    out, modules = imported(RUN.format(arguments))
    assert "wmtp" in out
    assert [name for name in HEAVY if name in modules] == []
    assert len(modules) < 400


def test_importing_wmtp_imports_next_to_nothing() -> None:
    _, modules = imported("import wmtp")
    assert [name for name in modules if name.startswith("wmtp")] == ["wmtp"]
    assert len(modules) < 100


def test_the_shell_completes_commands_and_options_without_torch() -> None:
    words = {"COMP_WORDS": "wmtp train --reci", "COMP_CWORD": "2", "_WMTP_COMPLETE": "complete_bash"}
    out, modules = imported(RUN.format(""), **words)
    assert "--recipe" in out.split()
    assert "torch" not in modules


def test_the_tokens_trained_on_are_no_figure_of_the_validation() -> None:
    result = RunResult(Path("run"), 2, {"tokens": 9}, {"tokens": 9, "loss/nll": 1.0}, False, 1.0, 0)
    found = _plain(result)
    assert (found["train"], found["validation"]) == ({"tokens": 9}, {"loss/nll": 1.0})
