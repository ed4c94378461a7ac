"""The frozen models that weighting schemes read, asked at every step or once and for all (`wmtp score`).

A scheme wants at most two columns: the critic's `values` and the reference's `reference_nll`; the training of a critic
may want a `reward`. Each comes from a model that is loaded here, or from stored scores of that model: then it is not
loaded at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from wmtp.config import Config, CriticConfig, MTPObjectiveConfig, OwnConfig, Rho1Config, ValueObjectiveConfig
from wmtp.data.batches import Batch
from wmtp.distributed import release
from wmtp.errors import ConfigError, ModelError
from wmtp.formats import hf, meta
from wmtp.formats.identity import model_fingerprint
from wmtp.formats.native import ValueCard, load_model, load_value_model, read_card
from wmtp.formats.reward import empty_reward_model, load_reward_model, load_reward_text
from wmtp.formats.streamed import Weights, asked, empty_model, missing
from wmtp.model import MTPModel
from wmtp.probing import without_weights
from wmtp.reward import RewardModel
from wmtp.scores import CODE, ColumnCard, Of, StoredScores
from wmtp.scoring import critic_scores, of_pairs, reference_scores, reward_scores
from wmtp.storage import place
from wmtp.value import ValueModel

M = TypeVar("M", bound=nn.Module)
VALUES, REFERENCE, REWARD = "values", "reference_nll", "reward"
Frozen = MTPModel | ValueModel | RewardModel


class Wanted(NamedTuple):
    """One column that the config's schemes read."""

    name: str
    source: str
    """The model's location."""
    alignment: str
    """Of a reference; empty for the others."""
    width: int
    """Scores per token: K for `matched`, else 1."""
    scores: str | None
    """Folder of stored scores, where the config names one."""

    @property
    def of(self) -> Of:
        """What a score is of."""
        return "row" if self.name == REWARD else "token"


class Scorer(NamedTuple):
    """A column and where it comes from."""

    wanted: Wanted
    of_tokens: Callable[[Batch], Tensor]
    """`scores_BTC` of a batch."""
    model: Frozen | None
    """None: the scores are stored."""
    stored: StoredScores | None = None

    def rewards(self, batch: Batch) -> Tensor:
        """A reward model's `reward_B`."""
        return self.of_tokens(batch)[:, 0, 0]

    def fields(self, batch: Batch, num_heads: int) -> dict[str, Tensor]:
        """What a `SchemeInput` gets of it."""
        scores_BTC = self.of_tokens(batch)
        if self.wanted.name == VALUES:
            return {"values_BT": scores_BTC[:, :, 0]}
        return {"reference_nll_BTK": of_pairs(scores_BTC, num_heads)}


def columns_wanted(config: Config) -> list[Wanted]:
    """What the config's schemes, the divergence of `online.kl`, or the training of a critic, read of frozen models."""
    if isinstance(config.objective, ValueObjectiveConfig):
        reward = config.objective.reward
        return [] if reward is None else [Wanted(REWARD, reward.model, "", 1, reward.scores)]
    found: dict[str, Wanted] = {}
    num_heads = config.model.heads.num_heads
    for part in config.schemes:
        if isinstance(part, CriticConfig | OwnConfig) and part.critic is not None:
            found.setdefault(VALUES, Wanted(VALUES, part.critic, "", 1, part.scores))
        if isinstance(part, Rho1Config | OwnConfig) and part.reference is not None:
            width = num_heads if part.alignment == "matched" else 1
            found.setdefault(REFERENCE, Wanted(REFERENCE, part.reference, part.alignment, width, part.scores))
    if config.kl_reference is not None:
        found.setdefault(REFERENCE, Wanted(REFERENCE, config.kl_reference, "next", 1, None))
    return list(found.values())


def build_scorers(config: Config, tokenizer: Any, device: torch.device, weights: Weights = "now") -> list[Scorer]:
    """Every column that the config's schemes read.

    Args:
        weights: when frozen models get them; later leaves them, where it can, to `formats.streamed.fill`.

    Raises:
        UsageError: a model that cannot be had or does not fit, or scores of something else.
    """
    scorers = []
    with torch.random.fork_rng(devices=[]):  # what is drawn to make a model is not missed where it is not made
        for wanted in columns_wanted(config):
            _check_source(config, wanted)
            if wanted.scores is not None:
                scorers.append(_stored(config, tokenizer, wanted))
            else:
                if wanted.name != REWARD and wanted.source != config.model.path:
                    what = "critic" if wanted.name == VALUES else "reference"
                    other = hf.load_tokenizer(wanted.source)
                    hf.check_same_tokenizer(tokenizer, other, f"objective.weighting.{what}")
                scorers.append(_online(config, wanted, device, weights))
    return scorers


