"""The job on a page: build the parts, loop, save, stop cleanly.

A run folder is described in the README. What makes a resumed run the same run:
  - batches, learning rates and evaluations are pure functions of the step;
  - everything else that has memory is in the checkpoint: model, optimiser, scheme, early stopping, random states;
  - the journal is cut back to the checkpoint's step before it goes on.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from wmtp import checkpoint, devices, optim, provenance
from wmtp.config import Config, dump, load
from wmtp.errors import CheckpointError, ConfigError, Interrupted, ModelError, NonFiniteError, UsageError
from wmtp.estimate import Estimate, estimate
from wmtp.formats.hf import tokenizer_fingerprint
from wmtp.formats.native import save_model
from wmtp.parts import Parts, build
from wmtp.step import StepResult, evaluate, train_step
from wmtp.storage import resolve, write_atomic
from wmtp.tracking import Journal

MAY_CHANGE = (
    "device",
    "num_threads",
    "runs",
    "run_name",
    "tags",
    "checkpoint",
    "train.log_every",
    "train.max_nonfinite",
)
"""Keys that a resumed run may set otherwise; any other difference would make it another run."""


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
    config: Config, *, out: Path | None = None, resume: str | None = None, reporter: Reporter | None = None
) -> RunResult:
    """Train one arm, or the critic, to its end.

    Args:
        out: the run folder; default `config.runs / config.name`.
        resume: `auto` goes on from the newest good checkpoint of the run folder, or starts if there is none;
            a path of a run folder or of one of its checkpoints must exist. None refuses a folder that has a run.

    Raises:
        UsageError: config, input or folder is wrong (nothing was trained).
        Interrupted: SIGINT or SIGTERM; the state was saved.
        NonFiniteError, CheckpointError: see there.
    """
    reporter = reporter or Silent()
    folder = run_folder(config, out, resume)
    start = find_start(folder, resume, reporter)
    if start is not None:
        check_same_run(config, start)
    parts = build(config)
    for note in parts.data.notes:
        reporter.note(note)
    folder.mkdir(parents=True, exist_ok=True)
    with only_trainer(folder), StopSignal() as stop:
        loop = Loop(parts, folder, reporter, start)
        return loop.run(stop)


def dry_run(config: Config, *, out: Path | None = None, resume: str | None = None) -> tuple[Estimate, list[str]]:
    """Everything `run` would find wrong before step 1, and what the run will need. Writes nothing.

    Raises:
        UsageError: the first thing that would fail.
    """
    reporter = Silent()
    folder = run_folder(config, out, resume)
    start = find_start(folder, resume, reporter)
    if start is not None:
        check_same_run(config, start)
    check_writable(folder)
    parts = build(config)
    needs = estimate(parts)
    check_disk(folder, config, needs.checkpoint_bytes)
    return needs, [*parts.data.notes, *reporter.notes]


def check_writable(folder: Path) -> None:
    """Raise `UsageError` if the run folder could not be made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"the run folder {folder} cannot be made: {nearest} is not a writable folder")


