"""`wmtp score`: ask a recipe's frozen models about every row once, and keep what they say (`wmtp.scores`).

Rows of similar length share a batch, the longest first: what does not fit into memory is known at once. The batches
depend on the rows and `batch_tokens` alone, so any number of ranks, and any interruption, end with the same files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp import devices
from wmtp.config import Config
from wmtp.data.batches import Batch, collate, filler
from wmtp.data.text import Row
from wmtp.dataset import build_data, load_tokenizer
from wmtp.distributed import Sharding, World, joined
from wmtp.errors import ConfigError
from wmtp.formats.code import remote_code
from wmtp.frozen import Scorer, build_scorers, column_card, columns_wanted, score_key
from wmtp.objective import Precision
from wmtp.parts import sharding_of, spread, stored_in
from wmtp.scores import Card, ScoreWriter, Span, read_card, score_writer, span_in
from wmtp.storage import Place, place

BATCH_TOKENS = 8192
"""Positions of a scoring batch, padding included, unless it is a single row."""
DTYPES = ("float32", "float16")
Report = Callable[[str], None]
"""Gets a line of progress now and then."""


@dataclass(frozen=True)
class Job:
    """All that is known before the first batch."""

    device: torch.device
    precision: Precision
    scorers: list[Scorer]
    rows: list[Row]
    """Each content once, the longest first."""
    spans: list[Span]
    batches: list[range]
    """Of `rows`."""
    pad_id: int
    card: Card

    def scored_spans(self) -> list[list[Span]]:
        """The spans of every batch."""
        return [[self.spans[i] for i in batch] for batch in self.batches]


def score(
    config: Config,
    *,
    out: str | None = None,
    dtype: str = "float32",
    batch_tokens: int = BATCH_TOKENS,
    report: Report = lambda text: None,
) -> tuple[Place, Card]:
    """Score the rows of a recipe, those held out too; the folder and its card. Goes on where it was interrupted.

    Args:
        out: folder of the scores; default: the one that the recipe names in `scores`.
        dtype: `float32`, or `float16`: half the size, to within 2^-11 of each score (2^-25 of scores below 2^-14).
        batch_tokens: positions of a scoring batch, at most.

    Raises:
        UsageError: nothing to score, a model or data that cannot be had, or a folder of something else.
        WmtpError: a disk that does not take the scores; they are as far as they were.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = _folder(config, out)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with (
        remote_code(*config.remote_code),
        joined(devices.pick(config.device), config.distributed.timeout_s) as world,
    ):
        return folder, score_in(world, config, folder, dtype, batch_tokens, report)


def score_in(
    world: World, config: Config, folder: Place, dtype: str, batch_tokens: int, report: Report = lambda text: None
) -> Card:
    """`score`, as one of the ranks of a world; every rank must call it."""
    mesh = sharding_of(config, world)
    job = world.together(lambda: prepare(config, mesh, dtype, batch_tokens))
    file = score_writer(folder, job.card, job.scored_spans())
    todo = world.first(file.begin)
    score_batches(job, file, todo, world, report if world.leads else lambda text: None)
    world.together(lambda: file.finish() if world.leads else None, unhurried=True)  # all parts are there
    return world.first(lambda: read_card(file.folder))


def _folder(config: Config, out: str | None) -> Place:
    if config.online is not None:
        raise ConfigError("nothing to score: an online run samples what it trains on; leave online out")
    wanted = columns_wanted(config)
    if not wanted:
        raise ConfigError(
            f"nothing to score: the arm {config.arm}, as the recipe has it, reads no frozen model; give a recipe with "
            "a critic, a reference or a reward model"
        )
    named = {column.scores for column in wanted if column.scores is not None}
    if out is None and len(named) != 1:
        raise ConfigError("say where the scores should go: --out FOLDER, or `scores` beside the model in the recipe")
    return place(out if out is not None else named.pop())


def prepare(config: Config, mesh: Sharding | None, dtype: str, batch_tokens: int) -> Job:
    """Rows, batches and models.

    Raises:
        UsageError: as `score`.
    """
    device = devices.pick(config.device)
    tokenizer = load_tokenizer(config)
    data = build_data(config, tokenizer)
    columns = columns_wanted(config)
    of = columns[0].of  # one objective reads scores of tokens, or of rows
    by_key = {span.key: (row, span) for row in data.rows for span in [span_in(row, of)]}
    order = sorted(by_key, key=lambda key: (-positions(by_key[key][0]), key))
    rows, spans = [by_key[key][0] for key in order], [by_key[key][1] for key in order]
    card = Card.model_validate(
        {
            "key": score_key(config, tokenizer),
            "data": hashlib.sha256(b"".join(sorted(order))).hexdigest(),
            "columns": {column.name: column_card(column) for column in columns},
            "dtype": dtype,
            "batch_tokens": batch_tokens,
            "rows": len(rows),
            "tokens": sum(span.length for span in spans),
        }
    )
    scorers = build_scorers(config.asking_models(), tokenizer, device, "now" if mesh is None else "later")
    for scorer in scorers:
        if mesh is not None and scorer.model is not None:
            spread(scorer.model, mesh, stored_in(scorer.wanted.source), device)
    precision = devices.precision(device, config.precision)
    if mesh is not None:
        precision = nullcontext  # the mixed-precision policy casts what it gathers
    batches = batches_of([positions(row) for row in rows], batch_tokens)
    return Job(device, precision, scorers, rows, spans, batches, data.train.pad_id, card)


def positions(row: Row) -> int:
    """What a row takes in a batch of its models."""
    return len(row.tokens if row.judged is None else row.judged)


def batches_of(lengths: Sequence[int], most_tokens: int) -> list[range]:
    """Runs of rows, the first of which is the longest, of at most so many positions each unless it is a single row."""
    batches, start = [], 0
    while start < len(lengths):
        end = min(len(lengths), start + max(1, most_tokens // lengths[start]))
        batches.append(range(start, end))
        start = end
    return batches


def score_batches(job: Job, file: ScoreWriter, todo: Sequence[int], world: World, report: Report) -> None:
    """Every rank takes one of the next batches; one without joins in with nothing, as sharded models need all."""
    for first in range(0, len(todo), world.size):
        turn = todo[first : first + world.size]
        own = turn[world.rank] if world.rank < len(turn) else None
        batch = collate(job.rows, job.batches[turn[0] if own is None else own], job.pad_id)
        scores = ask(job, batch if own is not None else filler(1, job.pad_id))

        def keep(number: int | None = own, scores: Mapping[str, Tensor] = scores) -> None:
            if number is not None:
                file.write(number, {name: _of_spans(job, number, scores_BTC) for name, scores_BTC in scores.items()})

        world.together(keep)  # a rank that cannot write ends all
        report(f"scored {first + len(turn):,} of {len(todo):,} batches")


def ask(job: Job, batch: Batch) -> dict[str, Tensor]:
    """`scores_BTC` of every column."""
    on_device = batch.to(job.device)
    with job.precision():
        return {scorer.wanted.name: scorer.of_tokens(on_device).cpu() for scorer in job.scorers}


def _of_spans(job: Job, number: int, scores_BTC: Tensor) -> NDArray[Any]:
    """Scores of a batch's spans one after another, `[tokens, C]`."""
    spans = [job.spans[i] for i in job.batches[number]]
    return np.concatenate([scores_BTC[b, span.start : span.end].numpy() for b, span in enumerate(spans)])
