"""From an objective's config to the objective: its scheme, head coefficients, and the scores that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from importlib import import_module
from typing import Any

import torch

from wmtp.config import (
    Config,
    ControlConfig,
    HybridConfig,
    MTPObjectiveConfig,
    OwnConfig,
    ScheduleConfig,
    SimpleConfig,
    ValueObjectiveConfig,
    WeightingConfig,
)
from wmtp.data.batches import Batch
from wmtp.errors import ConfigError
from wmtp.formats.streamed import Weights
from wmtp.frozen import REFERENCE, VALUES, Scorer, build_scorers
from wmtp.objective import MTPObjective, Objective, ValueObjective
from wmtp.schedule import Schedule, value_at
from wmtp.weighting import SCHEMES, Hybrid, Scheme


def build_objective(
    config: Config, tokenizer: Any, device: torch.device, steps: int, weights: Weights = "now"
) -> tuple[list[Scorer], Objective]:
    """The objective, and where its scores come from.

    Args:
        steps: of the run, for schedules.
        weights: when frozen models get them; later leaves them, where it can, to `formats.streamed.fill`.

    Raises:
        UsageError: a scheme or a frozen model that cannot be had, or that do not fit together.
    """
    objective = config.objective
    if isinstance(objective, ValueObjectiveConfig):
        return [], ValueObjective(
            objective.loss,
            gamma=objective.gamma,
            lam=scheduled(objective.lam, steps),
            huber_delta=objective.huber_delta,
            returns_share=objective.returns_share,
        )
    num_heads = config.model.heads.num_heads
    scheme = build_scheme(objective.weighting, config.train.seed, steps)
    scorers = build_scorers(config, tokenizer, device, weights)
    kl = config.online.kl if config.online is not None else 0.0
    _check_scores(scheme.needs | ({"reference_nll_BTK"} if kl else set()), scorers)

    def scores(batch: Batch) -> dict[str, torch.Tensor]:
        return {name: value for scorer in scorers for name, value in scorer.fields(batch, num_heads).items()}

    return scorers, MTPObjective(
        scheme,
        score=scores,
        coefficient_K=head_coefficients(objective, num_heads, steps, device),
        denominator=objective.denominator,
        kind=objective.loss,
        chunk=objective.logits_chunk,
        kl=kl,
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
    """The scheme's own arguments: its config without its name and what concerns its frozen model."""
    others = {"scheme", "critic", "reference", "alignment", "scores"}
    return {name: scheduled(value, steps) for name, value in weighting if name not in others}


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


def scheduled(value: Any, steps: int) -> Any:
    """A number of a config as the parts take it; `steps` is where a schedule ends that does not say."""
    if isinstance(value, ScheduleConfig):
        return Schedule(value.start, value.end, value.steps or steps, value.shape)
    return value


def head_coefficients(
    objective: MTPObjectiveConfig, num_heads: int, steps: int, device: torch.device
) -> Callable[[int], torch.Tensor] | None:
    """c_k at a step, `[K]`; None for 1 each."""
    given = objective.head_coefficients
    decay = scheduled(objective.head_decay, steps)
    if given is None and decay is None:
        return None
    coefficients = [scheduled(value, steps) for value in given or []]

    def at(step: int) -> torch.Tensor:
        if given is not None:
            return torch.tensor([value_at(value, step) for value in coefficients], device=device)
        return torch.tensor([value_at(decay, step) ** k for k in range(num_heads)], device=device)

    return at


def _check_scores(needs: Set[str], scorers: Sequence[Scorer]) -> None:
    """Raise `ConfigError` unless the frozen models give what the objective reads, and nothing else."""
    fields = {VALUES: "values_BT", REFERENCE: "reference_nll_BTK"}
    found = {fields[scorer.wanted.name] for scorer in scorers}
    frozen = needs - {"gradient_norm_BTK"}
    if frozen != found:
        needed, given = (", ".join(sorted(names)) or "nothing" for names in (frozen, found))
        raise ConfigError(
            f"objective.weighting: the scheme needs {needed}, but what is given provides {given}; `critic` provides "
            "values_BT, `reference` provides reference_nll_BTK"
        )
