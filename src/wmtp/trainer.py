"""The job on a page: build the parts, loop, save, stop cleanly.

A run folder is described in the README. What makes a resumed run the same run:
  - batches, learning rates and evaluations are pure functions of the step;
  - everything else that has memory is in the checkpoint: model, optimiser, scheme, early stopping, random states;
  - the journal is cut back to the checkpoint's step before it goes on.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from wmtp import checkpoint, devices, optim, provenance
from wmtp.config import Config, dump, load
from wmtp.errors import CheckpointError, Interrupted, ModelError, NonFiniteError, UsageError
from wmtp.estimate import Estimate, estimate
from wmtp.formats.native import save_model
from wmtp.parts import Parts, build
from wmtp.runfolder import (
    check_disk,
    check_same_run,
    check_writable,
    facts_of,
    find_start,
    only_trainer,
    run_folder,
)
from wmtp.step import StepResult, evaluate, train_step
from wmtp.storage import write_atomic
from wmtp.tracking import Journal

MAX_FAILED_SAVES = 3
"""So many periodic checkpoints in a row may fail before the run does."""


class Reporter(Protocol):
    """Who is told how the run goes."""

    def note(self, text: str) -> None: ...
    def start(self, first_step: int, steps: int) -> None: ...
    def step(self, step: int, metrics: dict[str, Any]) -> None: ...
    def evaluated(self, step: int, metrics: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """Tells nobody; keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)

    def start(self, first_step: int, steps: int) -> None:
        """Nothing."""

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run left."""

    folder: Path
    steps: int
    train: dict[str, Any]
    """Metrics of the last step."""
    validation: dict[str, Any] | None
    """Metrics of the last evaluation."""
    stopped_early: bool
    tokens_per_s: float
    """Over all steps, without evaluations and saving."""
    peak_bytes: int


@dataclass
class Progress:
    """What the loop remembers beside model and optimiser."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Spent in steps, over all starts of the run."""
    nonfinite: int = 0
    """Steps in a row whose gradient norm was not finite."""
    best: float = math.inf
    bad_evaluations: int = 0
    stopped_early: bool = False
    train: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] | None = None


def run(
    config: Config, *, out: str | Path | None = None, resume: str | None = None, reporter: Reporter | None = None
) -> RunResult:
    """Train one arm, or the critic, to its end.

    Args:
        out: the run folder; default `config.runs / config.name`.
        resume: `auto` goes on from the newest good checkpoint of the run folder, or starts if there is none;
            a path of a run folder or of its newest checkpoint must exist. None refuses a folder that has a run.

    Raises:
        UsageError: config, input or folder is wrong (nothing was trained).
        Interrupted: SIGINT or SIGTERM; the state was saved, unless no step had begun.
        NonFiniteError, CheckpointError: see there.
    """
    reporter = reporter or Silent()
    with StopSignal() as stop:
        folder, start, parts = prepare(config, out, resume, reporter)
        for note in parts.data.notes:
            reporter.note(note)
        if stop.received is not None:
            raise Interrupted("stopped before the first step; nothing was written", stop.received)
        folder.mkdir(parents=True, exist_ok=True)
        with only_trainer(folder):
            return Loop(parts, folder, reporter, start).run(stop)


def prepare(
    config: Config, out: str | Path | None, resume: str | None, reporter: Reporter
) -> tuple[Path, Path | None, Parts]:
    """Run folder, checkpoint to start from, and parts: all that can be wrong before step 1. Writes nothing.

    Raises:
        UsageError: the first thing that would fail.
    """
    folder = run_folder(config, out, resume)
    start = find_start(folder, resume, reporter.note)
    check_writable(folder)
    if start is not None:
        check_same_run(config, start)
    parts = build(config)
    if start is not None:
        check_facts(start, parts, reporter.note)
    return folder, start, parts


def dry_run(config: Config, *, out: str | Path | None = None, resume: str | None = None) -> tuple[Estimate, list[str]]:
    """Everything `run` would find wrong before step 1, and what the run will need. Writes nothing.

    Raises:
        UsageError: the first thing that would fail.
    """
    reporter = Silent()
    folder, _, parts = prepare(config, out, resume, reporter)
    needs = estimate(parts)
    check_disk(folder, config, needs.checkpoint_bytes)
    return needs, [*parts.data.notes, *reporter.notes]


def check_facts(path: Path, parts: Parts, note: Callable[[str], None]) -> None:
    """Raise unless the checkpoint was saved with these rows and this tokenizer; note what makes it not bit-exact."""
    facts = facts_of(path)
    if facts["data"] != parts.data.fingerprint:
        raise UsageError(f"{path} was saved while training on other rows: the data files have changed since")
    if facts["tokenizer"] != parts.tokenizer_fingerprint:
        raise ModelError(f"{path} was saved with another tokenizer")
    now = {"num_threads": torch.get_num_threads(), "torch": torch.__version__, "device": parts.device.type}
    for name, value in now.items():
        if facts[name] != value:
            note(f"{name} was {facts[name]} when {path} was saved and is {value} now: the run goes on, not bit-exactly")


