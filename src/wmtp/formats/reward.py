"""Reward models in: `transformers` sequence classifiers with one output, loaded as strictly as language models."""

from __future__ import annotations

from pathlib import Path

import torch

from wmtp.data.judged import RewardText
from wmtp.errors import ModelError
from wmtp.formats.hf import (
    check_loaded,
    first_line,
    load_tokenizer,
    loading_errors,
    locate,
    model_config,
    without_parameters,
)
from wmtp.formats.scan import check_finite, check_folder
from wmtp.reward import RewardModel


def load_reward_model(source: str, dtype: torch.dtype = torch.float32) -> RewardModel:
    """A reward model from a folder or hub id, by its own config: `LlamaForSequenceClassification` and its like.

    Raises:
        ModelError: no such model, one without a classification head, or weights that do not fit, named.
    """
    from transformers import AutoModelForSequenceClassification

    folder = locate(source)
    check_folder(Path(folder))
    try:
        base, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # `check_loaded` names them
            output_loading_info=True,
        )
    except loading_errors() as problem:
        raise ModelError(f"cannot load a reward model from {source}: {first_line(problem)}") from problem
    check_loaded(source, info, base.config)
    check_finite(source, base.named_parameters())
    return RewardModel(base)


def empty_reward_model(source: str) -> RewardModel:
    """The reward model of a folder or hub id, without its weights.

    Raises:
        ModelError: no such model.
    """
    from transformers import AutoModelForSequenceClassification

    config = model_config(source)
    try:
        with without_parameters():
            return RewardModel(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32))
    except loading_errors() as problem:
        raise ModelError(f"cannot build the reward model of {source}: {first_line(problem)}") from problem


def load_reward_text(source: str, template: str | None) -> RewardText:
    """What turns records into that model's ids, with its own tokenizer.

    Raises:
        UsageError: no such model or tokenizer, or a template that does not go with it.
    """
    tokenizer = load_tokenizer(source, needs_eos=False)
    config = model_config(source).get_text_config()
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return RewardText(tokenizer, template, min(limit for limit in limits if limit is not None))
