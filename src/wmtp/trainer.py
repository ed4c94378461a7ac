"""The job on a page: build the parts, loop, save, stop cleanly.

A run folder is described in the README. What makes a resumed run the same run:
  - batches, learning rates and evaluations are pure functions of the step;
  - everything else that has memory is in the checkpoint: model, optimiser, scheme, early stopping, random states;
  - the journal is cut back to the checkpoint's step before it goes on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from wmtp import best, checkpoint, devices, optim, outcome, provenance
from wmtp.config import Config, dump, load
from wmtp.data.ahead import Ahead
from wmtp.data.batches import Batch, Batches
from wmtp.distributed import World, joined, local, whole_state
from wmtp.early_stopping import EarlyStopping
from wmtp.errors import (
    CheckpointError,
    Interrupted,
    ModelError,
    NonFiniteError,
    StorageError,
    UsageError,
    WmtpError,
    first_line,
)
from wmtp.estimate import Estimate, checkpoint_bytes, estimate
from wmtp.faults import fault
from wmtp.formats.code import remote_code
from wmtp.formats.native import copy_model, save_model
from wmtp.grading import grade
from wmtp.model import MTPModel
from wmtp.parts import Parts, build, new_heads, sharding_of
from wmtp.rollouts import Ask, Rollouts, sandbox_for
from wmtp.run_tracking import Tracked, Tracking, check_installed
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
from wmtp.storage import ObjectPath, Place, place, write_atomic
from wmtp.tracking import Journal, NoJournal
from wmtp.watchdog import Watchdog
from wmtp.weight_stats import ALARMS, PATIENCE, streaks_after
from wmtp.wording import counted

MAX_FAILED_SAVES = 3
"""So many in a row, of periodic checkpoints or of best models, end the run."""
CHECKPOINT, BEST = "a checkpoint", "the best model"
"""What may fail to be saved, for messages."""


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

    folder: Place
    steps: int
    train: dict[str, Any]
    """Metrics of the last step."""
    validation: dict[str, Any] | None
    """Metrics of the last evaluation."""
    stopped_early: bool
    tokens_per_s: float
    """Over all steps, without evaluations and saving."""
    peak_bytes: int
    tracked: Tracked | None = None
    """What a store of runs has of it; None without `tracking`."""


@dataclass
class Progress:
    """What the loop remembers beside model and optimiser."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Spent in steps, over all starts of the run."""
    nonfinite: int = 0
    """Steps in a row whose gradient norm was not finite."""
    stopping: dict[str, Any] = field(default_factory=dict)
    """See `early_stopping.EarlyStopping.state_dict`."""
    selected: tuple[float, float] | None = None
    """Of the model in `best/`: pair accuracy, and the loss that decides among equals."""
    stopped_early: bool = False
    weight_streaks: dict[str, int] = field(default_factory=dict)
    """See `weight_stats.streaks_after`."""
    neutral_steps: int = 0
    """Steps of which no sampled group had both a reward of 1 and one of 0."""
    saves: int = 0
    """Checkpoints so far."""
    train: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] | None = None


def run(
    config: Config, *, out: str | Place | None = None, resume: str | None = None, reporter: Reporter | None = None
) -> RunResult:
    """Train one arm, or the critic, to its end.

    Args:
        out: the run folder; default `config.runs / config.name`.
        resume: `auto` goes on from the newest good checkpoint of the run folder, or starts if there is none;
            a path of a run folder or of its newest checkpoint must exist. None refuses a folder that has a run.

    Raises:
        UsageError: config, input or folder is wrong (nothing was trained).
        Interrupted: SIGINT or SIGTERM; the state was saved, unless no step had begun. After the last step: the final
            model may not be registered.
        NonFiniteError, CheckpointError: see there.
        StorageError: a store refuses, or does not answer; with exit code 2 only before the first step.
        TrackingError: the store of runs is required, and does not answer or has not everything.
    """
    lock = ExitStack()  # held until the final model is registered
    with remote_code(*config.remote_code), StopSignal() as stop, lock:
        result, tracking = _train(config, out, resume, reporter or Silent(), stop, lock)
        return replace(result, tracked=tracking.finish(lambda: stop.received))


