"""n-grams of a text's words as 64-bit hashes, one after another: however long a text is, n words are held."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> Iterator[str]:
    """Runs of letters, digits and underscores, in lower case; punctuation is left out."""
    return (found[0].lower() for found in _WORD.finditer(text))


def tokens(text: str) -> Iterator[str]:
    """Words as they are written, and every mark of punctuation: what a program is made of, without its layout."""
    return (found[0] for found in _TOKEN.finditer(text))


def grams(units: Iterable[str], n: int) -> Iterator[int]:
    """Hashes of the n-grams of `units`; of all of them together where they are fewer, and none of none."""
    window: deque[str] = deque(maxlen=n)
    count = 0
    for unit in units:
        window.append(unit)
        count += 1
        if count >= n:
            yield _hash(window)
    if 0 < count < n:
        yield _hash(window)


def _hash(window: Iterable[str]) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(window).encode(), digest_size=8).digest(), "little")
