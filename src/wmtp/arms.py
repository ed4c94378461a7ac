"""From an objective's config to the objective: its scheme, head coefficients, and the frozen models that it reads."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from wmtp.config import (
    Config,
    ControlConfig,
    CriticConfig,
    HybridConfig,
    MTPObjectiveConfig,
    OwnConfig,
    Rho1Config,
    ScheduleConfig,
    SimpleConfig,
    ValueObjectiveConfig,
    WeightingConfig,
    simple_schemes,
)
from wmtp.data.batches import Batch
from wmtp.distributed import release
from wmtp.errors import ConfigError, ModelError
from wmtp.formats import hf, meta
from wmtp.formats.native import ValueCard, load_model, load_value_model, read_card
from wmtp.formats.streamed import Weights, asked, empty_model, missing
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective, Objective, Score, ValueObjective
from wmtp.probing import without_weights
from wmtp.schedule import Schedule, value_at
from wmtp.scoring import critic_values, reference_nll
from wmtp.value import ValueModel
from wmtp.weighting import SCHEMES, Hybrid, Scheme

M = TypeVar("M", bound=nn.Module)


class Scorer(NamedTuple):
    """A frozen model and what it says about a batch."""

    model: MTPModel | ValueModel
    source: str
    score: Score


def build_objective(
    config: Config, tokenizer: Any, device: torch.device, steps: int, weights: Weights = "now"
) -> tuple[list[Scorer], Objective]:
    """The objective, and the frozen models its scores come from.

    Args:
        steps: of the run, for schedules.
        weights: when frozen models get them; later leaves them, where it can, to `formats.streamed.fill`.

    Raises:
        UsageError: a scheme or a frozen model that cannot be had, or that do not fit together.
    """
    objective = config.objective
    if isinstance(objective, ValueObjectiveConfig):
        return [], ValueObjective(
            objective.loss, gamma=objective.gamma, lam=objective.lam, huber_delta=objective.huber_delta
        )
    num_heads = config.model.heads.num_heads
    scheme = build_scheme(objective.weighting, config.train.seed, steps)
    scorers = _scorers(objective, scheme, num_heads, tokenizer, device, weights)

    def scores(batch: Batch) -> dict[str, torch.Tensor]:
        return {name: value for scorer in scorers for name, value in scorer.score(batch).items()}

    return scorers, MTPObjective(
        scheme,
        score=scores,
        coefficient_K=head_coefficients(objective, num_heads, steps, device),
        denominator=objective.denominator,
        kind=objective.loss,
        chunk=objective.logits_chunk,
    )


# Schemes


def build_scheme(weighting: WeightingConfig, seed: int, steps: int) -> Scheme:
    """The scheme that a config describes, with those that it is made of.

    Args:
        seed: of a control's lots.
        steps: of the run, for schedules.
    """
    if isinstance(weighting, ControlConfig):
        return SCHEMES[weighting.scheme](build_scheme(weighting.of, seed, steps), seed)
    if isinstance(weighting, HybridConfig):
        parts = [build_scheme(part, seed, steps) for part in weighting.parts]
        return Hybrid(parts, weighting.combine, weighting.shares)
    if isinstance(weighting, OwnConfig):
        return own_scheme(weighting.builder, weighting.options)
    return SCHEMES[weighting.scheme](**scheme_options(weighting, steps))


def scheme_options(weighting: SimpleConfig, steps: int) -> dict[str, Any]:
    """The scheme's own arguments: its config without its name and its frozen model."""
    others = {"scheme", "critic", "reference", "alignment"}
    return {name: _scheduled(value, steps) for name, value in weighting if name not in others}


def own_scheme(builder: str, options: dict[str, Any]) -> Scheme:
    """A scheme of the user's own.

    Args:
        builder: `package.module:attribute`, something that makes a scheme when it is called.

    Raises:
        ConfigError: it cannot be imported, is refused its options, or makes no scheme.
    """
    where = f"objective.weighting.builder = {builder!r}"
    module, _, attribute = builder.partition(":")
    try:
        make = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as problem:
        raise ConfigError(f"{where}: {problem}; install its package, or put its folder on PYTHONPATH") from problem
    try:
        scheme: Scheme = make(**options)
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"{where} with options {options}: {problem}") from problem
    parts = ("when", "per_head", "needs", "bounds", "weights", "observe", "state_dict", "load_state_dict")
    lacking = [name for name in parts if not hasattr(scheme, name)]
    if lacking:
        raise ConfigError(
            f"{where} makes {type(scheme).__name__}, which is no scheme: it has no {', '.join(lacking)} "
            "(see docs/schemes/own.md)"
        )
    return scheme


def _scheduled(value: Any, steps: int) -> Any:
    if isinstance(value, ScheduleConfig):
        return Schedule(value.start, value.end, value.steps or steps, value.shape)
    return value


