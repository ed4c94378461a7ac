"""The hostile programs of `attacks.txt`, and hostile tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ANSWER = 918273645
"""The expected answer: in no program, and in no process that a program is forked from."""
_USUAL = f"assert f(1) == {ANSWER}"
_FAILED = frozenset({"wrong", "error", "forbidden"})


@dataclass(frozen=True)
class Attack:
    """One hostile program, which passes its test only if the attack succeeds.

    Below `from_level` it is not run, and `promise`, the word for what it breaks, is none of the level's promises.
    `@NAME@` in the source stands for something outside.
    """

    name: str
    source: str
    statuses: frozenset[str]
    from_level: int = 0
    promise: str | None = None
    test: str = _USUAL
    script: bool = False


def _pieces(text: str) -> dict[str, str]:
    return {name: body for name, _, body in (piece.partition("\n") for piece in text.split("%% ")[1:])}


def _attacks(section: str, pieces: dict[str, str]) -> tuple[str, list[Attack]]:
    name, _, body = section.partition("\n")
    blocks = re.split(r"^--- ", body, flags=re.MULTILINE)[1:]
    return name, [_attack(name, block, pieces) for block in blocks]


def _attack(section: str, block: str, pieces: dict[str, str]) -> Attack:
    title, *lines = block.rstrip().split("\n")
    name, _, words = title.rpartition(": ")
    options = {}
    while found := re.fullmatch(r"(test|level): (.*)|(script)", lines[0]):
        options[found[1] or found[3]] = found[2] or ""
        del lines[0]
    body = "\n".join(pieces[line[8:]] if line.startswith("include ") else line for line in lines)
    if section in ("forgeries", "uses"):
        test = options.get("test", _USUAL).replace("; ", "\n")
        return Attack(name, body, frozenset(words.split()), test=test, script="script" in options)
    if section == "system calls":
        source = f"{pieces['call']}def f(x): return {ANSWER} if {body} >= 0 else 0"
    else:
        indented = body.replace("\n", "\n    ")
        source = (
            "import ctypes, os, socket, sys\n"
            f"def f(x):\n    done = False\n    {indented}\n    return {ANSWER} if done else 0"
        )
    return Attack(name, source, _FAILED, int(options.get("level", 1)), words)


_head, *_sections = re.split(r"^@@", Path(__file__).with_suffix(".txt").read_text("utf-8"), flags=re.MULTILINE)
PIECES = _pieces(_head)
"""Program text that attacks share, by name."""
_ALL = dict(_attacks(section, PIECES) for section in _sections)
FORGERIES, USES, PROCESSES, SYSTEM_CALLS = (_ALL[name] for name in ("forgeries", "uses", "processes", "system calls"))
REACHING = _ALL["files"] + _ALL["network"] + PROCESSES
ATTACKS = FORGERIES + USES + REACHING + SYSTEM_CALLS

UNTRUSTED_TESTS = {
    "tests that exit with success decide nothing": "import os\nos._exit(0)",
    "tests that never end are a timeout": "while True: pass",
    "tests that fork are stopped": "import os\nif os.fork(): f(1)",
    "tests that write files are stopped": "f(1)\nopen('@DIR@/new', 'w')",
    "tests that open sockets are stopped": "import socket\nf(1)\nsocket.socket()",
    "tests that signal others are stopped": "import os\nf(1)\nos.kill(os.getppid(), 9)",
    "tests that read secrets are stopped": "f(1)\nopen('@FILE@')",
    "tests that take all memory are stopped": "f(1)\nx = bytearray(2**40)",
    "tests that do not compile decide nothing": "assert f(1) ==",
    "tests that never call the program decide nothing": "assert True",
}
"""Tests come from data sets and are as little trusted as programs; none of these may pass."""
