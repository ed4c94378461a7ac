"""Objects of the user's own, named in a config as `package.module:attribute`. Naming one means running it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from wmtp.errors import ConfigError, first_line


def made_by(key: str, builder: str, options: Mapping[str, Any], kind: str, parts: Collection[str], page: str) -> Any:
    """What a builder makes of its options.

    Args:
        key: of the config, for messages.
        builder: `package.module:attribute`.
        kind: what it should make, which has these parts and is described on this page.

    Raises:
        ConfigError: it cannot be imported, is refused its options, or makes something else.
    """
    where = f"{key} = {builder!r}"
    module, _, attribute = builder.partition(":")
    try:
        make = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as problem:
        raise ConfigError(f"{where}: {problem}; install its package, or put its folder on PYTHONPATH") from problem
    try:
        made = make(**options)
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"{where} refuses the options {dict(options)}: {first_line(problem)}; mend them") from problem
    lacking = [name for name in parts if not hasattr(made, name)]
    if lacking:
        raise ConfigError(
            f"{where} makes {type(made).__name__}, which is no {kind}: it must have {', '.join(lacking)} (see {page})"
        )
    return made
