"""Benchmark files -> problems: a prompt, the tests that decide, and what a right answer looks like.

The kind of a file is told from its rows. Prompts are those of the papers, so that figures can be compared with theirs:
HumanEval (Chen et al. 2021, arXiv 2107.03374) and HumanEval+ / MBPP+ (Liu et al. 2023, arXiv 2305.01210) give the
text to be continued; MBPP (Austin et al. 2021, arXiv 2108.07732) shows three solved tasks first; CodeContests (Li et
al. 2022, arXiv 2203.07814) gives the statement as a docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wmtp.data import contests
from wmtp.data.containers import rows
from wmtp.data.kinds import FIELDS, MBPP_SPLITS, is_humaneval, mbpp_split, read_row
from wmtp.data.records import BadRow, Record, parse
from wmtp.errors import DataError
from wmtp.evaluation.plus_tests import MEMORY_BYTES, plus_suites
from wmtp.record_tests import limits_of, tests_of
from wmtp.sandbox import FunctionTests, Limits, StdinTests, Tests
from wmtp.storage import Place

COMMON_STOP = ("<|endoftext|>", "</s>")
HUMANEVAL_STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", *COMMON_STOP)
"""Chen et al. 2021, section 3.3."""
PLUS_STOP = ('\n"""', "\nassert ", "\nif __name__", "\ndef main(", "\nprint(", *COMMON_STOP)
MBPP_EXAMPLES = (2, 3, 4)
"""Task ids that the paper puts before a task."""
NO_ANSWER = "pass"
"""The response in the record of a problem that has none."""
MBPP_SECONDS = {123: 30.0}
"""CPU seconds of tasks whose own solution is slow."""

_Numbered = tuple[int, dict[str, Any]]
"""A row with its line."""


@dataclass(frozen=True)
class Suite:
    """Tests with a name. A program passes a suite if it passes this one and all before it."""

    name: str
    tests: Tests
    limits: Limits | None = None
    """None: the sandbox's own."""


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark."""

    id: str
    """As the benchmark names it."""
    prompt: str
    """What a base model is given."""
    record: Record
    """The same problem as a training record, for a model that is to be asked as it was trained."""
    suites: tuple[Suite, ...]
    prefix: str = ""
    """What stands before an answer in the program; empty where an answer is a whole program."""
    stop: tuple[str, ...] = COMMON_STOP
    """An answer ends before the first of these."""
    reference: str | None = None
    """An answer that passes."""

    def program(self, answer: str) -> str:
        """The program that an answer makes."""
        return self.prefix + answer


@dataclass(frozen=True)
class Benchmark:
    """A file of problems."""

    name: str
    """Of its results: its kind, one of `KINDS`, unless it was given another."""
    path: str
    problems: tuple[Problem, ...]
    split: str | None = None


def read_benchmark(path: Place, kind: str | None = None, split: str | None = None) -> Benchmark:
    """The problems of a file, in any container that `wmtp.data.containers` reads, in its order.

    Args:
        kind: what the file must be, one of `KINDS`; None takes what its rows say.
        split: of MBPP, which has official ones: `test` (the default), `validation`, `train`, `prompt` or `all`.

    Raises:
        DataError: the file cannot be read, is of another or of more than one kind, has a bad row, or a problem twice.
    """
    name, found = "", list[_Numbered]()
    for line, decode in rows(path):
        try:
            row = decode()
            other, name = name, _kind_of(row)
            if found and name != other:
                raise BadRow(f"this is a row of {name}, the rows before it are of {other}; expected one kind a file")
        except BadRow as problem:
            raise DataError(f"{path}:{line}: {problem}") from problem
        found.append((line, row))
    if not found:
        raise DataError(f"{path} has no rows; expected one JSON object a line")
    if kind is not None and kind != name:
        raise DataError(f"{path} holds {name} problems, {kind} was asked for: give --benchmark {name}, or other --data")
    if split is not None and name != "mbpp":
        raise DataError(f"{path} holds {name} problems, which have no official splits; leave the split out")
    made = list(_problems(path, name, found, split or "test"))
    if not made:
        splits = sorted({mbpp_split(row["task_id"]) for _, row in found})
        raise DataError(
            f"{path} has no problem of the split {split or 'test'!r}; set --split to {' or '.join(splits)}, or to all"
        )
    if name == "records":
        made = _one_each(made)
    _check_ids(path, made)
    return Benchmark(name, str(path), tuple(made), (split or "test") if name == "mbpp" else None)


def _problems(path: Place, name: str, found: Sequence[_Numbered], split: str) -> Iterator[Problem]:
    make = _mbpp_maker([row for _, row in found], split) if name == "mbpp" else _MAKERS[name]
    for line, row in found:
        try:
            problem = make(row)
        except (BadRow, DataError) as error:
            raise DataError(f"{path}:{line}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}:{line}: expected a row of {name} as its authors publish it: {text}") from error
        if problem is not None:
            yield problem


def _one_each(problems: Iterable[Problem]) -> list[Problem]:
    """Records have one row per solution: one problem for all of them, with the first correct one as reference."""
    first: dict[str, Problem] = {}
    for problem in problems:
        known = first.setdefault(problem.id, problem)
        if known.reference is None and problem.reference is not None:
            first[problem.id] = replace(known, reference=problem.reference)
    return list(first.values())


def _check_ids(path: Place, problems: Iterable[Problem]) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"{path}: the problem {problem.id!r} is there twice; keep one of its rows")
        seen.add(problem.id)


def _kind_of(row: Any) -> str:
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, got {row!r:.60}")
    for name in ("plus", "humaneval", "mbpp", "codecontests"):
        if FIELDS[name] <= set(row):
            return name if name != "plus" else f"{'humaneval' if is_humaneval(row) else 'mbpp'}_plus"
    if "prompt" in row and ("tests" in row or "cases" in row):
        return "records"
    raise BadRow(
        f"a row with the fields {', '.join(sorted(row)[:12])} is of no known benchmark; records of your own need "
        "problem_id, prompt and tests (or cases)"
    )


def _humaneval(row: Mapping[str, Any]) -> Problem:
    prompt, entry = _text(row, "prompt"), _text(row, "entry_point")
    solution = _text(row, "canonical_solution")
    tests = FunctionTests([_text(row, "test")], setup=prompt, entry_point=entry)
    return Problem(
        id=_text(row, "task_id"),
        prompt=prompt,
        record=Record(_text(row, "task_id"), prompt, solution),
        suites=(Suite("base", tests),),
        prefix=prompt,
        stop=HUMANEVAL_STOP,
        reference=solution,
    )


def _plus(row: Mapping[str, Any]) -> Problem:
    """Both of EvalPlus' benchmarks: they carry inputs and a solution, whose outputs are the expected ones."""
    prompt, name = _text(row, "prompt"), _text(row, "task_id")
    human = is_humaneval(row)
    suites = tuple(
        Suite(which, tests, Limits(cpu_s=seconds, memory_bytes=MEMORY_BYTES))
        for which, tests, seconds in plus_suites(row, human=human)
    )
    given, solution = prompt if human else prompt.strip() + "\n", _text(row, "canonical_solution")
    return Problem(
        id=name,
        prompt=given,
        record=Record(name, given, solution),
        suites=suites,
        prefix=given,
        stop=HUMANEVAL_STOP if human else PLUS_STOP,
        reference=solution,
    )


