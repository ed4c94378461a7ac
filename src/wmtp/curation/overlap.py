"""Records that show a benchmark's problems: by the n-grams of words that they share.

The rule is that of Brown et al. 2020 (arXiv 2005.14165, appendix C): words in lower case without punctuation, n = 13;
texts of a benchmark that have 8 to 12 words are one n-gram by themselves, shorter ones are too common to tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from wmtp.curation.grams import grams, words
from wmtp.data.records import Record
from wmtp.data.sources import SourceReport, stream_records
from wmtp.storage import Place

LONGEST, SHORTEST = 13, 8
"""Words of an n-gram."""


class Overlap:
    """What a record may not share with the problems of benchmarks. Holds about 70 bytes per word of theirs."""

    def __init__(self, benchmarks: Iterable[Record]) -> None:
        self._names: dict[int, dict[int, str]] = {}
        for record in benchmarks:
            for text in (record.prompt, record.response):
                n = len(list(islice(words(text), LONGEST)))
                if n >= SHORTEST:
                    known = self._names.setdefault(n, {})
                    known.update((gram, record.problem_id) for gram in grams(words(text), n))

    def find(self, record: Record) -> str | None:
        """The id of a benchmark's problem whose words the record has; None where there is none."""
        for text in (record.prompt, record.response):
            for n, known in self._names.items():
                for gram in grams(words(text), n):
                    if gram in known:
                        return known[gram]
        return None


def benchmark_records(paths: Iterable[Place]) -> Iterable[Record]:
    """What is for evaluation: the test split of a data set with official splits, all rows of others.

    Raises:
        DataError: a file cannot be read, or a row is bad.
    """
    for path in paths:
        yield from stream_records(path, SourceReport(str(path)), role="test")
