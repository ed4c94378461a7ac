"""From a config to rows and the order of their batches.

    whole file      every record is read and encoded, in memory or in `data.cache`; then the order is made
    data.index      the order is made from the index; then the rows that the run will train on are read by position

Either way the order is a pure function of the data, the config and the step. No rank asks another: where rows come
from `data.cache`, whoever comes first makes them and the others wait for its lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wmtp.arms import scheduled
from wmtp.config import Config, CriticConfig, GRPOConfig, SamplingConfig, SourceConfig, ValueObjectiveConfig
from wmtp.data.batches import UNREAD, Batches, items_per_batch
from wmtp.data.cache import cached_rows, code_version
from wmtp.data.columns import Columns, ColumnWriter
from wmtp.data.facts import facts_of
from wmtp.data.groups import GroupCounts, Groups, check_mixed, group_of, with_groups
from wmtp.data.index import Index
from wmtp.data.judged import RewardText
from wmtp.data.orders import DifficultyBin, Mixed, Order, Repeated, Sequential, Shuffled
from wmtp.data.records import Record
from wmtp.data.sampling import UNKNOWN, Integers, Kind, RowFacts, Selection, cycled_pairs, in_turn
from wmtp.data.sources import SourceReport, stream_records
from wmtp.data.stored import StoredRows, write_problems, write_rows
from wmtp.data.text import Encoder, Row, Tokens, all_too_long, check_template
from wmtp.data.tokenising import with_tokens
from wmtp.errors import ConfigError, DataError, StorageError, WmtpError
from wmtp.formats import hf
from wmtp.formats.reward import load_reward_text
from wmtp.own import made_by
from wmtp.questions import Question, read_questions
from wmtp.questions import fingerprint as fingerprint_of_questions
from wmtp.storage import Place, place, sha256_file
from wmtp.tasks import PARTS, Role, Task
from wmtp.value_stats import HeldOut
from wmtp.wording import counted


@dataclass
class Data:
    """Rows of a run, and what reading them has to say."""

    train: Batches
    validation: Batches | None
    fingerprint: str
    """sha256 over every id of every row, the rewards and groups, and whether an index's lengths in tokens made the
    batches: what a resumed run must find again."""
    notes: list[str] = field(default_factory=list)
    task: Task | None = None
    """Which made them."""
    held_out: HeldOut | None = None
    """Of a critic."""
    questions: list[Question] = field(default_factory=list)
    """What the policy is asked in place of being given the responses of training rows; these are then as long as the
    longest answer would make them, and no row to train on."""

    @property
    def rows(self) -> Iterator[Row]:
        """Those of training, then those held out, one after another."""
        return chain(self.train.rows, self.validation.rows if self.validation is not None else ())


def build_task(config: Config) -> Task | None:
    """The task of a run that has one.

    Raises:
        ConfigError: its builder cannot be had, or refuses its options.
    """
    given = config.data.task
    if given is None:
        return None
    made: Task = made_by("data.task.builder", given.builder, given.options, "task", PARTS, "docs/tasks.md")
    return made


def load_tokenizer(config: Config) -> Any:
    """The tokenizer of a run: its task's, or one from a folder.

    Raises:
        ModelError: as `hf.load_tokenizer`.
        ConfigError: as `build_task`.
    """
    task = build_task(config)
    return hf.load_tokenizer(config.model.tokenizer_source) if task is None else hf.fast_tokenizer(task.tokenizer())


def build_data(config: Config, tokenizer: Any) -> Data:
    """Read, split, encode and order the rows.

    Raises:
        DataError: a file, an index or a row that is wrong, or rows that the objective cannot use.
        ConfigError: a template that is none, or long rows that cannot be dropped.
    """
    check_template(config.data.template)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    task = build_task(config)
    questions: list[Question] = []
    if config.online is not None:
        rows, questions = _asked(config, tokenizer)
        order, place_R, identity = order_of(config, facts_of(rows.train)), None, rows.fingerprint
    elif config.data.index is None:
        rows = _rows(config, tokenizer, _sides(config, task))
        order, place_R, identity = order_of(config, facts_of(rows.train)), None, rows.fingerprint
    else:
        with Index(place(_file_of(config).path), place(config.data.index)) as index:
            plan = _Plan(config, index, tokenizer)
            rows = _rows(config, tokenizer, plan.sides())
            order, place_R, identity = plan.order, plan.place_R, plan.identity(rows)
            rows.notes.append(plan.note())
    if config.data.sampling is not None:
        rows.notes.append(f"data.sampling: {order.count:,} {'pairs' if _in_pairs(config) else 'rows'} an epoch")
    if not questions:
        _check_rows(config, rows.train)
        rows.notes.extend(_heads_without_targets(config, rows.train))
    batches = Batches.ordered(rows.train, order, pad_id=pad_id, place_R=place_R)
    validation, held_out = None, None
    if len(rows.validation):
        _check_rows(config, rows.validation)
        held_out, place_N = _held_out(config, rows)
        sequence = Sequential(place_N[:, None], config.train.batch_size)
        validation = Batches.ordered(rows.validation, sequence, pad_id=pad_id)
        rows.notes.extend(_trained_on_too(config, rows))
    return Data(batches, validation, identity, rows.notes, task, held_out, questions)


def number_of_steps(config: Config, batches_per_epoch: int) -> int:
    """Optimiser steps of the run."""
    if config.train.steps is not None:
        return config.train.steps
    epochs = config.train.epochs or 0.0
    return max(1, round(epochs * batches_per_epoch))


# Which rows are trained on, and when


def order_of(config: Config, facts: RowFacts) -> Order:
    """The order of training batches over rows of which these are the facts.

    Raises:
        DataError: nothing can be selected.
    """
    sampling, seed = config.data.sampling or SamplingConfig(), config.train.seed
    kind: Kind = sampling.pairs if _in_pairs(config) else "rows"
    selection = Selection(facts, kind, sampling.max_per_problem, seed)
    asked = config.online.samples if config.online is not None else 0
    per_batch = items_per_batch(config.train.batch_size, asked or (1 if kind == "rows" else 2))
    bins = sampling.difficulty
    if bins is None:
        order: Order = Shuffled(selection.items, facts.length_R, per_batch, seed)
        return Repeated(order, asked) if asked else order

    def mixed(steps: int) -> Mixed:
        parts = [DifficultyBin(*b.levels, scheduled(b.weight, steps)) for b in bins]
        return Mixed(selection.items, facts.length_R, facts.levels(), parts, per_batch, seed)

    order = mixed(number_of_steps(config, len(mixed(1))))
    return Repeated(order, asked) if asked else order


def rows_used(order: Order, steps: int, rows: int) -> Integers:
    """The rows that the first `steps` batches are made of, in order."""
    used = np.zeros(rows, bool)
    for number in range(steps):
        used[order.items(number)] = True
        if number % len(order) == len(order) - 1 and used.all():
            break
    return np.flatnonzero(used)


def _in_pairs(config: Config) -> bool:
    """Whether rows are trained on as (correct, incorrect) pairs."""
    return isinstance(config.objective, ValueObjectiveConfig) and config.objective.pairs


def _held_out(config: Config, rows: _Rows) -> tuple[HeldOut | None, Integers]:
    """What a critic is judged by, and the order in which held-out rows are evaluated, each once.

    A critic's come problem by problem, correct and incorrect ones in turn, so that the first batches have pairs.

    Raises:
        DataError: a critic would be judged by problems that it is trained on, or pairs are needed and there are none.
    """
    facts = facts_of(rows.validation)
    if not isinstance(config.objective, ValueObjectiveConfig):
        return None, np.arange(len(facts))
    seen = {row.name for row in rows.train} & {row.name for row in rows.validation}
    if seen:
        raise DataError(
            f"data.validation shares {counted(len(seen), 'problem')} with data.train, the first is {min(seen)!r}: a "
            "critic is judged by problems it has not seen; split by problem, or set data.validation_fraction"
        )
    pair_P2, place_N = cycled_pairs(facts), in_turn(facts)
    evaluated = place_N[: (config.train.eval_batches or len(facts)) * config.train.batch_size]
    best = config.checkpoint.select == "best"
    if (best or config.objective.pairs) and not np.isin(pair_P2, evaluated).all(1).any():
        who = "checkpoint.select = best" if best else f"objective.loss = {config.objective.loss}"
        raise DataError(
            f"{who} goes by held-out pairs, but there are none among the {len(evaluated):,} rows that an evaluation "
            "sees: it needs a problem with a response whose is_correct is true and one whose is false (`wmtp data "
            "label`, `wmtp data mutate`), or more train.eval_batches"
        )
    seen_pairs = int(np.isin(pair_P2, evaluated).all(1).sum())
    if seen_pairs < len(pair_P2):
        rows.notes.append(
            f"train.eval_batches: an evaluation sees {seen_pairs:,} of {len(pair_P2):,} held-out pairs, and pair "
            "accuracy is of these"
        )
    return HeldOut(len(facts), torch.from_numpy(pair_P2)), place_N


def _check_rows(config: Config, rows: Sequence[Row]) -> None:
    """Raise `DataError` if the objective cannot use the rows."""
    facts = facts_of(rows)
    if isinstance(config.objective, ValueObjectiveConfig):
        if not _in_pairs(config) and config.objective.reward is None:
            _require_labels(facts, f"objective.loss = {config.objective.loss}")
        return
    for scheme in config.schemes:
        if isinstance(scheme, CriticConfig):
            require_prompts(facts)
            if scheme.terminal == "reward":
                _require_labels(facts, "objective.weighting.terminal = reward")
        if isinstance(scheme, GRPOConfig):
            _require_labels(facts, "objective.weighting.scheme = grpo")


def _heads_without_targets(config: Config, rows: Sequence[Row]) -> list[str]:
    """What is said of heads that look past the end of every row: head k predicts the token k places on."""
    if isinstance(config.objective, ValueObjectiveConfig):
        return []
    longest, last = int(facts_of(rows).length_R.max()), config.model.heads.num_heads
    if last < longest:
        return []
    which = f"head {last} has" if last == longest else f"heads {longest} to {last} have"
    return [f"{which} no target in any training row: the longest has {counted(longest, 'token')}"]


def _trained_on_too(config: Config, rows: _Rows) -> list[str]:
    """What is said of problems on both sides. Rows on a disk are not read through for it."""
    if config.data.validation is None or isinstance(rows.train, StoredRows):
        return []
    held = {row.name for row in rows.validation}
    seen = len(held & {row.name for row in rows.train})
    which = f"{seen:,} of {counted(len(held), 'validation problem')} {'is' if seen == 1 else 'are'}"
    return [f"{which} also trained on: what is measured there is no held-out figure"] if seen else []


def require_prompts(facts: RowFacts) -> None:
    """Raise `DataError` if a row has no token before its response, where a critic's advantages would begin."""
    merged = int((facts.response_R == facts.length_R).sum())
    if merged:
        raise DataError(
            f"{merged:,} rows start with a response token: their prompt merges into it and there is no BOS, so the "
            "state before the response has no value; end data.template with a newline, or use a tokenizer with a BOS"
        )


