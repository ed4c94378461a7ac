"""The data sets whose rows are known: which fields tell them, and how their rows become records.

A row that has `prompt` and `response` is a record of our own schema. Anything else is told by its fields, or mapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wmtp.data import contests
from wmtp.data.contests import text, unix_lines
from wmtp.data.records import BadRow, Record, parse

MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
"""Task ids of MBPP's official splits (Austin et al. 2021, arXiv 2108.07732)."""
SPLITS = {
    "mbpp": tuple(MBPP_SPLITS),
    "humaneval": ("test",),
    "humaneval_plus": ("test",),
    "mbpp_plus": ("test",),
}
"""Official splits; what has only `test` is for evaluation."""
FIELDS = {
    "plus": frozenset({"task_id", "prompt", "entry_point", "base_input", "plus_input"}),
    "humaneval": frozenset({"task_id", "prompt", "entry_point", "test"}),
    "mbpp": frozenset({"task_id", "code", "test_list"}),
    "codecontests": contests.FIELDS,
    "condefects": frozenset({"task", "faulty", "correct", "fault_location"}),
    "refactory": frozenset({"question", "label", "sub", "code"}),
    "alpaca": frozenset({"instruction", "output"}),
    "chat": frozenset({"messages"}),
}
"""The fields by which the rows of each data set are told, the most specific first."""
Problems = Mapping[str, Mapping[str, Any]]
"""Fields of records by problem id, where problems are in a file of their own."""
_OWN = frozenset({"prompt", "response"})
_REFACTORY_VERDICTS = {"correct": True, "reference": True, "wrong": False, "fail": False}


@dataclass(frozen=True)
class Found:
    """What one row gave."""

    records: tuple[Record, ...]
    data_set: str = ""
    """One of `SPLITS`, or empty where there are no official splits."""
    split: str | None = None
    """The official split."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """What of the row is no record, by reason."""


def read_row(row: Any, fields: Mapping[Any, str] | None = None, problems: Problems | None = None) -> Found:
    """The records of a decoded row.

    What was made from the records of a data set with official splits, by labelling or mutating, stays in its split;
    a field map does not take a row out of it.

    Args:
        fields: our field name -> the row's; the row's other fields are then ignored.
        problems: what completes records of their problem id.

    Raises:
        BadRow: what is wrong with it.
    """
    kind = kind_of(row)
    dropped: Counter[str] = Counter()
    if kind == "refactory" and problems is None and not fields:
        raise BadRow("Refactory's rows come without their assignments; name its tests.json as the file of problems")
    made = [_mapped(row, fields)] if fields else _MAKERS[kind](row, dropped) if kind else [row]
    records = tuple(parse(_completed(one, problems)) for one in made)
    if not kind:
        return Found(records, *official_split(records[0]), dropped)
    data_set = _plus(row) if kind == "plus" else kind
    if data_set not in SPLITS:
        return Found(records, dropped=dropped)
    return Found(records, data_set, mbpp_split(row["task_id"]) if data_set == "mbpp" else "test", dropped)


def official_split(record: Record) -> tuple[str, str | None]:
    """The data set with official splits that a record of our own schema comes from, and its split; or none.

    Raises:
        BadRow: it says to be of MBPP, and has no task id of it.
    """
    if record.source not in SPLITS:
        return "", None
    number = record.problem_id.removeprefix("mbpp/")
    if record.source != "mbpp":
        return record.source, "test"
    return ("mbpp", mbpp_split(int(number))) if number.isascii() and number.isdigit() else ("", None)


def kind_of(row: Any) -> str:
    """The name of the data set in `FIELDS`; empty for our own schema and what must be mapped to it."""
    if not isinstance(row, dict) or set(row) >= _OWN:
        return ""
    return next((name for name, fields in FIELDS.items() if fields <= set(row)), "")


def is_humaneval(row: Mapping[str, Any]) -> bool:
    """Which of EvalPlus' two benchmarks a row of the kind `plus` is of."""
    return str(row["task_id"]).startswith("HumanEval/")


def mbpp_split(task: Any) -> str:
    """The official split of a task id. Raises `BadRow`: no id of MBPP."""
    if isinstance(task, int) and not isinstance(task, bool):
        for name, (low, high) in MBPP_SPLITS.items():
            if low <= task <= high:
                return name
    raise BadRow(f"MBPP task_id must be an integer from 1 to 974, got {task!r:.60}")


def _mapped(row: Any, fields: Mapping[Any, str]) -> Any:
    if not isinstance(row, dict):
        return row
    missing = sorted(theirs for theirs in fields.values() if theirs not in row)
    if missing:
        have = ", ".join(sorted(row)[:12])
        raise BadRow(f"field {missing[0]!r} (from the field map) is missing; the row has {have}: map one of these")
    return {ours: row[theirs] for ours, theirs in fields.items()}


def _completed(made: Any, problems: Problems | None) -> Any:
    if problems is None or not isinstance(made, dict) or "problem_id" not in made:
        return made
    known = problems.get(str(made["problem_id"]))
    if known is None:
        raise BadRow(
            f"the problem {made['problem_id']!r:.60} is not in the file of problems; add it, or leave this out"
        )
    return {**made, **known}


# One row of a data set -> records


