"""What a run sees of single tokens: `RUN/eval/tokens.json`, read by the page and the terminal.

Held-out problems with a correct and an incorrect solution, two of each that differ least. Per token of a solution: the
nll and the weight of every head that predicts it; and what the weight was made from, where there is such a thing: the
critic's value and advantage, the excess over the reference. A critic's own run shows the weights that it would give a
policy. Weights come out of the scheme's own code, which takes the rows shown for one optimiser step: whitening and
quantiles are over these rows. Mean weights by class of token and by position are over the same rows.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from wmtp import checkpoint, config_files
from wmtp.arms import build_scheme
from wmtp.config import Config, CriticConfig, MTPObjectiveConfig, load
from wmtp.data.batches import Batch, collate, rows_by_label
from wmtp.data.text import Row
from wmtp.errors import DataError, UsageError
from wmtp.evaluation.suites import BUCKETS, POSITIONS
from wmtp.evaluation.token_classes import CLASSES, token_classes
from wmtp.formats.native import load_value_model
from wmtp.frozen import check_terminal
from wmtp.model import MTPModel, batch_targets
from wmtp.objective import MTPObjective
from wmtp.parts import Parts, build
from wmtp.probing import evaluating
from wmtp.ranks import alone
from wmtp.scoring import critic_values
from wmtp.storage import Place, write_atomic
from wmtp.value import ValueModel
from wmtp.weighting.base import SchemeInput, ask
from wmtp.weighting.critic import Critic
from wmtp.weighting.rho1 import Rho1
from wmtp.weighting.watched import unwatched
from wmtp.wording import counted

ABOUT = (
    "Weights are those of the run’s own scheme with the {rows} solutions of {problems} taken for "
    "one optimiser step: whitening and quantiles are over these rows, half of which are incorrect solutions."
)
WOULD_BE = (
    "Weights are those that a policy would get from this critic ({options}) if the {rows} solutions shown, half of "
    "them incorrect, were one optimiser step."
)


def inspect_run(
    folder: Place, problems: int, weighting: Sequence[str] = (), *, needs_critic: bool = False
) -> tuple[dict[str, Any], Place]:
    """Look at so many held-out problems with the run's final model; the result, and the file it was written to.

    Args:
        weighting: of a critic's run, as `KEY=VALUE`: options of the weighting that it is asked to show.
        needs_critic: refuse a run in which no critic plays a part.

    Raises:
        UsageError: no finished run, or no held-out problem with both a correct and an incorrect solution; a weighting
            that this critic cannot give.
    """
    parts, model = _finished(folder)
    would_be = _would_be(folder, model, weighting) if isinstance(model, ValueModel) else None
    if needs_critic or weighting:
        _check_critic(folder, parts, would_be, weighting)
    held_out = _held_out(parts)
    rows = held_out if would_be is None else after_a_prompt(held_out, folder)
    pairs = solution_pairs(rows, problems)
    if not pairs:
        raise DataError(
            f"none of the held-out problems of {folder} has a correct and an incorrect solution: there is nothing to "
            "lay side by side (is_correct must be true for some rows and false for others of the same problem)"
        )
    chosen = [i for pair in pairs for i in pair]
    batch = collate(rows, chosen, parts.data.train.pad_id).to(parts.device)
    with evaluating(model), torch.no_grad(), parts.precision():
        figures = _policy_figures(parts, batch) if would_be is None else _critic_figures(parts, model, batch, would_be)
    shown = [_problem(parts.tokenizer, rows, pair, figures, 2 * place) for place, pair in enumerate(pairs)]
    objective = parts.config.objective
    result = {
        "suite": "tokens",
        "arm": parts.config.arm,
        "scheme": objective.weighting.scheme if isinstance(objective, MTPObjectiveConfig) else None,
        "heads": model.num_heads if isinstance(model, MTPModel) else 0,
        "about": _about(would_be, len(pairs), len(held_out) - len(rows)),
        "weights": weight_groups(shown),
        **(_of_values(shown) if "advantage" in figures else {}),
        "problems": shown,
    }
    path = folder / "eval" / "tokens.json"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps(result) + "\n")
    return result, path


def _finished(folder: Place) -> tuple[Parts, MTPModel | ValueModel]:
    """The parts of a run as its trainer builds them, and its final model."""
    final = folder / "final"
    if not (folder / "config.yaml").is_file() or not final.is_dir():
        raise UsageError(f"{folder} is no finished run: config.yaml and final/ are needed, as wmtp train writes them")
    config = load([folder / "config.yaml"])
    if config.arm == "critic":
        parts = build(config)
        return parts, load_value_model(str(final)).to(parts.device)
    model = config.model.model_copy(update={"path": str(final.absolute()), "architecture": None, "tokenizer": None})
    parts = build(_all_solutions(config.model_copy(update={"model": model})))
    _recall(parts, folder / "checkpoints")
    return parts, parts.model


def _all_solutions(config: Config) -> Config:
    """The run with incorrect rows too; stored scores may not have them, so frozen models are asked."""
    data = config.data.model_copy(update={"solutions": "all"})
    return config.asking_models().model_copy(update={"data": data})


def _recall(parts: Parts, checkpoints: Place) -> None:
    """Give the scheme the memory it had at the run's last checkpoint; without one it has what it had at the start."""
    steps = checkpoint.list_steps(checkpoints) if checkpoints.is_dir() else []
    if steps:
        parts.objective.load_state_dict(checkpoint.load(steps[-1], parts=["objective"]).parts["objective"])


