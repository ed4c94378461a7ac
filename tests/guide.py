"""The blocks of a page of the docs that say what they are, and what happens when they are followed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

BLOCK = re.compile(r"<!-- (file|run): (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Every marked block of a page: what it is, its name, its text."""
    return BLOCK.findall(page.read_text())


def follow(
    page: Path, command: Callable[..., tuple[int, str, str]], short: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Write every file of the page into the current folder and run every command, in their order.

    Args:
        short: subcommand -> what is put behind it, so that it takes less time.

    Returns:
        What the commands of each block said, by the block's name.
    """
    said: dict[str, str] = {}
    for kind, name, text in blocks(page):
        if kind == "file":
            Path(name).write_text(text)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "wmtp"
            code, out, error = command(*arguments, *short.get(arguments[0], ()))
            assert code == 0, error
            said[name] = said.get(name, "") + out
    return said
