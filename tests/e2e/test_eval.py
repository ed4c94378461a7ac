"""`wmtp eval`: what it prints is what its tests found; it goes on where it was; it mixes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests_recipe import RECIPE

from wmtp.cli import run_command
from wmtp.storage import resolve

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose validation rows are twenty correct ones, and short."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "recipe.yaml").write_text(RECIPE)
    rows = resolve("embedded://problems_validation.jsonl").read_text().splitlines()
    short = [row for row in rows if json.loads(row)["is_correct"] and len(row) < 900][:20]
    (folder / "held_out.jsonl").write_text("\n".join(short) + "\n")
    options = [f"data.validation.path={folder / 'held_out.jsonl'}", "data.max_length=250", "train.eval_batches=null"]
    assert run_command(["train", "--recipe", f"{folder / 'recipe.yaml'}", "--out", f"{folder / 'run'}", *options]) == 0
    return folder / "run"


def held_out(run: Path) -> Path:
    return run.parent / "held_out.jsonl"


def evaluate(wmtp_command: Command, *arguments: object) -> dict[str, Any]:
    code, out, err = wmtp_command("eval", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


SHORT = ("--benchmark", "embedded", "--max-new-tokens", "8")


def test_a_model_is_scored_on_the_problems_that_ship_with_wmtp(run: Path, wmtp_command: Command) -> None:
    found = evaluate(wmtp_command, "--model", run / "final", *SHORT)
    assert found["problems"] == 32
    assert found["prompt"] == "run"
    assert found["isolation"]["level"] >= 0
    assert sum(found["results"][0]["statuses"].values()) == 32
    assert json.loads((run / "eval" / "embedded.json").read_text()) == found
    samples = (run / "eval" / "embedded" / "samples.jsonl").read_bytes()
    again = evaluate(wmtp_command, "--model", run / "final", *SHORT)
    assert again["results"] == found["results"]
    assert (run / "eval" / "embedded" / "samples.jsonl").read_bytes() == samples


def test_sampling_that_was_cut_off_goes_on_to_the_same_samples(
    run: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    problems = resolve("embedded://problems_validation.jsonl").read_text().splitlines(keepends=True)
    few = {json.loads(row)["problem_id"]: row for row in problems}
    (tmp_path / "few.jsonl").write_text("".join(list(few.values())[:5]))
    options = (
        "--data",
        tmp_path / "few.jsonl",
        "--max-new-tokens",
        8,
        "--n",
        3,
        "--k",
        "1,2",
        "--temperature",
        "0.5,1",
    )
    evaluate(wmtp_command, "--model", run / "final", *options, "--out", tmp_path / "whole")
    whole = (tmp_path / "whole" / "records" / "samples.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 5 * 3 * 2
    path = tmp_path / "cut" / "records" / "samples.jsonl"
    for keep in (29, 17, 1):
        found = evaluate(wmtp_command, "--model", run / "final", *options, "--out", tmp_path / "cut")
        assert path.read_bytes() == whole
        path.write_bytes(b"".join(lines[:keep]) + lines[keep][: len(lines[keep]) // 2])
    assert [row["temperature"] for row in found["results"]] == [0.5, 1.0]


def test_contest_programs_are_judged_by_what_they_print(tmp_path: Path, wmtp_command: Command) -> None:
    """In the schema that CodeContests is published in, one program without an end in its last test."""
    row = {
        "name": "1_A. Sum",
        "description": "Print the sum of two numbers.",
        "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
        "private_tests": {"input": ["5 -5\n"], "output": ["0\n"]},
        "generated_tests": {"input": ["30 2\n"], "output": ["32\n"]},
        "time_limit": {"seconds": 1, "nanos": 0},
        "memory_limit_bytes": 256_000_000,
        "solutions": {"language": [3], "solution": ["print(sum(map(int, input().split())))"]},
    }
    slow = "a, b = map(int, input().split())\nwhile a > 9: pass\nprint(a + b)"
    tries = [row["solutions"]["solution"][0], "print(3)", "print(input())", "x", slow]  # type: ignore[index]
    (tmp_path / "problems.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "samples.jsonl").write_text(
        "".join(json.dumps({"task_id": row["name"], "solution": text}) + "\n" for text in tries)
    )
    options = ("--data", tmp_path / "problems.jsonl", "--from", tmp_path / "samples.jsonl", "--out", tmp_path / "out")
    [found] = evaluate(wmtp_command, *options)["results"]
    assert found["statuses"] == {"error": 1, "passed": 1, "timeout": 1, "wrong": 2}
    assert found["pass_at_k"]["1"]["mean"] == pytest.approx(1 / 5)
    assert found["exact_match"]["mean"] == pytest.approx(1 / 5)


def test_anybodys_samples_are_scored_by_their_tests(tmp_path: Path, wmtp_command: Command) -> None:
    rows = [
        {"problem_id": "one", "prompt": "Write one().", "tests": ["assert one() == 1"]},
        {"problem_id": "two", "prompt": "Write two().", "tests": ["assert two() == 2"]},
    ]
    right = [("one", "def one(): return 1"), ("two", "def two(): return 2")]
    wrong = [("one", "def one(): return 2"), ("one", "def one(:"), ("two", "import os; os._exit(0)")]
    tries = [*right, *wrong, ("two", "def two(): return None")]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "samples.jsonl").write_text(
        "".join(json.dumps({"task_id": task, "completion": text}) + "\n" for task, text in tries)
    )
    options = ("--data", tmp_path / "problems.jsonl", "--from", tmp_path / "samples.jsonl", "--out", tmp_path / "out")
    [row] = evaluate(wmtp_command, *options, "--k", "1,2,3")["results"]
    assert row["statuses"]["passed"] == 2
    assert sum(row["statuses"].values()) == 6
    found = {k: interval["mean"] for k, interval in row["pass_at_k"].items()}
    assert found == pytest.approx({"1": 1 / 3, "2": 2 / 3, "3": 1.0})
    code, _, err = wmtp_command("eval", *options, "--k", "4")
    assert code == 2
    assert "pass@4 needs 4 samples" in err


def test_two_models_are_never_mixed_in_one_folder(run: Path, tmp_path: Path, wmtp_command: Command) -> None:
    evaluate(wmtp_command, "--model", run / "final", *SHORT, "--out", tmp_path)
    for other in (["--max-new-tokens", "9"], ["--prompt", "benchmark"], ["--seed", "1"]):
        code, _, err = wmtp_command("eval", "--model", run / "final", *SHORT, *other, "--out", tmp_path)
        assert code == 2
        assert "holds samples and verdicts of something else: ask" in err


def test_problems_without_samples_are_an_error_or_are_said(tmp_path: Path, wmtp_command: Command) -> None:
    (tmp_path / "samples.jsonl").write_text('{"task_id": "count-vowels", "completion": "x"}\n')
    options = ("--benchmark", "embedded", "--from", tmp_path / "samples.jsonl", "--out", tmp_path / "out")
    code, _, err = wmtp_command("eval", *options)
    assert code == 2
    assert "31 of 32 problems have no sample" in err
    found = evaluate(wmtp_command, *options, "--partial")
    assert (found["problems"], found["problems_without_samples"]) == (1, 31)


def test_the_heads_suite_agrees_with_the_validation_of_training(
    run: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"][-1]
    options = ("--model", run / "final", "--data", held_out(run), "--out", tmp_path)
    found = evaluate(wmtp_command, *options, "--suite", "heads")["heads"]
    assert len(found) == 3
    for head in found:
        assert head["nll"] == pytest.approx(validation[f"loss/nll_head_{head['head']}"], rel=1e-5)
        assert head["accuracy"] == pytest.approx(validation[f"acc/head_{head['head']}"], abs=1e-6)
        for group in ("by_class", "by_position"):
            assert sum(part["tokens"] for part in head[group].values()) == head["tokens"]
            total = sum(part["nll"] * part["tokens"] for part in head[group].values())
            assert total / head["tokens"] == pytest.approx(head["nll"])
    surprise = evaluate(wmtp_command, *options, "--suite", "perplexity")
    assert surprise["perplexity"]["mean"] == pytest.approx(found[0]["perplexity"])
    assert surprise["perplexity"]["low"] < surprise["perplexity"]["mean"] < surprise["perplexity"]["high"]
    size = sum(len(json.loads(row)["response"].encode()) for row in held_out(run).read_text().splitlines())
    assert surprise["bits_per_byte"] == pytest.approx(surprise["nll"] * surprise["tokens"] / math.log(2) / size)


def test_the_speed_suite_compares_decodings_that_write_the_same(
    run: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    options = ("--data", held_out(run), "--out", tmp_path, "--suite", "speed", "--batches", "1,2", "--lengths", "4,9")
    found = evaluate(wmtp_command, "--model", run / "final", *options)
    assert [(row["batch"], row["prompt_tokens"]) for row in found["rows"]] == [(1, 4), (2, 4), (1, 9), (2, 9)]
    for row in found["rows"]:
        assert row["same_tokens"]
        assert row["speedup_lowest"] <= row["speedup"] <= row["speedup_highest"]
        assert 1 <= row["tokens_per_forward"] <= 3


@pytest.mark.parametrize("suite", [[], ["--suite", "heads"], ["--suite", "perplexity"], ["--suite", "speed"]])
def test_people_get_a_table(run: Path, tmp_path: Path, wmtp_command: Command, suite: list[str]) -> None:
    options = ("--model", run / "final", *SHORT, "--out", tmp_path, "--batches", "1", "--lengths", "4")
    code, out, err = wmtp_command("eval", *options, *suite)
    assert code == 0, err
    assert f"wrote {tmp_path}" in out.replace("\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model MODEL is missing"),
        (["--out", "OUT", "--benchmark", "embedded"], "--model MODEL is missing"),
        (["--from", "OUT"], "--out FOLDER is needed"),
        (["--from", "OUT", "--out", "OUT"], "--data FILE is needed"),
        (["--model", "RUN/final", "--benchmark", "humanevil"], "--benchmark must be one of"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--k", "x"], "--k must be numbers"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--k", "0"], "--k must be positive"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--k", "5", "--n", "2"], "needs at least 5 samples"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--temperature", "-1"], "--temperature must be positive"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--top-p", "0"], "top_p"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--mode", "fast"], "--mode must be one of"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--require", "a lot"], "--require must be one of"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--split", "test"], "no official splits"),
        (["--model", "RUN/final", "--suite", "headz", "--benchmark", "embedded"], "--suite must be one of"),
        (["--out", "OUT", "--suite", "heads", "--benchmark", "embedded"], "--suite heads needs --model"),
        (["--model", "RUN", "--benchmark", "embedded", "--out", "OUT"], "is a run folder; the model it trained is"),
        (["--model", "RUN/nothing", "--benchmark", "embedded", "--out", "OUT"], "no model folder at"),
        (["--model", "RUN/final", "--data", "RUN/config.yaml"], "config.yaml:1: not valid JSON"),
        (["--model", "RUN/final", "--data", "RUN/none.jsonl"], "cannot read the data file"),
        (["--model", "RUN/final", "--benchmark", "embedded", "--device", "tpu"], "device must be auto, cuda, mps, cpu"),
    ],
)
def test_wrong_usage_is_told_in_one_message(
    run: Path, tmp_path: Path, wmtp_command: Command, options: list[str], message: str
) -> None:
    given = [option.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for option in options]
    code, out, err = wmtp_command("eval", *given)
    assert code == 2, err
    assert err.startswith("wmtp: ")
    assert message in err
    assert "Traceback" not in err
    assert not out