def _require_labels(facts: RowFacts, who: str) -> None:
    unlabelled = int((facts.correct_R == UNKNOWN).sum())
    if unlabelled:
        raise DataError(
            f"{who} needs is_correct on every row; {unlabelled:,} of {len(facts):,} rows have none: `wmtp data label` "
            "judges them by their tests"
        )


# Records


def held_out(problems: Iterable[str], fraction: float) -> frozenset[str]:
    """The problems that are held out for validation, with all their rows: the share of them whose ids hash lowest, at
    least one of several. The same in every run on these problems, whatever its seed, so that no run is judged by what a
    critic or a reference of another seed was trained on."""
    ordered = sorted(set(problems), key=lambda name: hashlib.sha256(name.encode()).digest())
    return frozenset(ordered[: min(max(1, round(fraction * len(ordered))), len(ordered) - 1)])


def _sides(config: Config, task: Task | None) -> list[_Side | _TaskSide]:
    """Training, and validation where the run has one."""
    names: tuple[Role, ...] = ("train", "validation") if config.data.has_validation else ("train",)
    if task is None:
        apart = cache(partial(_held_out_names, config))
        return [_Side(config, name, apart) for name in names]
    return [_TaskSide(config, task, name) for name in names]


def _file_of(config: Config) -> SourceConfig:
    """Where training reads its rows."""
    if config.data.train is None:
        raise TypeError("validated configs have data.train or data.task")
    return config.data.train


