"""From tokens, FLOPs or seconds to steps, and what so many steps spend.

The order of the data is a function of the seed, so tokens and FLOPs are known before a run starts; seconds have to be
measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from wmtp.config import Config
from wmtp.errors import ConfigError, WmtpError
from wmtp.flops import StepCost
from wmtp.parts import Parts, build
from wmtp.storage import Place
from wmtp.study.settings import BudgetConfig
from wmtp.tracking import read_journal

TRIAL_STEPS = 12
WARM_UP = 2
"""Of the trial's steps, not counted: they load and allocate."""


class Spent(NamedTuple):
    """What training takes."""

    tokens: int
    flops: int


def spent(config: Config, steps: int) -> Spent:
    """What the first `steps` steps of a run take in one process.

    Raises:
        UsageError: as `parts.build`.
    """
    each = list(islice(_steps(build(config, weights=False)), steps))
    return Spent(sum(one.tokens for one in each), sum(one.flops for one in each))


def steps_within(config: Config, budget: BudgetConfig) -> int:
    """As many steps as a budget of tokens or FLOPs pays for.

    Raises:
        ConfigError: it does not pay for one, or the run samples what it trains on.
        UsageError: as `parts.build`.
    """
    limit = budget.tokens if budget.tokens is not None else budget.flops
    if limit is None:
        raise TypeError("seconds are measured, not counted")
    if config.online is not None:
        raise ConfigError(
            "an online run samples what it trains on, so nobody knows before how many tokens or FLOPs a step takes: "
            "give the study a budget of seconds, or none"
        )
    total, steps = 0, 0
    for one in _steps(build(config, weights=False)):
        total += one.tokens if budget.tokens is not None else one.flops
        if total > limit:
            break
        steps += 1
    if not steps:
        what = "tokens" if budget.tokens is not None else "FLOPs"
        raise ConfigError(f"the budget of {limit:,.0f} {what} is less than the {total:,} of the first step; raise it")
    return steps


def _steps(parts: Parts) -> Iterator[Spent]:
    """What each step takes, for ever."""
    options, number = parts.config.train, 0
    cost = StepCost(parts.model, parts.objective, parts.frozen, checkpointing=options.activation_checkpointing)
    while True:
        batches = parts.data.train.at(number, options.micro_batch_size, options.micro_batch_tokens)
        yield Spent(sum(batch.num_tokens for batch in batches), cost.of(batches))
        number += 1


def trial(config: Config) -> Config:
    """The first steps of a run, to see how long they take."""
    train = {"steps": TRIAL_STEPS, "epochs": None, "log_every": 1, "early_stopping": None}
    train |= {"eval_every": None, "eval_batches": 1}
    keeps_nothing = {"every": None, "save_final": False, "select": "last"}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "checkpoint": config.checkpoint.model_copy(update=keeps_nothing),
            "tracking": None,
        }
    )


def steps_in(seconds: float, trial_run: Place) -> int:
    """As many steps of a trial's median time as fit into `seconds`.

    Raises:
        ConfigError: not one does.
        WmtpError: the trial's journal cannot be read, or has too few steps.
    """
    times = [line["time/step_s"] for line in read_journal(trial_run / "metrics.jsonl") if line["split"] == "train"]
    if len(times) <= WARM_UP:
        raise WmtpError(
            f"the trial run in {trial_run} logged {len(times)} steps, expected {TRIAL_STEPS}; remove that folder, and "
            "it is run again"
        )
    of_step = statistics.median(times[WARM_UP:])
    steps = int(seconds // of_step)
    if not steps:
        raise ConfigError(f"the budget of {seconds:g} s is less than the {of_step:.3g} s of a step; raise it")
    return steps
