"""EvalPlus' tests (Liu et al. 2023, arXiv 2305.01210) as code: inputs, a reference solution, and a comparison.

Their files hold inputs and a solution whose outputs are the expected ones. Here both run in the process of the tests:
for each input the program is called, the reference is called, and the answers are compared by the rules of EvalPlus
0.3.1: equality; numbers within 1e-6 where the expected answer is of floats, or within the task's own tolerance; and the
exceptions for tasks with more than one right answer. JSON has no tuples, sets and complex numbers, so for some tasks of
MBPP+ the inputs are turned back into what the functions expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wmtp.data.records import BadRow
from wmtp.sandbox import FunctionTests

BASE_SECONDS, PLUS_SECONDS = 10.0, 60.0
"""CPU seconds for all inputs of a task together, the reference's own included."""
MEMORY_BYTES = 4 * 2**30
"""As EvalPlus allows."""

_AS_SETS = frozenset(
    {
        "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
        "intersection_array", "find_dissimilar", "Diff",
    }
)  # fmt: skip
"""MBPP tasks whose answer is a list in any order."""
_NOT_NONE = frozenset({"check_str", "text_match_three", "text_starta_endb"})
"""MBPP tasks whose answer may be anything but None, a match object say."""

_LARGE = frozenset({"combinations_colors"})
"""MBPP tasks with answers of many megabytes, more than is carried to the tests' process: judged in the program's own,
so that their verdicts are `weak`."""

_CODE = """
import copy as _copy, math as _math
inf, nan = float("inf"), float("nan")

def _floats(value):
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(item, float) for item in value)
    return isinstance(value, float)

def _near(got, wanted, tolerance):
    if isinstance(wanted, (list, tuple)):
        return isinstance(got, (list, tuple)) and len(got) == len(wanted) and all(
            _near(one, other, tolerance) for one, other in zip(got, wanted))
    if got == wanted:
        return True
    if not (abs(got) < inf and abs(wanted) < inf):
        return False
    return abs(got - wanted) <= tolerance + 1e-7 * abs(wanted)

def _same(got, wanted, tolerance):
    if got == wanted:
        return True
    if tolerance == 0 and _floats(wanted):
        tolerance = 1e-6
    return tolerance != 0 and type(got) == type(wanted) and _near(got, wanted, tolerance)

def _same_task(given, got, wanted, tolerance):
    return _same(got, wanted, tolerance)
"""
_SPECIAL = {
    "set": "return set(got) == set(wanted)",
    "not none": "return (got if isinstance(got, bool) else got is not None) == (wanted is not None)",
    "find_zero": "return abs(sum(c * _math.pow(got, i) for i, c in enumerate(given[0]))) <= tolerance",
    "are_equivalent": "return True",
    "sum_div": "return _same(got, wanted, tolerance) or got == 0",
    "surface_Area": (
        "b, h = given\n"
        "    other = round(b * b + 2 * b * _math.sqrt((b / 2) ** 2 + h * h))\n"
        "    return _same(got, wanted, tolerance) or abs(got - other) <= tolerance"
    ),
    "digit_distance_nums": (
        "one, two = (str(number) for number in given)\n"
        "    width = max(len(one), len(two))\n"
        "    pairs = zip(one.zfill(width), two.zfill(width))\n"
        "    return _same(got, wanted, tolerance) or got == sum(abs(int(a) - int(b)) for a, b in pairs)"
    ),
}
"""Tasks with a comparison of their own: 32 of HumanEval; 164, 295, 581 and 558 of MBPP; and the two groups above."""


