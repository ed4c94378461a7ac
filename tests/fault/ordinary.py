"""Code run as a user who owns nothing, by an interpreter that such a user may start."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import wmtp

NOBODY = 65534


def run_as_ordinary_user(code: str, files: Mapping[str, str]) -> Any:
    """What `code` prints, read as JSON. It finds `wmtp.sandbox` and `files` in its folder.

    Skips the test where this process is no root, or where there is no such interpreter.
    """
    if os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    python = next(filter(_usable_by_all, [getattr(sys, "_base_executable", ""), "/usr/bin/python3"]), None)
    if python is None:
        pytest.skip("no Python of version 3.11 or newer that an ordinary user may run")
    folder = Path(tempfile.mkdtemp(prefix="wmtp-ordinary-"))
    try:
        package = Path(wmtp.__file__).parent
        shutil.copytree(package / "sandbox", folder / "wmtp" / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
        for path in (package / "__init__.py", package / "errors.py"):
            shutil.copy(path, folder / "wmtp")
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [python, "-c", code], user=NOBODY, group=NOBODY, extra_groups=[], cwd=folder, env=environment,
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["uid"] == NOBODY
    return found


def _usable_by_all(python: str) -> bool:
    path = Path(python).resolve()
    if not python or not path.is_file() or not all(p.stat().st_mode & stat.S_IXOTH for p in (path, *path.parents)):
        return False
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True, check=False
    )
    return version.stdout.strip() == "True"
