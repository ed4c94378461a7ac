"""Objects of the user's own, named in a config as `package.module:attribute`. Naming one means running it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
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
        found = import_module(module)
    except Exception as problem:
        raise ConfigError(f"{where}: {first_line(problem)}; {_way_to(module, problem)}") from problem
    make = getattr(found, attribute, None)
    if make is None:
        own = ", ".join(name for name in vars(found) if not name.startswith("_"))
        raise ConfigError(f"{where}: module {module!r} has no attribute {attribute!r}; name one of: {own}")
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


def _way_to(module: str, problem: Exception) -> str:
    """What helps where a module cannot be imported."""
    top = module.partition(".")[0]
    if not isinstance(problem, ModuleNotFoundError) or problem.name not in (top, module):
        return f"it is raised while {module} is imported: mend it, or install what it needs"
    if Path(f"{top}.py").exists() or Path(top).is_dir():
        return f"{top} is in the current folder, which is not searched: put PYTHONPATH=. before the command"
    return "install its package, or put its folder on PYTHONPATH"
