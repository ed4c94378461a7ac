"""What the benchmarks share: rounds that take turns, peak memory, a child process, options and tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from wmtp import __version__, devices
from wmtp.errors import ConfigError, WmtpError

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc then gives every larger block back at once; otherwise the peak tells of the allocator, not of the method."""

# Time.


def synchronize(device: torch.device) -> None:
    """Wait for the device; the CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` counts the process's own time on the cores: the one to read where other work takes them away."""


def seconds(run: Callable[[], object], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """How long one call takes."""
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def rounds(
    runs: Mapping[Key, Callable[[], Result]], repeat: int, most_seconds: float = float("inf")
) -> dict[Key, list[Result]]:
    """What every run gives, once per round, so that noise meets all of them alike. One round warms up, and is left out.

    Args:
        most_seconds: no round begins later than that, but the first after the one that warms up.
    """
    found: dict[Key, list[Result]] = {key: [] for key in runs}
    begin = time.perf_counter()
    for turn in range(repeat + 1):
        if turn > 1 and time.perf_counter() - begin > most_seconds:
            break
        for key, run in runs.items():
            result = run()
            if turn > 0:
                found[key].append(result)
    return found


def interleaved(
    runs: Mapping[Key, Callable[[], object]],
    repeat: int,
    device: torch.device,
    prepare: Callable[[Key], None] | None = None,
    clock: Clock = time.perf_counter,
    most_seconds: float = float("inf"),
) -> dict[Key, list[float]]:
    """Seconds of every run, per round: see `rounds`.

    Args:
        prepare: called before each run, outside its time.
    """

    def timed(key: Key) -> float:
        if prepare is not None:
            prepare(key)
        return seconds(runs[key], device, clock)

    return rounds({key: partial(timed, key) for key in runs}, repeat, most_seconds)


def ratio(one: Sequence[float], other: Sequence[float]) -> list[float] | None:
    """Median, lowest and highest of the ratios within each round; None where one of them has no rounds."""
    if not one or not other:
        return None
    each = [a / b for a, b in zip(one, other, strict=True)]
    return [median(each), min(each), max(each)]


# Memory.


def memory_note(device: torch.device) -> str:
    """How the figures of this device come about."""
    if device.type == "cuda":
        return "peak of the allocator (torch.cuda.max_memory_allocated)"
    if device.type == "mps":
        return "growth of driver_allocated_memory from an empty cache: no peak is kept, this is an upper bound"
    if platform.system() == "Linux":
        return "peak resident size (VmHWM) of one child process per variant, MALLOC_MMAP_THRESHOLD_=131072"
    return f"not measured: no resettable peak on {platform.system()}"


def has_peak(device: torch.device) -> bool:
    """Whether this device and system say how much memory a piece of work took."""
    return device.type != "cpu" or platform.system() == "Linux"


def growth(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes during a call, above what was held before it."""
    if device.type == "mps":
        torch.mps.empty_cache()
    synchronize(device)
    devices.reset_peak_memory(device)
    before = devices.peak_memory(device)
    run()
    synchronize(device)
    return devices.peak_memory(device) - before


def command(benchmark: str, arguments: Sequence[str]) -> list[str]:
    """What runs a benchmark in a process of its own."""
    return [sys.executable, "-P", "-m", "wmtp", "bench", benchmark, *arguments]


def in_child(benchmark: str, arguments: Sequence[str]) -> Any:
    """What a benchmark prints in a process of its own whose allocator gives memory back at once, read as JSON.

    Raises:
        WmtpError: the process failed.
    """
    done = subprocess.run(
        command(benchmark, arguments), env=os.environ | MALLOC, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WmtpError(f"the memory pass `{' '.join(arguments)}` failed; --no-memory leaves it out:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# What the figures depend on.


def machine(device: torch.device, dtype: str) -> dict[str, Any]:
    """Device, versions, threads, load."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "device_name": name,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "wmtp": __version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "memory": memory_note(device),
    }


def _processor() -> str:
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


# Options. Each raises `ArgumentTypeError`, which argparse turns into a message and exit code 2.


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def count(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least {least}")
    return int(text)


def share(text: str) -> float:
    """A number in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0 and at most 1")
    return value


def device(text: str) -> torch.device:
    """A device that is here."""
    if text not in ("auto", "cpu", "cuda", "mps"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected auto, cpu, cuda or mps")
    try:
        return devices.pick(text)
    except ConfigError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


def new_file(text: str) -> Path:
    """A file that can be written when the measurements are done."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a file in a folder that exists")
    return path


def folder(text: str) -> Path:
    """A folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a folder that exists")
    return path


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Options of a benchmark, with the one that each has."""
    made = argparse.ArgumentParser(
        prog=f"wmtp bench {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=new_file, metavar="FILE", help="also write the figures to this file")
    return made


# Text.


def tell(document: dict[str, Any], show: Callable[[dict[str, Any]], None], file: Path | None) -> None:
    """Print what the figures depend on, and the tables; write the figures where a file was asked for."""
    about = {**document["machine"], "settings": document["settings"]}
    print("\n".join(f"{name}: {value}" for name, value in about.items()) + "\n")
    show(document)
    write(document, file)


def write(document: Mapping[str, Any], file: Path | None) -> None:
    """The figures as JSON, where a file was asked for."""
    if file is not None:
        file.write_text(json.dumps(document, indent=1) + "\n")


def spread(value: Sequence[float] | None) -> str:
    """What `ratio` gives, as text."""
    return "-" if value is None else f"{value[0]:.2f} ({value[1]:.2f}-{value[2]:.2f})"


def mebibytes(value: int | None) -> str:
    """Bytes as text."""
    return "-" if value is None else f"{value / 2**20:.0f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text; a line that is shorter than the first may run over."""
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=False)).rstrip() for line in lines)