class _Side:
    """The records of one side, training or validation, as a file gives them.

    Args:
        apart: problems of the training file that are held out; asked when records are.
    """

    def __init__(self, config: Config, name: str, apart: Callable[[], frozenset[str]] = frozenset) -> None:
        own = config.data.validation if name == "validation" else None
        self._apart = apart
        self.config, self.name = config, name
        self.source: SourceConfig = own or _file_of(config)
        self.role: Role = "validation" if own is not None else "train"
        self.is_held_out = self.name != self.role
        self.notes: list[str] = []
        self.groups: Groups = {}
        self.solutions = "all" if config.online is not None and name == "train" else config.solutions

    def identity(self) -> dict[str, Any]:
        """What decides which records these are."""
        source = self.source
        return {
            "file": _content(place(source.path)), "role": self.role, "split": source.split,
            "fields": source.fields,
        }  # fmt: skip

    def tokenised(self, encoder: Encoder, workers: int) -> Iterator[tuple[Record, Tokens]]:
        """The records with their tokens, in order."""
        return with_tokens(self.records(), encoder, workers)

    def records(self) -> Iterator[Record]:
        """Those that take part; `groups` and `notes` are there when all have come.

        Raises:
            DataError: the file or a row is wrong, or nothing is left.
        """
        apart, counts, kept, own = self._apart(), GroupCounts(), 0, 0
        report = _report(self.source)
        for record in _stream(self.config, self.source, self.role, report):
            if (record.problem_id in apart) != self.is_held_out:
                continue
            own += 1
            counts.add(record.problem_id, record.is_correct)
            if self.solutions == "all" or record.is_correct is not False:
                kept += 1
                yield record
        check_kept(self.config, own, report.kept - own, kept, self.is_held_out)
        self.groups, self.notes = counts.groups(), self._notes(report, own)

    def _notes(self, report: SourceReport, own: int) -> list[str]:
        if self.is_held_out:
            return [f"held out {own:,} rows whose problems are not trained on"]
        return [f"{self.role}: {report.summary()}"]


