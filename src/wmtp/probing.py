"""Asking a model a small question before trusting it with a long run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wmtp.errors import ModelError, first_line


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards every module has its own mode back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


def probe(base: Any) -> Tensor:
    """Three tokens, `[1, 3]`, inside the model's vocabulary."""
    weight = base.get_output_embeddings().weight
    return torch.arange(1, 4, device=weight.device).remainder(weight.shape[0]).unsqueeze(0)


def without_weights(model: nn.Module) -> bool:
    """Whether parameters have shapes only: then there is nothing to ask."""
    return any(parameter.is_meta for parameter in model.parameters())


def check_causal(base: Any) -> None:
    """Raise `ModelError` if a later token changes an earlier hidden state, or the model cannot run at all.

    An encoder with a language-modelling head has all the right modules; its values and losses would know the answer.
    """
    if without_weights(base):
        return
    tokens_BT = probe(base)
    changed_BT = tokens_BT.clone()
    changed_BT[:, -1] = tokens_BT[:, 0]
    try:
        with evaluating(base):
            one, other = (base.base_model(input_ids=t).last_hidden_state[:, :-1] for t in (tokens_BT, changed_BT))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as problem:
        raise ModelError(
            f"{type(base).__name__} does not run on three tokens: {first_line(problem)}; use another model"
        ) from problem
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"{type(base).__name__} is not causal: a later token changes what it says of earlier ones; a causal "
            "language model is needed"
        )
