"""A configuration written as YAML text that `load` reads back as an equal object."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter

from wmtp.config_files.nodes import typed
from wmtp.config_files.problems import MAX_SHOWN

_BARE_STRING = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*", re.ASCII)


class _Dumper(yaml.SafeDumper):
    """Writes plain data so that `load` reads it back: doubtful strings in quotes, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    bare = _BARE_STRING.fullmatch(text) and isinstance(typed(text), str) and len(text) <= MAX_SHOWN
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else '"')


_Dumper.add_representer(str, _represent_text)


def _plain(value: Any) -> Any:
    """Return `value` as mappings, lists and scalars; strings are escaped against substitution."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, str | PurePath):
        return str(value).replace("${", "$${")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return [_plain(item) for item in sorted(value, key=repr)]
    return _plain(TypeAdapter(Any).dump_python(value, mode="json"))


def _plain_key(key: Any) -> str:
    """Return a key as a string; keys are read literally, so nothing in them is escaped."""
    return str(key.value if isinstance(key, enum.Enum) else key)


def dump(config: BaseModel) -> str:
    """Return the resolved configuration as YAML text from which `load` builds an equal object.

    Nothing is masked except what pydantic itself hides (`SecretStr`), so the text may hold secrets.
    """
    return render(_plain(config.model_dump(mode="python", by_alias=True, round_trip=True)))


def render(data: Any) -> str:
    """Return plain data as YAML text; references in it are references still."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=10**9)
