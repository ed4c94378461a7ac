"""From a config to the parts of a run: the last place where a config is read.

Everything that can be wrong with a run's input is found here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import AdamW

from wmtp import devices, optim
from wmtp.adapters import add_adapters, is_adapter
from wmtp.arms import build_objective
from wmtp.config import Config, HeadsConfig, LoraConfig, MTPObjectiveConfig, ValueObjectiveConfig
from wmtp.dataset import Data, build_data, load_tokenizer, number_of_steps
from wmtp.distributed import Sharding, World, shard, sharding
from wmtp.errors import ConfigError, ModelError, first_line
from wmtp.formats import hf, meta
from wmtp.formats.drawn import Drawn
from wmtp.formats.native import MTPCard, ValueCard, load_model, load_value_head, read_card
from wmtp.formats.streamed import (
    NewHeads,
    Weights,
    asked,
    empty_causal_lm,
    empty_model,
    fill,
    fill_rows,
    grown_model,
    missing,
)
from wmtp.frozen import Frozen
from wmtp.loss_backends import BACKENDS, refusal
from wmtp.model import MTPModel
from wmtp.objective import Objective
from wmtp.probing import without_weights
from wmtp.reward import RewardModel
from wmtp.rollouts import check_samples
from wmtp.value import ValueHead, ValueModel


@dataclass
class Parts:
    """Everything a run is made of."""

    config: Config
    device: torch.device
    precision: Callable[[], AbstractContextManager[Any]]
    tokenizer: Any
    tokenizer_fingerprint: str
    model: MTPModel | ValueModel
    frozen: list[Frozen]
    """Critic, reference, reward model: those that the objective has, and whose scores are not stored."""
    objective: Objective
    optimizer: AdamW
    data: Data
    steps: int
    world: World = field(default_factory=World)
    notes: list[str] = field(default_factory=list)
    """What was found that its user should know."""


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
    tokenizer = load_tokenizer(config)
    data = build_data(config, tokenizer)
    _check_compiler(config, device)
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
    if isinstance(model, MTPModel) and config.online is not None:
        check_samples(model)
    steps = number_of_steps(config, len(data.train))
    scorers, objective = build_objective(config, tokenizer, device, steps, when, data.held_out)
    for scorer in scorers:
        if scorer.stored is not None:
            scorer.stored.check_rows(data.rows)
    if how is not None:
        precision = nullcontext  # the mixed-precision policy casts what it gathers
        spread(model, how, fill_model, device)
        for scorer in scorers:
            if scorer.model is not None:
                spread(scorer.model, how, stored_in(scorer.wanted.source), device)
        devices.seed_everything(config.train.seed + world.rank)  # own dropout; weights and order are drawn already
    optimizer = optim.build_adamw(
        model,
        lr=config.optim.lr,
        betas=config.optim.betas,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        lr_factor=rate_factor(config),
    )
    frozen = [scorer.model for scorer in scorers if scorer.model is not None]
    identity = hf.tokenizer_fingerprint(tokenizer)
    return Parts(
        config,
        device,
        precision,
        tokenizer,
        identity,
        model,
        frozen,
        objective,
        optimizer,
        data,
        steps,
        world,
        data.notes,
    )


def rate_factor(config: Config) -> Callable[[str], float]:
    """By how much a parameter's learning rate differs from optim.lr."""
    objective = config.objective
    if not isinstance(objective, ValueObjectiveConfig):
        return lambda name: 1.0
    rates = objective.rates

    def factor(name: str) -> float:
        backbone = rates.adapters if is_adapter(name) else rates.backbone
        own = rates.head if name.startswith("value_head.") else backbone
        return 1.0 if own is None else own / config.optim.lr

    return factor


# Models


Fill = Callable[[MTPModel | ValueModel, torch.device], None]
"""Gives a model without weights, sharded or not, those that it should have."""


def stored_in(source: str, new: NewHeads | None = None) -> Fill:
    """The weights of a folder, beside those of heads that it has not."""
    return lambda model, device: fill(model, source, device, new)


