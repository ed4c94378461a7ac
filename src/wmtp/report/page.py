"""The page: markup, style and script from `assets/`, and the runs as JSON inside it.

The page may load nothing and run nothing but its own style and script: its content security policy names their
hashes. Text from data files enters only as JSON whose `<`, `>` and `&` are escaped, and the script puts it on the page
with `textContent`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from wmtp.errors import UsageError
from wmtp.report.reading import read_runs
from wmtp.report.study import opened
from wmtp.storage import ObjectPath, Place, write_atomic

SCRIPTS = (
    "elements.js", "chart.js", "figures.js", "reliability.js", "spread.js", "study.js", "evaluations.js", "tokens.js",
    "facts.js", "page.js",
)  # fmt: skip


def default_place(folders: Sequence[Place]) -> Path:
    """`report.html`: in the run folder, or in the nearest folder that holds all of them.

    Raises:
        UsageError: one of them is not on a disk.
    """
    remote = [folder for folder in folders if isinstance(folder, ObjectPath)]
    if remote:
        raise UsageError(f"--out FILE is needed: {remote[0]} is not on this disk")
    return Path(os.path.commonpath([str(folder.absolute()) for folder in folders])) / "report.html"


def write_page(folders: Sequence[Place], out: Path, version: str) -> list[str]:
    """Write the page of these runs to `out`; the notes on what is missing, each with its run.

    Args:
        folders: of runs, or of studies.
        version: of wmtp; the page names it.

    Raises:
        UsageError: a folder that is neither; `out` cannot be a file.
        WmtpError: `out` cannot be written.
    """
    inside, studies = opened(folders)
    runs = read_runs(inside)
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file with --out, for example {out / 'report.html'}")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out} cannot be written: the folder {out.absolute().parent} does not exist; make it first")
    write_atomic(out, render(runs, version, studies))
    return [f"{run['label']}: {note}" for run in runs for note in run["notes"]]


def render(runs: Sequence[dict[str, Any]], version: str, studies: Sequence[dict[str, Any]] = ()) -> str:
    """The HTML of runs as `read_runs` gives them, and of studies as `opened` does. The same runs give the same page."""
    style = _asset("style.css")
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(name) for name in SCRIPTS) + "})();\n"
    return Template(_asset("page.html")).substitute(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=embedded_json({"version": version, "runs": list(runs), "studies": list(studies)}),
    )


def embedded_json(data: Any) -> str:
    """JSON that can stand inside a `<script>` element: nothing in it can end the element or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    """As a content security policy writes it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files("wmtp.report") / "assets" / name).read_text(encoding="utf-8")
