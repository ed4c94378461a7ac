"""Runs on indexed records, on rows from a cache and with batches made ahead are the runs they would have been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests_recipe import RECIPE

from wmtp.config import load
from wmtp.storage import resolve
from wmtp.trainer import Silent, run

Command = Callable[..., tuple[int, str, str]]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss/nll"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


class StopsAfter(Silent):
    """Ends the run as a crash would, after a step."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        if step == self.last:
            raise KeyboardInterrupt


@pytest.mark.exhaustive
def test_a_run_from_a_cache_with_batches_made_ahead_is_the_run_from_memory_also_after_a_crash(
    recipe: Path, tmp_path: Path
) -> None:
    run(load([recipe]), out=tmp_path / "plain")
    fast = [f"data.cache={tmp_path}/cache", "data.workers=2"]
    with pytest.raises(KeyboardInterrupt):
        run(load([recipe], fast), out=tmp_path / "run", reporter=StopsAfter(6))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wmtp-batches")]
    reporter = Silent()
    run(load([recipe], [*fast[:1], "data.workers=1"]), out=tmp_path / "run", resume="auto", reporter=reporter)
    assert any("rows found in" in note for note in reporter.notes)
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ([], "{max_per_problem: 1}"),
        (
            ["--tokenizer", "embedded://tiny-llama", "--ids"],
            "{difficulty: [{levels: [1, 1], weight: {start: 1, end: 0.1}}, {levels: [2, 5], weight: 0.5}]}",
        ),
    ],
)
def test_every_sampling_trains_from_an_index(
    options: list[str], sampling: str, recipe: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    records = tmp_path / "records.jsonl"
    records.write_bytes(resolve("embedded://problems_train.jsonl").read_bytes())
    code, out, err = wmtp_command("data", "index", records, *options, "--json")
    assert code == 0, err
    counts = json.loads(out)
    assert counts["rows"] == len(records.read_text().splitlines())
    assert counts["unique_pairs"] > 0
    own = [f"data.train.path={records}", f"data.index={counts['folder']}", f"data.sampling={sampling}"]
    result = run(load([recipe], [*own, "train.steps=3", "train.eval_every=null"]), out=tmp_path / "run")
    assert result.steps == 3


def test_an_index_of_something_else_is_told(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    records = tmp_path / "records.jsonl"
    records.write_bytes(resolve("embedded://problems_train.jsonl").read_bytes())
    assert wmtp_command("data", "index", records, "--out", tmp_path / "index")[0] == 0
    with records.open("a") as file:
        file.write('{"prompt": "a", "response": "b"}\n')
    overrides = [f"data.train.path={records}", f"data.index={tmp_path}/index"]
    code, _, err = wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "run", *overrides)
    assert code == 2
    assert "is the index of a file of" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
    for wrong in ([tmp_path / "no.jsonl"], [records, "--ids"], [records, "--tokenizer", tmp_path / "no"]):
        code, _, err = wmtp_command("data", "index", *wrong)
        assert (code, "Traceback" in err) == (2, False)


@pytest.mark.exhaustive
@pytest.mark.fault
def test_two_ranks_share_a_cache_one_is_killed_and_the_losses_are_those_of_one_process(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    run(load([recipe]), out=tmp_path / "plain")
    command = [sys.executable, "-m", "wmtp", "train", "--recipe", str(recipe), "--out", str(tmp_path / "run")]
    command += ["--ranks", "2", "--restarts", "2", f"data.cache={tmp_path}/cache", "data.workers=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WMTP_FAULT": "step_begin:7:kill9@1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    assert len(list((tmp_path / "cache").glob("rows-*"))) == 1
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")) == [".lock"]
