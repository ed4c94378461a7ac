"""The runs of a study, one after another, each a `wmtp train` of its own.

What was done is on the disk, so a study that was killed goes on where it was: a run with a result is not repeated, one
without goes on from its checkpoints (`--resume auto`), or starts. A run that fails is told and left; the next call
tries it again. In the study's folder:

    configs/RUN.yaml    what the run is given; made once, with the steps that its budget allows
    budgets/RUN.json    that budget; null without one
    runs/RUN/           the run folder
    trials/RUN/         with a budget of seconds: the short run that tells the time of a step
    logs/RUN.log        what its processes printed
    results/RUN.json    its figures

In a store a log is there once its process has ended.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wmtp.config import Config, dump
from wmtp.errors import Interrupted, UsageError, WmtpError
from wmtp.storage import Place, copy, place, sha256_file
from wmtp.study.budget import spent, steps_in, steps_within, trial
from wmtp.study.given import budget_of, give, given_before, write
from wmtp.study.results import Result, benchmark_metrics, of_run, read_result, write_result
from wmtp.study.settings import EvaluationConfig, Run, Study
from wmtp.supervisor import STOPPED, Options, newest_step, supervise

LAST_LINES = 3
"""Of a failed run's log, told at once."""


Launch = Callable[[Sequence[str], Path, Callable[[], int], Options], int]
"""Runs one command of ours, its output appended to a log; its exit code. `progress` and options as in `supervise`."""


def in_child(arguments: Sequence[str], log: Path, progress: Callable[[], int], options: Options) -> int:
    """In a process of its own, or in several, which do not outlive this one (on Linux)."""
    with log.open("ab") as file:
        output = file.fileno()
        return supervise(
            lambda attempt: [sys.executable, "-P", "-m", "wmtp", *arguments],
            progress=progress,
            options=options,
            output=output,
            say=lambda text: _append(output, f"wmtp: {text}\n"),
        )


def _append(output: int, text: str) -> None:
    os.write(output, text.encode())


def check_metric(study: Study, run: Run, result: Result) -> None:
    """Raise `UsageError` if no run of the baseline so far, from which differences are, has such a figure at all."""
    name, baseline = study.config.metric.name, study.config.baseline
    if run.arm.name != baseline:
        return
    others = (read_result(study.file("results", one.name)) for one in study.runs if one.arm.name == baseline)
    if name in result.metrics or any(one is not None and name in one.metrics for one in others):
        return
    known = sorted(result.metrics)
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}" if near else ""
    raise UsageError(
        f"metric.name = {name!r}: {run.name} has no such figure{hint}. It has {', '.join(known) or 'none'}: name one "
        "of these, and go on; what was trained stays"
    )


