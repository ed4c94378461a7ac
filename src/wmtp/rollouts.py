"""The policy's own samples as rows to train on: drawn, judged by the sandbox, grouped. docs/math.md (4.9).

    questions      of a step, from the order of the data; a rank has its share of them
    generate       `samples` answers to each, with the weights of that moment
    judge          reward 1 if all tests pass, else 0
    group          mean and deviation of the rewards of the answers to one question
    rows           prompt and answer; EOS is there, and trained, only where it was sampled

What answer s to question q of step n draws is a function of (seed, n, q, s) and the weights: the same on any number of
ranks, and again after a kill. An answer that nobody could judge is left out and counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from wmtp.data.batches import Batch, Batches, filler
from wmtp.data.groups import group_of
from wmtp.data.orders import Sequential, by_length
from wmtp.data.text import Row
from wmtp.decoding import Continuation, Sampling, check_cached, generate_many
from wmtp.distributed import World, gathered
from wmtp.errors import ModelError, WmtpError
from wmtp.model import MTPModel
from wmtp.questions import Question
from wmtp.record_tests import program_in
from wmtp.sandbox import Job, Requirement, Sandbox, Verdict


@dataclass(frozen=True)
class Ask:
    """How the policy is asked.

    Attributes:
        samples: answers to each question.
        rows: most rows of a forward pass; None for all of a rank at once.
        tokens: most positions of a training micro-batch; None for no such bound.
    """

    samples: int
    max_new_tokens: int
    temperature: float
    seed: int
    rows: int | None
    tokens: int | None


class Answer(NamedTuple):
    """One sample and what became of it."""

    place: int
    """Of the question in the step."""
    sample: int
    continuation: Continuation
    verdict: Verdict

    @property
    def reward(self) -> float:
        """1 if all tests passed, else 0."""
        return float(self.verdict.passed)


class Drawn(NamedTuple):
    """A step's samples."""

    batches: list[Batch]
    """This rank's micro-batches; all ranks have the same number."""
    metrics: dict[str, float]
    """Of all ranks: `online/*`; and `time/*`, this rank's seconds."""
    all_neutral: bool
    """No group has both a reward of 1 and one of 0."""