def head_coefficients(
    objective: MTPObjectiveConfig, num_heads: int, steps: int, device: torch.device
) -> Callable[[int], torch.Tensor] | None:
    """c_k at a step, `[K]`; None for 1 each."""
    given = objective.head_coefficients
    decay = _scheduled(objective.head_decay, steps)
    if given is None and decay is None:
        return None
    scheduled = [_scheduled(value, steps) for value in given or []]

    def at(step: int) -> torch.Tensor:
        if given is not None:
            return torch.tensor([value_at(value, step) for value in scheduled], device=device)
        return torch.tensor([value_at(decay, step) ** k for k in range(num_heads)], device=device)

    return at


# Frozen models


def _scorers(
    objective: MTPObjectiveConfig,
    scheme: Scheme,
    num_heads: int,
    tokenizer: Any,
    device: torch.device,
    weights: Weights,
) -> list[Scorer]:
    """One critic and one reference at most, as the schemes need them."""
    found: dict[str, Scorer] = {}
    parts = simple_schemes(objective.weighting)
    by_reward = any(isinstance(part, CriticConfig) and part.terminal == "reward" for part in parts)
    for part in parts:
        if isinstance(part, CriticConfig | OwnConfig) and part.critic is not None and "values_BT" not in found:
            found["values_BT"] = _critic_scorer(part.critic, by_reward, tokenizer, device, weights)
        if isinstance(part, Rho1Config | OwnConfig) and part.reference and "reference_nll_BTK" not in found:
            found["reference_nll_BTK"] = _reference_scorer(
                part.reference, part.alignment, objective, num_heads, tokenizer, device, weights
            )
    frozen = scheme.needs - {"gradient_norm_BTK"}
    if frozen != found.keys():
        needed, given = (", ".join(sorted(names)) or "nothing" for names in (frozen, found))
        raise ConfigError(
            f"objective.weighting: the scheme needs {needed}, but what is given provides {given}; `critic` provides "
            "values_BT, `reference` provides reference_nll_BTK"
        )
    return list(found.values())


def _critic_scorer(source: str, by_reward: bool, tokenizer: Any, device: torch.device, weights: Weights) -> Scorer:
    _check_tokenizer(source, tokenizer, "objective.weighting.critic")
    critic = _empty(source, ValueModel, weights)
    critic = _freeze(critic or load_value_model(source), device)
    if by_reward and critic.loss == "pairwise":
        raise ConfigError(
            "objective.weighting.terminal = 'reward', but the critic was trained pairwise: its values are defined up "
            "to a constant and cannot be compared with rewards; use terminal 'value'"
        )

    def score(batch: Batch) -> dict[str, torch.Tensor]:
        values_BT = critic_values(critic, batch)
        release(critic)
        return {"values_BT": finite(values_BT, source)}

    return Scorer(critic, source, score)


def _reference_scorer(
    source: str,
    alignment: str,
    objective: MTPObjectiveConfig,
    num_heads: int,
    tokenizer: Any,
    device: torch.device,
    weights: Weights,
) -> Scorer:
    _check_tokenizer(source, tokenizer, "objective.weighting.reference")
    card = read_card(source)
    own_heads = card.num_heads if card is not None and not isinstance(card, ValueCard) else 1
    needed = num_heads if alignment == "matched" else 1
    if own_heads < needed:
        raise ConfigError(
            f"objective.weighting.alignment = 'matched' needs a reference with {needed} heads; {source} has {own_heads}"
        )
    reference = _empty(source, MTPModel, weights, needed)
    reference = _freeze(reference or load_model(source, num_heads=needed), device)

    def score(batch: Batch) -> dict[str, torch.Tensor]:
        nll_BTK = reference_nll(
            reference, batch, num_heads, alignment=alignment, kind=objective.loss, chunk=objective.logits_chunk
        )
        release(reference)
        return {"reference_nll_BTK": finite(nll_BTK, source)}

    return Scorer(reference, source, score)


def finite(score: torch.Tensor, source: str) -> torch.Tensor:
    """The score of a frozen model; weights made from a NaN would look like weights.

    Raises:
        ModelError: it is not finite somewhere.
    """
    if not bool(score.isfinite().all()):
        raise ModelError(f"the frozen model {source} gives scores that are not finite: its weights are damaged")
    return score


def _check_tokenizer(source: str, tokenizer: Any, what: str) -> None:
    hf.check_same_tokenizer(tokenizer, hf.load_tokenizer(source), what)


def _empty(source: str, kind: type[M], weights: Weights, num_heads: int | None = None) -> M | None:
    """A frozen model without weights; None where the ordinary way must load it, or say what is wrong."""
    if weights == "now" or meta.holds(source) or not asked(hf.model_config(source), weights):
        return None
    model = empty_model(source, num_heads)
    return model if isinstance(model, kind) and not missing(model, source) else None


def _freeze(model: M, device: torch.device) -> M:
    placed = model if without_weights(model) else model.to(device)
    return placed.eval().requires_grad_(False)