@dataclass
class Runner:
    """Runs the parts of a study.

    Args:
        options: ranks and restarts of every run.
        say: gets a line when a run begins or fails.
    """

    study: Study
    options: Options
    say: Callable[[str], None]
    launch: Launch = in_child
    failed: dict[str, str] = field(default_factory=dict)
    """Run -> why."""

    def all(self) -> None:
        """Every run that has no result yet; one that fails does not stop the others.

        Raises:
            Interrupted: a signal; the state was saved.
            UsageError: see `check_metric`.
        """
        runs = self.study.runs
        for number, run in enumerate(runs, 1):
            self.say(f"run {number} of {len(runs)}: {run.name}")
            try:
                result = self.one(run)
            except Interrupted:
                raise
            except WmtpError as problem:
                self.failed[run.name] = str(problem)
                self.say(f"{run.name} failed: {problem}")
            else:
                check_metric(self.study, run, result)

    def one(self, run: Run) -> Result:
        """The result of a run: stored, or made now.

        Raises:
            Interrupted: a signal; the state was saved.
            UsageError: its config cannot be, or is not what an earlier call gave the run.
            WmtpError: a process of it failed, or a run that it needs has no result.
        """
        for name in sorted(self.study.needs[run.arm.name]):
            needed = f"{name}-seed{run.seed}"
            if read_result(self.study.file("results", needed)) is None:
                raise WmtpError(f"{run.name} needs {needed}, which has no result; run that first")
        result = read_result(self.study.file("results", run.name))
        config = self._config(run, done=result is not None)
        if result is None:
            result = self._train(run, config)
        for evaluation in self.study.config.evaluate if run.arm.compare else ():
            asked = asked_of(evaluation)
            if not result.has(asked):
                self._evaluate(run, evaluation, result)
                result.evaluated.append(asked)
                write_result(self.study.file("results", run.name), result)
        return result

    def _config(self, run: Run, *, done: bool) -> Config:
        """The run's config: stored, or made now. A run that is done may be a copy from elsewhere."""
        config = given_before(self.study, run, copied=done)
        if config is None:
            steps = None if budget_of(self.study, run) is None else self._steps(run)
            config = self.study.run_config(run, steps)
            give(self.study, run, config)
        return config

    def _steps(self, run: Run) -> int:
        """What the budget allows."""
        budget, config = self.study.config.budget, self.study.run_config(run)
        assert budget is not None
        if budget.seconds is None:
            return steps_within(config, budget)
        file = self.study.file("trials", run.name)
        write(file, dump(trial(config)))
        folder = file.with_name(run.name)
        self._training(run, file, folder)
        return steps_in(budget.seconds, folder)

    # Processes

    def _train(self, run: Run, config: Config) -> Result:
        folder = self.study.run_folder(run.name)
        self._training(run, self.study.file("configs", run.name), folder)
        result = of_run(folder, run.arm.name, run.seed)
        if run.arm.compare and config.online is None:
            result.flops = spent(config, result.steps).flops
        write_result(self.study.file("results", run.name), result)
        return result

    def _evaluate(self, run: Run, evaluation: EvaluationConfig, result: Result) -> None:
        folder = self.study.run_folder(run.name)
        given = {
            "--model": folder / "final",
            "--benchmark": evaluation.benchmark,
            "--data": evaluation.data,
            "--split": evaluation.split,
            "--n": evaluation.n,
            "--k": ",".join(map(str, evaluation.k)),
            "--temperature": evaluation.temperature,
            "--max-new-tokens": evaluation.max_new_tokens,
            "--require": evaluation.require,
            "--seed": run.seed,
        }
        options = [str(part) for name, value in given.items() if value is not None for part in (name, value)]
        patience = Options(stop_timeout_s=self.options.stop_timeout_s)
        self._process(run, ["eval", *options], lambda: -1, patience)
        result.metrics |= benchmark_metrics(folder / "eval" / f"{evaluation.benchmark}.json")

    def _training(self, run: Run, config: Place, folder: Place) -> None:
        arguments = ["train", "--config", str(config), "--out", str(folder), "--resume", "auto"]
        self._process(run, arguments, lambda: newest_step(folder), self.options)

    def _process(self, run: Run, arguments: Sequence[str], progress: Callable[[], int], options: Options) -> None:
        """One command of ours to its end, its output in the run's log."""
        log = self.study.file("logs", run.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with _on_disk(log) as file:
            code = self.launch(arguments, file, progress, options)
        if code in STOPPED:
            name = signal.Signals(code - 128).name
            raise Interrupted(f"{name} in {run.name}; its state is saved, and the same command goes on", code - 128)
        if code:
            last = "\n  ".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise WmtpError(f"wmtp {arguments[0]} ended with exit code {code}; the end of {log}:\n  {last}")


def asked_of(evaluation: EvaluationConfig) -> dict[str, Any]:
    """What a result keeps of an evaluation: a copy of a study may have its data at another path."""
    file = None if evaluation.data is None else place(evaluation.data)
    content = sha256_file(file) if file is not None and file.is_file() else None
    return {**evaluation.model_dump(), "sha256": content}


@contextmanager
def _on_disk(log: Place) -> Iterator[Path]:
    """A log that can be appended to: itself, or a copy that takes its place in the store when the block ends."""
    if isinstance(log, Path):
        yield log
        return
    with TemporaryDirectory(prefix="wmtp-") as folder:
        file = Path(folder) / log.name
        file.write_bytes(log.read_bytes() if log.is_file() else b"")
        try:
            yield file
        finally:
            copy(file, log)