def _report(source: SourceConfig) -> SourceReport:
    """What reading a file left out, told in the config's words."""
    return SourceReport(str(place(source.path)), skip="data.on_bad_row=skip")


def _stream(config: Config, source: SourceConfig, role: Role, report: SourceReport) -> Iterator[Record]:
    """The records of a file."""
    return stream_records(
        place(source.path), report, role=role, split=source.split, fields=source.fields,
        on_bad_row=config.data.on_bad_row, allow_evaluation=config.data.allow_evaluation_data,
    )  # fmt: skip


def _held_out_names(config: Config) -> frozenset[str]:
    """Problems of the training file that are held out: none, or found in a pass of its own over the file."""
    fraction = config.data.validation_fraction
    if fraction is None:
        return frozenset()
    file = _file_of(config)
    read = _stream(config, file, "train", _report(file))
    return held_out((record.problem_id for record in read), fraction)


class _TaskSide:
    """The records of one side, as a task makes them."""

    def __init__(self, config: Config, task: Task, name: Role) -> None:
        assert config.data.task is not None
        self.given, self.task, self.name = config.data.task, task, name
        self.count = self.given.train if name == "train" else self.given.validation
        self.groups: Groups = {}
        self.notes = [f"{name}: {counted(self.count, 'row')} made by {self.given.builder}"]

    def identity(self) -> dict[str, Any]:
        """What decides which records these are."""
        return {"builder": self.given.builder, "options": self.given.options, "role": self.name, "rows": self.count}

    def tokenised(self, encoder: Encoder, workers: int) -> Iterator[tuple[Record, Tokens]]:
        """The records, one after another, with their tokens."""
        return with_tokens(islice(self.task.records(self.name), self.count), encoder, workers)


