"""The loss benchmark on every device of this machine, in one table.

    wmtp bench backends --json backends.json

Runs `wmtp bench loss --quick` once per device, each in its own process, and puts the figures side by side. Options
that are not listed here go to that command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wmtp.bench import loss, measuring
from wmtp.devices import KINDS, available
from wmtp.errors import WmtpError

VERSION = 1
KEY = ("heads", "vocabulary", "fraction", "weights", "variant")


def devices() -> list[torch.device]:
    """What this machine has, the CPU first."""
    return [torch.device(kind) for kind in reversed(KINDS) if available(kind)]


def run(device: torch.device, options: Sequence[str]) -> dict[str, Any]:
    """The JSON document of one device; its own output passes through.

    Raises:
        WmtpError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loss.json"
        ours = ["--device", device.type, "--json", str(file)]
        done = subprocess.run(measuring.command("loss", ["--quick", *options, *ours]), check=False)
        if done.returncode:
            raise WmtpError(f"the loss benchmark failed on {device.type} (exit code {done.returncode}); see above")
        document: dict[str, Any] = json.loads(file.read_text())
    return document


def table(reports: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One line per case and variant; per device its median, its ratio to the matrix products, its memory, and how
    many times faster than the first device it is."""
    names = [report["machine"]["device"] for report in reports]
    lines = [["K", "V", "fraction", "weights", "variant"]]
    for name in names:
        lines[0] += [f"{name} s", f"{name} to matmuls", f"{name} MiB", *([f"{names[0]}/{name}"] * (name != names[0]))]
    by_key = [{tuple(row[k] for k in KEY): row for row in report["cases"]} for report in reports]
    for key, first in by_key[0].items():
        line = [str(part) for part in key]
        for rows, name in zip(by_key, names, strict=True):
            line += _cells(rows[key], None if name == names[0] else first)
        lines.append(line)
    return lines


def _cells(row: dict[str, Any], first: dict[str, Any] | None) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    own = row["median_seconds"]
    limit = row["to_matmuls"] and row["to_matmuls"][0]
    memory = None if row["extra_bytes"] is None else row["extra_bytes"] / 2**20
    cells = [text(own, ".4f"), text(limit, ".2f"), text(memory, ".0f")]
    if first is None:
        return cells
    there = first["median_seconds"]
    return [*cells, text(there / own if own and there else None, ".1f")]


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what goes to the loss benchmark."""
    parser = measuring.parser("backends", __doc__)
    parser.add_argument("--devices", nargs="+", type=measuring.device, default=devices(), help="default: all there are")
    options, rest = parser.parse_known_args(arguments)
    loss.parse([*rest, "--quick"])  # says what is wrong with them before anything runs
    return options, rest


def main(arguments: Sequence[str]) -> int:
    """Run, compare, write."""
    options, rest = parse(arguments)
    reports = [run(device, rest) for device in options.devices]
    print("\n" + measuring.aligned(table(reports)))
    for report in reports:
        about = report["machine"]
        print(f"{about['device']}: {about['device_name']}, torch {about['torch']}, {about['dtype']}; {about['memory']}")
    measuring.write({"version": VERSION, "benchmark": "backends", "reports": reports}, options.json)
    return 0
