"""Records that are there twice: word for word, or nearly.

A record and its wrong variant differ in a character and are a pair to learn from, so only records with the same
`is_correct` are duplicates; the same text with another verdict is a contradiction, and named as one.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from wmtp.curation.grams import grams, tokens
from wmtp.data.records import Record
from wmtp.errors import UsageError

Shingles = NDArray[np.uint64]
"""Hashes of a text's n-grams, sorted, each once."""

SHINGLE = 5
"""Tokens of a shingle."""
BANDS, BAND_ROWS = 16, 4
LOWEST = 0.7
"""Below this similarity too many duplicates would be missed."""
_CHUNK = 4096


def normalized(text: str) -> str:
    """A text without blank lines and spaces at the ends of lines; indentation stays, it is part of a program."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


class ExactDuplicates:
    """Holds 16 bytes per record, about 100 with Python's own."""

    def __init__(self) -> None:
        self._seen: dict[bytes, bool | None] = {}

    def reason(self, record: Record) -> str:
        """Why the record is left out; empty for a new one, which is remembered."""
        text = f"{normalized(record.prompt)}\0{normalized(record.response)}"
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if key not in self._seen:
            self._seen[key] = record.is_correct
            return ""
        return "exact duplicate" if self._seen[key] == record.is_correct else "exact duplicate with another is_correct"


class NearDuplicates:
    """Pairs whose prompts and whose responses are both at least `threshold` alike: the Jaccard index of their shingles.

    Candidates come from MinHash with banding (Broder 1997; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets,
    3.4), and are compared shingle by shingle. So what is removed is alike, always; of what is alike, a pair with index
    s (of the prompts, 1 for the same problem) and r (of the responses) is seen with probability
    1 - (1 - s r^4)^16: 0.9998 at s = 1, r = 0.8, and 0.998 at s = r = 0.8.

    Holds about 4 kB and 8 bytes per token of the response for each record, and 8 per token of each prompt.

    Raises:
        UsageError: a threshold below 0.7 or above 1.
    """

    def __init__(self, threshold: float) -> None:
        if not LOWEST <= threshold <= 1:
            raise UsageError(f"the threshold of near duplicates must be from {LOWEST} to 1, got {threshold}")
        self.threshold = threshold
        self._prompts: dict[bytes, Shingles] = {}
        self._kept: list[tuple[str, Shingles, Shingles]] = []
        self._bands: defaultdict[bytes, list[int]] = defaultdict(list)

    def find(self, record: Record) -> str | None:
        """The problem id of the record that this one nearly is; None for a new one, which is remembered."""
        prompt, response = self._prompt(record.prompt), shingles(record.response)
        keys = _band_keys(prompt, response, record.is_correct)
        for candidate in dict.fromkeys(place for key in keys for place in self._bands.get(key, ())):
            name, other_prompt, other_response = self._kept[candidate]
            alike = min(jaccard(response, other_response), jaccard(prompt, other_prompt))
            if alike >= self.threshold:
                return name
        for key in keys:
            self._bands[key].append(len(self._kept))
        self._kept.append((record.problem_id, prompt, response))
        return None

    def _prompt(self, text: str) -> Shingles:
        """One copy for all responses to a problem."""
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if key not in self._prompts:
            self._prompts[key] = shingles(text)
        return self._prompts[key]


def shingles(text: str) -> Shingles:
    """The shingles of a text's tokens, layout aside."""
    return np.unique(np.frombuffer(array("Q", grams(tokens(text), SHINGLE)), dtype=np.uint64))


def jaccard(one: Shingles, other: Shingles) -> float:
    """Shared shingles over all shingles; 1 for two empty texts."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / union if (union := len(one) + len(other) - shared) else 1.0


_draws = np.random.Generator(np.random.PCG64(0))
_FACTORS = _draws.integers(0, 2**63, BANDS * (BAND_ROWS + 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SUMMANDS = _draws.integers(0, 2**64, BANDS * (BAND_ROWS + 1), dtype=np.uint64)


def _band_keys(prompt: Shingles, response: Shingles, is_correct: bool | None) -> list[bytes]:
    """Each band: four minima of the response and one of the prompt."""
    rows = BANDS * BAND_ROWS
    minima = np.concatenate(
        [
            _minima(response, _FACTORS[:rows], _SUMMANDS[:rows]).reshape(BANDS, BAND_ROWS),
            _minima(prompt, _FACTORS[rows:], _SUMMANDS[rows:]).reshape(BANDS, 1),
        ],
        axis=1,
    )
    label = str(is_correct).encode()
    return [
        hashlib.blake2b(minima[band].tobytes(), digest_size=8, salt=label, person=bytes([band])).digest()
        for band in range(BANDS)
    ]


def _minima(found: Shingles, factors: Shingles, summands: Shingles) -> Shingles:
    """The smallest value that each of the hash functions `factor * x + summand mod 2^64` takes."""
    smallest = np.full(len(factors), np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(found), _CHUNK):
        values = factors[:, None] * found[None, start : start + _CHUNK] + summands[:, None]
        smallest = np.minimum(smallest, values.min(axis=1))
    return smallest
