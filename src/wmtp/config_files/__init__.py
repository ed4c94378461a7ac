"""Configuration from YAML files and `key=value` overrides, and every mistake in it told at once.

`load` merges files and overrides, replaces environment references and validates the result against a
pydantic model; `dump` writes a model as YAML that `load` reads back as an equal object. Scalars follow the
YAML 1.2 core schema (`1e-4` is a number, `no` is a string). Nothing here knows a concrete configuration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from wmtp.config_files.explaining import Details, Explainer
from wmtp.config_files.merging import gathered
from wmtp.config_files.nodes import Node, typed
from wmtp.config_files.problems import raise_any
from wmtp.config_files.references import Resolver
from wmtp.config_files.writing import dump, render
from wmtp.errors import ConfigError
from wmtp.storage import Place

__all__ = ["as_written", "dump", "load", "render", "top_keys"]

M = TypeVar("M", bound=BaseModel)


def _validated(schema: type[M], data: Any) -> tuple[M | None, list[Details]]:
    """Return the object, or None and the errors; the exception, which holds every input, ends here."""
    try:
        return schema.model_validate(data), []
    except ValidationError as error:
        return None, list(error.errors(include_url=False))


def load(
    schema: type[M], files: Sequence[Place], overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> M:
    """Return `schema` built from `files`, merged in order, and then from `overrides` (`a.b.0.c=value`).

    Mappings merge, everything else is replaced by what comes later. `${NAME}`, `${NAME:-default}` and
    `${NAME?message}` in values are replaced from `environ` (the process's, if None). Raises `ConfigError`
    that lists every problem of the first stage that fails: reading files, applying overrides, replacing
    references, validating.
    """
    tree = gathered(files, overrides)
    resolver = Resolver(os.environ if environ is None else environ)
    data = resolver.data(tree)
    raise_any(resolver.problems)
    config, errors = _validated(schema, data)
    raise_any(Explainer(schema, tree, data, frozenset(resolver.secrets)).problems(errors))
    assert config is not None
    return config


def as_written(path: Place) -> dict[str, Any]:
    """Return the content of one file with references such as `${NAME}` left in its texts.

    Raises `ConfigError` if it cannot be read.
    """
    content = _unresolved(gathered([path], []))
    return content if isinstance(content, dict) else {}


def top_keys(path: Place) -> set[str]:
    """Return the top keys of one file; none of one that cannot be read."""
    try:
        return set(as_written(path))
    except ConfigError:
        return set()


def _unresolved(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _unresolved(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_unresolved(child) for child in node.value]
    return typed(node.value.text) if node.value.plain and "${" not in node.value.text else node.value.text
