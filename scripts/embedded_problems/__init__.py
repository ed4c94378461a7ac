"""The hand-written problems behind the embedded data set, as plain text with a small reader.

Every module holds one text `PROBLEMS`. A problem starts with a line `@ <slug> <difficulty>`; the lines after it are
the prompt; each line `? <expression>` is one test (the word `assert` is added); each line `-` opens a solution.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import collections_, grids, numeric, parsing, recursion_bits, sequences, text

MODULES = (text, numeric, sequences, collections_, grids, parsing, recursion_bits)


@dataclass(frozen=True)
class Problem:
    """One problem with its tests and its correct solutions, as written by hand."""

    problem_id: str
    difficulty: int
    prompt: str
    tests: tuple[str, ...]
    solutions: tuple[str, ...]


def parse_problem(block: str) -> Problem:
    """Read one problem from the text that follows its `@ `."""
    head, *sections = block.strip("\n").split("\n-\n")
    title, *lines = head.split("\n")
    slug, difficulty = title.split()
    prompt = " ".join(line.strip() for line in lines if not line.startswith("? "))
    tests = tuple("assert " + line[2:].strip() for line in lines if line.startswith("? "))
    return Problem(slug, int(difficulty), prompt, tests, tuple(section.strip("\n") for section in sections))


def load_problems() -> list[Problem]:
    """All problems in the order in which they are written."""
    problems = []
    for module in MODULES:
        blocks = ("\n" + module.PROBLEMS).split("\n@ ")
        if blocks[0].strip():
            raise ValueError(f"{module.__name__}: text before the first problem: {blocks[0][:60]!r}")
        problems.extend(parse_problem(block) for block in blocks[1:])
    return problems
