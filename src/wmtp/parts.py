"""From a config to the parts of a run: the last place where a config is read.

Everything that can be wrong with a run's input is found here, before anything is written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import AdamW

from wmtp import devices, optim
from wmtp.arms import build_objective
from wmtp.config import (
    Config,
    CriticConfig,
    GRPOConfig,
    MTPObjectiveConfig,
    SourceConfig,
    ValueObjectiveConfig,
)
from wmtp.data.batches import Batches, Item, pair_items, single_items
from wmtp.data.groups import require_mixed, reward_groups, with_groups
from wmtp.data.records import Record
from wmtp.data.sources import read_records
from wmtp.data.text import Row, check_template, encode
from wmtp.distributed import Sharding, World, shard, sharding
from wmtp.errors import ConfigError, DataError, ModelError
from wmtp.formats import hf
from wmtp.formats.drawn import Drawn
from wmtp.formats.native import ValueCard, load_model, read_card
from wmtp.formats.streamed import (
    Weights,
    asked,
    empty_causal_lm,
    empty_model,
    fill,
    fill_rows,
    missing,
    without_parameters,
)
from wmtp.loss_backends import BACKENDS, refusal
from wmtp.model import MTPModel
from wmtp.objective import Objective
from wmtp.probing import without_weights
from wmtp.storage import resolve
from wmtp.value import ValueModel


@dataclass
class Data:
    """Rows of a run, and what reading them has to say."""

    train: Batches
    validation: Batches | None
    fingerprint: str
    """sha256 over every id of every row, the rewards and groups: what a resumed run must find again."""
    notes: list[str] = field(default_factory=list)


@dataclass
class Parts:
    """Everything a run is made of."""

    config: Config
    device: torch.device
    precision: Callable[[], AbstractContextManager[Any]]
    tokenizer: Any
    tokenizer_fingerprint: str
    model: MTPModel | ValueModel
    frozen: list[MTPModel | ValueModel]
    """The critic and the reference, where the scheme has them."""
    objective: Objective
    optimizer: AdamW
    data: Data
    steps: int
    world: World = field(default_factory=World)


def sharding_of(config: Config, world: World) -> Sharding | None:
    """How the config spreads models over ranks; None in a single process.

    Raises:
        ConfigError: a mesh that these ranks cannot form.
    """
    return sharding(
        world,
        devices.pick(config.device),
        config.distributed.strategy,
        bf16=config.precision == "bf16",
        cpu_offload=config.distributed.cpu_offload,
    )


def build(config: Config, world: World | None = None, how: Sharding | None = None, *, weights: bool = True) -> Parts:
    """All parts of a run, on this rank's device, in the state before step 1. Talks to no other rank.

    Args:
        how: from `sharding_of`, which does.
        weights: False leaves models without weights, where they can be: enough to say what a run will need.

    Raises:
        UsageError: whatever is wrong with the config, the data or a model.
    """
    world = world or World()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = devices.pick(config.device)
    precision = devices.precision(device, config.precision)
    tokenizer = hf.load_tokenizer(config.model.tokenizer_source)
    data = build_data(config, tokenizer)
    devices.seed_everything(config.train.seed)
    when: Weights = "now" if weights else "never"
    if weights and how is not None:
        when = "later"
    model, fill_model = build_model(config, tokenizer, when)
    if not without_weights(model):
        model.to(device)
    model.train()
    prepare_model(model, checkpointing=config.train.activation_checkpointing, compiled=config.train.compile)
    if isinstance(model, MTPModel) and isinstance(config.objective, MTPObjectiveConfig):
        _check_loss(config, model, device)
    steps = number_of_steps(config, len(data.train))
    scorers, objective = build_objective(config, tokenizer, device, steps, when)
    if how is not None:
        precision = nullcontext  # the mixed-precision policy casts what it gathers
        spread(model, how, fill_model, device)
        for scorer in scorers:
            spread(scorer.model, how, stored_in(scorer.source), device)
        devices.seed_everything(config.train.seed + world.rank)  # own dropout; weights and order are drawn already
    optimizer = optim.build_adamw(
        model,
        lr=config.optim.lr,
        betas=config.optim.betas,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
    )
    frozen = [scorer.model for scorer in scorers]
    identity = hf.tokenizer_fingerprint(tokenizer)
    return Parts(
        config, device, precision, tokenizer, identity, model, frozen, objective, optimizer, data, steps, world
    )


def number_of_steps(config: Config, batches_per_epoch: int) -> int:
    """Optimiser steps of the run."""
    if config.train.steps is not None:
        return config.train.steps
    epochs = config.train.epochs or 0.0
    return max(1, round(epochs * batches_per_epoch))


# Data


def build_data(config: Config, tokenizer: Any) -> Data:
    """Read, split, encode and order the rows."""
    check_template(config.data.template)
    notes: list[str] = []
    train = _records(config, config.data.train, "train", notes)
    validation: list[Record] = []
    if config.data.validation is not None:
        validation = _records(config, config.data.validation, "validation", notes)
    elif config.data.validation_fraction is not None:
        train, validation = hold_out(train, config.data.validation_fraction, config.train.seed)
        notes.append(f"held out {len(validation):,} rows whose problems are not trained on")
    train_rows = _encode(config, tokenizer, train, "train", notes)
    validation_rows = _encode(config, tokenizer, validation, "validation", notes) if validation else []
    if any(isinstance(scheme, GRPOConfig) for scheme in config.schemes):
        require_mixed(train_rows)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    size = config.train.batch_size
    batches = Batches(train_rows, _items(config, train_rows), batch_size=size, seed=config.train.seed, pad_id=pad_id)
    held_out = None
    if validation_rows:
        items = _items(config, validation_rows)
        held_out = Batches(validation_rows, items, batch_size=size, seed=None, pad_id=pad_id)
    return Data(batches, held_out, fingerprint(train_rows, validation_rows), notes)


def _records(config: Config, source: SourceConfig, role: str, notes: list[str]) -> list[Record]:
    records, report = read_records(
        resolve(source.path),
        role=role,
        split=source.split,
        fields=source.fields,
        on_bad_row=config.data.on_bad_row,
        allow_evaluation=config.data.allow_evaluation_data,
    )
    notes.append(f"{role}: {report.summary()}")
    return records


def hold_out(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split by problem, never by row: a problem goes where the hash of (seed, its id) says.

    Raises:
        DataError: one side would be empty.
    """
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        digest = hashlib.sha256(f"{seed}\0{record.problem_id}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < fraction * 2**64].append(record)
    if not sides[0] or not sides[1]:
        raise DataError(
            f"data.validation_fraction = {fraction} leaves {len(sides[0])} training and {len(sides[1])} validation rows"
        )
    return sides


def _wanted(config: Config, records: list[Record]) -> list[Record]:
    if config.solutions == "all":
        return records
    kept = [record for record in records if record.is_correct is not False]
    if not kept:
        raise DataError("no rows left: all of them have is_correct = false (data.solutions=all would keep them)")
    return kept


def _encode(config: Config, tokenizer: Any, records: list[Record], role: str, notes: list[str]) -> list[Row]:
    data = config.data
    wanted = _wanted(config, records)
    rows, report = encode(
        wanted, tokenizer, template=data.template, max_length=data.max_length, on_long_row=data.on_long_row
    )
    notes.append(f"{role}: {report.summary()}")
    return with_groups(rows, reward_groups(records))


def _items(config: Config, rows: list[Row]) -> list[Item]:
    """Rows that share a batch: pairs for a pairwise critic, else single rows."""
    if not isinstance(config.objective, ValueObjectiveConfig):
        for scheme in config.schemes:
            if isinstance(scheme, CriticConfig):
                _require_prompts(rows)
                if scheme.terminal == "reward":
                    _require_labels(rows, "objective.weighting.terminal = reward")
            if isinstance(scheme, GRPOConfig):
                _require_labels(rows, "objective.weighting.scheme = grpo")
        return single_items(rows)
    if config.objective.loss == "pairwise":
        return pair_items(rows)
    _require_labels(rows, "objective.loss = lambda_return")
    return single_items(rows)


def _require_prompts(rows: Sequence[Row]) -> None:
    merged = sum(row.response_start == 0 for row in rows)
    if merged:
        raise DataError(
            f"{merged:,} rows start with a response token: their prompt merges into it and there is no BOS, so the "
            "state before the response has no value; end data.template with a newline, or use a tokenizer with a BOS"
        )


def _require_labels(rows: Sequence[Row], who: str) -> None:
    unlabelled = sum(math.isnan(row.reward) for row in rows)
    if unlabelled:
        raise DataError(f"{who} needs is_correct on every row; {unlabelled:,} of {len(rows):,} rows have none")


def fingerprint(*row_sets: Sequence[Row]) -> str:
    """sha256 over ids, response starts, rewards and groups of all rows in order."""
    digest = hashlib.sha256()
    for rows in row_sets:
        digest.update(len(rows).to_bytes(8, "little"))
        for row in rows:
            digest.update(f"{len(row.tokens)} {row.response_start} {row.problem} {row.reward} {row.group}".encode())
            digest.update(row.tokens.tobytes())
    return digest.hexdigest()


# Models


Fill = Callable[[MTPModel | ValueModel, torch.device], None]
"""Gives a model without weights, sharded or not, those that it should have."""


def stored_in(source: str) -> Fill:
    """The weights of a folder."""
    return lambda model, device: fill(model, source, device)


def build_model(config: Config, tokenizer: Any, weights: Weights = "now") -> tuple[MTPModel | ValueModel, Fill | None]:
    """The model to train, and what gives it its weights where it is without."""
    if weights != "now":
        empty = _empty_policy(config, len(tokenizer), weights)
        if empty is not None:
            _check_fit(config, empty[0].base.config, len(tokenizer))
            return empty
    base_or_model = _load_policy(config, len(tokenizer))
    model_config = base_or_model.base.config if isinstance(base_or_model, MTPModel) else base_or_model.config
    _check_fit(config, model_config, len(tokenizer))
    if isinstance(base_or_model, MTPModel):
        return base_or_model, None
    return _with_heads(config, base_or_model), None


def _with_heads(config: Config, base: Any) -> MTPModel | ValueModel:
    objective = config.objective
    if isinstance(objective, ValueObjectiveConfig):
        return ValueModel(base, objective.head, objective.backbone, objective.loss)
    return MTPModel(base, config.model.heads.num_heads, config.model.heads.init)


def prepare_model(model: MTPModel | ValueModel, *, checkpointing: bool, compiled: bool) -> None:
    """Switch on what changes how the model computes, not what.

    Raises:
        ModelError: the architecture cannot recompute activations.
        ConfigError: asked to compile a critic.
    """
    if checkpointing:
        base = model.base
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        try:
            enable()
        except ValueError as problem:
            raise ModelError(f"train.activation_checkpointing: {problem}") from problem
    if compiled:
        if not isinstance(model, MTPModel):
            raise ConfigError("train.compile is for objective.kind = mtp; leave it out for a critic")
        model.compile_layers()


def _check_loss(config: Config, model: MTPModel, device: torch.device) -> None:
    """Raise `ConfigError` if the library that should compute the loss is wrong for this model, here."""
    assert isinstance(config.objective, MTPObjectiveConfig)
    kind = config.objective.loss
    if kind in BACKENDS:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        reason = refusal(kind, model.unembedding(), dtype, device)
        if reason is not None:
            raise ConfigError(f"objective.loss = {kind!r}: {reason}")


def spread(model: MTPModel | ValueModel, how: Sharding, fill_model: Fill | None, device: torch.device) -> None:
    """Shard a model over ranks, and give each what it holds if it is still without weights."""
    if isinstance(model, MTPModel):
        shard(model, model.trunk_layers(), how, heads=list(model.heads()), embedding=model.own_embedding())
    else:
        shard(model, model.layers(), how, exact=[model.value_head])
    if fill_model is not None and without_weights(model):
        fill_model(model, device)


def _empty_policy(
    config: Config, vocabulary: int, weights: Weights
) -> tuple[MTPModel | ValueModel, Fill | None] | None:
    """The policy without weights; None where it needs them at once, or they are not in a folder as they are needed."""
    model, objective = config.model, config.objective
    if model.path is None:
        return _drawn_policy(config, vocabulary, weights)
    if not asked(hf.model_config(model.path), weights):
        return None
    card = read_card(model.path)
    if isinstance(objective, ValueObjectiveConfig) and not isinstance(card, ValueCard):
        value = _with_heads(config, empty_causal_lm(model.path))
        return None if missing(value, model.path) else (value, stored_in(model.path))
    same = card is None or (not isinstance(card, ValueCard) and card.num_heads == model.heads.num_heads)
    if not same or (card is None and model.heads.init != "copy"):
        return None
    policy = empty_model(model.path, model.heads.num_heads)
    return None if missing(policy, model.path) else (policy, stored_in(model.path))


def _drawn_policy(
    config: Config, vocabulary: int, weights: Weights
) -> tuple[MTPModel | ValueModel, Fill | None] | None:
    """The policy of `model.architecture`, whose random weights are drawn when it has memory for them."""
    architecture = config.model.architecture
    if architecture is None:
        raise TypeError("validated configs have a path or an architecture")
    if not asked(hf.architecture_config(architecture, vocabulary), weights):
        return None
    before = torch.get_rng_state()
    drawn = Drawn()
    with drawn if weights == "later" else nullcontext():
        with without_parameters():
            base = hf.random_causal_lm(architecture, vocabulary, config.train.seed)
        policy = _with_heads(config, base)
    if weights == "never":
        return policy, None
    if not drawn.name(policy):
        torch.set_rng_state(before)
        return None
    return policy, lambda model, device: fill_rows(model, drawn.rows, device)


def _load_policy(config: Config, vocabulary: int) -> Any:
    """A bare causal language model, or an `MTPModel` where the folder already has heads."""
    model = config.model
    if model.path is None:
        architecture = model.architecture
        if architecture is None:
            raise TypeError("validated configs have a path or an architecture")
        return hf.random_causal_lm(architecture, vocabulary, config.train.seed)
    card = read_card(model.path)
    if isinstance(card, ValueCard):
        raise ModelError(f"model.path = {model.path} is a critic; a language model was expected")
    if card is None or config.arm == "critic":
        return hf.load_causal_lm(model.path)
    if (card.heads, card.num_heads) != (model.heads.family, model.heads.num_heads):
        raise ConfigError(
            f"model.heads asks for {model.heads.num_heads} {model.heads.family} heads, but {model.path} was saved with "
            f"{card.num_heads} {card.heads} heads"
        )
    return load_model(model.path)


def _check_fit(config: Config, model_config: Any, vocabulary: int) -> None:
    if model_config.vocab_size < vocabulary:
        raise ModelError(
            f"the tokenizer has {vocabulary:,} tokens, the model's vocabulary {model_config.vocab_size:,}: they do not "
            "belong together"
        )
    context = getattr(model_config, "max_position_embeddings", None)
    if context is not None and config.data.max_length > context:
        raise ConfigError(f"data.max_length = {config.data.max_length} is longer than the model's context of {context}")