def build_model(config: Config, tokenizer: Any, weights: Weights = "now") -> tuple[MTPModel | ValueModel, Fill | None]:
    """The model to train, with what is trained of it chosen, and what gives it its weights where it is without."""
    model, fill_model = _policy(config, tokenizer, weights)
    if isinstance(model, MTPModel):
        model.value_head = _value_head(config, model)
        choose_trained(config, model)
    return model, fill_model


def _value_head(config: Config, model: MTPModel) -> ValueHead | None:
    """The critic's, where the policy is to follow its values."""
    objective = config.objective
    if not isinstance(objective, MTPObjectiveConfig) or objective.aux_value_loss is None or objective.critic is None:
        return None
    head, width = load_value_head(objective.critic), model.base.config.get_text_config().hidden_size
    if head.width != width:
        raise ConfigError(
            f"objective.aux_value_loss starts from the critic's value head, which reads hidden states of width "
            f"{head.width}; the policy's are {width} wide: a critic on a backbone like the policy is needed"
        )
    return head


def _policy(config: Config, tokenizer: Any, weights: Weights) -> tuple[MTPModel | ValueModel, Fill | None]:
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
        if objective.backbone == "lora":
            _adapt(base, objective.lora or LoraConfig(), "objective.lora")
        rewards = "labels" if objective.reward is None else "model"
        return ValueModel(base, objective.head, objective.backbone, objective.loss, rewards)
    heads = config.model.heads
    return MTPModel(base, heads.num_heads, heads.init, family=heads.family, depth=heads.depth)


def _adapt(module: Any, lora: LoraConfig, option: str) -> None:
    """Add adapters; nothing else in the module is trained."""
    add_adapters(module, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, option=option)


def choose_trained(config: Config, model: MTPModel) -> None:
    """Say which parameters are trained, and add the adapters among them."""
    lora = config.model.lora
    if lora is None:
        model.train_only(config.model.heads.trained)
        return
    model.base.requires_grad_(False)
    if lora.on != "heads":
        _adapt(model.base, lora, "model.lora")
    if lora.on != "trunk":
        _adapt(model.extra_heads, lora, "model.lora")


def prepare_model(model: Frozen, *, checkpointing: bool, compiled: bool) -> None:
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
            raise ModelError(f"train.activation_checkpointing: {first_line(problem)}; leave it out") from problem
    if compiled:
        if not isinstance(model, MTPModel):
            raise ConfigError("train.compile is for objective.kind = mtp; leave it out for a critic")
        model.compile_layers()


def _check_compiler(config: Config, device: torch.device) -> None:
    """Raise `ConfigError` if something is to be compiled and cannot be."""
    if config.train.compile:
        devices.check_compiler(device, "train.compile")
    loss = config.objective.loss if isinstance(config.objective, MTPObjectiveConfig) else None
    if loss == "compiled" and config.precision != "fp32":  # in which it compiles nothing
        devices.check_compiler(device, "objective.loss = compiled")


def _check_loss(config: Config, model: MTPModel, device: torch.device) -> None:
    """Raise `ConfigError` if the library that should compute the loss is wrong for this model, here."""
    assert isinstance(config.objective, MTPObjectiveConfig)
    kind = config.objective.loss
    if kind in BACKENDS:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        reason = refusal(kind, model.unembedding(), dtype, device)
        if reason is not None:
            raise ConfigError(f"objective.loss = {kind!r}: {reason}")


def spread(model: Frozen, how: Sharding, fill_model: Fill | None, device: torch.device) -> None:
    """Shard a model over ranks, and give each what it holds if it is still without weights."""
    if isinstance(model, MTPModel):
        exact = [] if model.value_head is None else [model.value_head]
        shard(model, model.trunk_layers(), how, heads=list(model.heads()), embedding=model.own_embedding(), exact=exact)
    else:
        shard(model, model.layers(), how, exact=[model.value_head] if isinstance(model, ValueModel) else [])
    if fill_model is not None and not isinstance(model, RewardModel) and without_weights(model):
        fill_model(model, device)


