"""Which schemes find the tokens that matter? A task where it is known which ones do.

    python scripts/planted_signal.py [--seeds 5] [--steps 100] [--processes 2] [--json planted.json]

A response is a run of groups `a b = v`: `a` and `b` are drawn at random (noise: nothing can be learned), `=` is always
there (known at once), and `v` follows from b by a hidden table (*planted*: what matters). In half of the responses each
`v` is wrong with probability 1/4. A response is labelled correct if none is; a problem has four responses.

Every arm trains the same rows in the same order from the same initial weights. Printed, over seeds:

    recall     of the planted pairs among the n heaviest of a step, n being their number; mean over all steps.
               Ties count by what a lot would give on average, so uniform weights recall the planted pairs' share.
    nll, acc   of v on held-out responses without errors: what came of it

Reference: the same model, trained longer, on correct responses only. Critic: the same with a value head, trained on
the labels (lambda-return).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmtp.data.batches import Batch, Batches, collate, single_items
from wmtp.data.text import Row
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective, Objective, ValueObjective
from wmtp.optim import build_adamw
from wmtp.ranks import Reduce
from wmtp.scoring import critic_values, reference_nll
from wmtp.step import evaluate, train_step
from wmtp.targets import align_to_targets
from wmtp.value import ValueModel
from wmtp.weighting import (
    GRPO,
    Critic,
    Gradient,
    Hybrid,
    Rho1,
    Scheme,
    SchemeInput,
    Uniform,
    When,
    ask,
    inverted,
    random_matched,
    shuffled,
)

BOS, EOS, SEPARATOR, EQUALS, LETTERS, VALUES = 1, 2, 3, 4, 5, 21
SIZE, GROUPS, START, WRONG = 16, 8, 2, 0.25
VOCABULARY = VALUES + SIZE
HEADS = 2
BATCH = 16


class Task:
    """Rows of one seed's table, and which of their tokens are planted."""

    def __init__(self, seed: int, problems: int = 256) -> None:
        random = np.random.default_rng(seed)
        self.table = random.integers(0, SIZE, SIZE)
        self.rows = [self._row(random, problem, wrong) for problem in range(problems) for wrong in (0, 0, WRONG, WRONG)]
        for start in range(0, len(self.rows), 4):
            rewards = [row.reward for row in self.rows[start : start + 4]]
            group = (float(np.mean(rewards)), float(np.std(rewards)))
            self.rows[start : start + 4] = [_with(row, group) for row in self.rows[start : start + 4]]
        self.clean = [self._row(random, 0, 0.0) for _ in range(128)]
        self.planted_RT = torch.tensor(np.stack([self._planted(row) for row in self.rows]))

    def _row(self, random: np.random.Generator, problem: int, wrong: float) -> Row:
        a, b = random.integers(0, SIZE, (2, GROUPS))
        is_wrong = random.random(GROUPS) < wrong
        value = (self.table[b] + is_wrong * random.integers(1, SIZE, GROUPS)) % SIZE
        groups = np.stack([LETTERS + a, LETTERS + b, np.full(GROUPS, EQUALS), VALUES + value], 1).ravel()
        tokens = np.array([BOS, SEPARATOR, *groups, EOS], dtype=np.int32)
        return Row(tokens, START, problem, float(not is_wrong.any()), 0)

    def _planted(self, row: Row) -> np.ndarray[Any, Any]:
        """bool: where a token is a value, and the right one."""
        planted = np.zeros(len(row.tokens), dtype=bool)
        places = START + 3 + 4 * np.arange(GROUPS)
        planted[places] = row.tokens[places] - VALUES == self.table[row.tokens[places - 2] - LETTERS]
        return planted


def _with(row: Row, group: tuple[float, float]) -> Row:
    return Row(row.tokens, row.response_start, row.problem, row.reward, row.difficulty, row.name, group)


