"""Steps of a run that is tracked, whatever becomes of the server, beside the same run without tracking.

    wmtp bench tracking --json tracking.json
    wmtp bench tracking --mlflow PYTHON        # a Python that has the whole of MLflow: its server in place of ours

    none     no tracking
    again    the same once more: what differs from `none` is noise
    live     a server that answers
    killed   SIGKILL ends the server when half of the steps are done
    hangs    a server that takes connections and never answers

Every round trains the same small model once in each way, from the same weights on the same batches. The time of a step
is the mean over all steps but the first, deliveries included: on the clock, and what the process, with all its threads,
took of the cores. Ratios are within a round. After each run `wmtp track sync` sends what is missing to a server that
answers, and every log point of the journal is looked for there. Exit code 1 if one is missing or there twice.
benchmarks/README.md in the repository says how to read the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

from wmtp.bench import measuring, runs_server
from wmtp.bench.scores import TOKENIZER, architecture
from wmtp.config import Config
from wmtp.delivery import sync
from wmtp.errors import WmtpError
from wmtp.run_tracking import check_installed
from wmtp.tracking.delivered import JOURNAL
from wmtp.tracking.points import lines_in, points_of
from wmtp.trainer import Silent, run

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
VARIANTS = ("none", "again", "live", "killed", "hangs")
TRACKED = ("live", "killed", "hangs")
CLOCKS = ("wall", "cpu")
TIMEOUT_S, END_S = 1, 5.0
"""`tracking.timeout_s` and `tracking.end_s`: for a server that hangs, the waits before and after the steps."""
START_S = 300.0
"""For a server to answer after it was started."""

Points = Counter[tuple[str, float, int, int]]
"""Name, value, step and time of each: how often it is there."""


# Servers


class Server:
    """A server in a process of its own, with all that it keeps in a folder.

    Args:
        python: one that has the whole of MLflow; None for `runs_server`.
    """

    def __init__(self, folder: Path, python: Path | None) -> None:
        self.folder, self.port = folder, _free_port()
        ours = [sys.executable, "-I", runs_server.__file__, str(self.port), str(folder)]
        self._command = ours if python is None else _of_mlflow(python, folder, self.port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Again, if it was started before.

        Raises:
            WmtpError: it does not answer; with the end of what it printed.
        """
        self.stop()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        until = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise WmtpError(f"no server of runs answers at {self.uri}; the end of what it printed:\n{_end_of(log)}")
            time.sleep(0.05)

    def kill(self) -> None:
        """All of it, without waiting."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kill it, and wait until it is gone."""
        self.kill()
        if self._process is not None:
            self._process.wait()

    def arrived(self, run_id: str) -> Points:
        """Every point that it has of a run."""
        metrics = self._asked("runs/get", run_id=run_id)["run"]["data"].get("metrics", ())
        histories = (
            self._asked("metrics/get-history", run_id=run_id, metric_key=metric["key"]).get("metrics", ())
            for metric in metrics
        )
        return Counter(
            (str(point["key"]), float(point["value"]), int(point["step"]), int(point["timestamp"]))
            for history in histories
            for point in history
        )

    def _asked(self, path: str, **query: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.uri}{runs_server.API}{path}?{urlencode(query)}", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False


