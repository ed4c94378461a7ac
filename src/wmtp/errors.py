"""Every error a user can meet, in one hierarchy.

A message says what was got, what was expected and how to mend it. `exit_code` is what the command line
returns: 1 for a failure while working, 2 for wrong usage, configuration or input. Whatever is not a
`WmtpError` is a defect of this package.
"""

from __future__ import annotations

import re


class WmtpError(Exception):
    """The work failed (exit code 1)."""

    exit_code = 1


class UsageError(WmtpError):
    """The command, its configuration or its input is wrong (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or override is wrong."""


class DataError(UsageError):
    """A data file or a row in it is wrong."""


class ModelError(UsageError):
    """A model, tokenizer or checkpoint is not what the run needs."""


class LockedError(UsageError):
    """Another process holds what only one may hold."""


class StorageError(WmtpError):
    """An object store does not do what was asked (exit code 1), or its settings are wrong (exit code 2)."""

    def __init__(self, message: str, *, settings: bool = False) -> None:
        super().__init__(message)
        self.exit_code = 2 if settings else 1


class CheckpointError(WmtpError):
    """A checkpoint could not be written or none could be read."""


class TrackingError(WmtpError):
    """A store of runs did not do what it was asked to, or not in time."""


class NonFiniteError(WmtpError):
    """Training met too many non-finite gradients in a row."""


class SchemeError(WmtpError):
    """A weighting scheme of the user's own breaks what a scheme promises, or raises."""


class OutOfMemory(WmtpError):
    """The machine or the device has no memory for an allocation."""


class DeviceError(WmtpError):
    """The device lacks an operation or a data type that the work needs."""


def first_line(problem: BaseException) -> str:
    """What an error of another library says, on one line, for a message of ours.

    Of an operating system's error what is wrong and with which file; of several that pydantic found the first, with its
    field; else the first line, with the next one where it only announces it.
    """
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror if problem.filename is None else f"{problem.strerror}: {problem.filename}"
    lines = [line.strip() for line in str(problem).strip().splitlines()] or [type(problem).__name__]
    if re.fullmatch(r"[0-9]+ validation errors? for .+", lines[0]):
        found = lines[1:2] if " [type=" in lines[1] else lines[1:3]
        return re.sub(r"(^|: )Value error, ", r"\1", ": ".join(found).partition(" [type=")[0])
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def out_of_memory(problem: BaseException) -> OutOfMemory | None:
    """`problem` as an error of ours if an allocation failed: Python's, or torch's on any device. None if it is another.

    torch has a class for accelerators only; of a CPU's allocator there is just the text.
    """
    text = str(problem)
    if not (
        isinstance(problem, MemoryError)
        or type(problem).__name__ == "OutOfMemoryError"
        or (isinstance(problem, RuntimeError) and "DefaultCPUAllocator" in text)
    ):
        return None
    said = first_line(problem) if text.strip() else "an allocation failed"
    return OutOfMemory(
        f"out of memory: {said}\nIn training, lower train.micro_batch_size or train.micro_batch_tokens, not the batch, "
        "or set train.activation_checkpointing=true; `wmtp train ... --dry-run` says what a step needs. "
        "Checkpoints that were written are untouched: `--resume auto` goes on from the newest"
    )


def not_on_mps(problem: BaseException) -> DeviceError | None:
    """`problem` as an error of ours if it is torch's for what an Apple GPU lacks; None if it is another.

    torch says it with a `NotImplementedError` (operations) or a `TypeError` (float64) that names MPS.
    """
    text = str(problem)
    if not isinstance(problem, NotImplementedError | TypeError) or "MPS" not in text:
        return None
    said = text.strip().split(". ")[0]
    return DeviceError(
        f"the Apple GPU lacks something that this needs: {said}\nWith PYTORCH_ENABLE_MPS_FALLBACK=1 in the "
        "environment the CPU does operations that are missing, slower; device=cpu does all of it there"
    )


class Interrupted(WmtpError):
    """A signal stopped the run after its state was saved (exit code 128 + signal number)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
