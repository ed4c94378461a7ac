"""Reward models in: `transformers` sequence classifiers with one output, loaded as strictly as language models."""

from __future__ import annotations

from pathlib import Path

import torch

from wmtp.data.judged import RewardText
from wmtp.formats.hf import (
    STRICT,
    check_files,
    check_loaded,
    load_tokenizer,
    locate,
    model_config,
    told,
    without_parameters,
)
from wmtp.formats.scan import check_folder
from wmtp.reward import RewardModel


def load_reward_model(source: str, dtype: torch.dtype = torch.float32) -> RewardModel:
    """A reward model from a folder or hub id, by its own config: `LlamaForSequenceClassification` and its like.

    Raises:
        ModelError: no such model, one without a classification head, or weights that do not fit, named.
    """
    from transformers import AutoModelForSequenceClassification

    folder = locate(source)
    check_folder(Path(folder))
    with told(f"cannot load a reward model from {source}"):
        base, info = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **STRICT)
    check_loaded(source, info, base)
    check_files(Path(folder), base)
    return RewardModel(base)


def empty_reward_model(source: str) -> RewardModel:
    """The reward model of a folder or hub id, without its weights.

    Raises:
        ModelError: no such model.
    """
    from transformers import AutoModelForSequenceClassification

    config = model_config(source)
    with told(f"cannot build the reward model of {source}"), without_parameters():
        return RewardModel(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32))


def load_reward_text(source: str, template: str | None) -> RewardText:
    """What turns records into that model's ids, with its own tokenizer.

    Raises:
        UsageError: no such model or tokenizer, or a template that does not go with it.
    """
    tokenizer = load_tokenizer(source, needs_eos=False)
    config = model_config(source).get_text_config()
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return RewardText(tokenizer, template, min(limit for limit in limits if limit is not None))
