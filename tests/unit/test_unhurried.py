"""A rank that is slow with its samples does not end the run, however short the time limit of collectives is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RANK = """
import time
import torch
from wmtp.distributed import joined, leave

with joined(torch.device("cpu"), timeout_s=6) as world:
    world.together(lambda: time.sleep(8 * world.rank), unhurried=True)
    print(f"rank {world.rank} goes on", flush=True)
leave(0)
"""


@pytest.mark.exhaustive
def test_ranks_wait_for_the_slowest_ones_samples_longer_than_for_anything_else(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "rank.py"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split("\n")) == ["", "rank 0 goes on", "rank 1 goes on"]
