"""Weights out of an object store into tensors, beside the bare download of the same bytes and beside the whole object.

    wmtp bench storage --location s3://bucket/prefix --json storage.json

An object of `--bytes`, tensors of a Llama's shapes in bfloat16, is written under `--location` and removed afterwards.

    raw      the same ranges by as many threads into one buffer: what the connection gives
    wmtp     `wmtp.formats.remote.tensors_of`: every tensor in its own memory
    whole    boto3's `download_fileobj` into `io.BytesIO`, then `safetensors.torch.load` of its bytes

Times are ratios within a round. Memory is the growth, at its peak, of a process of its own that has loaded the
object once before and kept nothing of it: tensors are in it, what the libraries take once and for all is not.
benchmarks/README.md in the repository says how to read the figures.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from wmtp import ranged
from wmtp.bench import measuring
from wmtp.errors import UsageError
from wmtp.formats.remote import tensors_of, write_tensors
from wmtp.storage import ObjectPath, place

VERSION = 2
"""Of the JSON: raised when a key changes its meaning or goes away."""
NAME = "wmtp-bench.safetensors"
CPU = torch.device("cpu")
_WIDTH, _FFN, _VOCABULARY = 2048, 5632, 32000


def tensors(size: int) -> dict[str, Tensor]:
    """A Llama's, layer after layer, until there are so many bytes; any bits."""
    made = {"model.embed_tokens.weight": _any(_VOCABULARY, _WIDTH)}
    layer = 0
    while sum(tensor.nbytes for tensor in made.values()) < size:
        name = f"model.layers.{layer}."
        made |= {f"{name}self_attn.{part}_proj.weight": _any(_WIDTH, _WIDTH) for part in "qkvo"}
        made |= {f"{name}mlp.{part}_proj.weight": _any(_FFN, _WIDTH) for part in ("gate", "up")}
        made |= {f"{name}mlp.down_proj.weight": _any(_WIDTH, _FFN), f"{name}input_layernorm.weight": _any(_WIDTH)}
        layer += 1
    return made


def _any(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int16).random_(-(2**15), 2**15).view(torch.bfloat16)


# Variants


def raw(path: ObjectPath) -> bytearray:
    """All bytes, in as many requests at once."""
    buffer = bytearray(path.stat().st_size)
    view = memoryview(buffer)
    with ThreadPoolExecutor(ranged.AT_ONCE) as threads:
        starts = range(0, len(buffer), ranged.RANGE)
        for _ in threads.map(lambda i: path.store.read_into(path.key, i, view[i : i + ranged.RANGE]), starts):
            pass
    return buffer


@cache
def client() -> Any:
    """boto3's own, with its own settings."""
    import boto3

    return boto3.client("s3")


def whole(path: ObjectPath) -> dict[str, Tensor]:
    """As the documentation of boto3 and of safetensors show it."""
    buffer = io.BytesIO()
    client().download_fileobj(path.root.removeprefix("s3://"), path.key, buffer)
    found: dict[str, Tensor] = load(buffer.getvalue())
    return found


VARIANTS: dict[str, Callable[[ObjectPath], object]] = {"raw": raw, "wmtp": tensors_of, "whole": whole}


# Measuring


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """The document that `--json` writes."""
    path = settings.location / NAME
    write_tensors(path, tensors(settings.bytes))
    try:
        size = path.stat().st_size
        runs = {name: (lambda load=load: load(path)) for name, load in VARIANTS.items()}
        seconds = measuring.interleaved(runs, settings.repeat, CPU)
        memory = {name: _in_child(path, name) for name in VARIANTS} if settings.memory else {}
    finally:
        path.unlink()
    return {
        "benchmark": "storage",
        "version": VERSION,
        "machine": measuring.machine(CPU, "bfloat16"),
        "settings": {"bytes": settings.bytes, "repeat": settings.repeat, "scheme": path.root.partition(":")[0]},
        "object_bytes": size,
        "seconds": seconds,
        "median_seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "time_to_raw": {name: measuring.ratio(taken, seconds["raw"]) for name, taken in seconds.items()},
        "peak_bytes": memory,
        "peak_to_object": {name: peak / size for name, peak in memory.items()},
        "peak_to_whole": {name: peak / memory["whole"] for name, peak in memory.items()},
    }


def _in_child(path: ObjectPath, variant: str) -> int:
    return int(measuring.in_child("storage", ["--location", str(path.parent), "--variant", variant])["peak_bytes"])


def one(location: ObjectPath, variant: str) -> None:
    """The memory pass of one variant, in a process of its own."""
    path = location / NAME
    VARIANTS[variant](path)
    held: list[object] = []
    peak = measuring.growth(lambda: held.append(VARIANTS[variant](path)), CPU)
    print(json.dumps({"peak_bytes": peak}))


def show(result: dict[str, Any]) -> None:
    """A table for people."""
    print(f"an object of {measuring.mebibytes(result['object_bytes'])} MiB\n")
    lines: list[Sequence[str]] = [("variant", "seconds", "time to raw", "peak MiB", "peak to object", "peak to whole")]
    for name, median in result["median_seconds"].items():
        shares = [f"{result[to][name]:.4f}" if result[to] else "-" for to in ("peak_to_object", "peak_to_whole")]
        peak = measuring.mebibytes(result["peak_bytes"].get(name))
        lines.append((name, f"{median:.2f}", measuring.spread(result["time_to_raw"][name]), peak, *shares))
    print(measuring.aligned(lines))


def _location(text: str) -> ObjectPath:
    try:
        found = place(text)
    except UsageError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem
    if not isinstance(found, ObjectPath):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a folder of an object store, such as s3://bucket/key")
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = measuring.parser("storage", __doc__)
    parser.add_argument("--location", type=_location, required=True, help="s3://bucket/prefix that may be written")
    parser.add_argument("--bytes", type=measuring.positive, default=512 << 20, help="of the object, at least")
    parser.add_argument("--repeat", type=measuring.positive, default=5, help="rounds after the warm-up")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the memory pass out")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    settings = parse(arguments)
    if settings.variant:
        one(settings.location, settings.variant)
        return 0
    measuring.tell(measure(settings), show, settings.json)
    return 0
