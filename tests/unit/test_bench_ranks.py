"""`wmtp bench ranks`: its table is of the shipped recipes, its JSON is the documented one, its reference is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.bench import ranks, ranks_table
from wmtp.cli import run_command
from wmtp.config import load
from wmtp.distributed import World

ROOT = Path(__file__).parents[2]
README = (ROOT / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("arm", ranks_table.ARMS)
def test_the_table_is_of_the_shipped_recipes(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MODEL", "a/model"), ("CRITIC", "a/critic"), ("REFERENCE", "a/reference")):
        monkeypatch.setenv(f"WMTP_{name}", value)
    recipe = load([ROOT / "configs" / "cluster.yaml", ROOT / "recipes" / f"{arm}_6.7b_4xa100.yaml"])
    ours = ranks_table.config_of(arm, "rows.jsonl")
    assert ours.objective == recipe.objective
    assert ours.precision == recipe.precision
    assert ours.data.max_length == recipe.data.max_length
    assert ours.model.heads == recipe.model.heads
    same = ("epochs", "batch_size", "micro_batch_size", "micro_batch_tokens", "activation_checkpointing")
    assert all(getattr(ours.train, name) == getattr(recipe.train, name) for name in same)
    expected = "NO_SHARD" if arm == "critic" else "FULL_SHARD"
    assert ours.distributed.strategy == recipe.distributed.strategy == expected


def test_hybrid_sharding_needs_two_hosts_of_two() -> None:
    assert "HYBRID_SHARD" not in ranks.possible(ranks.STRATEGIES, 2)
    assert ranks.possible(ranks.STRATEGIES, 4) == list(ranks.STRATEGIES)
    assert ranks.hosts(World(size=4, local_size=4), "HYBRID_SHARD").local_size == 2


def test_the_reference_adds_up_after_the_last_micro_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[torch.Tensor] = []

    class Work:
        def wait(self) -> None:
            summed.append(torch.ones(()))

    class Objective:
        chunk = 7

        def backward(self, model: Any, *arguments: Any, last: bool) -> str:
            model.weight.grad = torch.ones(2, 2)
            return "meter"

    monkeypatch.setattr(ranks.dist, "all_reduce", lambda gradient, async_op: Work())
    wrapped = ranks.Replicated(Objective(), World(size=2))
    model = torch.nn.Linear(2, 2, bias=False)
    assert wrapped.chunk == 7
    assert wrapped.backward(model, last=False) == "meter"
    assert not summed
    wrapped.backward(model, last=True)
    assert len(summed) == 1


@pytest.mark.slow
def test_the_json_has_the_documented_keys_and_the_state_is_as_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ranks.json"
    options = ["--sizes", "tiny", "--ranks", "1", "--repeat", "0", "--length", "16"]
    assert run_command(["bench", "ranks", *options, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    (case,) = document["memory_cases"]
    assert all(f"`{key}`" in README for key in (*document, *case))
    assert case["state_bytes"] == case["predicted_state_bytes"]
    assert "one process" in capsys.readouterr().out
