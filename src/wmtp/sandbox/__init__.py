"""Running generated code and judging what it does. Nothing that is imported here needs torch."""

from wmtp.sandbox.running import Sandbox, run_program
from wmtp.sandbox.verdict import (
    CallTests,
    FunctionTests,
    Isolation,
    Job,
    Limits,
    Requirement,
    SandboxError,
    StdinTests,
    Tests,
    Verdict,
)

__all__ = [
    "CallTests",
    "FunctionTests",
    "Isolation",
    "Job",
    "Limits",
    "Requirement",
    "Sandbox",
    "SandboxError",
    "StdinTests",
    "Tests",
    "Verdict",
    "run_program",
]