def _content(path: Place) -> str:
    """The hash of a data file."""
    try:
        return sha256_file(path)
    except StorageError:
        raise
    except WmtpError as problem:
        raise DataError(f"the data file cannot be used: {problem}; name one that can be read") from problem


def check_kept(config: Config, own: int, others: int, kept: int, is_held_out: bool = False) -> None:
    """Raise `DataError` if a side has no rows: `own` are on it, of which `kept` take part, `others` on the other."""
    if not own:
        train, validation = (others, own) if is_held_out else (own, others)
        fraction = config.data.validation_fraction
        raise DataError(
            f"data.validation_fraction = {fraction} leaves {train} training and {validation} validation rows; both "
            "sides need some: change it, or give more problems"
        )
    if not kept:
        raise DataError("no rows left: all of them have is_correct = false; set data.solutions=all to keep them")


class _IndexedSide:
    """Records of one side that are read by their position."""

    def __init__(self, index: Index, name: str, rows: Integers, groups: Groups, note: str) -> None:
        self.index, self.name, self._rows = index, name, rows
        self.groups, self.notes = groups, [note]

    def identity(self) -> dict[str, Any]:
        """What decides which records these are."""
        return {"file": self.index.sha256, "rows": hashlib.sha256(self._rows.tobytes()).hexdigest()}

    def tokenised(self, encoder: Encoder, workers: int) -> Iterator[tuple[Record, Tokens]]:
        """The records with their tokens, in order; nothing is tokenised where the index has the ids."""
        records = self.index.read(self._rows)
        if self.index.has_ids:
            return zip(records, self.index.tokens(self._rows, encoder), strict=True)
        return with_tokens(records, encoder, workers)


