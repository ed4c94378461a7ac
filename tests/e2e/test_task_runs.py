"""A run on a task, through the command line: trained, graded, resumed, cached, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wmtp.study.results import of_run

Command = Callable[..., tuple[int, str, str]]
TASK = {
    "model": {
        "architecture": {
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
            "num_attention_heads": 2, "max_position_embeddings": 64,
        },
        "heads": {"num_heads": 2, "depth": "matched"},
    },
    "data": {
        "task": {
            "builder": "wmtp.tasks:Polynomial", "options": {"operations": 1, "more": 1}, "train": 40, "validation": 8
        },
        "max_length": 64,
    },
    "train": {"steps": 2, "batch_size": 4, "eval_every": 1, "log_every": 1},
    "device": "cpu",
    "num_threads": 1,
}  # fmt: skip
GROUPS = ["in_domain", "out_of_domain", "operations_1", "operations_2"]


@pytest.fixture
def task_recipe(tmp_path: Path) -> Path:
    file = tmp_path / "task.yaml"
    file.write_text(json.dumps(TASK))
    return file


def evaluations(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "mem/"))}
        for line in lines
        if line["split"] == "validation"
    ]


def test_a_run_on_a_task_is_graded_and_comes_out_the_same_resumed_and_cached(
    task_recipe: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    def run(out: str, *options: object) -> Path:
        code, _, said = wmtp_command("train", "--recipe", task_recipe, "--out", tmp_path / out, *options)
        assert code == 0, said
        return tmp_path / out

    whole = run("whole", "checkpoint.every=1")
    graded = evaluations(whole)
    assert [line["step"] for line in graded] == [1, 2]
    assert set(GROUPS) == {name.removeprefix("task/") for name in graded[-1] if name.startswith("task/")}
    assert set(graded[-1]) - {"step", "split", "tokens"} <= set(of_run(whole, "baseline", 0).metrics)
    shutil.rmtree(whole / "checkpoints" / "step_00000002")
    assert evaluations(run("whole", "--resume", "auto", "checkpoint.every=1")) == graded
    assert evaluations(run("cached", f"data.cache={tmp_path / 'rows'}")) == graded
    code, said, _ = wmtp_command(
        "generate", "--model", whole / "final", "--prompt", "(-12345)=", "--max-new-tokens", "4", "--json"
    )
    assert code == 0
    assert set(json.loads(said)["completions"][0]["text"]) <= set("0123456-+*@()=")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.train.path=x.jsonl", "exactly one of data.train"),
        ("data.validation_fraction=0.1", "holds out rows itself"),
        ("data.index=x", "a task has no file"),
        ("model.tokenizer=embedded://tiny-llama", "has its own tokenizer"),
        ("data.task.builder=wmtp.tasks:Polynom", "has no attribute"),
        ("data.task.options={operations: 0}", "at least 1"),
        ("data.task.options={degree: 3}", "unexpected keyword"),
        ("data.task.builder=collections:Counter", "is no task: it must have groups, tokenizer"),
        ("data.task=null", "exactly one of data.train"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    task_recipe: Path, override: str, told: str, wmtp_command: Command
) -> None:
    code, _, said = wmtp_command("train", "--recipe", task_recipe, "--dry-run", override)
    assert code == 2
    assert told in said
    assert "Traceback" not in said
