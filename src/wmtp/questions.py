"""Problems as a policy is asked them: a prompt's ids, and the tests that judge an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from wmtp.data.records import Record
from wmtp.data.text import Row, prompt_ids, render
from wmtp.errors import DataError
from wmtp.record_tests import limits_of, tests_of
from wmtp.sandbox import Limits, Tests
from wmtp.wording import counted


@dataclass(frozen=True)
class Question:
    """One problem."""

    name: str
    """The problem's id."""
    prompt: tuple[int, ...]
    """As inference sees it: in its template, with the BOS that the tokenizer adds."""
    tests: Tests
    limits: Limits | None
    """None: the sandbox's own."""
    difficulty: int = 0

    def row(self, number: int, max_new_tokens: int, filling: int) -> Row:
        """The prompt followed by as many ids `filling` as an answer may have: what must fit, never what is trained on.

        Args:
            number: of the problem.
        """
        tokens = np.asarray([*self.prompt, *[filling] * max_new_tokens], np.int32)
        return Row(tokens, len(self.prompt), number, nan, self.difficulty, self.name)


def read_questions(
    records: Iterable[Record], tokenizer: Any, template: str, *, longest: int, drop_long: bool
) -> tuple[list[Question], str]:
    """One question of each problem, in the order in which problems first appear, and a line about them.

    Args:
        longest: most tokens of a prompt.
        drop_long: longer ones are left out.

    Raises:
        DataError: a problem without tests, a prompt that is too long, or no question is left.
    """
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record.problem_id, record)
    prompts = prompt_ids([render(record, tokenizer, template)[0] for record in first.values()], tokenizer)
    found = []
    for record, prompt in zip(first.values(), prompts, strict=True):
        tests = tests_of(record)
        if tests is None:
            raise DataError(
                f"online: problem {record.problem_id!r:.60} has no tests, so nobody can judge an answer to it; give "
                "its records `tests` (Python statements) or `cases` (inputs and outputs)"
            )
        if len(prompt) <= longest:
            limits = limits_of(record, Limits()) if record.time_limit_s else None
            found.append(Question(record.problem_id, tuple(prompt), tests, limits, record.difficulty))
        elif not drop_long:
            raise DataError(
                f"online: the prompt of problem {record.problem_id!r:.60} has {len(prompt):,} tokens; with "
                f"online.max_new_tokens it must have at most {longest:,} to fit into data.max_length (or set "
                "data.on_long_row=drop)"
            )
    if not found:
        raise DataError(
            f"online: all {len(first):,} prompts are longer than {longest:,} tokens: no question is left; raise "
            "data.max_length, or lower online.max_new_tokens"
        )
    left_out = len(first) - len(found)
    note = f"online: {counted(len(found), 'problem')}" + (f", {left_out:,} left out as too long" if left_out else "")
    return found, note


def fingerprint(questions: Sequence[Question]) -> str:
    """sha256 over prompts, tests and limits: what a resumed run must find again."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr(question).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