# Stopping


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request to stop after the step; a second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set handlers; whoever owns it decides
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = number


# The loop


class Loop:
    """The steps of one run."""

    def __init__(self, parts: Parts, folder: Path, reporter: Reporter, start: Path | None) -> None:
        self.parts, self.folder, self.reporter = parts, folder, reporter
        self.config = parts.config
        self.checkpoints = folder / "checkpoints"
        self.progress = Progress()
        facts = folder / "provenance.json"
        self.run_id: str = read_provenance(facts)["run_id"] if facts.exists() else uuid.uuid4().hex
        self.failed_saves = 0
        if self.checkpoints.is_dir():
            checkpoint.remove_litter(self.checkpoints)
        if start is not None:
            self._restore(start)
        self._write_facts()

    def run(self, stop: StopSignal) -> RunResult:
        """From the next step to the last."""
        progress, parts = self.progress, self.parts
        self.reporter.start(progress.step + 1, parts.steps)
        try:
            with Journal(self.folder / "metrics.jsonl", keep_until=progress.step) as journal:
                while progress.step < parts.steps and not progress.stopped_early:
                    self._one_step(journal)
                    self._evaluate_if_due(journal)
                    self._save_if_due(stop)
        finally:
            self.reporter.stop()
        if self.config.checkpoint.save_final:
            save_model(parts.model, self.folder / "final", parts.tokenizer)
        return RunResult(
            folder=self.folder,
            steps=progress.step,
            train=progress.train,
            validation=progress.validation,
            stopped_early=progress.stopped_early,
            tokens_per_s=progress.tokens / max(progress.seconds, 1e-9),
            peak_bytes=devices.peak_memory(parts.device),
        )

    def _one_step(self, journal: Journal) -> None:
        config, parts, progress = self.config, self.parts, self.progress
        started = time.perf_counter()
        step = progress.step + 1
        batches = parts.data.train.at(step - 1, config.train.micro_batch_size, config.train.micro_batch_tokens)
        lr = self._learning_rate(step)
        optim.set_learning_rate(parts.optimizer, lr)
        result = train_step(
            parts.model,
            parts.optimizer,
            parts.objective,
            [batch.to(parts.device) for batch in batches],
            clip_norm=config.optim.clip_norm,
            precision=parts.precision,
        )
        progress.step = step
        seconds = time.perf_counter() - started
        progress.tokens += result.tokens
        progress.seconds += seconds
        progress.train = {
            "tokens": progress.tokens,
            **result.metrics,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "time/step_s": seconds,
            "time/tokens_per_s": result.tokens / seconds,
            "mem/peak_bytes": devices.peak_memory(parts.device),
        }
        self.reporter.step(step, progress.train)
        if step % config.train.log_every == 0 or step == parts.steps or not result.stepped:
            journal.log(step, "train", progress.train)
        self._count_nonfinite(result, step)

    def _learning_rate(self, step: int) -> float:
        options = self.config.optim
        return optim.learning_rate(
            step,
            peak=options.lr,
            total=self.parts.steps,
            warmup=options.warmup_steps,
            schedule=options.schedule,
            floor=options.floor,
        )

    def _count_nonfinite(self, result: StepResult, step: int) -> None:
        if result.stepped:
            self.progress.nonfinite = 0
            return
        self.progress.nonfinite += 1
        self.reporter.note(
            f"step {step}: the gradient norm is {result.grad_norm}; step skipped ({self._rows(step, step)})"
        )
        if self.progress.nonfinite >= self.config.train.max_nonfinite:
            first = step - self.progress.nonfinite + 1
            saved = checkpoint.list_steps(self.checkpoints) if self.checkpoints.is_dir() else []
            raise NonFiniteError(
                f"steps {first} to {step} all had a non-finite gradient norm ({self._rows(first, step)}). They were "
                f"skipped and not saved. Last good checkpoint: {saved[-1] if saved else 'none was written yet'}. Try a "
                "lower optim.lr or more optim.warmup_steps, or look at those problems"
            )

    def _rows(self, first: int, last: int) -> str:
        """Whose rows were in these steps, for a message."""
        train = self.parts.data.train
        names = dict.fromkeys(train.rows[i].name for step in range(first, last + 1) for i in train.rows_of(step - 1))
        return "problems " + ", ".join(list(names)[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    def _evaluate_if_due(self, journal: Journal) -> None:
        parts, progress, every = self.parts, self.progress, self.config.train.eval_every
        validation = parts.data.validation
        if validation is None or (progress.step != parts.steps and (every is None or progress.step % every)):
            return
        started = time.perf_counter()
        count = min(len(validation), self.config.train.eval_batches or len(validation))
        sizes = (self.config.train.micro_batch_size, self.config.train.micro_batch_tokens)
        batches = ([b.to(parts.device) for b in validation.at(number, *sizes)] for number in range(count))
        metrics = evaluate(parts.model, parts.objective, batches, precision=parts.precision)
        progress.validation = {"tokens": progress.tokens, **metrics, "time/eval_s": time.perf_counter() - started}
        journal.log(progress.step, "validation", progress.validation)
        self.reporter.evaluated(progress.step, progress.validation)
        self._early_stopping(metrics)

    def _early_stopping(self, metrics: dict[str, float]) -> None:
        options, progress = self.config.train.early_stopping, self.progress
        if options is None:
            return
        watched = self.config.watched
        if metrics[watched] < progress.best - options.min_delta:
            progress.best, progress.bad_evaluations = metrics[watched], 0
            return
        progress.bad_evaluations += 1
        if progress.bad_evaluations >= options.patience:
            progress.stopped_early = True
            self.reporter.note(
                f"stopped early at step {progress.step}: {watched} has not fallen below {progress.best:.4f} in "
                f"{progress.bad_evaluations} evaluations"
            )

    # Checkpoints

    def _save_if_due(self, stop: StopSignal) -> None:
        """Every `checkpoint.every` steps, at the end, and on a signal; never in a run of non-finite steps but then."""
        progress, every = self.progress, self.config.checkpoint.every
        at_end = progress.step == self.parts.steps or progress.stopped_early
        if stop.received is not None:
            path = self.save()
            where = f"stopped after step {progress.step} of {self.parts.steps}; saved {path}"
            name = signal.Signals(stop.received).name
            raise Interrupted(
                f"{name}: {where}; go on with --resume auto, or: wmtp train --resume {self.folder}", stop.received
            )
        if at_end:
            self.save()
        elif every is not None and progress.step % every == 0 and progress.nonfinite == 0:
            self._try_to_save()

    def _try_to_save(self) -> None:
        """A save that fails (a full disk, say) costs a checkpoint, not the run: the one before it is untouched."""
        try:
            self.save()
        except CheckpointError as problem:
            self.failed_saves += 1
            if self.failed_saves >= MAX_FAILED_SAVES:
                raise
            self.reporter.note(f"step {self.progress.step}: no checkpoint was written: {problem}; training goes on")
        else:
            self.failed_saves = 0

    def save(self) -> Path:
        """Write a checkpoint of the current step.

        Raises:
            CheckpointError: it could not be written, or a weight is not finite (then it would be worth nothing).
        """
        parts, progress = self.parts, self.progress
        spoiled = [name for name, p in parts.model.named_parameters() if not bool(p.isfinite().all())]
        if spoiled:
            raise CheckpointError(
                f"not saved: {spoiled[0]} (and {len(spoiled) - 1} more tensors) has non-finite weights"
            )
        state = {
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "objective": parts.objective.state_dict(),
            "progress": dict(vars(progress)),
            "random": devices.random_state(parts.device),
        }
        facts = {
            "run_id": self.run_id,
            "arm": self.config.arm,
            "config": self.config.model_dump(mode="json"),
            "data": parts.data.fingerprint,
            "tokenizer": parts.tokenizer_fingerprint,
            "num_threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": parts.device.type,
        }
        return checkpoint.save(
            self.checkpoints, progress.step, state, facts, keep_last=self.config.checkpoint.keep_last
        )

    def _restore(self, path: Path) -> None:
        parts = self.parts
        saved = checkpoint.load(path)
        try:
            parts.model.load_state_dict(saved.parts["model"])
            parts.optimizer.load_state_dict(saved.parts["optimizer"])
            parts.objective.load_state_dict(saved.parts["objective"])
            self.progress = Progress(**saved.parts["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError) as problem:
            raise ModelError(f"{path} is a checkpoint of another model: {problem}") from problem
        devices.set_random_state(saved.parts["random"], parts.device)
        self.reporter.note(f"resumed from {path}: step {self.progress.step} of {parts.steps}")

    def _write_facts(self) -> None:
        """`config.yaml` and `provenance.json`; a resumed run keeps a line about every start."""
        write_atomic(self.folder / "config.yaml", dump(self.config))
        path = self.folder / "provenance.json"
        earlier: dict[str, Any] = read_provenance(path) if path.exists() else {"run_id": self.run_id, "starts": []}
        started = provenance.collect(
            sys.argv,
            from_step=self.progress.step,
            tags=self.config.tags,
            seed=self.config.train.seed,
            data=self.parts.data.fingerprint,
            tokenizer=self.parts.tokenizer_fingerprint,
            device=str(self.parts.device),
            num_threads=torch.get_num_threads(),
        )
        earlier["starts"].append(started)
        write_atomic(path, json.dumps(earlier, indent=2) + "\n")


def read_provenance(path: Path) -> dict[str, Any]:
    """`provenance.json` of a run folder.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        facts: Any = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path} is damaged: {problem}; move it away to go on without it") from problem
    if not isinstance(facts, dict) or not isinstance(facts.get("starts"), list) or not facts.get("run_id"):
        raise CheckpointError(f"{path} is damaged: run_id or starts are missing; move it away to go on without it")
    return facts


def train(recipe: str | Path | Config, overrides: list[str] | None = None, **options: Any) -> RunResult:
    """Train from Python: a recipe file or a `Config`; options as in `run`."""
    config = recipe if isinstance(recipe, Config) else load([Path(recipe)], overrides or [])
    return run(config, **options)
