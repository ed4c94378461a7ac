"""How many of a task's questions a model answers: the metrics `task/GROUP` of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.data.text import Row
from wmtp.model import MTPModel
from wmtp.objective import Precision
from wmtp.probing import evaluating
from wmtp.ranks import Reduce, alone
from wmtp.tasks import Task
from wmtp.value_stats import ratio


def grade(
    model: MTPModel,
    task: Task,
    rows: Sequence[Row],
    batches: Iterable[Sequence[Batch]],
    *,
    reduce: Reduce = alone,
    precision: Precision = nullcontext,
) -> dict[str, float]:
    """The share of the questions of each group whose tokens are all head 1's first choice; NaN where none is asked.

    Args:
        rows: those that the batches' `row_B` name.
        batches: each given as its micro-batches.
    """
    place = {group: g for g, group in enumerate(task.groups)}
    asked_G, right_G = (torch.zeros(len(place), dtype=torch.int64) for _ in range(2))
    with evaluating(model):
        for batch in (batch for micro_batches in batches for batch in micro_batches):
            chosen_BT = first_choice(model, batch.tokens_BT, precision).cpu()
            for b, row in enumerate(batch.row_B):
                for question in task.questions(rows[row]):
                    asked_G[place[question.group]] += 1
                    right_G[place[question.group]] += bool(chosen_BT[b, list(question.tokens)].all())
    asked_G, right_G = reduce(torch.stack([asked_G, right_G]))
    pairs = zip(place, right_G.tolist(), asked_G.tolist(), strict=True)
    return {f"task/{group}": ratio(right, asked) for group, right, asked in pairs}


def first_choice(model: MTPModel, tokens_BT: Tensor, precision: Precision = nullcontext) -> Tensor:
    """Whether head 1 holds no token for likelier than the one that is there, `[B, T]` bool; False at place 0.

    Logits are fp32 whatever the run computes in: rounded to bf16, unlike ones would become equal.
    """
    with precision():
        hidden_BTD = model(tokens_BT)[0]
    unembedding = model.unembedding()
    bias_V = None if unembedding.bias_V is None else unembedding.bias_V.float()
    exact = unembedding._replace(projection_VD=unembedding.projection_VD.float(), bias_V=bias_V)
    logits_BTV = exact.logits(hidden_BTD[:, :-1].float())
    at_target_BT = logits_BTV.gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)
    chosen_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    chosen_BT[:, 1:] = at_target_BT >= logits_BTV.amax(-1)
    return chosen_BT