def _mbpp(row: dict[str, Any], dropped: Counter[str]) -> list[dict[str, Any]]:
    """MBPP's two published schemas: the full file (`text`, `test_setup_code`) and the sanitized one (`prompt`)."""
    task = row["task_id"]
    mbpp_split(task)
    imports = row.get("test_imports") or []
    if not isinstance(imports, list) or not all(isinstance(line, str) for line in imports):
        raise BadRow(f"field 'test_imports' must be a list of strings, got {imports!r:.60}")
    setup = row.get("test_setup_code") or "\n".join(imports)
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not isinstance(tests[0], str):
        raise BadRow(f"field 'test_list' must be a non-empty list of strings, got {tests!r:.60}")
    if "text" not in row and "prompt" not in row:
        raise BadRow("field 'text' (or 'prompt') is missing; a row of MBPP must have it")
    code = row["code"]
    return [
        {
            "problem_id": f"mbpp/{task}",
            "prompt": _mbpp_prompt(row.get("text") or row.get("prompt"), tests),
            "response": unix_lines(code) if isinstance(code, str) else code,
            "is_correct": True,
            "tests": [setup, *tests] if setup else tests,
            "source": "mbpp",
        }
    ]


def _mbpp_prompt(statement: Any, tests: list[str]) -> Any:
    """The statement and one test, which is where MBPP says what the function is called."""
    return f"{statement}\n{tests[0]}" if isinstance(statement, str) and statement.strip() else statement


def _humaneval(row: dict[str, Any], dropped: Counter[str]) -> list[dict[str, Any]]:
    """Chen et al. 2021. The response is a whole program: prompt and solution together."""
    record = _continued(row, "humaneval")
    return [record | {"tests": [text(row, "test"), f"check({text(row, 'entry_point')})"]}]


def _evalplus(row: dict[str, Any], dropped: Counter[str]) -> list[dict[str, Any]]:
    """EvalPlus' files have inputs and no tests in Python; `wmtp eval` makes tests of them."""
    return [_continued(row, _plus(row))]


def _continued(row: dict[str, Any], source: str) -> dict[str, Any]:
    prompt = text(row, "prompt")
    number = text(row, "task_id").rpartition("/")[2]
    return {
        "problem_id": f"{source}/{number}",
        "prompt": prompt,
        "response": prompt + text(row, "canonical_solution"),
        "is_correct": True,
        "source": source,
    }


def _plus(row: dict[str, Any]) -> str:
    return "humaneval_plus" if is_humaneval(row) else "mbpp_plus"


def _condefects(row: dict[str, Any], dropped: Counter[str]) -> list[dict[str, Any]]:
    """ConDefects (Wu et al. 2023): submissions before and after a fault was found. Statements are not in it."""
    difficulty = str(row.get("difficulty", ""))
    problem = {
        "problem_id": f"condefects/{text(row, 'task')}",
        "prompt": f"Solve AtCoder's task {text(row, 'task')}.",
        "difficulty": int(difficulty) if difficulty.isascii() and difficulty.isdigit() else 0,
        "source": "condefects",
    }
    about = {"submission": row.get("id"), "fault_line": row["fault_location"]}
    return [
        problem | {"response": unix_lines(text(row, name)), "is_correct": name == "correct", "about": about}
        for name in ("correct", "faulty")
    ]


def _refactory(row: dict[str, Any], dropped: Counter[str]) -> list[dict[str, Any]]:
    """Refactory (Hu et al. 2019): programs of students. Statements and tests are in a file of their own."""
    if row["label"] not in _REFACTORY_VERDICTS:
        raise BadRow(f"field 'label' must be one of {', '.join(_REFACTORY_VERDICTS)}, got {row['label']!r:.60}")
    return [
        {
            "problem_id": f"refactory/{row['question']}",
            "response": unix_lines(text(row, "code")),
            "is_correct": _REFACTORY_VERDICTS[row["label"]],
            "source": "refactory",
            "about": {"submission": row["sub"]},
        }
    ]


def _alpaca(row: dict[str, Any], dropped: Counter[str]) -> list[dict[str, Any]]:
    """Instruction data in the fields of Alpaca (Taori et al. 2023): the input follows the instruction."""
    given = text(row, "input") if row.get("input") else ""
    prompt = text(row, "instruction")
    return [{"prompt": f"{prompt}\n\n{given}" if given.strip() else prompt, "response": row["output"]}]


def _chat(row: dict[str, Any], dropped: Counter[str]) -> list[dict[str, Any]]:
    """A conversation: its last message is the response, what comes before is given."""
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(one, dict) for one in messages):
        raise BadRow(f"field 'messages' must be a list of two or more objects, got {messages!r:.60}")
    *before, last = messages
    if last.get("role") != "assistant":
        raise BadRow(f"the last message must be the assistant's, got one of {last.get('role')!r:.60}")
    prompt = "\n\n".join(str(one.get("content")) for one in before)
    return [{"prompt": prompt, "messages": before, "response": last.get("content")}]


_MAKERS: dict[str, Callable[[dict[str, Any], Counter[str]], Iterable[dict[str, Any]]]] = {
    "plus": _evalplus,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "codecontests": contests.records,
    "condefects": _condefects,
    "refactory": _refactory,
    "alpaca": _alpaca,
    "chat": _chat,
}