def _of_mlflow(python: Path, folder: Path, port: int) -> list[str]:
    kept = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [str(python), "-m", "mlflow", "server", *where, *kept]


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def silent() -> Iterator[str]:
    """What takes connections and never answers: the system does, for a socket that nobody accepts from. Its URI."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


# Runs


class Clock(Silent):
    """Notes both times after each step.

    Args:
        at_half: called once, when half of the steps are done.
    """

    def __init__(self, half: int, at_half: Callable[[], None]) -> None:
        super().__init__()
        self._half, self._at_half = half, at_half
        self._marks: list[tuple[float, float]] = []

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """See `wmtp.trainer.Reporter`."""
        self._marks.append((time.perf_counter(), time.process_time()))
        if step == self._half:
            self._at_half()

    def seconds(self) -> dict[str, float]:
        """Of a step, by clock: the mean over all but the first."""
        first, last = self._marks[0], self._marks[-1]
        taken = ((after - before) / (len(self._marks) - 1) for before, after in zip(first, last, strict=True))
        return dict(zip(CLOCKS, taken, strict=True))


def config_of(settings: argparse.Namespace, uri: str | None) -> Config:
    """The run, tracked where a store is named."""
    tracking = {"uri": uri, "flush_s": settings.flush_s, "timeout_s": TIMEOUT_S, "end_s": END_S}
    return Config.model_validate(
        {
            "device": settings.device.type,
            "model": {
                "architecture": architecture(settings),
                "tokenizer": TOKENIZER,
                "heads": {"num_heads": settings.heads},
            },
            "data": {"train": {"path": "embedded://problems_validation.jsonl"}, "max_length": settings.length},
            "train": {"steps": settings.steps, "batch_size": settings.rows, "log_every": settings.log_every},
            "checkpoint": {"save_final": False},
            "tracking": tracking if uri is not None else None,
        }
    )


def one(variant: str, settings: argparse.Namespace, folder: Path) -> tuple[dict[str, float], dict[str, int] | None]:
    """Train once: seconds of a step by clock, and what became of the points of a run that is tracked."""
    folder.mkdir()
    server, half = Server(folder, settings.mlflow), settings.steps // 2
    clock = Clock(half, server.kill if variant == "killed" else lambda: None)
    with silent() if variant == "hangs" else nullcontext(server.uri) as uri:
        try:
            if variant in ("live", "killed"):
                server.start()
            run(config_of(settings, uri if variant in TRACKED else None), out=folder / "run", reporter=clock)
            if variant not in TRACKED:
                return clock.seconds(), None
            if variant != "live":
                server.start()
            return clock.seconds(), _points(folder / "run", server)
        finally:
            server.stop()


def _points(folder: Path, server: Server) -> dict[str, int]:
    """Send what is missing, and count."""
    lines = list(lines_in(folder / JOURNAL))
    tracked, late = sync(folder, [f"tracking.uri={server.uri}", "tracking.timeout_s=30"])
    logged: Points = Counter(map(astuple, points_of(lines)))
    arrived = server.arrived(str(tracked.run_id))
    return {
        "logged": logged.total(),
        "sent_late": len(points_of(lines[len(lines) - late :])),
        "missing": (logged - arrived).total(),
        "too_many": (arrived - logged).total(),
    }


# Figures


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """All figures.

    Raises:
        UsageError: MLflow's client is not installed.
        WmtpError: a server did not start, or a run failed.
    """
    import transformers

    transformers.logging.disable_progress_bar()
    check_installed(config_of(settings, "http://127.0.0.1"))
    points: dict[str, Counter[str]] = {name: Counter() for name in TRACKED}
    with tempfile.TemporaryDirectory(prefix="wmtp-tracking-") as temporary:
        numbers = count()

        def work(name: str) -> dict[str, float]:
            taken, found = one(name, settings, Path(temporary) / f"{name}-{next(numbers)}")
            if found is not None:
                points[name].update(found)
            return taken

        runs = {name: partial(work, name) for name in VARIANTS}
        rounds = measuring.rounds(runs, settings.repeat)
    seconds = {name: {clock: [taken[clock] for taken in rounds[name]] for clock in CLOCKS} for name in VARIANTS}
    asked = ("width", "layers", "heads", "rows", "length", "steps", "log_every", "flush_s", "repeat")
    return {
        "version": VERSION,
        "benchmark": "tracking",
        "machine": measuring.machine(settings.device, "float32"),
        "settings": {name: getattr(settings, name) for name in asked}
        | {"server": "runs_server" if settings.mlflow is None else "mlflow"},
        "median_seconds": {name: {clock: median(seconds[name][clock]) for clock in CLOCKS} for name in VARIANTS},
        "time_to_none": {
            name: {clock: measuring.ratio(seconds[name][clock], seconds["none"][clock]) for clock in CLOCKS}
            for name in VARIANTS
        },
        "points": {name: dict(found) for name, found in points.items()},
    }


def show(result: dict[str, Any]) -> None:
    """Tables for people."""
    lines: list[Sequence[str]] = [("run", "ms a step", "to none", "CPU ms a step", "to none")]
    for name in VARIANTS:
        medians, ratios = result["median_seconds"][name], result["time_to_none"][name]
        cells = [text for clock in CLOCKS for text in (f"{1000 * medians[clock]:.2f}", _ratio(ratios[clock]))]
        lines.append((name, *cells))
    print(measuring.aligned(lines))
    lines = [("run", "points logged", "sent by sync", "missing", "too many")]
    for name, found in result["points"].items():
        lines.append((name, *(f"{found[what]:,}" for what in ("logged", "sent_late", "missing", "too_many"))))
    print(f"\n{measuring.aligned(lines)}")


def _ratio(value: Sequence[float]) -> str:
    """As `measuring.spread`, to a tenth of a percent."""
    return f"{value[0]:.3f} ({value[1]:.3f}-{value[2]:.3f})"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = measuring.parser("tracking", __doc__)
    parser.add_argument("--device", type=measuring.device, default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--width", type=measuring.positive, default=128)
    parser.add_argument("--layers", type=measuring.positive, default=4)
    parser.add_argument("--heads", type=measuring.positive, default=2)
    parser.add_argument("--rows", type=measuring.positive, default=4, help="of a step")
    parser.add_argument("--length", type=measuring.positive, default=128, help="tokens of the longest row")
    parser.add_argument("--steps", type=measuring.positive, default=200, help="of a run; at least 2")
    parser.add_argument("--log-every", type=measuring.positive, default=10, help="steps between log points")
    parser.add_argument("--flush-s", type=measuring.positive, default=1, help="seconds between deliveries")
    parser.add_argument("--repeat", type=measuring.positive, default=5, help="rounds after the warm-up")
    parser.add_argument("--mlflow", type=Path, metavar="PYTHON", help="one that has the whole of MLflow")
    settings = parser.parse_args(arguments)
    if settings.steps < 2:
        parser.error(f"argument --steps: got {settings.steps}, expected at least 2")
    return settings


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    settings = parse(arguments)
    result = measure(settings)
    measuring.tell(result, show, settings.json)
    return int(any(found["missing"] or found["too_many"] for found in result["points"].values()))