def plus_suites(row: Mapping[str, Any], *, human: bool) -> Iterator[tuple[str, FunctionTests, float]]:
    """Name, tests and CPU seconds of both of a row's suites: `base` inputs, then `plus`, the added ones.

    Raises:
        BadRow: a field is not what EvalPlus' files have.
    """
    task = int(str(row["task_id"]).rpartition("/")[2])
    restore = _keep if human else _RESTORE.get(task, _keep)
    reference, entry = row["prompt"] + row["canonical_solution"], row["entry_point"]
    tolerance = row.get("atol") or 0
    special = _SPECIAL.get(_special(entry, human), "")
    same = f"\ndef _same_task(given, got, wanted, tolerance):\n    {special}\n" if special else ""
    for name, seconds in (("base", BASE_SECONDS), ("plus", PLUS_SECONDS)):
        inputs = row[f"{name}_input"] or []  # one row of MBPP+ has {} there
        if not isinstance(inputs, list) or not all(isinstance(given, list) for given in inputs):
            raise BadRow(f"field '{name}_input' must be a list of lists of arguments, got {inputs!r:.60}")
        if not inputs:
            continue
        code = _text(reference, entry, [restore(given) for given in inputs], tolerance, same)
        large = not human and entry in _LARGE
        yield name, FunctionTests([code], entry_point=entry, in_process=large), seconds


def _text(reference: str, entry: str, inputs: list[Any], tolerance: float, same: str) -> str:
    return f"""{_CODE}{same}
_space = {{"__name__": "reference"}}
exec({reference!r}, _space)
_reference = _space[{entry!r}]
_inputs = {inputs!r}

def check(candidate):
    for _number, _given in enumerate(_inputs, 1):
        _wanted = _reference(*_copy.deepcopy(_given))
        _got = candidate(*_copy.deepcopy(_given))
        assert _same_task(_given, _got, _wanted, {tolerance!r}), (
            f"input {{_number}}: got {{_got!r:.80}}, expected {{_wanted!r:.80}}")
"""


def _special(entry: str, human: bool) -> str:
    if human:
        return entry if entry == "find_zero" else ""
    if entry in _AS_SETS:
        return "set"
    return "not none" if entry in _NOT_NONE else entry if entry != "find_zero" else ""


# --- Inputs that went through JSON ------------------------------------------------------------------------------------

Restore = Callable[[list[Any]], Any]


def _keep(given: list[Any]) -> Any:
    return given


def _each(given: list[Any]) -> Any:
    """Every argument is a tuple."""
    return [tuple(argument) for argument in given]


def _inside(given: list[Any]) -> Any:
    """Every argument is a list of tuples."""
    return [[tuple(item) for item in argument] for argument in given]


def _nested(given: list[Any]) -> Any:
    """Every argument is a tuple of tuples."""
    return [tuple(tuple(item) for item in argument) for argument in given]


def _first_inside(given: list[Any]) -> Any:
    """The first argument is a list of tuples."""
    return [[tuple(item) for item in given[0]], *given[1:]]


def _first(given: list[Any]) -> Any:
    """The first argument is a tuple."""
    return [tuple(given[0]), *given[1:]]


def _second(given: list[Any]) -> Any:
    """The second argument is a tuple."""
    return [given[0], tuple(given[1])]


def _deep(value: Any) -> Any:
    """Every list is a tuple, at all levels."""
    return tuple(_deep(item) for item in value) if isinstance(value, list) else value


_EACH = (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809)
_RESTORE: dict[int, Restore] = {
    task: restore
    for restore, tasks in (
        (_each, _EACH),
        (_inside, (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
        (_nested, (259, 401, 445)),
        (_first_inside, (75, 413, 444, 753)),
        (_first, (250, 307, 405, 446, 617, 720, 763, 808)),
        (_second, (106, 750)),
        (_deep, (580, 615, 791)),
        (lambda given: [[set(item) if isinstance(item, list) and item else {} for item in given[0]]], (115,)),
        (lambda given: [float(given[0]), complex(given[1])], (124,)),
        (lambda given: [complex(given[0])], (252,)),
        (lambda given: [tuple(tuple(item) if isinstance(item, list) else item for item in given[0])], (278,)),
        (lambda given: [{key: tuple(value) for key, value in given[0].items()}, *given[1:]], (722,)),
    )
    for task in tasks
}
"""By MBPP's task id; what is not here needs nothing."""
