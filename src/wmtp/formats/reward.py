"""Reward models in: `transformers` sequence classifiers with one output, loaded as strictly as language models."""

from __future__ import annotations

import torch

from wmtp.data.judged import RewardText
from wmtp.errors import ModelError
from wmtp.formats.hf import (
    check_files,
    check_loaded,
    folder_of,
    from_folder,
    load_tokenizer,
    model_config,
    told,
    without_parameters,
)
from wmtp.formats.scan import check_folder
from wmtp.reward import RewardModel
from wmtp.storage import ObjectPath


def load_reward_model(source: str, dtype: torch.dtype = torch.float32) -> RewardModel:
    """A reward model from a folder or hub id, by its own config: `LlamaForSequenceClassification` and its like.

    Raises:
        ModelError: no such model, one without a classification head, or weights that do not fit, named.
    """
    from transformers import AutoModelForSequenceClassification

    folder = folder_of(source, weights=True)
    if isinstance(folder, ObjectPath):
        raise ModelError(f"the reward model {source} is in an object store: copy it to a disk")
    check_folder(folder)
    with told(f"cannot load a reward model from {source}"):
        base, info = from_folder(AutoModelForSequenceClassification, source, folder, dtype)
    check_loaded(source, info, base)
    check_files(folder, base)
    return RewardModel(base)


def empty_reward_model(source: str) -> RewardModel:
    """The reward model of a folder or hub id, without its weights.

    Raises:
        ModelError: no such model.
    """
    from transformers import AutoModelForSequenceClassification

    config = model_config(source)
    with told(f"cannot build the reward model of {source}"), without_parameters():
        return RewardModel(
            AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=True)
        )


def load_reward_text(source: str, template: str | None) -> RewardText:
    """What turns records into that model's ids, with its own tokenizer.

    Raises:
        UsageError: no such model or tokenizer, or a template that does not go with it.
    """
    tokenizer = load_tokenizer(source, needs_eos=False)
    config = model_config(source).get_text_config()
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return RewardText(tokenizer, template, min(limit for limit in limits if limit is not None))
