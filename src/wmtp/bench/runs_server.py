"""As much of an MLflow server as a run needs that registers no model: `python runs_server.py PORT FOLDER`.

For measuring the client: answers cost next to nothing, so that one machine can hold both. The standard library alone.
What changes something is in a file before it is answered, so a server that is killed and started again has all that it
had said yes to. Equal points are one, as in MLflow's databases.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

API = "/api/2.0/mlflow/"
EXPERIMENT = "1"


class Runs:
    """The runs of one experiment, and a file with all requests that changed them."""

    def __init__(self, folder: Path) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.points: dict[str, dict[tuple[str, int, int, float], dict[str, Any]]] = {}
        self.folder, file = folder, folder / "requests.jsonl"
        for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
            if line.endswith(b"\n"):  # else nobody was told that it was done
                self.change(*json.loads(line))
        self.file: BinaryIO = file.open("ab", buffering=0)

    def change(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What a POST does, and its answer."""
        if path == "runs/create":
            run_id = f"{len(self.runs):032x}"
            self.points[run_id] = {}
            self.runs[run_id] = {
                "info": body
                | {"run_id": run_id, "run_uuid": run_id, "status": "RUNNING", "lifecycle_stage": "active"}
                | {"artifact_uri": f"{self.folder.as_uri()}/{run_id}"},
                "tags": body["tags"],
            }
            return {"run": self.run(run_id)}
        if path == "runs/log-batch":
            kept = self.points[body["run_id"]]
            for point in body.get("metrics", ()):
                kept[str(point["key"]), int(point["step"]), int(point["timestamp"]), float(point["value"])] = point
        if path == "runs/update":
            info = self.runs[body["run_id"]]["info"]
            info["status"] = body["status"]
            return {"run_info": info}
        return {}

    def run(self, run_id: str) -> dict[str, Any]:
        """A run, with the last point of each metric."""
        last = {key: point for (key, *_), point in self.points[run_id].items()}
        run = self.runs[run_id]
        return {"info": run["info"], "data": {"metrics": list(last.values()), "tags": run["tags"]}}

    def found(self, wanted: str) -> dict[str, Any]:
        """The runs that have a tag whose value is named in a filter."""
        ids = [i for i, run in self.runs.items() if any(f"'{tag['value']}'" in wanted for tag in run["tags"])]
        return {"runs": [self.run(run_id) for run_id in ids]}

    def asked(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        """The answer to a GET."""
        if path == "runs/get":
            return {"run": self.run(query["run_id"])}
        if path == "metrics/get-history":
            points = self.points[query["run_id"]]
            return {"metrics": [point for (key, *_), point in points.items() if key == query["metric_key"]]}
        return {"experiment": {"experiment_id": EXPERIMENT, "name": "any", "lifecycle_stage": "active"}}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    runs: Runs

    def do_GET(self) -> None:
        """Ask."""
        url = urlsplit(self.path)
        self._answer(self.runs.asked(url.path.removeprefix(API), dict(parse_qsl(url.query))))

    def do_POST(self) -> None:
        """Change, on the disk first; or search."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path, asked = self.path.removeprefix(API), json.loads(body)
        if path == "runs/search":
            self._answer(self.runs.found(asked["filter"]))
            return
        self.runs.file.write(json.dumps([path, asked]).encode() + b"\n")
        self._answer(self.runs.change(path, asked))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _answer(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def serve(port: int, folder: Path) -> None:
    """Until it is killed."""
    Handler.runs = Runs(folder)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
