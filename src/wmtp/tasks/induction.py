"""Induction: the second word of a name that has been mentioned before. Gloeckle et al. 2024, section 4.1.

"Induction" (Olsson et al. 2022, arXiv 2209.11895) is to complete `A B ... A` with `B`. In a story made of templates,
each character's name has two words, one of `FIRST` and one of `LAST`. Nothing tells the second word from the first but
what the story has said: in training a first word is followed by any of several, and the names of held-out stories are
not among those of training. (The paper trained on stories with common names, and gave those of its test set names of
two random tokens.)
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, product
from random import Random
from typing import Any

from wmtp.data.records import Record
from wmtp.data.text import Row
from wmtp.tasks.base import SPECIALS, Question, Role, word_level
from wmtp.tasks.stories import ENDINGS, EVENTS, MEETINGS, OPENINGS, WORDS

PROMPT = "Tell a story."
WORDS_OF_A_KIND = 2
"""That a story is told with: its things, places and so on come again."""
_FIELDS = string.Formatter()


def _syllables(starts: str, ends: str) -> tuple[str, ...]:
    return tuple(f"{start.upper()}{vowel}{end}" for start, vowel, end in product(starts, "aeiou", ends))


FIRST = _syllables("bdklmnprst", "nl")
"""100 first words of names."""
LAST = _syllables("fghjvwyzcx", "rm")
"""100 second words, none of them among the first ones."""


def _ordinary() -> list[str]:
    """Every word and sign of the templates and of what fills their gaps, in an order of its own."""
    texts = [PROMPT, *OPENINGS, *MEETINGS, *EVENTS, *ENDINGS]
    plain = " ".join(literal for text in texts for literal, *_ in _FIELDS.parse(text))
    apart = "".join(f" {sign} " if sign in string.punctuation else sign for sign in plain)
    return sorted({*apart.split(), *(word for words in WORDS.values() for word in words)})


class Induction:
    """Stories of `sentences` sentences about three characters.

    Groups: `second_word`, of every mention of a name after its first: what induction gets right. `first_mention`, the
    same of the first one: what can only be guessed, the level without induction.

    Args:
        seed: of all rows and names.
        names: names that stories in training have; held-out stories have others of the 10,000 there are.
        sentences: of a story, at least 4.

    Raises:
        ValueError: names that leave fewer than three for one side, or too few sentences.
    """

    groups = ("second_word", "first_mention")

    def __init__(self, *, seed: int = 0, names: int = 1000, sentences: int = 12) -> None:
        every = list(product(FIRST, LAST))
        if not 3 <= names <= len(every) - 3:
            raise ValueError(f"names must be from 3 to {len(every) - 3:,}, got {names}")
        if sentences < 4:
            raise ValueError(f"a story has at least 4 sentences, got {sentences}")
        self.seed, self.sentences = seed, sentences
        Random(f"{seed} names").shuffle(every)
        self._names = {"train": every[:names], "validation": every[names:]}
        ordinary = _ordinary()
        self._words = [*ordinary, *FIRST, *LAST]
        begin = len(SPECIALS) + len(ordinary)
        self._first = range(begin, begin + len(FIRST))
        self._last = range(begin + len(FIRST), begin + len(FIRST) + len(LAST))

    def tokenizer(self) -> Any:
        """A token for every word and sign."""
        return word_level(self._words)

    def records(self, role: Role) -> Iterator[Record]:
        """Stories."""
        random = Random(f"{self.seed} {role}")
        for place in count():
            yield Record(f"{role}-{place}", PROMPT, self._story(random, self._names[role]))

    def _story(self, random: Random, names: Sequence[tuple[str, str]]) -> str:
        """One story. The first three sentences bring the characters in, the last one ends it."""
        a, b, c = (" ".join(name) for name in random.sample(names, 3))
        words = {kind: random.sample(every, WORDS_OF_A_KIND) for kind, every in WORDS.items()}
        told = [_told(random, OPENINGS, words, {"a": a, "b": b})]
        told += [_told(random, MEETINGS, words, {"a": a, "b": other}) for other in (b, c)]
        while len(told) < self.sentences:
            one, other = random.sample((a, b, c), 2)
            templates = ENDINGS if len(told) == self.sentences - 1 else EVENTS
            told.append(_told(random, templates, words, {"a": one, "b": other}))
        return " ".join(told)

    def questions(self, row: Row) -> Iterator[Question]:
        """One for every name in the row."""
        seen = set()
        for place in range(row.response_start + 1, len(row.tokens)):
            name = int(row.tokens[place - 1]), int(row.tokens[place])
            if name[0] in self._first and name[1] in self._last:
                yield Question("second_word" if name in seen else "first_mention", (place,))
                seen.add(name)


def _told(
    random: Random, templates: Sequence[str], words: Mapping[str, Sequence[str]], characters: Mapping[str, str]
) -> str:
    """A sentence, its gaps filled."""
    parts = []
    for literal, gap, *_ in _FIELDS.parse(random.choice(templates)):
        filled = "" if gap is None else characters[gap] if gap in characters else random.choice(words[gap])
        parts.append(literal + filled)
    return "".join(parts)
