"""From tokens, FLOPs or seconds to steps, and what so many steps spend.

The order of the data is a function of the seed, so tokens and FLOPs are known before a run starts; seconds have to be
measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import accumulate, count, islice, takewhile
from typing import NamedTuple

from wmtp.config import Config
from wmtp.dataset import Data, build_data
from wmtp.errors import ConfigError, WmtpError
from wmtp.flops import StepCost
from wmtp.parts import build
from wmtp.storage import Place
from wmtp.study.settings import BudgetConfig
from wmtp.tracking import read_journal

TRIAL_STEPS = 12
WARM_UP = 2
"""Of the trial's steps, not counted: they load and allocate."""
GROWTH, TRIES = 2, 64
"""By how much a length that a budget pays for grows at once, and how many lengths are tried."""


class Spent(NamedTuple):
    """What training takes."""

    tokens: int
    flops: int


def spent(config: Config, steps: int) -> Spent:
    """What the first `steps` steps of a run take in one process.

    Raises:
        UsageError: as `parts.build`.
    """
    counter = _Counter(config)
    each = list(islice(counter.steps(counter.parts.data), steps))
    return Spent(sum(one.tokens for one in each), sum(one.flops for one in each))


def steps_within(config: Config, budget: BudgetConfig) -> int:
    """As many steps as a budget of tokens or FLOPs pays for.

    Rows of an index, and a curriculum, are those of a run of a given length: there the length is searched whose own
    steps the budget pays for.

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
    counter = _Counter(config)

    def costs(data: Data) -> Iterator[int]:
        return (one.tokens if budget.tokens is not None else one.flops for one in counter.steps(data))

    first = next(costs(counter.parts.data))
    if first > limit:
        what = "tokens" if budget.tokens is not None else "FLOPs"
        raise ConfigError(f"the budget of {limit:,.0f} {what} is less than the {first:,} of the first step; raise it")
    if _follows_length(config):
        return longest_paid(lambda steps: sum(islice(costs(counter.data_of(steps)), steps)), limit)
    return sum(1 for _ in takewhile(lambda total: total <= limit, accumulate(costs(counter.parts.data))))


def longest_paid(cost_of: Callable[[int], int], limit: float) -> int:
    """The most steps that cost at most `limit`, found from lengths in proportion to what others cost.

    Where a longer run can cost less, or `TRIES` are not enough, it may be fewer; never more than is paid for.

    Args:
        cost_of: of a run of so many steps; one step costs at most `limit`.
    """
    paid, unpaid, steps = 0, None, 1
    for _ in range(TRIES):
        cost = cost_of(steps)
        if cost <= limit:
            paid = steps
        else:
            unpaid = steps
        most = GROWTH * paid if unpaid is None else unpaid - 1
        if paid == most:
            break
        steps = min(max(int(steps * limit / cost), paid + 1), most)
    return paid


def _follows_length(config: Config) -> bool:
    """Whether the number of steps decides which rows are read, or what a batch is made of."""
    sampling = config.data.sampling
    return config.data.index is not None or (sampling is not None and sampling.difficulty is not None)


class _Counter:
    """Counts what the steps of a run take; models are without weights."""

    def __init__(self, config: Config) -> None:
        self.config, self.parts = config, build(config, weights=False)
        self._cost = StepCost(
            self.parts.model,
            self.parts.objective,
            self.parts.frozen,
            checkpointing=config.train.activation_checkpointing,
        )

    def data_of(self, steps: int) -> Data:
        """The data of a run of so many steps; `data.cache` gets the rows of the run alone, by the run."""
        train = self.config.train.model_copy(update={"steps": steps, "epochs": None})
        data = self.config.data.model_copy(update={"cache": None})
        return build_data(self.config.model_copy(update={"train": train, "data": data}), self.parts.tokenizer)

    def steps(self, data: Data) -> Iterator[Spent]:
        """What each step takes, as long as somebody asks."""
        train = self.config.train
        for number in count():
            batches = data.train.at(number, train.micro_batch_size, train.micro_batch_tokens)
            yield Spent(sum(batch.num_tokens for batch in batches), self._cost.of(batches))


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