def _held_out(parts: Parts) -> Sequence[Row]:
    if parts.data.validation is None:
        raise UsageError(
            "the run has no held-out rows to look at: it was trained without data.validation and without "
            "data.validation_fraction; train one with one of them"
        )
    return parts.data.validation.rows


def after_a_prompt(rows: Sequence[Row], folder: Place) -> Sequence[Row]:
    """The rows with a token before the response: its value is where a critic's advantages begin.

    Raises:
        DataError: there are none.
    """
    kept = [row for row in rows if row.response_start]
    if not kept:
        raise DataError(
            f"all held-out rows of {folder} start with a response token: their prompt merges into it and there is no "
            "BOS, so the state before the response has no value, and no token an advantage; train the critic anew with "
            "a data.template that ends with a newline, or a tokenizer with a BOS"
        )
    return kept


def solution_pairs(rows: Sequence[Row], most: int) -> list[tuple[int, int]]:
    """For each of the first problems that have both, the correct and the incorrect row whose responses differ least."""

    def difference(pair: tuple[int, int]) -> int:
        return sum(map(sum, changed_tokens(_response(rows[pair[0]]), _response(rows[pair[1]]))))

    both = [(good, bad) for good, bad in rows_by_label(rows).values() if good and bad]
    return [min(((g, b) for g in good for b in bad), key=difference) for good, bad in both[:most]]


