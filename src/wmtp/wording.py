"""Words of messages that depend on a figure."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number of things: `1 row`, `1,234 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
