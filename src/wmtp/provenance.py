"""Where a run came from: enough to repeat it, and nothing secret."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wmtp.errors import CheckpointError, first_line
from wmtp.redaction import HIDDEN, looks_secret, without_credentials
from wmtp.storage import Place

_PACKAGES = ("wmtp", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")


def collect(argv: list[str], **facts: Any) -> dict[str, Any]:
    """Versions, command, machine and git state, with the caller's own facts (fingerprints, seeds)."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": redact(argv),
        "folder": str(Path.cwd()),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "git": _git(),
        **facts,
    }


def read(path: Place) -> dict[str, Any]:
    """`provenance.json` of a run folder: its `run_id` and its `starts`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        facts: Any = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        said = first_line(problem)
        raise CheckpointError(f"{path} is damaged: {said}; move it away to go on without it") from problem
    if not isinstance(facts, dict) or not isinstance(facts.get("starts"), list) or not facts.get("run_id"):
        raise CheckpointError(f"{path} is damaged: run_id or starts are missing; move it away to go on without it")
    return facts


def redact(argv: list[str]) -> list[str]:
    """Arguments whose name looks secret keep their name and lose their value; so do passwords inside URLs."""
    out, hide_next = [], False
    for argument in argv:
        if hide_next:
            out.append(HIDDEN)
            hide_next = False
            continue
        name, separator, _ = argument.partition("=")
        if looks_secret(name) and (separator or argument.startswith("-")):
            out.append(f"{name}={HIDDEN}" if separator else argument)
            hide_next = not separator
        else:
            out.append(without_credentials(argument))
    return out


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit and cleanliness of the folder the command runs in; None outside a repository or without git."""
    try:
        commit = _run("git", "rev-parse", "HEAD")
        return {"commit": commit, "clean": not _run("git", "status", "--porcelain")}
    except (OSError, subprocess.SubprocessError):
        return None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