def check_disk(folder: Path, config: Config, checkpoint_bytes: int) -> None:
    """Raise `UsageError` if the disk cannot hold the checkpoints that are kept, and one in the making."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    kept = config.checkpoint.keep_last + 1 if config.checkpoint.every is not None else 1
    free = shutil.disk_usage(nearest).free
    if kept * checkpoint_bytes > free:
        raise UsageError(
            f"{kept} checkpoints of {checkpoint_bytes / 2**30:.1f} GiB do not fit on the disk of {folder}: "
            f"{free / 2**30:.1f} GiB are free"
        )


# The run folder


def run_folder(config: Config, out: Path | None, resume: str | None) -> Path:
    """Where the run lives."""
    if resume in (None, "auto"):
        return out if out is not None else resolve(config.runs) / config.name
    path = resolve(str(resume))
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    if out is not None and out.resolve() != folder.resolve():
        raise UsageError(f"--resume {resume} goes on in {folder}, --out says {out}; leave one of them out")
    return folder


def find_start(folder: Path, resume: str | None, reporter: Reporter) -> Path | None:
    """The checkpoint to go on from; None to start at step 1."""
    checkpoints = folder / "checkpoints"
    if resume is None:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"the run folder {folder} is not empty; go on with --resume auto, or choose another --run-name or --out"
            )
        return None
    if resume != "auto":
        path = resolve(resume)
        if path.parent.name == "checkpoints":
            if not path.is_dir():
                raise UsageError(f"no checkpoint at {path}")
            return path
        if not path.is_dir():
            raise UsageError(f"no run folder at {path}")
    found = checkpoint.newest(
        checkpoints, on_bad=lambda path, reason: reporter.note(f"passed over the damaged checkpoint {path}: {reason}")
    )
    if found is None and resume != "auto":
        raise UsageError(f"{folder} has no checkpoint to resume from")
    if found is None:
        reporter.note("no checkpoint to resume from: starting at step 1")
    return found


def check_same_run(config: Config, path: Path) -> None:
    """Raise `ConfigError` if the checkpoint belongs to a run with other settings; names every one."""
    facts = checkpoint.load(path, parts=[]).facts
    before, now = facts.get("config"), config.model_dump(mode="json")
    if not isinstance(before, dict):
        raise CheckpointError(f"{path} does not say which config it was saved with")
    different = [
        f"{key}: {_at(before, key)!r} in the checkpoint, {_at(now, key)!r} now"
        for key in sorted(_leaves(before) | _leaves(now))
        if _at(before, key) != _at(now, key) and not key.startswith(tuple(MAY_CHANGE))
    ]
    if different:
        raise ConfigError(f"{path} is a checkpoint of another run:\n  " + "\n  ".join(different))


def _leaves(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict) or not tree:
        return {prefix}
    return {leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))}


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


@contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock.

    Raises:
        UsageError: another process is training in it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise UsageError(f"another process is training in {folder}") from problem
        yield


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request to stop after the step; a second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
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
        self.run_id = uuid.uuid4().hex
        checkpoint.remove_litter(self.checkpoints) if self.checkpoints.is_dir() else None
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
        batches = parts.data.train.at(step - 1, config.train.micro_batch_size)
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
        rows = self.parts.data.train.rows_of(step - 1)
        shown = ", ".join(str(row) for row in rows[:8]) + (" ..." if len(rows) > 8 else "")
        self.reporter.note(
            f"step {step}: the gradient norm is {result.grad_norm}; step skipped (training rows {shown})"
        )
        if self.progress.nonfinite >= self.config.train.max_nonfinite:
            saved = checkpoint.list_steps(self.checkpoints) if self.checkpoints.is_dir() else []
            last = str(saved[-1]) if saved else "none was written yet"
            raise NonFiniteError(
                f"{self.progress.nonfinite} steps in a row had a non-finite gradient norm, the last one step {step} "
                f"(training rows {shown}). The model is as it was before them. Last good checkpoint: {last}. Try a "
                "lower optim.lr, more optim.warmup_steps, or look at those rows"
            )

    def _evaluate_if_due(self, journal: Journal) -> None:
        parts, progress, every = self.parts, self.progress, self.config.train.eval_every
        validation = parts.data.validation
        if validation is None or (progress.step != parts.steps and (every is None or progress.step % every)):
            return
        started = time.perf_counter()
        count = min(len(validation), self.config.train.eval_batches or len(validation))
        size = self.config.train.micro_batch_size
        batches = (batch.to(parts.device) for number in range(count) for batch in validation.at(number, size))
        metrics = evaluate(parts.model, parts.objective, batches, precision=parts.precision)
        progress.validation = {"tokens": progress.tokens, **metrics, "time/eval_s": time.perf_counter() - started}
        journal.log(progress.step, "validation", progress.validation)
        self.reporter.evaluated(progress.step, progress.validation)
        self._early_stopping(metrics)

    def _early_stopping(self, metrics: dict[str, float]) -> None:
        options, progress = self.config.train.early_stopping, self.progress
        if options is None:
            return
        if metrics[options.metric] < progress.best - options.min_delta:
            progress.best, progress.bad_evaluations = metrics[options.metric], 0
            return
        progress.bad_evaluations += 1
        if progress.bad_evaluations >= options.patience:
            progress.stopped_early = True
            self.reporter.note(
                f"stopped early at step {progress.step}: {options.metric} has not fallen below {progress.best:.4f} in "
                f"{progress.bad_evaluations} evaluations"
            )

    # Checkpoints

    def _save_if_due(self, stop: StopSignal) -> None:
        progress, every = self.progress, self.config.checkpoint.every
        at_end = progress.step == self.parts.steps or progress.stopped_early
        due = every is not None and (progress.step % every == 0 or at_end)
        if due or stop.received is not None:
            path = self.save()
        if stop.received is not None:
            where = f"stopped after step {progress.step} of {self.parts.steps}; saved {path}"
            name = signal.Signals(stop.received).name
            raise Interrupted(f"{name}: {where}; go on with --resume auto", stop.received)

    def save(self) -> Path:
        """Write a checkpoint of the current step."""
        parts, progress = self.parts, self.progress
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
            "tokenizer": tokenizer_fingerprint(parts.tokenizer),
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
        self._check_facts(path, saved.facts)
        try:
            parts.model.load_state_dict(saved.parts["model"])
            parts.optimizer.load_state_dict(saved.parts["optimizer"])
            parts.objective.load_state_dict(saved.parts["objective"])
            self.progress = Progress(**saved.parts["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError) as problem:
            raise ModelError(f"{path} is a checkpoint of another model: {problem}") from problem
        devices.set_random_state(saved.parts["random"], parts.device)
        self.run_id = saved.facts["run_id"]
        self.reporter.note(f"resumed from {path}: step {self.progress.step} of {parts.steps}")

    def _check_facts(self, path: Path, facts: dict[str, Any]) -> None:
        parts = self.parts
        if facts["data"] != parts.data.fingerprint:
            raise UsageError(f"{path} was saved while training on other rows: the data files have changed since")
        if facts["tokenizer"] != tokenizer_fingerprint(parts.tokenizer):
            raise ModelError(f"{path} was saved with another tokenizer")
        now = {"num_threads": torch.get_num_threads(), "torch": torch.__version__, "device": parts.device.type}
        for name, value in now.items():
            if facts[name] != value:
                self.reporter.note(
                    f"{name} was {facts[name]} when the checkpoint was saved and is {value} now: the run goes on, but "
                    "not bit-exactly"
                )

    def _write_facts(self) -> None:
        """`config.yaml` and `provenance.json`; a resumed run keeps a line about every start."""
        write_atomic(self.folder / "config.yaml", dump(self.config))
        path = self.folder / "provenance.json"
        earlier: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {"run_id": self.run_id, "starts": []}
        )
        started = provenance.collect(
            sys.argv,
            from_step=self.progress.step,
            tags=self.config.tags,
            seed=self.config.train.seed,
            data=self.parts.data.fingerprint,
            tokenizer=tokenizer_fingerprint(self.parts.tokenizer),
            device=str(self.parts.device),
            num_threads=torch.get_num_threads(),
        )
        earlier["starts"].append(started)
        write_atomic(path, json.dumps(earlier, indent=2) + "\n")


def train(recipe: str | Path | Config, overrides: list[str] | None = None, **options: Any) -> RunResult:
    """Train from Python: a recipe file or a `Config`; options as in `run`."""
    config = recipe if isinstance(recipe, Config) else load([Path(recipe)], overrides or [])
    return run(config, **options)