def _train(
    config: Config,
    out: str | Place | None,
    resume: str | None,
    reporter: Reporter,
    stop: StopSignal,
    lock: ExitStack,
) -> tuple[RunResult, Tracking]:
    """From nothing to the last step; `lock` is given that of the run folder."""
    device = devices.pick(config.device)
    watchdog = Watchdog(
        config.train.watchdog_s, rank=int(os.environ.get("RANK", "0")), grace_s=config.train.watchdog_grace_s
    )
    with (
        watchdog,
        joined(device, config.distributed.timeout_s) as world,
        ExitStack() as held,
    ):
        reporter = reporter if world.leads else Silent()
        before = world.first(lambda: _saved(run_folder(config, out, resume)))
        folder, start, parts = prepare(config, out, resume, reporter, world)
        for note in parts.notes:
            reporter.note(note)
        received = stop.anywhere(world)
        if received:
            raise Interrupted("stopped before the first step; nothing was written", received)

        def occupy() -> None:
            has_saves, needed = (folder / "checkpoints").is_dir(), checkpoint_bytes(parts.model)
            if not has_saves:  # before anything is made
                check_disk(folder, config, parts.steps, needed)
            lock.enter_context(only_trainer(folder))
            since = _saved(folder) - before
            if since:
                raise CheckpointError(
                    f"another process has saved {max(since)} of {folder} meanwhile; run it again, with --resume auto"
                )
            if has_saves:
                checkpoint.remove_litter(folder / "checkpoints")
                check_disk(folder, config, parts.steps, needed)

        rollouts = world.together(lambda: rollouts_of(parts, held))
        if rollouts is not None:
            assert isinstance(parts.model, MTPModel)
            rollouts.check(parts.model)
        world.first(occupy)
        watchdog.folder = None if isinstance(folder, ObjectPath) else folder
        loop = Loop(parts, folder, reporter, start, watchdog, rollouts)
        tracking = Tracking(config, folder, reporter.note)
        world.first(lambda: tracking.start(loop.progress.step))
        with tracking, _begun():
            result = loop.run(stop)
    return result, tracking


@contextmanager
def _begun() -> Iterator[None]:
    """Once training began, a store that refuses has failed: its settings were good before, and may be again."""
    try:
        yield
    except StorageError as problem:
        problem.exit_code = 1
        raise


def _saved(folder: Place) -> set[str]:
    """The names of a run's checkpoints."""
    return {path.parent.name for path in (folder / "checkpoints").glob("step_*/manifest.json")}


def prepare(
    config: Config,
    out: str | Place | None,
    resume: str | None,
    reporter: Reporter,
    world: World,
    *,
    weights: bool = True,
) -> tuple[Place, Place | None, Parts]:
    """Run folder, checkpoint to start from, and parts: all that can be wrong before step 1. Writes nothing.

    Args:
        weights: False leaves models without weights, where they can be.

    Raises:
        UsageError: the first thing that would fail, on any rank.
    """

    def find() -> tuple[Place, Place | None]:
        folder = run_folder(config, out, resume)
        start = find_start(folder, resume, reporter.note)
        check_writable(folder)
        check_installed(config)
        if start is not None:
            check_same_run(config, start)
        return folder, start

    folder, start = world.first(find)
    mesh = sharding_of(config, world)
    parts = world.together(lambda: build(config, world, mesh, weights=weights))
    if start is None:
        parts.notes.extend(world.first(lambda: new_heads(config)))
    else:
        world.first(lambda: check_facts(start, parts, reporter.note))
    return folder, start, parts


def dry_run(
    config: Config,
    tell: Callable[[Estimate, list[str]], None],
    *,
    out: str | Place | None = None,
    resume: str | None = None,
    ranks: int = 1,
) -> None:
    """Everything `run` would find wrong before step 1, and what the run will need. Writes nothing, makes no weights.

    Args:
        tell: is given the needs, and notes.
        ranks: that the run will have, on this host.

    Raises:
        UsageError: the first thing that would fail.
    """
    reporter = Silent()
    with remote_code(*config.remote_code):
        folder, _, parts = prepare(config, out, resume, reporter, World(), weights=False)
    needs = estimate(parts, ranks)
    tell(needs, [*parts.notes, *reporter.notes])
    check_disk(folder, config, parts.steps, needs.checkpoint_bytes)


