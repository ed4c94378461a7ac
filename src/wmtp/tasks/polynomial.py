"""Arithmetic of polynomials in F_7[X]/(X^5). Gloeckle et al. 2024 (arXiv 2404.19737), section 4.2.

A polynomial is its five coefficients, the constant one first: `30012` is 3 + X^3 + 2X^4. A row is an expression in
brackets and its value:

    ((30012*11000)@(-05000))=36012

The operations are unary minus, `+`, `*` and composition `@`: `p@q` is p(q), the polynomial of degree below 5 that
stands for p taken at q and then reduced. (On classes modulo X^5 it is well defined only where q has no constant term.)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, cycle
from random import Random
from typing import Any
from zlib import crc32

from wmtp.data.records import Record
from wmtp.data.text import Row
from wmtp.tasks.base import Question, Role, word_level

P, N = 7, 5
"""Coefficients are taken modulo P, powers of X from N on are 0."""
OPERATIONS = "-+*@"
HELD_OUT = 8
"""One expression in so many is held out."""

Polynomial5 = tuple[int, ...]
"""Coefficients of 1, X, ..., X^4."""


def negative(p: Polynomial5) -> Polynomial5:
    """-p."""
    return tuple(-a % P for a in p)


def add(p: Polynomial5, q: Polynomial5) -> Polynomial5:
    """p + q."""
    return tuple((a + b) % P for a, b in zip(p, q, strict=True))


def multiply(p: Polynomial5, q: Polynomial5) -> Polynomial5:
    """p * q modulo X^5."""
    return tuple(sum(p[i] * q[power - i] for i in range(power + 1)) % P for power in range(N))


def compose(p: Polynomial5, q: Polynomial5) -> Polynomial5:
    """p(q) modulo X^5, by Horner's rule."""
    value: Polynomial5 = (0,) * N
    for a in reversed(p):
        product = multiply(value, q)
        value = ((product[0] + a) % P, *product[1:])
    return value


BINARY = {"+": add, "*": multiply, "@": compose}


def written(p: Polynomial5) -> str:
    """Its coefficients, the constant one first."""
    return "".join(map(str, p))


def expression(random: Random, operations: int) -> tuple[str, Polynomial5]:
    """An expression with so many operations, drawn evenly as the coefficients are, and its value.

    The operations that the first one leaves are shared out evenly at random among its operands.
    """
    if not operations:
        p = tuple(random.randrange(P) for _ in range(N))
        return written(p), p
    operation = random.choice(OPERATIONS)
    if operation == "-":
        text, p = expression(random, operations - 1)
        return f"(-{text})", negative(p)
    of_left = random.randrange(operations)
    left, p = expression(random, of_left)
    right, q = expression(random, operations - 1 - of_left)
    return f"({left}{operation}{right})", BINARY[operation](p, q)


class Polynomial:
    """Expressions and their values. Held out are all whose checksum says so, so that none is on both sides.

    Questions: the whole value and the end of the text, which greedy decoding gets right if and only if each of its
    tokens is the first choice after those before it. Groups: `operations_M`; `in_domain` for as many operations as in
    training, `out_of_domain` for more.

    Args:
        seed: of all rows.
        operations: 1 to so many in training, evenly.
        more: held-out rows have 1 to `operations + more`, in turn.

    Raises:
        ValueError: fewer than one operation in training, or less than none beyond.
    """

    def __init__(self, *, seed: int = 0, operations: int = 5, more: int = 3) -> None:
        if operations < 1 or more < 0:
            raise ValueError(f"operations must be at least 1 and more at least 0, got {operations} and {more}")
        self.seed, self.operations, self.most = seed, operations, operations + more
        beyond = ("out_of_domain",) if more else ()
        self.groups = ("in_domain", *beyond, *(f"operations_{m}" for m in range(1, self.most + 1)))

    def tokenizer(self) -> Any:
        """A token for every character."""
        return word_level([*map(str, range(P)), *OPERATIONS, *"()="], characters=True)

    def records(self, role: Role) -> Iterator[Record]:
        """The expression up to its `=`, and its value; `difficulty` is the number of operations."""
        random, held_out = Random(f"{self.seed} {role}"), role == "validation"
        in_turn = cycle(range(1, self.most + 1)) if held_out else None
        for place in count():
            operations = random.randint(1, self.operations) if in_turn is None else next(in_turn)
            text, value = expression(random, operations)
            while (crc32(text.encode()) % HELD_OUT == 0) != held_out:
                text, value = expression(random, operations)
            yield Record(f"{role}-{place}", f"{text}=", written(value), difficulty=operations)

    def questions(self, row: Row) -> Iterator[Question]:
        """One, in two groups."""
        answer = range(row.response_start, len(row.tokens))
        yield Question("in_domain" if row.difficulty <= self.operations else "out_of_domain", answer)
        yield Question(f"operations_{row.difficulty}", answer)
