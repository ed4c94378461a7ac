"""Where a run came from, without its secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wmtp.provenance import collect, redact
from wmtp.tracking import Journal, read_journal


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["wmtp", "train", "optim.lr=1e-4"], ["wmtp", "train", "optim.lr=1e-4"]),
        (["--api-key", "hunter2"], ["--api-key", "***"]),
        (["hf_token=hunter2"], ["hf_token=***"]),
        (["--password=hunter2", "next"], ["--password=***", "next"]),
        (["tracking=https://me:hunter2@host/x"], ["tracking=https://***@host/x"]),
        (["model.tokenizer=here", "max_tokens=3"], ["model.tokenizer=here", "max_tokens=3"]),
    ],
)
def test_secret_arguments_lose_their_value_and_others_do_not(given: list[str], kept: list[str]) -> None:
    assert redact(given) == kept


def test_it_says_versions_machine_and_command_and_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    facts = collect(["wmtp", "train"], seed=3)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["torch"]
    assert facts["seed"] == 3
    assert facts["git"] is None


def test_a_journal_is_cut_back_to_the_step_that_a_run_resumes_from(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path) as journal:
        for step in range(1, 6):
            journal.log(step, "train", {"loss/nll": float(step)})
    with path.open("a") as file:
        file.write('{"step": 6, "spl')
    with Journal(path, keep_until=3) as journal:
        journal.log(4, "train", {"loss/nll": 40.0})
    assert [(entry["step"], entry["loss/nll"]) for entry in read_journal(path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_a_figure_that_does_not_exist_is_null_in_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "metrics.jsonl") as journal:
        journal.log(1, "train", {"a": float("nan"), "b": float("inf"), "c": 1})
    [line] = read_journal(tmp_path / "metrics.jsonl")
    assert {name: line[name] for name in ("a", "b", "c")} == {"a": None, "b": None, "c": 1}