class _Plan:
    """What a run reads of an indexed file, known before any of it is read.

    Raises:
        DataError: rows cannot be selected, or the index has lengths in tokens of another tokenizer.
        ConfigError: long rows are to be dropped, and the index does not know them.
    """

    def __init__(self, config: Config, index: Index, tokenizer: Any) -> None:
        self.config, self.index = config, index
        if index.in_tokens:
            index.require_measured_by(hf.backend_fingerprint(tokenizer), config.data.template)
        facts = index.facts_in_tokens(config.data.max_length) if index.in_tokens else index.facts
        fraction = config.data.validation_fraction
        names = list(index.names()) if fraction is not None else []
        trainable_P = np.unique(facts.problem_R[index.trainable_R])
        apart = held_out((names[p] for p in trainable_P), fraction) if fraction is not None else frozenset[str]()
        out_P = np.fromiter((name in apart for name in names), bool)
        self._held_R = out_P[facts.problem_R] if fraction is not None else np.zeros(len(facts), bool)
        taking_part = self._taking_part()
        candidates = np.flatnonzero(taking_part & ~self._held_R)
        held = int(self._held_R.sum())
        check_kept(config, len(facts) - held, held, len(candidates))
        candidates = self._without_long(candidates)
        self.order = order_of(config, facts.take(candidates))
        steps = number_of_steps(config, len(self.order))
        used = rows_used(self.order, steps, len(candidates))
        self.train = candidates[used]
        self.validation = np.flatnonzero(taking_part & self._held_R)
        self.place_R = np.full(len(candidates), UNREAD, np.int64)
        self.place_R[used] = np.arange(len(used))

    def sides(self) -> list[_Side | _IndexedSide]:
        """Training, and validation where the run has one."""
        size = len(self.index)
        note = f"train: {self.index.path}: {len(self.train):,} of {size:,} rows are trained on, read by position"
        sides: list[_Side | _IndexedSide] = [
            _IndexedSide(self.index, "train", self.train, self._groups(self.train, ~self._held_R), note)
        ]
        if self.config.data.validation is not None:
            sides.append(_Side(self.config, "validation"))
        elif self.config.data.validation_fraction is not None:
            held = int(self._held_R.sum())
            check_kept(self.config, held, size - held, len(self.validation), is_held_out=True)
            note = f"held out {held:,} rows whose problems are not trained on"
            groups = self._groups(self.validation, self._held_R)
            sides.append(_IndexedSide(self.index, "validation", self.validation, groups, note))
        return sides

    def note(self) -> str:
        """By which lengths rows are put together."""
        left_out = f"; {self._dropped:,} rows dropped as too long" if self._dropped else ""
        unit = "tokens" if self.index.in_tokens else "characters"
        return f"data.index: rows are sorted, and paired by length, by their {unit}{left_out}"

    def identity(self, rows: _Rows) -> str:
        """The fingerprint of what is trained on, in which order."""
        if not self.index.in_tokens:
            return rows.fingerprint
        return hashlib.sha256(f"{rows.fingerprint} by tokens".encode()).hexdigest()

    def _without_long(self, candidates: Integers) -> Integers:
        """Those that `drop` leaves: before pairs are made, since a pair that loses a row is none."""
        data, self._dropped = self.config.data, 0
        if data.on_long_row != "drop":
            return candidates
        if not self.index.in_tokens:
            raise ConfigError(
                f"data.on_long_row = drop with data.index: {self.index.folder} does not know lengths in tokens; make "
                f"it with: wmtp data index {self.index.path} --tokenizer MODEL, or set data.on_long_row to truncate or "
                "error"
            )
        kept = candidates[~self.index.longer_R(data.max_length)[candidates]]
        self._dropped = len(candidates) - len(kept)
        if not len(kept):
            raise all_too_long(self._dropped, data.max_length)
        return kept

    def _taking_part(self) -> NDArray[np.bool_]:
        trainable_R = self.index.trainable_R
        if self.config.solutions == "all":
            return trainable_R
        return np.asarray(trainable_R & (self.index.facts.correct_R != 0))

    def _groups(self, rows: Integers, side_R: NDArray[np.bool_]) -> Groups:
        """Of the problems of these rows, over all labelled rows of their side, read or not."""
        facts = self.index.facts
        labelled = side_R & (facts.correct_R != UNKNOWN)
        size = int(facts.problem_R.max()) + 1
        count_P = np.bincount(facts.problem_R[labelled], minlength=size)
        right_P = np.bincount(facts.problem_R[side_R & (facts.correct_R == 1)], minlength=size)
        problems = [p for p in np.unique(facts.problem_R[rows]).tolist() if count_P[p]]
        return {self.index.name(p): group_of(int(right_P[p]), int(count_P[p])) for p in problems}


# Rows


@dataclass
class _Rows:
    train: Sequence[Row]
    validation: Sequence[Row]
    fingerprint: str
    notes: list[str]


def _asked(config: Config, tokenizer: Any) -> tuple[_Rows, list[Question]]:
    """The problems that the policy is asked, their rows, and the rows of validation."""
    assert config.online is not None
    data, most = config.data, config.online.max_new_tokens
    side, *others_of = _sides(config, None)
    assert isinstance(side, _Side)
    questions, note = read_questions(
        side.records(),
        tokenizer,
        data.template,
        longest=data.max_length - most,
        drop_long=data.on_long_row == "drop",
    )
    train = [question.row(number, most, tokenizer.eos_token_id) for number, question in enumerate(questions)]
    others = _rows(config, tokenizer, others_of)
    identity = hashlib.sha256(f"{fingerprint_of_questions(questions)} {others.fingerprint}".encode()).hexdigest()
    return _Rows(train, others.validation, identity, [*side.notes, note, *others.notes]), questions


