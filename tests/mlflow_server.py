"""A real MLflow server for tests.

It needs the whole of MLflow, which tests do not install: name a Python that has it in WMTP_MLFLOW.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PYTHON = os.environ.get("WMTP_MLFLOW", "")
NO_PYTHON = "WMTP_MLFLOW names no Python with the whole of MLflow"


@contextmanager
def server(folder: Path, port: int) -> Iterator[Callable[[], None]]:
    """A server on this port with its database and artifacts in `folder`; gives what kills it."""
    command = [
        *(PYTHON, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def kill() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    try:
        until(lambda: answers(port), process)
        yield kill
    finally:
        kill()


def until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if ready():
            return
        assert process.poll() is None, "the server ended"
        time.sleep(0.25)
    raise AssertionError("the server did not answer")


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
