"""What a model folder holds, told by its files: names of tensors and fields of configs, never the folder's name."""

from __future__ import annotations

import json
from typing import Any, Literal

from wmtp.errors import ModelError, first_line
from wmtp.formats.scan import stored_shapes
from wmtp.storage import Place

Kind = Literal["causal", "ours", "meta", "adapter", "classifier"]

CONFIG, CARD, PARAMS, ADAPTER = "config.json", "wmtp.json", "params.json", "adapter_config.json"
CLASSIFYING = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""What transformers calls the last map of a `...ForSequenceClassification`."""


def kind_of(folder: Place) -> Kind:
    """Which kind of model a folder holds; `causal` where nothing tells of another one.

    Raises:
        ModelError: files whose headers or fields cannot be read.
    """
    if (folder / CARD).is_file():
        return "ours"
    if not (folder / CONFIG).exists():
        if (folder / PARAMS).is_file():
            return "meta"
        if (folder / ADAPTER).is_file():
            return "adapter"
    check_alone(folder)
    if (folder / CONFIG).is_file() and _classifies(folder):
        return "classifier"
    return "causal"


def check_alone(folder: Place) -> None:
    """Raise `ModelError` if a folder has a model and an adapter: transformers would take both for one."""
    if (folder / CONFIG).is_file() and (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} holds a model and an adapter ({CONFIG}, {ADAPTER}): move one of them to a folder of its own"
        )


def _classifies(folder: Place) -> bool:
    names = stored_shapes(folder)
    if any(name in names for name in CLASSIFYING):
        return True
    architectures = read_json(folder / CONFIG).get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return not names and any(str(name).endswith("ForSequenceClassification") for name in named)


def read_json(path: Place) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        ModelError: it holds something else, or cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelError(f"{path} cannot be read: {first_line(problem)}; expected a JSON object") from problem
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON object was expected, got {content!r:.60}")
    return content