def _rows(config: Config, tokenizer: Any, sides: Sequence[_Side | _TaskSide | _IndexedSide]) -> _Rows:
    """The rows of all sides, encoded."""
    data, judge = config.data, _judge(config)
    encoders = {
        side.name: Encoder(
            tokenizer,
            template=data.template,
            max_length=data.max_length,
            on_long_row=data.on_long_row,
            judge=judge,
        )
        for side in sides
    }

    def encoded(side: _Side | _TaskSide | _IndexedSide) -> Iterator[Row]:
        encoder = encoders[side.name]
        for record, tokens in side.tokenised(encoder, data.workers if data.cache else 0):
            row = encoder.row(record, tokens)
            if row is not None:
                yield row
        encoder.check_any()

    def notes() -> list[str]:
        read = [note for side in sides for note in side.notes]
        return [*read, *(f"{name}: {encoder.report.summary()}" for name, encoder in encoders.items())]

    def checked(rows: Sequence[Row]) -> list[str]:
        in_groups = config.online is None and any(isinstance(scheme, GRPOConfig) for scheme in config.schemes)
        return check_mixed(rows) if in_groups else []

    if data.cache is None:
        made = {side.name: with_groups(list(encoded(side)), side.groups) for side in sides}
        both = made.get("train", []), made.get("validation", [])
        return _Rows(*both, fingerprint(*both), [*notes(), *checked(both[0])])
    key = {
        "code": code_version(), "tokenizer": hf.backend_fingerprint(tokenizer), "template": data.template,
        "max_length": data.max_length, "on_long_row": data.on_long_row, "on_bad_row": data.on_bad_row,
        "solutions": config.solutions, "allow_evaluation_data": data.allow_evaluation_data,
        "validation_fraction": data.validation_fraction,
        "judge": None if judge is None else [hf.backend_fingerprint(judge.tokenizer), judge.template, judge.context],
        "sides": {side.name: side.identity() for side in sides},
    }  # fmt: skip

    def write(writer: ColumnWriter) -> dict[str, Any]:
        for side in sides:
            write_rows(writer, f"{side.name}.", encoded(side))
            write_problems(writer, f"{side.name}.", list(encoders[side.name].problems), side.groups)
        return {"fingerprint": fingerprint(*_both(writer.columns())), "notes": notes()}

    columns, is_new = cached_rows(place(data.cache), key, write)
    train, validation = _both(columns)
    about = f"data.cache: rows {'written to' if is_new else 'found in'} {place(data.cache)}"
    return _Rows(train, validation, columns.about["fingerprint"], [*columns.about["notes"], about, *checked(train)])


def _judge(config: Config) -> RewardText | None:
    """How the run's reward model reads records, where it has one."""
    reward = config.objective.reward if isinstance(config.objective, ValueObjectiveConfig) else None
    return None if reward is None else load_reward_text(reward.model, reward.template)


def _both(columns: Columns) -> tuple[StoredRows, StoredRows]:
    return StoredRows(columns, "train."), StoredRows(columns, "validation.")


def fingerprint(*row_sets: Sequence[Row]) -> str:
    """sha256 over ids, response starts, rewards and groups of all rows in order."""
    digest = hashlib.sha256()
    for rows in row_sets:
        digest.update(len(rows).to_bytes(8, "little"))
        for row in rows:
            digest.update(f"{len(row.tokens)} {row.response_start} {row.problem} {row.reward} {row.group}".encode())
            digest.update(row.tokens.tobytes())
            if row.judged is not None:
                digest.update(row.judged.tobytes())
    return digest.hexdigest()
