"""What must not be shown: values under names that look secret, and credentials inside URLs."""

from __future__ import annotations

import re

_SECRET = re.compile(r"(?i)(pass(w|word|phrase)|secret|credential|(api|access|private)[_-]?key|token(?![a-z]))")
_CREDENTIALS = re.compile(r"(?:(?<!s3)(?<!file)://[^\s?'\"]*|://[^/@\s]+)@")
"""A password may hold `/` and `@`, though it should not: all up to the last `@`, but where an object's key may."""
_IN_QUERY = re.compile(r"([?&])([^=&\s]+)=[^&\s'\"]+")

HIDDEN = "***"


def looks_secret(name: str) -> bool:
    """Whether an option of this name holds a secret (`hf_token`, not `tokens`)."""
    return _SECRET.search(name) is not None


def without_credentials(text: str) -> str:
    """The text with `user:password@` of every URL in it hidden, and what stands under secret names in its query."""
    shown = _CREDENTIALS.sub(f"://{HIDDEN}@", text)
    return _IN_QUERY.sub(lambda found: f"{found[1]}{found[2]}={HIDDEN}" if looks_secret(found[2]) else found[0], shown)
