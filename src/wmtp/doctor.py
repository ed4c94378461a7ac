"""What this machine can do for WMTP, and whether a recipe can run on it: tried where that is cheap, never assumed.

Each finding is one line: what was looked at, how it is, and how to mend it if it is not well. Nothing is changed;
what is written to try a folder is removed at once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from wmtp import devices
from wmtp.config import Config, TrackingConfig, WhereConfig
from wmtp.errors import StorageError, UsageError, WmtpError
from wmtp.estimate import Estimate
from wmtp.provenance import collect
from wmtp.run_tracking import check_installed, store_of
from wmtp.sandbox import Sandbox, SandboxError
from wmtp.storage import ObjectPath, Place, place, probe
from wmtp.storage.probe import ACTS
from wmtp.trainer import dry_run

GIB = 2**30
State = Literal["ok", "absent", "less", "failed"]
"""`absent`: not here, which only who needs it will miss. `less`: works, but not as well as it could."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONAL = {
    "boto3": ("s3:// locations", "s3"),
    "mlflow": ("tracking", "mlflow"),
    "peft": ("model.lora", "lora"),
    "pyarrow": ("Parquet, Arrow and Zstandard files", "parquet"),
    "sentencepiece": ("a tokenizer.model", "sentencepiece"),
    "liger_kernel": ("objective.loss=liger", None),
    "cut_cross_entropy": ("objective.loss=cce", None),
}
"""Packages that some option needs: which, and the extra of wmtp that brings them."""


MADE = ("runs", "data.cache")
"""Folders that a run makes."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    name: str
    state: State
    text: str
    remedy: str = ""


def examine(config: WhereConfig | None = None, out: str | None = None) -> list[Finding]:
    """The machine, and with a config what its run would need here; without a recipe, where its runs would be."""
    found = [*_software(), *_devices(), *_memory(), *_sandbox(), *_optional()]
    if config is not None:
        found += _where(config, out)
    if isinstance(config, Config):
        found += _run(config, out)
    return found


def _software() -> Iterator[Finding]:
    facts = collect([])
    for name, version in facts["versions"].items():
        if version:
            yield Finding("software", name, "ok", version)
        else:
            yield Finding("software", name, "failed", "not installed", "install wmtp again")
    yield Finding("software", "system", "ok", f"{facts['machine']['system']}, {facts['machine']['cores']} cores")


# Devices


def _devices() -> Iterator[Finding]:
    chosen = devices.pick("auto").type
    for kind in devices.KINDS:
        if not devices.available(kind):
            yield Finding("devices", kind, "absent", "not here")
            continue
        device = torch.device(kind)
        trains, attends = _works(device, _multiply), _works(device, _attend)
        text = f"{devices.describe(device)}; products in {trains or 'nothing'}; attention in {attends or 'nothing'}"
        state: State = "ok" if trains and attends else "failed"
        yield Finding("devices", kind, state, f"{text}; `auto` takes it" if kind == chosen else text)
        yield _compiler(device)
        if kind == "mps":
            yield _fallback()


def _works(device: torch.device, attempt: Callable[[torch.device, torch.dtype], None]) -> str:
    """The data types in which it does not fail."""
    names = []
    for dtype in DTYPES:
        with suppress(RuntimeError, TypeError):  # torch uses both, and a subclass of one, for what is not supported
            attempt(device, dtype)
            names.append(str(dtype).removeprefix("torch."))
    return ", ".join(names)


def _multiply(device: torch.device, dtype: torch.dtype) -> None:
    """A product, forward and backward."""
    left = torch.ones(8, 8, device=device, dtype=dtype, requires_grad=True)
    torch.autograd.grad((left @ left).float().sum(), left)


def _attend(device: torch.device, dtype: torch.dtype) -> None:
    query = torch.ones(1, 2, 8, 16, device=device, dtype=dtype, requires_grad=True)
    attended = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    torch.autograd.grad(attended.float().sum(), query)


def _compiler(device: torch.device) -> Finding:
    """Whether what `torch.compile` calls can be used; a program of torch's takes too long to be tried."""
    needed, name = devices.compiler(device), f"{device.type}: torch.compile"
    if needed.problem is None:
        return Finding("devices", name, "ok", f"{needed.name} is here")
    return Finding("devices", name, "absent", f"{needed.name}: {needed.problem}", "install what is missing")


def _fallback() -> Finding:
    """What happens where MPS lacks an operation."""
    name, variable = "mps: operations it lacks", devices.MPS_FALLBACK
    if os.environ.get(variable) == "1":
        return Finding("devices", name, "less", f"done by the CPU, slower, with a warning ({variable}=1)", "unset it")
    return Finding("devices", name, "ok", f"end the command with a message; {variable}=1 lets the CPU do them")


# The rest of the machine


def _memory() -> Iterator[Finding]:
    host = devices.host_memory()
    if host is None:
        yield Finding("memory", "host", "less", "this system does not tell")
    else:
        yield Finding("memory", "host", "ok", f"{host.total / GIB:.1f} GiB, {host.available / GIB:.1f} GiB available")
    yield Finding("memory", "disk", "ok", f"{shutil.disk_usage(Path.cwd()).free / GIB:.1f} GiB free in this folder")


