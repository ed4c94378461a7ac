"""`RUN/eval/*.json`, told apart by what they say of themselves. What is not recognised is named, not shown."""

from __future__ import annotations

import json
from typing import Any

from wmtp.report.journal import is_number, rounded
from wmtp.storage import Place, matches
from wmtp.wording import counted

SUITES = ("heads", "perplexity", "speed", "tokens")

MAX_TOKEN_BYTES = 120_000
"""Of one run's token view in the page; problems beyond it are left out, with a note."""


def read_evaluations(folder: Place) -> tuple[dict[str, Any], list[str]]:
    """`{"benchmarks": [...], "heads": {...}, ...}` with only what is there, and notes on what could not be read."""
    found: dict[str, Any] = {"benchmarks": []}
    notes: list[str] = []
    for path in matches(folder, "*.json"):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as problem:
            notes.append(f"eval/{path.name} could not be read: {problem}")
            continue
        suite = result.get("suite") if isinstance(result, dict) else None
        if isinstance(result, dict) and "benchmark" in result and _has_rows(result, "results", "pass_at_k"):
            found["benchmarks"].append(_benchmark(result))
        elif suite in SUITES and _whole(suite, result):
            found[suite] = rounded_tree({k: v for k, v in result.items() if k not in ("model", "template")})
        else:
            notes.append(f"eval/{path.name} is no evaluation that this version knows; it is not shown")
    if "tokens" in found:
        notes += _shorten(found["tokens"])
    return found, notes


def _whole(suite: str, result: dict[str, Any]) -> bool:
    if suite == "perplexity":
        return isinstance(result.get("perplexity"), dict) and is_number(result["perplexity"].get("mean"))
    name, needed = {"heads": ("heads", "by_class"), "speed": ("rows", "batch"), "tokens": ("problems", "variants")}[
        suite
    ]
    return _has_rows(result, name, needed)


def _has_rows(result: dict[str, Any], name: str, needed: str) -> bool:
    rows = result.get(name)
    return isinstance(rows, list) and all(isinstance(row, dict) and needed in row for row in rows)


def _benchmark(result: dict[str, Any]) -> dict[str, Any]:
    kept = {name: result.get(name) for name in ("benchmark", "split", "problems", "ask", "results")}
    isolation = result.get("isolation")
    kept["isolation"] = isolation.get("level") if isinstance(isolation, dict) else None
    return dict(rounded_tree(kept))


def _shorten(tokens: dict[str, Any]) -> list[str]:
    """Leave out problems, the last ones first, until the token view fits."""
    problems, kept, size = tokens["problems"], 0, 0
    for problem in problems:
        size += len(json.dumps(problem, separators=(",", ":")))
        if size > MAX_TOKEN_BYTES:
            break
        kept += 1
    tokens["problems"] = problems[:kept]
    left = len(problems) - kept
    return (
        [f"eval/tokens.json: {left:,} of {counted(len(problems), 'problem')} left out: too long for a page"]
        if left
        else []
    )


def rounded_tree(value: Any) -> Any:
    """Every figure in it to six significant digits; what is not finite becomes None."""
    if isinstance(value, dict):
        return {name: rounded_tree(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded_tree(part) for part in value]
    return rounded(value) if isinstance(value, float) else value
