"""How good a model is: pass@k by running what it writes, what its heads know, how fast it decodes.

The names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmtp.evaluation.passk import pass_at_k
    from wmtp.evaluation.problems import read_benchmark
    from wmtp.evaluation.run import evaluate
    from wmtp.sandbox import run_program
    from wmtp.statistics import bootstrap

_HOME = {
    "bootstrap": "wmtp.statistics",
    "evaluate": "wmtp.evaluation.run",
    "pass_at_k": "wmtp.evaluation.passk",
    "read_benchmark": "wmtp.evaluation.problems",
    "run_program": "wmtp.sandbox",
}

__all__ = ["bootstrap", "evaluate", "pass_at_k", "read_benchmark", "run_program"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'wmtp.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