def _mbpp_maker(found: Sequence[dict[str, Any]], split: str) -> Callable[[Mapping[str, Any]], Problem | None]:
    """The paper's prompt: three solved tasks (as many of them as the file has), then this one."""
    if split != "all" and split not in MBPP_SPLITS:
        raise DataError(f"the split of MBPP must be one of {', '.join(MBPP_SPLITS)} and all, got {split!r}")
    examples = [row for row in found if row["task_id"] in MBPP_EXAMPLES]

    def make(row: Mapping[str, Any]) -> Problem | None:
        if split not in ("all", mbpp_split(row["task_id"])):
            return None
        [record] = read_row(dict(row)).records
        shots = "".join(
            f"{_mbpp_task(example)}[BEGIN]\n{_lines(example['code'])}\n[DONE]\n\n"
            for example in examples
            if example["task_id"] != row["task_id"]
        )
        setup = list(record.tests[: len(record.tests) - len(row["test_list"])])
        tests = FunctionTests(row["test_list"], setup="\n".join(setup))
        seconds = MBPP_SECONDS.get(row["task_id"])
        return Problem(
            id=f"MBPP/{row['task_id']}",
            prompt=f"{shots}{_mbpp_task(row)}[BEGIN]\n",
            record=record,
            suites=(Suite("base", tests, None if seconds is None else Limits(cpu_s=seconds)),),
            stop=("[DONE]", *COMMON_STOP),
            reference=record.response,
        )

    return make


def _mbpp_task(row: Mapping[str, Any]) -> str:
    text, tests = row.get("text") or row["prompt"], "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
        f"{tests}\n"
    )


def _lines(code: str) -> str:
    return code.replace("\r\n", "\n").replace("\r", "\n").strip("\n")


def _codecontests(row: Mapping[str, Any]) -> Problem:
    description = _text(row, "description").strip()
    references = (program for language, program in contests.solutions(row, "solutions") if language == "PYTHON3")
    name, reference = _text(row, "name"), next(references, None)
    return Problem(
        id=name,
        prompt=f'"""\n{description}\n"""\n',
        record=Record(name, description, reference or NO_ANSWER),
        suites=(Suite("base", StdinTests(contests.cases(row)), _contest_limits(row)),),
        stop=('\n"""', *COMMON_STOP),
        reference=reference,
    )


def _contest_limits(row: Mapping[str, Any]) -> Limits:
    """The contest's own limits, where the row has them."""
    seconds = contests.time_limit_s(row)
    limits = Limits(cpu_s=seconds) if seconds > 0 else Limits()
    memory = row.get("memory_limit_bytes") or 0
    return replace(limits, memory_bytes=int(memory)) if memory > 0 else limits


def _records_problem(row: Mapping[str, Any]) -> Problem:
    record = _record(row)
    tests = tests_of(record)
    if tests is None:
        raise BadRow("a problem needs tests (Python statements) or cases (inputs and outputs)")
    limits = limits_of(record, Limits()) if record.time_limit_s else None
    return Problem(
        id=record.problem_id,
        prompt=f"{record.prompt}\n",
        record=record,
        suites=(Suite("base", tests, limits),),
        reference=record.response if record.is_correct else None,
    )


def _record(row: Mapping[str, Any]) -> Record:
    """A record; one without a response is a problem still."""
    return parse({"response": NO_ANSWER, "is_correct": False, **row})


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} must be a string, got {value!r:.60}")
    return value


_MAKERS: dict[str, Callable[[Mapping[str, Any]], Problem]] = {
    "humaneval": _humaneval,
    "humaneval_plus": _plus,
    "mbpp_plus": _plus,
    "codecontests": _codecontests,
    "records": _records_problem,
}

KINDS = ("mbpp", *_MAKERS)
