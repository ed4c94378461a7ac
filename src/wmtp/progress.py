"""One line that says how far something is, on stderr. Needs no torch, for commands that need none."""

from __future__ import annotations

import os
import time

from rich.console import Console
from rich.markup import escape
from rich.status import Status


def is_live(console: Console) -> bool:
    """Whether somebody looks at a terminal that can be drawn over: not a log, not a dumb terminal, not CI."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


class Latest:
    """The last line of what goes on: in place on a terminal, now and then in a log."""

    def __init__(self, *, quiet: bool = False, every_s: float = 30.0) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._status = Status("", console=self.console) if is_live(self.console) else None
        self._every_s, self._next = every_s, 0.0

    def __enter__(self) -> Latest:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, text: str) -> None:
        if self._status is not None:
            self._status.update(escape(text))
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