def _sandbox() -> Iterator[Finding]:
    try:
        with Sandbox(workers=1) as sandbox:
            isolation = sandbox.isolation
    except SandboxError as problem:
        yield Finding("sandbox", "isolation", "failed", str(problem), "see docs/sandbox.md; training does not need it")
        return
    missing = "; ".join(f"{name}: {reason}" for name, reason in isolation.missing.items())
    text = f"level {isolation.level} of 3 ({', '.join(isolation.mechanisms)})"
    yield Finding(
        "sandbox",
        "isolation",
        "ok" if isolation.strong else "less",
        f"{text}; missing: {missing}" if missing else text,
        "" if isolation.strong else "programs of a model are confined on Linux 5.13 or newer, see docs/sandbox.md",
    )


def _optional() -> Iterator[Finding]:
    for package, (use, extra) in OPTIONAL.items():
        if find_spec(package):
            yield Finding("optional packages", package, "ok", f"for {use}")
        else:
            remedy = f"pip install 'wmtp[{extra}]'" if extra is not None else f"pip install {package.replace('_', '-')}"
            yield Finding("optional packages", package, "absent", f"not installed; only {use} needs it", remedy)


# A run


def _where(config: WhereConfig, out: str | None) -> Iterator[Finding]:
    runs = place(config.runs)
    folder = place(out) if out is not None else runs / config.name if isinstance(config, Config) else runs
    yield _usable("folder", folder)
    if isinstance(config, Config) and config.data.cache is not None:
        yield _usable("data.cache", place(config.data.cache))
    yield from _named(config.model_dump(mode="json"))
    if config.tracking is not None:
        yield _tracking(config, config.tracking)


def _run(config: Config, out: str | None) -> Iterator[Finding]:
    estimates: list[Estimate] = []
    notes: list[str] = []

    def tell(estimate: Estimate, said: list[str]) -> None:
        estimates.append(estimate)
        notes.extend(said)

    try:
        dry_run(config, tell, out=out)
    except WmtpError as problem:
        yield Finding("run", "dry run", "failed", str(problem))
    else:
        yield Finding("run", "dry run", "ok", "; ".join(["data, models and options go together", *notes]))
    yield from map(_fits, [config.device] * len(estimates), estimates)


def _tracking(config: WhereConfig, tracking: TrackingConfig) -> Finding:
    """Whether the store of runs and its registry answer; a database that is not there is not made."""
    try:
        check_installed(config)
        store = store_of(config, tracking)
        made = store.file is not None and not store.file.exists()
        text = "will be made" if made else store.probe()
    except WmtpError as problem:
        remedy = "start it, or mend tracking.uri; a run goes on without it unless tracking.required"
        return Finding("run", "tracking", "failed" if tracking.required else "less", str(problem), remedy)
    return Finding("run", "tracking", "ok", f"{store.uri}: {text}")


def _fits(device: str, estimate: Estimate) -> Finding:
    """The expected peak beside what the device has now."""
    needed, room = estimate.total, devices.free_memory(devices.pick(device))
    text = f"{needed / GIB:.2f} GiB at the peak of a step"
    if room is None:
        return Finding("run", "memory", "less", f"{text}; what this device has is not known")
    if needed <= room:
        return Finding("run", "memory", "ok", f"{text}, {room / GIB:.2f} GiB available")
    return Finding(
        "run",
        "memory",
        "failed",
        f"{text}, but {room / GIB:.2f} GiB available",
        "lower train.micro_batch_size, set train.activation_checkpointing=true, or shard over more ranks (--ranks)",
    )


def _named(options: Any, key: str = "") -> Iterator[Finding]:
    """Whether what the config names in object stores is there; some of it is made by the run itself."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield from _named(value, f"{key}.{name}" if key else str(name))
    elif isinstance(options, str) and "://" in options and key not in MADE:
        with suppress(UsageError):  # no location, or one that the dry run refuses
            found = place(options)
            if isinstance(found, ObjectPath):
                yield _there(key, found)


def _there(key: str, path: ObjectPath) -> Finding:
    try:
        if path.is_file():
            return Finding("run", key, "ok", f"{path}: {path.stat().st_size:,} bytes")
        if path.is_dir():
            return Finding("run", key, "ok", f"{path} is a folder")
    except StorageError as problem:
        return Finding("run", key, "failed", str(problem))
    return Finding("run", key, "failed", f"there is nothing at {path}", "upload it, or mend the location")


def _usable(name: str, folder: Place) -> Finding:
    """Whether a folder that a run makes can be made and used."""
    return _probed(name, folder) if isinstance(folder, ObjectPath) else _writable(name, folder)


def _probed(name: str, folder: ObjectPath) -> Finding:
    """Whether a folder in an object store can be listed, written, read and cleared."""
    try:
        broken = probe(folder)
    except StorageError as problem:
        remedy = "docs/operations.md says which rights a run needs; name another folder: --out, `runs`, data.cache"
        return Finding("run", name, "failed", str(problem), remedy)
    if broken:
        text = f"{folder} works, but the store ignores conditions: nothing keeps two runs apart in it"
        return Finding("run", name, "less", text, "never start two runs in the same folder")
    return Finding("run", name, "ok", f"an object in {folder} was {', '.join(ACTS)}")


def _writable(name: str, folder: Path) -> Finding:
    """Whether the nearest folder that exists takes a file."""
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as problem:
        text = f"{nearest} takes no file: {problem.strerror or problem}"
        return Finding("run", name, "failed", text, "name another: --out, `runs`, data.cache")
    free = shutil.disk_usage(nearest).free / GIB
    return Finding("run", name, "ok", f"{folder} can be written, {free:.1f} GiB free")