def base_model(seed: int) -> Any:
    """A random Llama of two layers, width 64."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def train(model: Any, objective: Objective, rows: Sequence[Row], seed: int, steps: int) -> None:
    """So many steps of AdamW."""
    optimizer = build_adamw(model, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    batches = Batches(rows, single_items(rows), batch_size=BATCH, seed=seed, pad_id=0)
    model.train()
    for step in range(steps):
        objective.begin(step + 1)
        train_step(model, optimizer, objective, batches.at(step))


def recall(weight_N: Tensor, planted_N: Tensor) -> float:
    """Share of the planted pairs among the heaviest, as many as there are planted; ties as a lot would on average."""
    count = int(planted_N.sum())
    threshold = weight_N.sort(descending=True).values[count - 1]
    above, at = weight_N > threshold, weight_N == threshold
    chance = float((count - above.sum()) / at.sum())
    return (float((above & planted_N).sum()) + chance * float((at & planted_N).sum())) / count


class Recording:
    """A scheme that passes another's weights on and notes how many planted pairs are among the heaviest."""

    def __init__(self, of: Scheme, planted_RT: Tensor) -> None:
        self.of, self.planted_RT = of, planted_RT
        self.recalls: list[float] = []
        self.when = When.BEFORE_FORWARD if of.when is When.BEFORE_FORWARD else When.WHOLE_STEP
        self.per_head, self.needs, self.bounds = False, of.needs, of.bounds

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """The scheme's own."""
        given = ask(self.of, step, reduce, training)
        if training:
            found = [(w[b.valid_BTK], self._planted(b)[b.valid_BTK]) for w, b in zip(given, step, strict=True)]
            weight_N, planted_N = (torch.cat(parts) for parts in zip(*found, strict=True))
            self.recalls.append(recall(weight_N, planted_N))
        return list(given)

    def _planted(self, batch: SchemeInput) -> Tensor:
        return align_to_targets(self.planted_RT[batch.row_B], HEADS)

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """Passed on."""
        self.of.observe(totals)

    def state_dict(self) -> dict[str, Any]:
        """The scheme's."""
        return self.of.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The scheme's."""
        self.of.load_state_dict(state)


def select() -> Scheme:
    """Rho-1's selection of about as many pairs as are planted."""
    return Rho1("select", ratio=0.25)


ARMS: dict[str, Callable[[], Scheme]] = {
    "baseline": Uniform,
    "critic, lam 0": lambda: Critic(lam=0.0),
    "critic, lam 0.95": lambda: Critic(lam=0.95),
    "rho1": select,
    "rho1, self-reference": select,
    "gradient": Gradient,
    "grpo": lambda: GRPO("positive"),
    "hybrid (critic x rho1)": lambda: Hybrid([Critic(lam=0.0), Rho1("soft")]),
    "shuffled rho1": lambda: shuffled(select()),
    "random_matched rho1": lambda: random_matched(select()),
    "inverted rho1": lambda: inverted(select()),
}


def one_seed(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """All arms of a seed: recall, nll, acc."""
    torch.set_num_threads(1)
    task = Task(seed)
    initial = MTPModel(base_model(seed), HEADS)
    reference = MTPModel(base_model(1000 + seed), HEADS)
    correct = [row for row in task.rows if row.reward == 1.0]
    train(reference, MTPObjective(Uniform()), correct, seed, 2 * steps)
    critic = ValueModel(base_model(2000 + seed), "sigmoid", loss="lambda_return")
    train(critic, ValueObjective("lambda_return", lam=1.0), task.rows, seed, 2 * steps)
    frozen = copy.deepcopy(initial).eval()

    def score(needs: frozenset[str], other: MTPModel, batch: Batch) -> dict[str, Tensor]:
        scores = {}
        if "values_BT" in needs:
            scores["values_BT"] = critic_values(critic, batch)
        if "reference_nll_BTK" in needs:
            scores["reference_nll_BTK"] = reference_nll(other, batch, HEADS, alignment="matched")
        return scores

    out = {}
    for arm, make in ARMS.items():
        scheme = Recording(make(), task.planted_RT)
        model = copy.deepcopy(initial)
        other = frozen if arm == "rho1, self-reference" else reference
        train(model, MTPObjective(scheme, score=partial(score, scheme.needs, other)), task.rows, seed, steps)
        out[arm] = {"recall": statistics.fmean(scheme.recalls), **held_out(model, task.clean)}
    return out


def held_out(model: MTPModel, rows: Sequence[Row]) -> dict[str, float]:
    """nll and accuracy of v, over both heads."""
    batch = collate(rows, range(len(rows)), 0)
    only_values = torch.zeros_like(batch.trainable_BT)
    only_values[:, START + 3 : -1 : 4] = True
    batch = Batch(batch.tokens_BT, only_values, batch.reward_B, batch.row_B, batch.num_tokens)
    figures = evaluate(model, MTPObjective(Uniform()), [[batch]])
    accuracies = [figures[f"acc/head_{k}"] for k in range(1, HEADS + 1)]
    return {"nll": figures["loss/nll"], "acc": statistics.fmean(accuracies)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(one_seed, steps=options.steps), range(options.seeds)))
    report(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def report(found: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """The table, and in how many seeds an arm's recall is above and below the baseline's."""
    print(f"{'mean and standard deviation':24} {'recall':>15} {'nll of v':>15} {'acc of v':>15}   recall: above, below")
    for arm in ARMS:
        cells = [cell([of_seed[arm][name] for of_seed in found]) for name in ("recall", "nll", "acc")]
        margins = [of_seed[arm]["recall"] - of_seed["baseline"]["recall"] for of_seed in found]
        above, below = sum(m > 0 for m in margins), sum(m < 0 for m in margins)
        print(f"{arm:27} {' '.join(cells)}   {above} {below}")


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):7.3f} ± {deviation:5.3f}"


if __name__ == "__main__":
    main()
