"""What holds for every test: offline, one torch thread, the same hypothesis examples each time."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import hashlib
from collections.abc import Iterator

import pytest
import torch
from forked import Zygote, zygote
from hypothesis import settings
from s3_server import BUCKET, Proxy, Server, missing, serving

from wmtp.storage import ObjectPath
from wmtp.storage.s3 import forget_client

torch.set_num_threads(1)
settings.register_profile("wmtp", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("wmtp")


def _started(kind: str, factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for each worker, started when a test first asks for it."""
    reason = missing(kind)
    if reason is not None:
        pytest.skip(f"no such S3 server here: {reason}")
    with serving(kind, factory.mktemp(kind)) as server:
        yield server


def _folder_in(server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ObjectPath]:
    """A folder of its own in the bucket of that server, and the settings that lead there."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget_client()
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    yield ObjectPath(f"s3://{BUCKET}", f"tests/{digest}")
    forget_client()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server."""
    yield from _started("seaweedfs", tmp_path_factory)


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another one."""
    yield from _started("moto", tmp_path_factory)


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that ignores conditions."""
    yield from _started("rclone", tmp_path_factory)


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ObjectPath]:
    """A folder in a real S3 server."""
    yield from _folder_in(s3_server, monkeypatch, request)


@pytest.fixture
def moto(moto_server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ObjectPath]:
    """The same in another one."""
    yield from _folder_in(moto_server, monkeypatch, request)


@pytest.fixture
def rclone(
    rclone_server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ObjectPath]:
    """The same in one that ignores conditions."""
    yield from _folder_in(rclone_server, monkeypatch, request)


@pytest.fixture
def refusing(
    s3_server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ObjectPath]:
    """The same in one that answers conditions with 501."""
    with Proxy(s3_server, share=0.0, refused=("If-None-Match", "If-Match")) as proxy:
        yield from _folder_in(proxy.server, monkeypatch, request)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts processes that have imported what a training needs."""
    with zygote(tmp_path_factory.mktemp("forks")) as made:
        yield made
