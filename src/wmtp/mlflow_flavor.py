"""What `mlflow.pyfunc.load_model` imports to load a model of ours: no pickle, and mlflow itself is not needed.

A registered model is the `final/` folder of a run with an `MLmodel` file that names this module. The folder can also be
used without it: `mlflow.artifacts.download_artifacts`, then `wmtp.load_model`, or transformers, heads dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from wmtp.data.text import prompt_ids
from wmtp.decoding import StopStrings, generate_many
from wmtp.errors import UsageError
from wmtp.formats.hf import load_tokenizer
from wmtp.formats.native import ValueCard, load_model, load_value_model, read_card

MAX_NEW_TOKENS = 256


class Completer:
    """Texts -> what a language model says after them, greedily."""

    def __init__(self, folder: str) -> None:
        self.model, self.tokenizer = load_model(folder), load_tokenizer(folder)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """One completion a text.

        Args:
            model_input: texts, in the template of the training; or a table with a column `prompt`.
            params: `max_new_tokens`.
        """
        options = {"max_new_tokens": MAX_NEW_TOKENS, **(params or {})}
        if len(options) > 1:
            raise UsageError(f"params may hold only max_new_tokens, got {', '.join(sorted(options))}")
        ids = prompt_ids(_texts(model_input), self.tokenizer)
        generations = generate_many(self.model, ids, max_new_tokens=int(options["max_new_tokens"]))
        return [StopStrings(self.tokenizer, []).text(generation.tokens[0]) for generation in generations]


class Judge:
    """Texts -> the value that a critic gives them."""

    def __init__(self, folder: str) -> None:
        self.model, self.tokenizer = load_value_model(folder).eval(), load_tokenizer(folder)

    @torch.no_grad()
    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[float]:
        """The value after the last token of each text; texts and tables as of `Completer`."""
        if params:
            raise UsageError(f"a critic has no params, got {', '.join(sorted(params))}; leave them out")
        ids = prompt_ids(_texts(model_input), self.tokenizer)
        return [float(self.model(torch.tensor([row]))[0, -1]) for row in ids]


def _texts(model_input: Any) -> list[str]:
    column: Iterable[Any] = model_input if isinstance(model_input, list) else model_input["prompt"]
    return [str(text) for text in column]


def _load_pyfunc(folder: str) -> Completer | Judge:
    """The name that MLflow calls."""
    return Judge(folder) if isinstance(read_card(folder), ValueCard) else Completer(folder)
