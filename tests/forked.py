"""Processes that cost no imports: forked from one that has what a training needs (see `zygote.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

PATIENCE_S = 200
"""How long anything may take before a test gives up; no test is about time."""


class Forked:
    """One of them. What it prints is in `log`."""

    def __init__(self, ask: Callable[[dict[str, Any]], Any], pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self._ask, self._code = ask, None

    def poll(self) -> int | None:
        """Exit code, or minus the signal that ended it; None while it runs."""
        if self._code is None:
            self._code = self._ask({"poll": self.pid})
        return self._code

    def wait(self, limit_s: float = PATIENCE_S) -> int:
        """`poll` when it has ended."""
        deadline = time.monotonic() + limit_s
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)
        return code

    def said(self) -> str:
        """All that it printed, and what shares its log."""
        return self.log.read_text()


class Zygote:
    """Forks them.

    Args:
        folder: for their logs.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._count = process, folder, 0

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote is gone; what it said is on stderr"
        return json.loads(answer)

    def _new(self, kind: str) -> Path:
        self._count += 1
        return self._folder / f"{self._count}.{kind}"

    def start(
        self,
        program: str | Path,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> Forked:
        """Run a program, as `python -c TEXT` or `python FILE` would, with every warning an error.

        Args:
            environment: besides this process's own.
        """
        log = log or self._new("log")
        if isinstance(program, str):
            text, program = program, self._new("py")
            program.write_text(text)
        request = {"program": str(program), "arguments": [str(argument) for argument in arguments], "log": str(log)}
        pid = self._ask({**request, "environment": {**os.environ, **(environment or {})}})
        return Forked(self._ask, pid, log)

    def ranks(
        self,
        count: int,
        program: str | Path,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        limit_s: float = PATIENCE_S,
    ) -> tuple[list[int], str]:
        """Run a program as so many ranks on this host, in an environment as torchrun makes it, to their end.

        Returns:
            how each ended, and all that they printed
        """
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's, in its own process
        job = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
        log, each = self._new("log"), []
        for rank in range(count):
            own = {**(environment or {}), **job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            each.append(self.start(program, *arguments, environment=own, log=log))
        codes = [process.wait(limit_s) for process in each]
        return codes, log.read_text()


@contextmanager
def zygote(folder: Path) -> Iterator[Zygote]:
    """One that lives as long as the context."""
    command = [sys.executable, "-X", "dev", "-W", "error", str(Path(__file__).with_name("zygote.py"))]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment, pipe = {**os.environ, **threads, "PYTHONMALLOC": "malloc"}, subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        yield Zygote(process, folder)
