"""From an objective's config to the objective: its scheme, head coefficients, and the scores that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
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
from wmtp.own import made_by
from wmtp.schedule import Schedule, value_at
from wmtp.value_stats import HeldOut
from wmtp.weighting import SCHEMES, Hybrid, Scheme
from wmtp.weighting.watched import Watched


def build_objective(
    config: Config,
    tokenizer: Any,
    device: torch.device,
    steps: int,
    weights: Weights = "now",
    held_out: HeldOut | None = None,
) -> tuple[list[Scorer], Objective]:
    """The objective, and where its scores come from.

    Args:
        steps: of the run, for schedules.
        held_out: rows and pairs that a critic is judged by.
        weights: when frozen models get them; later leaves them, where it can, to `formats.streamed.fill`.

    Raises:
        UsageError: a scheme or a frozen model that cannot be had, or that do not fit together.
    """
    objective = config.objective
    if isinstance(objective, ValueObjectiveConfig):
        scorers = build_scorers(config, tokenizer, device, weights)
        return scorers, ValueObjective(
            objective.loss,
            gamma=objective.gamma,
            lam=scheduled(objective.lam, steps),
            huber_delta=objective.huber_delta,
            returns_share=objective.returns_share,
            reward=scorers[0].rewards if scorers else None,
            held_out=held_out,
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
        aux_value=objective.aux_value_loss,
        kl=kl,
    )


# Schemes

SCHEME_PARTS = ("when", "per_head", "needs", "bounds", "weights", "observe", "state_dict", "load_state_dict")


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
        page, key = "docs/schemes/own.md", "objective.weighting.builder"
        made: Scheme = made_by(key, weighting.builder, weighting.options, "scheme", SCHEME_PARTS, page)
        return Watched(made, f"{key} = {weighting.builder!r}")
    return SCHEMES[weighting.scheme](**scheme_options(weighting, steps))


def scheme_options(weighting: SimpleConfig, steps: int) -> dict[str, Any]:
    """The scheme's own arguments: its config without its name and what concerns its frozen model."""
    others = {"scheme", "critic", "reference", "alignment", "scores"}
    return {name: scheduled(value, steps) for name, value in weighting if name not in others}


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