class Rollouts:
    """Draws the batches of a run from its policy.

    Args:
        asked: which questions each step asks, as rows that have their names.
        questions: by name.
        sandbox: judges programs, at a time as many as it has workers.
    """

    def __init__(
        self,
        asked: Batches,
        questions: Mapping[str, Question],
        tokenizer: Any,
        sandbox: Sandbox,
        world: World,
        ask: Ask,
    ) -> None:
        self.asked, self.questions, self.tokenizer = asked, questions, tokenizer
        self.sandbox, self.world, self.ask = sandbox, world, ask

    def check(self, model: MTPModel) -> None:
        """Find out before the first step whether the policy can be decoded. All ranks must ask.

        Raises:
            ModelError: an architecture whose caches or masks WMTP does not understand.
        """
        with gathered(model):
            self.world.together(lambda: check_samples(model))

    def draw(self, model: MTPModel, step: int, precision: Callable[[], AbstractContextManager[Any]]) -> Drawn:
        """The samples of a step (counted from 1). All ranks must ask.

        Raises:
            WmtpError: the sandbox failed, or nobody could judge a single answer.
        """
        started = time.perf_counter()
        rows = self.asked.rows_of(step - 1)[:: self.ask.samples]
        first = (step - 1) * self.asked.largest_batch
        places = range(self.world.rank, len(rows), self.world.size)
        questions = [self.questions[self.asked.rows[rows[place]].name] for place in places]
        with gathered(model), precision():
            continuations = self._generate(model, questions, [first + place for place in places])
        generated = time.perf_counter()
        answers = self.world.together(lambda: self._judge(list(places), questions, continuations), unhurried=True)
        judged = time.perf_counter()
        seconds = {"time/generation_s": generated - started, "time/judging_s": judged - generated}
        metrics = self._metrics(answers)
        return Drawn(self._batches(step, rows, answers), metrics | seconds, metrics["online/neutral"] == 1)

    def _generate(
        self, model: MTPModel, questions: Sequence[Question], numbers: Sequence[int]
    ) -> list[tuple[Continuation, ...]]:
        """The answers to each question, whose number names its random numbers."""
        if not questions:
            return []
        generations = generate_many(
            model,
            [question.prompt for question in questions],
            samples=self.ask.samples,
            max_new_tokens=self.ask.max_new_tokens,
            mode="speculative" if model.num_heads > 1 else "plain",
            sampling=Sampling(temperature=self.ask.temperature),
            seed=self.ask.seed,
            eos=[self.tokenizer.eos_token_id],
            batch_rows=self.ask.rows or len(questions) * self.ask.samples,
            names=numbers,
        )
        return [generation.rows for generation in generations]

    def _judge(
        self, places: Sequence[int], questions: Sequence[Question], given: Sequence[tuple[Continuation, ...]]
    ) -> list[Answer]:
        """Every answer with its verdict; equal programs are run once."""
        programs = {
            (q, s): program_in(self.tokenizer.decode(one.tokens, skip_special_tokens=True))
            for q, group in enumerate(given)
            for s, one in enumerate(group)
        }
        distinct = dict.fromkeys((q, program) for (q, _), program in programs.items())
        jobs = (Job(program, questions[q].tests, questions[q].limits, (q, program)) for q, program in distinct)
        verdicts = {job.id: verdict for job, verdict in self.sandbox.map(jobs, ordered=False)}
        return [Answer(places[q], s, given[q][s], verdicts[q, program]) for (q, s), program in programs.items()]

    def _batches(self, step: int, rows: Sequence[int], answers: Sequence[Answer]) -> list[Batch]:
        """This rank's answers as micro-batches, and fillers where another rank has more."""
        made, numbers = [], []
        for place, group in groups_of(answers).items():
            name = self.asked.rows[rows[place]].name
            together = group_of(sum(answer.verdict.passed for answer in group), len(group))
            for answer in group:
                made.append(row_of(self.questions[name], answer, together))
                numbers.append(place * self.ask.samples + answer.sample)
        batches = []
        if made:
            lengths = np.array([len(row.tokens) for row in made], np.int32)
            order = Sequential(by_length(np.arange(len(made))[:, None], lengths), len(made))
            local = Batches.ordered(made, order, pad_id=self.asked.pad_id).at(0, self.ask.rows, self.ask.tokens)
            batches = [replace(batch, row_B=tuple(numbers[row] for row in batch.row_B)) for batch in local]
        most = int(self.world.largest(torch.tensor(len(batches))))
        if not most:
            raise WmtpError(
                f"step {step}: nobody could judge any answer"
                + (f", the first: {answers[0].verdict.reason}" if answers else "")
                + "; `wmtp doctor` says what the sandbox lacks here"
            )
        return [*batches, *[filler(1, self.asked.pad_id)] * (most - len(batches))]

    def _metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Shares over all ranks."""
        groups = groups_of(answers).values()
        passed = [sum(answer.verdict.passed for answer in group) for group in groups]
        own = [
            len(answers),
            sum(map(len, groups)),
            sum(passed),
            len(groups),
            sum(count in (0, len(group)) for count, group in zip(passed, groups, strict=True)),
            sum(answer.continuation.finish == "eos" for answer in answers),
            sum(len(answer.continuation.tokens) for answer in answers),
            sum(answer.verdict.trust == "weak" for answer in answers),
        ]
        all_ranks = self.world(torch.tensor(own)).tolist()
        drawn, decided, right, several, neutral, ended, tokens, weak = all_ranks
        return {
            "online/reward": right / max(decided, 1),
            "online/neutral": neutral / max(several, 1),
            "online/ended": ended / drawn,
            "online/new_tokens": tokens / drawn,
            "online/undecided": (drawn - decided) / drawn,
            "online/weak_trust": weak / drawn,
        }


def check_samples(model: MTPModel) -> None:
    """Raise `ModelError` unless a policy can be decoded; of one without weights, as far as its config tells."""
    try:
        check_cached(model)
    except ModelError as problem:
        raise ModelError(
            f"online: this policy cannot sample what it trains on: {problem}. Leave `online` out, or take another model"
        ) from problem


def groups_of(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    """The answers that were judged, by the place of their question."""
    groups: dict[int, list[Answer]] = {}
    for answer in answers:
        if answer.verdict.decided:
            groups.setdefault(answer.place, []).append(answer)
    return groups


def row_of(question: Question, answer: Answer, group: tuple[float, float]) -> Row:
    """A sample as it is trained on: every token that was sampled, and no other."""
    tokens = np.asarray([*question.prompt, *answer.continuation.tokens], np.int32)
    return Row(tokens, len(question.prompt), answer.place, answer.reward, question.difficulty, question.name, group)


def sandbox_for(require: Requirement, world: World) -> Sandbox:
    """A rank's sandbox, with its share of the host's processors.

    Raises:
        SandboxError: less isolation than is required.
    """
    share = None if world.local_size == 1 else max(1, (os.cpu_count() or 1) // world.local_size) + 1
    return Sandbox(require=require, workers=share)
