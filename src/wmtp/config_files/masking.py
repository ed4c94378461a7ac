"""What of a configuration may be shown in a message: secrets are masked, long values cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from wmtp.config_files.problems import KeyPath, clipped
from wmtp.redaction import without_credentials

MIN_SECRET = 4  # shorter secrets are not searched for inside other messages

_SECRET = re.compile(r"passw|passphrase|secret|credential|(api|access|private)[_-]?key|token(?![a-z])")


class _Mask:
    """Stands for a value that must not be shown."""

    def __repr__(self) -> str:
        return "***"


def looks_secret(name: str) -> bool:
    """Tell whether a key or variable name looks like it holds a secret (`hf_token`, not `tokens`)."""
    return _SECRET.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) is not None


def _is_secret(path: KeyPath, secrets: frozenset[KeyPath]) -> bool:
    """Tell whether `path` lies at or under a secret-looking key or a value made from a secret variable."""
    named = any(isinstance(key, str) and looks_secret(key) for key in path)
    return named or any(path[:end] in secrets for end in range(len(path) + 1))


def _masked(value: Any, path: KeyPath, secrets: frozenset[KeyPath]) -> Any:
    """Return a copy of `value` in which every secret is replaced by a mask."""
    if _is_secret(path, secrets):
        return _Mask()
    if isinstance(value, dict):
        return {key: _masked(item, (*path, key), secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, (*path, index), secrets) for index, item in enumerate(value)]
    return value


def secret_texts(value: Any, path: KeyPath, secrets: frozenset[KeyPath]) -> Iterator[str]:
    """Yield the text of every secret in `value` that is long enough to search for."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from secret_texts(item, (*path, key), secrets)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from secret_texts(item, (*path, index), secrets)
    elif value is not None and not isinstance(value, bool) and _is_secret(path, secrets):
        texts = (value, repr(value)[1:-1]) if isinstance(value, str) else (repr(value),)
        yield from (text for text in texts if len(text) >= MIN_SECRET)


def shown(path: KeyPath, value: Any, secrets: frozenset[KeyPath]) -> str:
    """Return the repr of a value for a message: masked, then cut to `MAX_SHOWN` characters."""
    return clipped(without_credentials(repr(_masked(value, path, secrets))))


def override_name(text: str) -> str:
    """Return how an override is named in messages; its value is masked if any part of it looks secret."""
    if looks_secret(text):
        key, equals, _ = text.partition("=")
        text = f"{key}=***" if equals else "***"
    return f"override {clipped(without_credentials(repr(text)))}"