def score_key(config: Config, tokenizer: Any) -> dict[str, str | int]:
    """What scores depend on beside the row and the model."""
    objective = config.objective
    if isinstance(objective, ValueObjectiveConfig) and objective.reward is not None:
        text = load_reward_text(objective.reward.model, objective.reward.template)
        return {
            "scoring code": CODE,
            "tokenizer of the reward model": hf.backend_fingerprint(text.tokenizer),
            "objective.reward.template": text.template or "",
            "precision": config.precision,
        }
    return {
        "scoring code": CODE,
        "tokenizer": hf.tokenizer_fingerprint(tokenizer),
        "data.template": config.data.template,
        "data.max_length": config.data.max_length,
        "data.on_long_row": config.data.on_long_row,
        "precision": config.precision,
    }


def column_card(wanted: Wanted) -> ColumnCard:
    """The column as `scores.json` describes it."""
    return ColumnCard.model_validate(
        {
            "model": model_fingerprint(wanted.source),
            "source": wanted.source,
            "alignment": wanted.alignment,
            "width": wanted.width,
            "of": wanted.of,
        }
    )


def _stored(config: Config, tokenizer: Any, wanted: Wanted) -> Scorer:
    folder = place(str(wanted.scores))
    stored = StoredScores(folder, score_key(config, tokenizer), wanted.name, column_card(wanted))
    return Scorer(wanted, stored.of, None, stored)


def _check_source(config: Config, wanted: Wanted) -> None:
    """Raise `UsageError` if the model cannot give what is asked of it; from its card alone."""
    if wanted.name == REWARD:
        return  # loading it says all
    card = read_card(wanted.source)
    if wanted.name == VALUES:
        for part in config.schemes:
            if isinstance(part, CriticConfig) and isinstance(card, ValueCard):
                check_terminal(part.terminal, card.loss, card.rewards)
        return
    own_heads = card.num_heads if card is not None and not isinstance(card, ValueCard) else 1
    if own_heads < wanted.width:
        raise ConfigError(
            f"objective.weighting.alignment = 'matched' needs a reference with {wanted.width} heads; {wanted.source} "
            f"has {own_heads}"
        )


def check_terminal(terminal: str, loss: str, rewards: str) -> None:
    """Raise `ConfigError` if advantages would compare is_correct with values that mean something else.

    Args:
        terminal: of the weighting.
        loss, rewards: what the critic was trained by, and to foresee.
    """
    if terminal == "reward" and loss == "pairwise":
        raise ConfigError(
            "objective.weighting.terminal = 'reward', but the critic was trained pairwise: its values are defined "
            "up to a constant and cannot be compared with rewards; use terminal 'value'"
        )
    if terminal == "reward" and rewards == "model":
        raise ConfigError(
            "objective.weighting.terminal = 'reward' reads is_correct, but the critic foresees the score of a "
            "reward model: the two cannot be compared; use terminal 'value'"
        )


def _online(config: Config, wanted: Wanted, device: torch.device, weights: Weights) -> Scorer:
    model, ask = {VALUES: _critic, REFERENCE: _reference, REWARD: _reward_model}[wanted.name](config, wanted, weights)
    _freeze(model, device)

    def of_tokens(batch: Batch) -> Tensor:
        scores_BTC = ask(batch)
        release(model)
        return finite(scores_BTC.float(), wanted.source)

    return Scorer(wanted, of_tokens, model)


Asked = tuple[Frozen, Callable[[Batch], Tensor]]
"""A model, and what it says of a batch."""


def _critic(config: Config, wanted: Wanted, weights: Weights) -> Asked:
    critic = _empty(wanted.source, ValueModel, weights) or load_value_model(wanted.source)
    return critic, lambda batch: critic_scores(critic, batch)


def _reference(config: Config, wanted: Wanted, weights: Weights) -> Asked:
    objective, heads = config.objective, wanted.width
    assert isinstance(objective, MTPObjectiveConfig)
    options: dict[str, Any] = {"kind": objective.loss, "chunk": objective.logits_chunk}
    reference = _empty(wanted.source, MTPModel, weights, heads) or load_model(wanted.source, num_heads=heads)
    return reference, lambda batch: reference_scores(reference, batch, heads, alignment=wanted.alignment, **options)


def _reward_model(config: Config, wanted: Wanted, weights: Weights) -> Asked:
    reward_model = (empty_reward_model if weights == "never" else load_reward_model)(wanted.source)
    return reward_model, lambda batch: reward_scores(reward_model, batch)


def finite(score: torch.Tensor, source: str) -> torch.Tensor:
    """The score of a frozen model; weights made from a NaN would look like weights.

    Raises:
        ModelError: it is not finite somewhere.
    """
    if not bool(score.isfinite().all()):
        raise ModelError(
            f"the frozen model {source} gives scores that are not finite: its weights are damaged; name another"
        )
    return score


def _empty(source: str, kind: type[M], weights: Weights, num_heads: int | None = None) -> M | None:
    """A frozen model without weights; None where the ordinary way must load it, or say what is wrong."""
    if weights == "now" or meta.holds(source) or not asked(hf.model_config(source), weights):
        return None
    model = empty_model(source, num_heads)
    return model if isinstance(model, kind) and not missing(model, source) else None


def _freeze(model: nn.Module, device: torch.device) -> None:
    if not without_weights(model):
        model.to(device)
    model.eval().requires_grad_(False)