def changed_tokens(one: Sequence[int], other: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each sequence are not in the other's place."""
    marks: tuple[list[bool], list[bool]] = ([True] * len(one), [True] * len(other))
    for block in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        for mark, start in zip(marks, (block.a, block.b), strict=True):
            mark[start : start + block.size] = [False] * block.size
    return marks


def _response(row: Row) -> list[int]:
    return [int(token) for token in row.tokens[row.response_start :]]


def _policy_figures(parts: Parts, batch: Batch) -> dict[str, Tensor]:
    """What is known of the batch, by the name it has on the page: `[B, T]`, or `[B, T, K]` aligned to the target."""
    model, objective = parts.model, parts.objective
    assert isinstance(model, MTPModel)
    assert isinstance(objective, MTPObjective)
    objective.begin(parts.steps)
    seen = objective.look(model, batch)
    known, scheme = seen.scheme_input, unwatched(objective.scheme)
    figures = {"weight": seen.weight_BTK, "nll": known.nll_BTK, "value": known.values_BT}
    if isinstance(scheme, Critic):
        figures["advantage"] = scheme.advantages(known)
    if isinstance(scheme, Rho1):
        figures["excess"] = scheme.excess(known)
    return {name: figure.float().cpu() for name, figure in figures.items() if figure is not None}


def _critic_figures(
    parts: Parts, model: MTPModel | ValueModel, batch: Batch, would_be: CriticConfig
) -> dict[str, Tensor]:
    """The same of a critic, and of the weights that it would give; they are of a token, whatever head predicts it."""
    assert isinstance(model, ValueModel)
    scheme = build_scheme(would_be, parts.config.train.seed, parts.steps)
    assert isinstance(scheme, Critic)
    values_BT = critic_values(model, batch)
    known = SchemeInput(
        batch_targets(batch, 1), batch.trainable_BT, batch.reward_B, values_BT=values_BT, step=parts.steps
    )
    (weight_BTK,) = ask(scheme, [known], alone, False)
    figures = {"weight": weight_BTK, "value": values_BT, "advantage": scheme.advantages(known)}
    return {name: figure.float().cpu() for name, figure in figures.items()}


def _would_be(folder: Place, critic: ValueModel, options: Sequence[str]) -> CriticConfig:
    """The weighting of a policy that names this critic."""
    own = ["scheme=critic", f"critic={json.dumps(str((folder / 'final').absolute()))}"]
    usual, given = (config_files.load(CriticConfig, [], [*own, *more]) for more in ((), options))
    if (given.critic, given.scores) != (usual.critic, None):
        raise UsageError(f"the critic is that of {folder}, and it is asked: leave critic and scores out")
    check_terminal(given.terminal, critic.loss, critic.rewards)
    return given


def _check_critic(folder: Place, parts: Parts, would_be: CriticConfig | None, weighting: Sequence[str]) -> None:
    """Raise `UsageError` if a run has no critic, or options are given for weights that the run has already."""
    if would_be is not None:
        return
    if weighting:
        raise UsageError(
            f"{weighting[0]}: {folder} is no critic's run, its weighting is in its config.yaml; give options with the "
            "run of a critic"
        )
    objective = parts.objective
    if not isinstance(objective, MTPObjective) or not isinstance(unwatched(objective.scheme), Critic):
        raise UsageError(
            f"{folder} is the arm {parts.config.arm}, in which no critic gives the weights; name a run with "
            "objective.kind = value, or one with objective.weighting.scheme = critic. wmtp inspect shows any run"
        )


def _about(would_be: CriticConfig | None, problems: int, left_out: int) -> str:
    if would_be is None:
        return ABOUT.format(rows=2 * problems, problems=counted(problems, "inspected problem"))
    options = would_be.model_dump(mode="json", include={"gamma", "lam", "terminal", "beta", "clip"})
    told = WOULD_BE.format(options=", ".join(f"{name} {value}" for name, value in options.items()), rows=2 * problems)
    return told + (
        f" Left out: {counted(left_out, 'held-out row')} without a token before the response." * (left_out > 0)
    )


def _of_values(problems: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What can be said of a critic over the solutions shown.

    Returns:
        `pairs`: how many there are, and how many are `right`: the correct one has the larger mean value. `credit`: mean
        figures of head 1 over the tokens that differ from the other solution and over the rest, None where there are
        none.
    """
    means = [[fmean(variant["value"]) for variant in problem["variants"]] for problem in problems]
    pairs = {"count": len(means), "right": sum(good > bad for good, bad in means)}
    variants = [variant for problem in problems for variant in problem["variants"]]
    return {
        "pairs": pairs,
        "credit": [
            {"correct": correct, "changed": changed, **_credit(variants, correct, changed)}
            for correct in (True, False)
            for changed in (True, False)
        ],
    }


def _credit(variants: Sequence[dict[str, Any]], correct: bool, changed: bool) -> dict[str, Any]:
    own = [variant for variant in variants if variant["correct"] == correct]
    found: dict[str, list[float]] = {
        name: [
            figure
            for variant in own
            for figure, mark in zip(of(variant), variant["changed"], strict=True)
            if mark == changed and figure is not None
        ]
        for name, of in _CREDITED.items()
    }
    means = {name: float(f"{fmean(figures):.6g}") if figures else None for name, figures in found.items()}
    return {"tokens": len(found["value"]), **means}


_CREDITED: dict[str, Callable[[dict[str, Any]], list[float | None]]] = {
    "value": lambda variant: variant["value"],
    "advantage": lambda variant: variant["advantage"],
    "weight": lambda variant: variant["weight"][0],
}


def weight_groups(problems: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean weight of each head by the token's class and by its position in the response, over all solutions shown.

    Args:
        problems: as the view has them.

    Returns:
        `by_class` and `by_position`: per group the number of tokens, and a mean per head; None where it predicts none.
    """
    found: dict[str, dict[str, list[list[float | None]]]] = {"by_class": {}, "by_position": {}}
    for variant in (variant for problem in problems for variant in problem["variants"]):
        weight_TK = list(zip(*variant["weight"], strict=True))
        for position, (kind, weight_K) in enumerate(zip(_classes(variant), weight_TK, strict=True)):
            bucket = BUCKETS[bisect_right(POSITIONS, position) - 1]
            found["by_class"].setdefault(kind, []).append(list(weight_K))
            found["by_position"].setdefault(bucket, []).append(list(weight_K))
    return {
        group: {name: _mean_per_head(members[name]) for name in order if name in members}
        for (group, members), order in zip(found.items(), (CLASSES, BUCKETS), strict=True)
    }


def _classes(variant: dict[str, Any]) -> list[str]:
    """The class of each token of a solution."""
    texts = variant["tokens"][:-1] if variant["ends"] else variant["tokens"]
    classes = token_classes("".join(texts), list(pairwise([0, *accumulate(map(len, texts))])))
    return [*classes, "end"] if variant["ends"] else classes


def _mean_per_head(weight_NK: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    kept = [[weight for weight in head if weight is not None] for head in zip(*weight_NK, strict=True)]
    return {"tokens": len(weight_NK), "weight": [float(f"{fmean(head):.6g}") if head else None for head in kept]}


def _problem(
    tokenizer: Any, rows: Sequence[Row], pair: tuple[int, int], figures: dict[str, Tensor], first: int
) -> dict[str, Any]:
    """One problem with both its solutions, which are rows `first` and `first + 1` of the figures."""
    row = rows[pair[0]]
    marks = changed_tokens(*(_response(rows[i]) for i in pair))
    return {
        "problem": row.name,
        "prompt": tokenizer.decode(row.tokens[: row.response_start], skip_special_tokens=True),
        "variants": [
            {
                "correct": rows[i].reward == 1.0,
                "tokens": token_texts(tokenizer, rows[i]),
                "ends": int(rows[i].tokens[-1]) == tokenizer.eos_token_id,
                "changed": mark,
                **{name: _of_response(figure[first + side], rows[i]) for name, figure in figures.items()},
            }
            for side, (i, mark) in enumerate(zip(pair, marks, strict=True))
        ],
    }


def token_texts(tokenizer: Any, row: Row) -> list[str]:
    """The text that each response token adds; a character made of several tokens belongs to the last of them."""
    texts, before = [], _decoded(tokenizer, row.tokens[: row.response_start])
    for end in range(row.response_start + 1, len(row.tokens) + 1):
        after = _decoded(tokenizer, row.tokens[:end])
        texts.append(after[len(before) :])
        before = after
    return texts


def _decoded(tokenizer: Any, ids: Any) -> str:
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text.rstrip("\ufffd")


def _of_response(figure: Tensor, row: Row) -> list[Any]:
    """A figure of one row by response token; of `[T, K]` one list per head, None where the row has no such place."""
    places = range(row.response_start, len(row.tokens))
    if figure.dim() == 1:
        return [_digits(figure[j]) for j in places]
    heads = range(1, figure.shape[1] + 1)
    return [[_digits(figure[j - k, k - 1]) if j >= k else None for j in places] for k in heads]


def _digits(value: Tensor) -> float:
    return float(f"{float(value):.6g}")
