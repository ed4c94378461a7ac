"""Each arm from one command, on one trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file


def last(run: Path, split: str) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split][-1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four arms, the way a user runs them."""
    from tests_recipe import ARMS, RECIPE

    from wmtp.cli import run_command

    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    for arm, overrides in ARMS.items():
        extra = [override.format(runs=folder) for override in overrides]
        assert run_command(["train", "--recipe", str(recipe), "--out", str(folder / arm), *extra]) == 0
    return folder


def test_every_arm_runs_from_one_command_and_its_loss_falls(runs: Path) -> None:
    for arm in ("baseline", "verifiable", "rho1"):
        lines = [json.loads(line) for line in (runs / arm / "metrics.jsonl").read_text().splitlines()]
        nll = [line["loss/nll"] for line in lines if line["split"] == "train"]
        assert sum(nll[-3:]) < sum(nll[:3]), arm


def test_the_arms_see_the_same_rows_in_the_same_order_from_the_same_weights(runs: Path) -> None:
    first = {}
    for arm in ("baseline", "verifiable", "rho1"):
        line = json.loads((runs / arm / "metrics.jsonl").read_text().splitlines()[0])
        first[arm] = [line[f"loss/nll_head_{k}"] for k in (1, 2, 3)] + [line["tokens"]]
    assert first["baseline"] == first["verifiable"] == first["rho1"]


def test_the_metrics_have_the_names_of_the_contract(runs: Path) -> None:
    line = last(runs / "baseline", "train")
    names = {"step", "split", "tokens", "loss/weighted", "loss/nll", "lr", "grad_norm", "time/step_s"}
    names |= {"time/tokens_per_s", "mem/peak_bytes"} | {f"loss/nll_head_{k}" for k in (1, 2, 3)}
    names |= {f"acc/head_{k}" for k in (1, 2, 3)}
    names |= {f"weight/{what}" for what in ("mean", "std", "min", "max", "ess", "entropy")}
    assert names <= set(line)


def test_baseline_weights_are_one_and_its_weighted_loss_is_its_nll(runs: Path) -> None:
    line = last(runs / "baseline", "train")
    assert line["weight/mean"] == line["weight/ess"] == 1.0
    assert math.isclose(line["loss/weighted"], line["loss/nll"], rel_tol=1e-6)


def test_rho1_selects_about_its_ratio_and_the_critic_spreads_its_weights(runs: Path) -> None:
    assert 0.6 <= last(runs / "rho1", "train")["weight/mean"] < 0.65
    weights = last(runs / "verifiable", "train")
    assert weights["weight/std"] > 0
    assert weights["weight/min"] >= 0.1 - 1e-6
    assert weights["weight/max"] <= 3.0 + 1e-6


def test_the_critic_reports_pair_accuracy_on_unseen_problems(runs: Path) -> None:
    assert 0.0 <= last(runs / "critic", "validation")["value/pair_accuracy"] <= 1.0


def test_the_final_model_loads_with_wmtp_and_with_transformers_heads_dropped(runs: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import wmtp

    model = wmtp.load_model(str(runs / "baseline" / "final")).eval()
    plain = AutoModelForCausalLM.from_pretrained(runs / "baseline" / "final").eval()
    tokens = torch.tensor([AutoTokenizer.from_pretrained(runs / "baseline" / "final")("def f(x):")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model.project(model(tokens)[0]), plain(tokens).logits)


def test_the_saved_config_repeats_the_run(runs: Path, tmp_path: Path) -> None:
    from wmtp.cli import run_command

    assert run_command(["train", "--config", str(runs / "rho1" / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    for name in ("model.safetensors", "mtp_heads.safetensors"):
        before, after = (load_file(folder / "final" / name) for folder in (runs / "rho1", tmp_path / "again"))
        assert all(before[key].equal(after[key]) for key in before)


def test_the_run_folder_says_where_it_came_from(runs: Path) -> None:
    facts = json.loads((runs / "baseline" / "provenance.json").read_text())
    start = facts["starts"][0]
    assert start["seed"] == 7
    assert start["versions"]["torch"]
    assert len(start["data"]) == 64
