"""Whether an answer is the expected one. Both sides are builtins that were built in this process."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_FLOAT = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([e][+-]?[0-9]{1,4})?")
_NUMBERS = (bool, int, float, complex)


def agree(got: Any, expected: Any, relative: float, absolute: float, tuples_are_lists: bool) -> bool:
    """Equality through all levels, numbers of which one is a float within a tolerance; nan agrees with nan."""
    if tuples_are_lists:
        got, expected = (list(one) if type(one) is tuple else one for one in (got, expected))
    if type(got) in _NUMBERS and type(expected) in _NUMBERS:
        return _close(got, expected, relative, absolute)
    if type(got) is type(expected) and type(got) in (list, tuple):
        return len(got) == len(expected) and all(
            agree(one, other, relative, absolute, tuples_are_lists) for one, other in zip(got, expected, strict=True)
        )
    if isinstance(got, Mapping) and isinstance(expected, Mapping):
        return got.keys() == expected.keys() and all(
            agree(item, expected[key], relative, absolute, tuples_are_lists) for key, item in got.items()
        )
    return bool(got == expected)


def _close(got: Any, expected: Any, relative: float, absolute: float) -> bool:
    if got == expected:
        return True
    if complex in (type(got), type(expected)):
        parts = ((got.real, expected.real), (got.imag, expected.imag))
        return all(_close(float(one), float(other), relative, absolute) for one, other in parts)
    if float not in (type(got), type(expected)):
        return False
    if got != got and expected != expected:  # the one number that is not itself
        return True
    try:
        return math.isclose(got, expected, rel_tol=relative, abs_tol=absolute)
    except OverflowError:  # an integer that no float can be close to
        return False


def same_words(output: str, expected: str, tolerance: float) -> bool:
    """Whether two outputs have the same words, but for case and for the last digits of decimal numbers.

    Whole numbers must be equal digit for digit: taking them for floats, as some judges do, makes 2**53 and 2**53 + 1
    the same.
    """
    words, wanted = output.lower().split(), expected.lower().split()
    return len(words) == len(wanted) and all(
        word == other or _same_number(word, other, tolerance) for word, other in zip(words, wanted, strict=True)
    )


def _same_number(word: str, other: str, tolerance: float) -> bool:
    if _INTEGER.fullmatch(word) and _INTEGER.fullmatch(other):
        return int(word) == int(other)
    if _FLOAT.fullmatch(word) and _FLOAT.fullmatch(other):
        return math.isclose(float(word), float(other), rel_tol=tolerance, abs_tol=tolerance)
    return False
