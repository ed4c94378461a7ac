"""The one place that knows what a device can do.

    what                  CPU           CUDA                             MPS
    `device: auto`        third         first                            second
    bf16 by autocast      always        where the GPU has it             from macOS 14
    fp64                  yes           yes                              no: fp32 is the widest
    torch.compile calls   g++           the package triton               clang++
    pinned host memory    no            where a copy to it goes on       no
    ranks                 gloo          gloo and NCCL                    none: one process
    data.workers          0, on every device: threads and processes are for `data.cache`

A tensor's own device is asked, never a setting. Pinned memory is with those who copy (`checkpoint.pieces`,
`distributed`), which look at the tensor too. CPU is tested; the CUDA and MPS branches follow PyTorch's documented API,
and tests fake what such hardware says of itself.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from wmtp.errors import ConfigError
from wmtp.wording import counted

KINDS = ("cuda", "mps", "cpu")
"""In the order in which `auto` takes them."""

MPS_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"
"""Environment variable that lets the CPU do, slower and with a warning, what MPS lacks. torch reads it when it is
imported; nothing here sets it."""


def available(kind: str) -> bool:
    """Whether a device of this kind is here."""
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}[kind]


def pick(name: str) -> torch.device:
    """The device of a config's `device`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: the named one is not here.
    """
    here = [kind for kind in KINDS if available(kind)]
    if name not in ("auto", *KINDS):
        raise ConfigError(f"device must be auto, {', '.join(KINDS)}; got {name!r}")
    if name == "auto":
        name = here[0]
    if name not in here:
        raise ConfigError(f"device = {name!r} is not available here; use one of: {', '.join(here)} (or auto)")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """A device's name and memory, for people."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return f"{torch.cuda.device_count()} x {facts.name}, {facts.total_memory / 2**30:.0f} GiB each"
    if device.type == "mps":
        return f"Apple GPU, {torch.mps.recommended_max_memory() / 2**30:.0f} GiB recommended at most"
    return f"{platform.processor() or platform.machine()}, {counted(torch.get_num_threads(), 'thread')}"


class HostMemory(NamedTuple):
    """Bytes of the machine."""

    total: int
    available: int


def host_memory() -> HostMemory | None:
    """The host's memory; None where the system does not tell."""
    if platform.system() != "Linux":
        return None
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    size = {words[0]: int(words[1]) * 1024 for words in lines}
    return HostMemory(size["MemTotal:"], size["MemAvailable:"])


def free_memory(device: torch.device) -> int | None:
    """Bytes that a run on the device could still take; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    host = host_memory()
    return None if host is None else host.available


def precision(device: torch.device, name: str) -> Callable[[], AbstractContextManager[Any]]:
    """The context of forward passes: autocast for `bf16`, nothing for `fp32`.

    Raises:
        ConfigError: the device has no bf16.
    """
    if name == "fp32":
        return nullcontext
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision = 'bf16': this GPU has no bfloat16; use fp32")
    if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise ConfigError("precision = 'bf16': an Apple GPU has bfloat16 from macOS 14 on; use fp32")
    return partial(torch.autocast, device.type, dtype=torch.bfloat16)


class Compiler(NamedTuple):
    """What `torch.compile` calls for a device."""

    name: str
    problem: str | None
    """Why it cannot be used; None where nothing is known against it."""


def compiler(device: torch.device) -> Compiler:
    """A C++ compiler (`CXX`, where that is set), on CUDA the package triton. On Linux the compiler is tried, once."""
    if device.type == "cuda":
        return Compiler("triton", None if find_spec("triton") is not None else "it is not installed")
    name = os.environ.get("CXX") or ("clang++" if platform.system() == "Darwin" else "g++")
    if shutil.which(name) is None:
        return Compiler(name, "it is not here")
    return Compiler(name, _trial(name) if platform.system() == "Linux" else None)


TRIAL = """#include <Python.h>
#include <omp.h>
#include <type_traits>
extern "C" int threads() { static_assert(std::is_pointer_v<PyObject*>); return omp_get_max_threads(); }
"""
"""What torch's CPU code begins with: Python's headers, OpenMP, C++17. A part of a second to compile."""


@cache
def _trial(name: str) -> str | None:
    """What keeps a C++ compiler from making a library of `TRIAL`; None if it makes one."""
    try:
        with TemporaryDirectory() as folder:
            source = Path(folder) / "trial.cpp"
            source.write_text(TRIAL)
            options = ["-shared", "-fPIC", "-fopenmp", "-std=c++17", "-I", sysconfig.get_path("include")]
            command = [name, *options, str(source), "-o", str(source.with_suffix(".so"))]
            english = {**os.environ, "LC_ALL": "C"}
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, env=english)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"it cannot be run ({problem})"
    if done.returncode == 0:
        return None
    said = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
    return f"it cannot make a library with Python's headers and OpenMP ({said.strip().replace(folder + '/', '')})"


def check_compiler(device: torch.device, option: str) -> None:
    """Raise ConfigError unless `torch.compile` can work on the device, which `option` asks for."""
    needed = compiler(device)
    if needed.problem is not None:
        raise ConfigError(
            f"{option} needs {needed.name} for device = {device.type!r}, but {needed.problem}; install what is "
            f"missing, or leave {option} out"
        )


def widest_float(device: torch.device) -> torch.dtype:
    """fp64, or fp32 where the device has nothing wider (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and platform.system() == "Linux":
        with suppress(OSError):  # a container may forbid it: then the peak is that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Peak bytes since the reset: of the device's allocator (CUDA; MPS: current), or of the process (CPU)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _process_peak()


def _process_peak() -> int:
    if platform.system() == "Linux":
        return _status("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def resident_memory() -> int | None:
    """Bytes of this process that are in memory now; None where the system does not tell."""
    if platform.system() != "Linux":
        return None
    return _status("VmRSS")


def _status(field: str) -> int:
    """A size that Linux tells of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Every generator's state, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned; a state of another kind of device is left alone."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
