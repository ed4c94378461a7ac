"""A real MLflow server for tests.

It needs the whole of MLflow, which tests do not install: name a Python that has it in WMTP_MLFLOW.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wmtp.bench.tracking import Server

PYTHON = os.environ.get("WMTP_MLFLOW", "")
NO_PYTHON = "WMTP_MLFLOW names no Python with the whole of MLflow"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server with its database and artifacts in `folder`."""
    server = Server(folder, Path(PYTHON))
    try:
        server.start()
        yield server
    finally:
        server.stop()
