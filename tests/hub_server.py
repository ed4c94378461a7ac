"""A hub of models for tests: as much of the Hugging Face Hub's protocol as its own client asks for.

    GET  /api/models/NAME/revision/main              the commit of a model
    GET  /api/models/NAME/tree/COMMIT                its files: sizes, and SHA-256 of those in Git LFS
    HEAD /NAME/resolve/COMMIT/FILE                   size and ETag; of a file in Git LFS, where it really is
    GET  /NAME/resolve/COMMIT/FILE, /lfs/SHA-256     its bytes, or a range of them

Files of weights are in Git LFS, as on the Hub. `python hub_server.py` has nothing to say: tests start `Hub` themselves.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_plantedSecretOfTheTests"
IN_LFS = (".safetensors", ".bin")


class Hub:
    """Folders by the names of models. What goes wrong is said in its attributes.

    `gated`: models that are for others. `cut`: how often the answer to a file breaks off in the middle. `short`: files
    that end early, as if they were whole. `down`: every answer is 503.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gated: set[str] = set()
        self.cut: dict[str, int] = {}
        self.short: set[str] = set()
        self.down = False
        self.requests: list[tuple[str, str]] = []
        """Method and path of each."""
        self.tokens: dict[str, set[str | None]] = {}
        """What clients showed to each host."""
        self.endpoint = self.cdn = ""
        """Where it is, and where the files in Git LFS are, which is another host."""

    def add(self, name: str, model: Path) -> str:
        """Publish the files of a folder. The name."""
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).symlink_to(model)
        return name

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        paths = {path for method, path in self.requests if method == "GET"}
        direct = {path.rpartition("/")[2] for path in paths if "/resolve/" in path}
        in_lfs = {file.name for path in paths if path.startswith("/lfs/") for file in self._in_lfs(path)}
        return direct | in_lfs

    def files(self, name: str) -> dict[str, Path] | None:
        """By their paths in the model; None if there is no such model."""
        root = self.folder / name
        if name.count("/") != 1 or not root.is_dir():
            return None
        return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}

    def commit(self, name: str) -> str:
        """Of what the folder holds now."""
        digest = hashlib.sha1()
        for path, file in (self.files(name) or {}).items():
            digest.update(f"{path} {sha256(file)}\n".encode())
        return digest.hexdigest()

    def _in_lfs(self, path: str) -> list[Path]:
        wanted = path.removeprefix("/lfs/")
        return [file for file in self.folder.rglob("*/*/*") if file.suffix in IN_LFS and sha256(file) == wanted]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Answers(BaseHTTPRequestHandler):
    """To one client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.hub.tokens.setdefault(str(self.headers["Host"]).partition(":")[0], set()).add(
            self.headers["Authorization"]
        )
        if self.hub.down:
            self._refuse(503, "", "the hub is tired")
        elif path.startswith("/lfs/"):
            found = self.hub._in_lfs(path)
            self._bytes(found[0], {}) if found else self._refuse(404, "EntryNotFound", "no such object")
        elif path.startswith("/api/models/"):
            self._api(*path.removeprefix("/api/models/").split("/", 4))
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            self._file(name, rest.partition("/")[2])
        else:
            self._refuse(404, "", "no such page")

    def _there(self, name: str) -> dict[str, Path] | None:
        """The files of a model; None if the refusal was sent."""
        files = self.hub.files(name)
        if files is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif name in self.hub.gated:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        return files

    def _api(self, organisation: str, model: str, what: str = "", revision: str = "", *_: str) -> None:
        name = f"{organisation}/{model}"
        files = self._there(name)
        if files is None:
            return
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "modelId": name, "sha": self.hub.commit(name), "siblings": siblings})
        elif what == "tree":
            self._json([entry(path, file) for path, file in files.items()])
        else:
            self._refuse(404, "", "no such page")

    def _file(self, name: str, path: str) -> None:
        files = self._there(name)
        if files is None:
            return
        commit = {"X-Repo-Commit": self.hub.commit(name)}
        file = files.get(path)
        if file is None:
            self._refuse(404, "EntryNotFound", "Entry not found", commit)
        elif file.suffix not in IN_LFS:
            self._bytes(file, {**commit, "ETag": f'"{sha1(file)}"'})
        else:
            size = str(file.stat().st_size)
            linked = {
                "X-Linked-Size": size,
                "X-Linked-ETag": f'"{sha256(file)}"',
                "Location": f"{self.hub.cdn}/lfs/{sha256(file)}",
            }
            self._send(302, {**commit, **linked}, b"")

    def _bytes(self, file: Path, headers: dict[str, str]) -> None:
        content = file.read_bytes()
        content = content[: -len(content) // 2] if file.name in self.hub.short else content
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if begin:
            headers |= {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        breaks_off = self.command == "GET" and self.hub.cut.get(file.name, 0) > 0
        if breaks_off:
            self.hub.cut[file.name] -= 1
        rest = content[begin:]
        self._send(206 if begin else 200, headers, rest, len(rest) // 2 if breaks_off else None)

    def _json(self, answer: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        said = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._send(status, {**said, **(headers or {})}, b"")

    def _send(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


def entry(path: str, file: Path) -> dict[str, object]:
    """A file as the Hub lists it."""
    size = file.stat().st_size
    found: dict[str, object] = {"type": "file", "path": path, "size": size, "oid": sha1(file)}
    if file.suffix in IN_LFS:
        found["lfs"] = {"oid": sha256(file), "size": size, "pointerSize": 134}
    return found


def sha1(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class Quiet(ThreadingHTTPServer):
    """Says nothing of connections that end early."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub on this machine, until the block ends."""
    hub = Hub(folder)
    server = Quiet(("127.0.0.1", 0), type("OfHub", (Answers,), {"hub": hub}))
    port = server.server_address[1]
    hub.endpoint, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """What leads a new process to it."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_TOKEN": TOKEN}


@contextmanager
def client_of(hub: Hub, cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """The client of this process, which has read its environment long ago, talks to it."""
    from huggingface_hub import close_session, constants

    from wmtp.formats.hub import forget

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        forget()
        try:
            yield patch
        finally:
            close_session()
            forget()