def rollouts_of(parts: Parts, held: ExitStack) -> Rollouts | None:
    """What draws the batches of an online run, with its sandbox, which `held` will close; None for other runs.

    Raises:
        SandboxError: the isolation that is required cannot be had.
    """
    config, data, online = parts.config, parts.data, parts.config.online
    if online is None:
        return None
    sandbox = held.enter_context(sandbox_for(online.require, parts.world))
    ask = Ask(
        online.samples,
        online.max_new_tokens,
        online.temperature,
        config.train.seed,
        config.train.micro_batch_size,
        config.train.micro_batch_tokens,
    )
    questions = {question.name: question for question in data.questions}
    return Rollouts(data.train, questions, parts.tokenizer, sandbox, parts.world, ask)


def check_facts(path: Place, parts: Parts, note: Callable[[str], None]) -> None:
    """Raise unless the checkpoint was saved with these rows and this tokenizer; note what makes it not bit-exact."""
    facts = facts_of(path)
    if facts["data"] != parts.data.fingerprint:
        raise UsageError(
            f"{path} was saved while training on other rows: the data files have changed since. Put them back "
            "to go on, or train anew into another --out"
        )
    if facts["tokenizer"] != parts.tokenizer_fingerprint:
        raise ModelError(f"{path} was saved with another tokenizer; name that one, or train anew into another --out")
    now = {
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": parts.device.type,
        "ranks": parts.world.size,
    }
    for name, value in now.items():
        if facts.get(name) != value:
            note(
                f"{name} was {facts.get(name)} when {path} was saved and is {value} now: the run goes on, but not "
                "bit-exactly"
            )


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

    def anywhere(self, world: World) -> int:
        """The signal that any rank has received, 0 for none; all ranks must ask."""
        return int(world.largest(torch.tensor(self.received or 0)))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if outcome.supervised():
                return  # whoever stops a whole job sends the signal to every process, and so more than once to some
            raise SystemExit(128 + number)
        self.received = number


# The loop


