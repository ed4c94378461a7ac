"""Forks a process for each program that it is given, with everything imported that a training needs.

A line of JSON on stdin is answered with one on stdout. `{"program", "arguments", "environment", "log"}`: the id of the
process that was forked for it; a program is the path of a file. `{"poll": ID}`: how that process ended, null while it
runs. What still runs at the end of stdin is killed. The only user is `forked.py`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from wmtp import faults

NEEDED = (
    "wmtp.cli",
    "wmtp.terminal",
    "wmtp.trainer",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "torch._dynamo",  # by itself the first optimiser of a process would import it
)


def ended(pid: int) -> int | None:
    """Exit code, or minus the signal; None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def serve() -> dict[str, Any] | None:
    """Answers requests until there are no more. Returns a request in the process that is forked for it."""
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = ended(request["poll"])
            running -= set() if answer is None else {request["poll"]}
        else:
            answer = os.fork()
            if not answer:
                return request
            running.add(answer)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return None


def run(request: dict[str, Any]) -> None:
    """The program, as if `python PROGRAM ARGUMENTS` had just been typed."""
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, file in enumerate((nothing, log, log)):
        os.dup2(file, number)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    faults._unread = os.environ.get(faults.VARIABLE, "")
    sys.argv = [request["program"], *request["arguments"]]
    sys.path.insert(0, str(Path(request["program"]).parent))
    runpy.run_path(request["program"], run_name="__main__")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in NEEDED:
        importlib.import_module(name)
    gc.freeze()  # else each process would copy what its first collection looks at
    mine = serve()
    if mine is not None:
        run(mine)