def _empty_policy(
    config: Config, vocabulary: int, weights: Weights
) -> tuple[MTPModel | ValueModel, Fill | None] | None:
    """The policy without weights; None where it needs them at once, or they are not in a folder as they are needed."""
    model, objective = config.model, config.objective
    if model.lora is not None or (isinstance(objective, ValueObjectiveConfig) and objective.backbone == "lora"):
        return None  # adapters are drawn around weights that are there
    if model.path is None:
        return _drawn_policy(config, vocabulary, weights)
    if meta.holds(model.path) or not asked(hf.model_config(model.path), weights):
        return None
    card = read_card(model.path)
    if isinstance(objective, ValueObjectiveConfig) and not isinstance(card, ValueCard):
        value = _with_heads(config, empty_causal_lm(model.path))
        return None if missing(value, model.path) else (value, stored_in(model.path))
    heads = model.heads
    if isinstance(card, ValueCard):
        return None
    if card is not None and not _begins_with(card, heads):
        return None
    if card is not None and card.num_heads < heads.num_heads:
        return _grown_policy(model.path, heads)
    if card is None and (heads.family, heads.init, heads.depth) != ("parallel", "copy", "added"):
        return None
    policy = empty_model(model.path, model.heads.num_heads)
    return None if missing(policy, model.path) else (policy, stored_in(model.path))


def _grown_policy(source: str, heads: HeadsConfig) -> tuple[MTPModel, Fill] | None:
    """The policy of a folder with fewer heads, without weights; None where it needs them at once."""
    if heads.depth != "added":
        return None  # the ordinary way says what is wrong
    policy, new = grown_model(source, heads.num_heads, heads.init, heads.family)
    return None if missing(policy, source, new) else (policy, stored_in(source, new))


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
        with hf.without_parameters():
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
        raise ModelError(f"model.path = {model.path} is a critic; a language model was expected: name another")
    if card is None or config.arm == "critic":
        return hf.load_causal_lm(model.path)
    heads = model.heads
    if not _begins_with(card, heads):
        raise ConfigError(
            f"model.heads asks for {heads.num_heads} {heads.family} heads, but {model.path} was saved with "
            f"{card.num_heads} {card.heads} heads: ask for those or for more of them, or start from another model"
        )
    return load_model(model.path, heads=heads.family, num_heads=heads.num_heads, init=heads.init, depth=heads.depth)


def _begins_with(card: MTPCard, heads: HeadsConfig) -> bool:
    """Whether the heads of a folder are the first of those that are asked for; head 1 is that of every family."""
    return card.num_heads == 1 or (card.heads == heads.family and card.num_heads <= heads.num_heads)


def new_heads(config: Config) -> list[str]:
    """What is said, at the start of a run, of heads that its model does not have yet."""
    source, heads = config.model.path, config.model.heads
    card = None if source is None or config.arm == "critic" else read_card(source)
    if not isinstance(card, MTPCard) or card.num_heads == heads.num_heads:
        return []
    first, last = card.num_heads + 1, heads.num_heads
    which = f"head {last} is" if first == last else f"heads {first} to {last} are"
    return [f"{source} was saved with {card.num_heads} of the {last} heads: {which} new, by init {heads.init!r}"]


def _check_fit(config: Config, model_config: Any, vocabulary: int) -> None:
    if model_config.vocab_size < vocabulary:
        raise ModelError(
            f"the tokenizer has {vocabulary:,} tokens, the model's vocabulary {model_config.vocab_size:,}: they do not "
            "belong together; set model.tokenizer to the model's own"
        )
    context = getattr(model_config, "max_position_embeddings", None)
    if context is not None and config.data.max_length > context:
        raise ConfigError(
            f"data.max_length = {config.data.max_length} is longer than the model's context of {context}: lower it"
        )