class Loop:
    """The steps of one run."""

    def __init__(
        self,
        parts: Parts,
        folder: Place,
        reporter: Reporter,
        start: Place | None,
        watchdog: Watchdog,
        rollouts: Rollouts | None = None,
    ) -> None:
        self.parts, self.folder, self.reporter, self.watchdog = parts, folder, reporter, watchdog
        self.rollouts = rollouts
        self.config, self.world = parts.config, parts.world
        self.checkpoints = folder / "checkpoints"
        self.progress = Progress()
        self.run_id = self.world.first(self._find_run_id)
        self.failed_saves, self.under_way = Counter[str](), False
        self.stopping = self._early_stopping()
        self.ahead = Ahead(lambda n: self._batches(parts.data.train, n), parts.steps, self.config.data.workers)
        self.saver = checkpoint.Saver(
            self.checkpoints, keep_last=self.config.checkpoint.keep_last, group=self.world.background
        )
        if start is not None:
            self._restore(start)
        self.world.first(self._write_facts)

    def run(self, stop: StopSignal) -> RunResult:
        """From the next step to the last."""
        progress, parts = self.progress, self.parts
        self.reporter.start(progress.step + 1, parts.steps)
        try:
            with self._journal() as journal, self.saver, self.ahead:
                while progress.step < parts.steps and not progress.stopped_early:
                    self._one_step(journal)
                    self._evaluate_if_due(journal)
                    self._save_if_due(stop, journal)
        finally:
            self.reporter.stop()
        if self.config.checkpoint.save_final:
            self._save_final()
        return RunResult(
            folder=self.folder,
            steps=progress.step,
            train=progress.train,
            validation=progress.validation,
            stopped_early=progress.stopped_early,
            tokens_per_s=progress.tokens / max(progress.seconds, 1e-9),
            peak_bytes=devices.peak_memory(parts.device),
        )

    def _find_run_id(self) -> str:
        facts = self.folder / "provenance.json"
        found: str = provenance.read(facts)["run_id"] if facts.exists() else uuid.uuid4().hex
        best.clear_up(self.folder)
        return found

    def _journal(self) -> Journal | NoJournal:
        """Rank 0 writes; the others' lines would say the same."""
        if not self.world.leads:
            return NoJournal()
        return Journal(self.folder / "metrics.jsonl", keep_until=self.progress.step)

    def _batches(self, of: Batches, number: int) -> list[Batch]:
        """This rank's share of a batch."""
        train, world = self.config.train, self.world
        return of.at(number, train.micro_batch_size, train.micro_batch_tokens, rank=world.rank, ranks=world.size)

    def _here(self, batches: list[Batch]) -> list[Batch]:
        return [batch.to(self.parts.device) for batch in batches]

    def _one_step(self, journal: Journal | NoJournal) -> None:
        config, parts, progress = self.config, self.parts, self.progress
        started = time.perf_counter()
        step = progress.step + 1
        self.watchdog.beat(f"step {step}")
        fault("step_begin")
        batches, drawn = self._next_batches(step)
        lr = self._learning_rate(step)
        optim.set_learning_rate(parts.optimizer, lr)
        parts.objective.begin(step)
        result = train_step(
            parts.model,
            parts.optimizer,
            parts.objective,
            batches,
            clip_norm=config.optim.clip_norm,
            reduce=self.world,
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
            **drawn,
            "time/step_s": seconds,
            "time/tokens_per_s": result.tokens / seconds,
            "mem/peak_bytes": devices.peak_memory(parts.device),
        }
        self.reporter.step(step, progress.train)
        if step % config.train.log_every == 0 or step == parts.steps or not result.stepped:
            journal.log(step, "train", progress.train)
        self._watch_weights(journal, step)
        self._count_nonfinite(result, step)
        if self.stopping is not None:
            self.stopping.stepped(result.grad_norm)

    def _next_batches(self, step: int) -> tuple[list[Batch], dict[str, float]]:
        """This rank's micro-batches of a step, and figures of how they came about where the policy drew them."""
        if self.rollouts is None:
            return self._here(self.ahead(step - 1)), {}
        assert isinstance(self.parts.model, MTPModel)
        drawn = self.rollouts.draw(self.parts.model, step, self.parts.precision)
        progress = self.progress
        if drawn.all_neutral:
            if progress.train.get("online/neutral") != 1:
                self.reporter.note(
                    f"step {step}: in every group all samples passed or all failed, so all weigh `neutral` and nothing "
                    "is learnt from the tests (told when it begins; online/neutral_steps counts such steps)"
                )
            progress.neutral_steps += 1
        return self._here(drawn.batches), drawn.metrics | {"online/neutral_steps": float(progress.neutral_steps)}

    def _watch_weights(self, journal: Journal | NoJournal, step: int) -> None:
        """Tell once if the weights have long been worth nothing; a baseline's are uniform on purpose."""
        figures, before = self.progress.train, self.progress.weight_streaks
        if "weight/ess" not in figures or self.config.arm == "baseline":
            return
        self.progress.weight_streaks = after = streaks_after(before, figures)
        for name in after:
            if after[name] == PATIENCE != before.get(name):
                self.reporter.note(f"step {step}: {ALARMS[name]}")
                journal.log(step, "warning", {f"weight/{name}": 1.0, "weight/ess": figures["weight/ess"]})

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
        if self.progress.nonfinite >= min(self.config.train.max_nonfinite, self.parts.steps):
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

    def _evaluate_if_due(self, journal: Journal | NoJournal) -> None:
        parts, progress, every = self.parts, self.progress, self.config.train.eval_every
        validation = parts.data.validation
        if validation is None or (progress.step != parts.steps and (every is None or progress.step % every)):
            return
        self.watchdog.beat(f"eval {progress.step}")
        fault("eval")
        started = time.perf_counter()
        count = min(len(validation), self.config.train.eval_batches or len(validation))
        batches = (self._here(self._batches(validation, number)) for number in range(count))
        metrics = evaluate(parts.model, parts.objective, batches, reduce=self.world, precision=parts.precision)
        metrics |= self._grades(validation, count)
        progress.validation = {"tokens": progress.tokens, **metrics, "time/eval_s": time.perf_counter() - started}
        journal.log(progress.step, "validation", progress.validation)
        self.reporter.evaluated(progress.step, progress.validation)
        if self.config.checkpoint.select == "best":
            self._select(metrics)
        reason = self.stopping.evaluated(metrics) if self.stopping is not None else None
        if reason is not None:
            progress.stopped_early = True
            self.reporter.note(f"stopped early at step {progress.step}: {reason}")

    def _grades(self, validation: Batches, count: int) -> dict[str, float]:
        """How many of its task's questions the model answers, if it has a task and answers at all."""
        parts = self.parts
        if parts.data.task is None or not isinstance(parts.model, MTPModel):
            return {}
        batches = (self._here(self._batches(validation, number)) for number in range(count))
        rows, how = validation.rows, parts.precision
        return grade(parts.model, parts.data.task, rows, batches, reduce=self.world, precision=how)

    def _early_stopping(self) -> EarlyStopping | None:
        options = self.config.train.early_stopping
        if options is None:
            return None
        given = {**dict(options), "metric": self.config.watched}
        return EarlyStopping(**given)

    def _select(self, metrics: dict[str, float]) -> None:
        """Keep this step's model if no earlier one told held-out pairs apart better."""
        found, before = (metrics["value/pair_accuracy"], metrics["loss/weighted"]), self.progress.selected
        if before is None or (found[0], -found[1]) > (before[0], -before[1]):
            write = self._writer("best")
            if self._try(lambda: self._keep_best(write), BEST):
                self.progress.selected, self.failed_saves[BEST] = found, 0

    def _keep_best(self, write: Callable[[Place], Place]) -> None:
        """Raises `CheckpointError` if it could not be written; then the best one before it is still there."""
        try:
            self.world.first(lambda: best.keep(self.folder, self.progress.step, write))
        except WmtpError as problem:
            raise CheckpointError(str(problem)) from problem

    # Checkpoints

    def _save_if_due(self, stop: StopSignal, journal: Journal | NoJournal) -> None:
        """Every `checkpoint.every` steps, at the end, and on a signal; never in a run of non-finite steps but then."""
        progress, every = self.progress, self.config.checkpoint.every
        at_end = progress.step == self.parts.steps or progress.stopped_early
        received = stop.anywhere(self.world)
        if received:
            self._settle()
            path = self._save(journal, wait=True)
            where = f"stopped after step {progress.step} of {self.parts.steps}; saved {path}"
            name = signal.Signals(received).name
            raise Interrupted(
                f"{name}: {where}; go on with --resume auto, or: wmtp train --resume {self.folder}", received
            )
        if at_end:
            self._settle()
            self._save(journal, wait=True)
        elif every is not None and progress.step % every == 0 and progress.nonfinite == 0:
            self._settle()
            self.under_way = self._try(lambda: self._save(journal))

    def _try(self, attempt: Callable[[], Any], what: str = CHECKPOINT) -> bool:
        """A save that fails (a full disk, say) costs a save, not the run: those before it are untouched.

        Raises:
            CheckpointError: too many failed in a row.
        """
        try:
            attempt()
            return True
        except CheckpointError as problem:
            self.failed_saves[what] += 1
            if self.failed_saves[what] >= MAX_FAILED_SAVES:
                raise
            self.reporter.note(f"step {self.progress.step}: {what} was not written: {problem}; training goes on")
            return False

    def _settle(self) -> None:
        """Until no save is under way; a failure is told."""
        if self._try(self.saver.wait) and self.under_way:
            self.failed_saves[CHECKPOINT] = 0
        self.under_way = False

    def _save_final(self) -> None:
        """`final/`: the last step's model, or the best."""
        if self.config.checkpoint.select == "best":
            self.world.first(self._copy_best)
        else:
            write = self._writer("final")
            self.world.first(lambda: write(self.folder / "final"))

    def _copy_best(self) -> Place:
        found, selected = best.find(self.folder), self.progress.selected
        if found is None:
            raise CheckpointError(
                f"no best model of {self.folder} could be written, so there is none to copy; the last step's is in its "
                "newest checkpoint: wmtp export --model CHECKPOINT"
            )
        if selected is not None:
            self.reporter.note(f"final/ is the best evaluation's model: {selected[0]:.1%} of the held-out pairs right")
        return copy_model(found, self.folder / "final")

    def _writer(self, what: str) -> Callable[[Place], Place]:
        """What writes the model of this step, put together from all ranks, into a folder, on one rank."""
        parts = self.parts
        self.watchdog.beat(what)
        tensors = whole_state(parts.model, self.world)
        return lambda folder: save_model(parts.model, folder, parts.tokenizer, tensors=tensors)

    def _save(self, journal: Journal | NoJournal, *, wait: bool = False) -> Place:
        """The same, after the journal of its steps: what a resumed run does not repeat must be there.

        Raises:
            CheckpointError: as `save`; or the journal cannot be written.
        """
        self.watchdog.beat(f"save {self.progress.step}")
        try:
            self.world.first(journal.settle)
        except StorageError as problem:
            raise CheckpointError(
                f"the journal of its steps cannot be written: {problem}; `--resume auto` goes on once it can"
            ) from problem
        return self.save(wait=wait)

    def save(self, *, wait: bool = False) -> Place:
        """A checkpoint of the current step, written in the background unless `wait`.

        Raises:
            CheckpointError: it could not be written, or a weight is not finite (then it would be worth nothing).
        """
        parts, progress = self.parts, self.progress
        self.watchdog.beat(f"save {progress.step}")
        fault("before_save")
        self._check_finite()
        progress.saves += 1
        if self.stopping is not None:
            progress.stopping = self.stopping.state_dict()
        state: dict[str, dict[str, Any]] = {
            "model": get_model_state_dict(parts.model),
            "optimizer": get_optimizer_state_dict(parts.model, parts.optimizer),
            "objective": parts.objective.state_dict(),
            "progress": dict(vars(progress)),
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
            "ranks": self.world.size,
            "saves": progress.saves,
        }
        own = {"random": devices.random_state(parts.device)}
        return self.saver.save(progress.step, state, facts, per_rank=own, wait=wait)

    def _check_finite(self) -> None:
        """Raise on every rank if any holds a weight that is not finite."""
        named = self.parts.model.named_parameters()
        spoiled = [name for name, p in named if not bool(local(p.detach()).isfinite().all())]
        if int(self.world.largest(torch.tensor(len(spoiled)))):
            where = (
                f"{spoiled[0]} (and {counted(len(spoiled) - 1, 'more tensor')}) has" if spoiled else "another rank has"
            )
            raise CheckpointError(
                f"not saved: {where} non-finite weights; the checkpoints before are good: go on with --resume auto, or "
                "train anew with a lower optim.lr"
            )

    def _restore(self, path: Place) -> None:
        parts, group = self.parts, self.world.background
        templates: dict[str, dict[str, Any] | None] = {
            "model": get_model_state_dict(parts.model),
            "optimizer": get_optimizer_state_dict(parts.model, parts.optimizer),
            "objective": None,
            "progress": None,
        }
        saved = checkpoint.load(path, templates, group=group)
        try:
            set_model_state_dict(parts.model, saved.parts["model"])
            set_optimizer_state_dict(parts.model, parts.optimizer, saved.parts["optimizer"])
            parts.objective.load_state_dict(saved.parts["objective"])
            self.progress = Progress(**saved.parts["progress"])
            if self.stopping is not None and self.progress.stopping:
                self.stopping.load_state_dict(self.progress.stopping)
        except (RuntimeError, ValueError, KeyError, TypeError) as problem:
            raise ModelError(
                f"{path} is a checkpoint of another model: {first_line(problem)}; name the run's own, or another --out"
            ) from problem
        if saved.per_rank is None:
            self.reporter.note(
                f"{path} was saved by {counted(saved.ranks, 'rank')}, now there are {self.world.size}: random "
                "states start anew"
            )
        else:
            devices.set_random_state(saved.per_rank["random"], parts.device)
        self.reporter.note(f"resumed from {path}: step {self.progress.step} of {parts.steps}")

    def _write_facts(self) -> None:
        """`config.yaml` and `provenance.json`; a resumed run keeps a line about every start."""
        write_atomic(self.folder / "config.yaml", dump(self.config))
        path = self.folder / "provenance.json"
        earlier: dict[str, Any] = provenance.read(path) if path.exists() else {"run_id": self.run_id, "starts": []}
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


def train(recipe: str | Place | Config, overrides: list[str] | None = None, **options: Any) -> RunResult:
    """Train from Python: a recipe file or a `Config`; options as in `run`."""
    config = recipe if isinstance(recipe, Config) else load([place(recipe)], overrides or [])
    return run(config, **options)
