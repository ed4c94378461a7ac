"""Bad input: one clear message on stderr, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_recipe import RECIPE

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def refused(recipe: Path, tmp_path: Path, wmtp_command: Command) -> Callable[..., str]:
    """Train with overrides that must be refused; the message."""

    def train(*overrides: object) -> str:
        out = tmp_path / "out"
        code, stdout, stderr = wmtp_command("train", "--recipe", recipe, "--out", out, *overrides)
        assert code == 2, stderr
        assert stdout == ""
        assert stderr.startswith("wmtp: ")
        assert "Traceback" not in stderr
        assert not out.exists()
        return stderr

    return train


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


GOOD = b'{"prompt": "p", "response": "r"}\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'\xff\xfe{"prompt": "p"}\n', [":1:", "UTF-8", "byte 0"]),
        (GOOD + b'{"prompt": "p", "response": "\xff"}\n', [":2:", "UTF-8"]),
        (b"", ["no usable rows", "0 records of 0 rows"]),
        (b"\n\n", ["no usable rows"]),
        (GOOD + b'{"prompt": "p"}\n', [":2:", "'response' is missing"]),
        (GOOD + b'{"prompt": "p", "response": "  "}\n', [":2:", "'response' is blank"]),
        (GOOD + b'{"prompt": "p", "response": 3}\n', [":2:", "must be a string, got 3"]),
        (GOOD + b'{"prompt": "p", "response": "r", "is_corect": true}\n', [":2:", "unknown field 'is_corect'"]),
        (GOOD + b'{"prompt": "p", "response": "r"\n', [":2:", "not valid JSON"]),
        (b"[" * 100_000 + b"\n", ["nested too deeply"]),
    ],
)
def test_a_bad_row_is_reported_with_file_and_line(
    refused: Callable[..., str], tmp_path: Path, content: bytes, told: list[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", content)
    message = refused(f"data.train.path={path}")
    assert path in message
    assert all(text in message for text in told), message


def test_training_on_humaneval_is_refused_and_told_how_to_force_it(refused: Callable[..., str], tmp_path: Path) -> None:
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": " pass\n"}
    path = write(tmp_path / "rows.jsonl", json.dumps(row | {"test": "def check(f): f()"}).encode())
    message = refused(f"data.train.path={path}")
    assert "is for evaluation" in message
    assert "data.train.split=test data.allow_evaluation_data=true" in message


def test_what_makes_a_figure_worth_nothing_is_said_before_the_run(
    recipe: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    """Heads that look past the end of every row, and problems on both sides of the split."""
    path = write(tmp_path / "rows.jsonl", b"".join(b'{"prompt": "p%d", "response": "r"}\n' % i for i in range(9)))
    command = ["train", "--recipe", recipe, "--out", tmp_path / "out", "--dry-run", "--json"]
    both = [f"data.train.path={path}", f"data.validation.path={path}", "model.heads.num_heads=64"]
    code, out, err = wmtp_command(*command, *both)
    assert code == 0, err
    notes = json.loads(out)["notes"]
    longest = next(int(note.split("longest ")[1]) for note in notes if note.startswith("train: 9 rows"))
    assert f"heads {longest} to 64 have no target in any training row: the longest has {longest} tokens" in notes
    assert "9 of 9 validation problems are also trained on: what is measured there is no held-out figure" in notes


def test_skipped_rows_are_counted_and_said(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    rows = "".join(json.dumps({"prompt": f"p{i}", "response": f"r{i}"}) + "\n" for i in range(20))
    path = write(tmp_path / "rows.jsonl", rows.encode() + b'{"prompt": "p"}\n')
    command = ["train", "--recipe", recipe, "--out", tmp_path / "out", "--dry-run", "--json"]
    code, out, err = wmtp_command(*command, f"data.train.path={path}", "data.on_bad_row=skip")
    assert code == 0, err
    assert any("1 bad row skipped" in note and ":21:" in note for note in json.loads(out)["notes"])


def test_a_missing_data_file_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(f"data.train.path={tmp_path}/nothing.jsonl")
    assert f"{tmp_path}/nothing.jsonl" in message
    assert "No such file" in message


def test_a_folder_where_a_file_belongs_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is a directory" in refused(f"data.train.path={tmp_path}")


def test_an_unknown_key_is_answered_with_the_nearest_one(refused: Callable[..., str]) -> None:
    message = refused("optim.learning_rat=0.1", "train.stepz=3")
    assert "optim.learning_rat" in message
    assert "did you mean 'steps'?" in message


def test_all_config_errors_are_reported_at_once(refused: Callable[..., str]) -> None:
    message = refused("train.steps=ten", "optim.lr=-1", "device=tpu")
    assert "train.steps" in message
    assert "optim.lr" in message
    assert "device" in message


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.max_length=4", "model.heads.num_heads=5"], "does not fit into rows"),
        (["data.max_length=1000"], "longer than the model's context of 256"),
        (["objective.head_coefficients=[1, 1]"], "head_coefficients has 2 entries"),
        (["train.micro_batch_size=9"], "larger than train.batch_size"),
        (["train.epochs=1"], "exactly one of train.steps and train.epochs"),
        (["objective={kind: value}", "train.batch_size=7", "train.micro_batch_size=null"], "must be even"),
        (["objective={kind: value}", "data.solutions=correct"], "data.solutions must be all"),
        (["data.validation=null"], "need data.validation"),
        (["data.template=no placeholder"], "{prompt} is missing"),
        (["data.train.split=train"], "no official splits"),
        (["model.path=./nowhere", "model.architecture=null"], "no model folder at"),
        (["model.tokenizer=./nowhere"], "no model folder at"),
        (["model.architecture.hidden_sizes=3"], "hidden_sizes"),
        (["model.architecture.vocab_size=10"], "do not belong together"),
    ],
)
def test_an_impossible_combination_is_refused(refused: Callable[..., str], overrides: list[str], told: str) -> None:
    assert told in refused(*overrides)


def test_more_heads_than_the_context_has_positions_are_refused(refused: Callable[..., str]) -> None:
    message = refused("model.heads.num_heads=64", "data.max_length=64")
    assert "num_heads = 64" in message


def other_tokenizer(folder: Path) -> Path:
    """A copy of the embedded tokenizer with two ids swapped."""
    from wmtp.storage import resolve

    shutil.copytree(resolve("embedded://tiny-llama"), folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    names = list(vocabulary)
    a, b = names[200], names[201]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(content))
    return folder


def test_a_reference_with_another_tokenizer_is_refused(
    refused: Callable[..., str], tmp_path: Path, recipe: Path, wmtp_command: Command
) -> None:
    tokenizer = other_tokenizer(tmp_path / "tokenizer")
    run = tmp_path / "reference"
    command = ["train", "--recipe", recipe, "--out", run, f"model.tokenizer={tokenizer}", "train.steps=1"]
    assert wmtp_command(*command)[0] == 0
    message = refused(f"objective={{weighting: {{scheme: rho1, reference: '{run}/final'}}}}")
    assert "another tokenizer than the policy" in message
    assert "first difference at id" in message


@pytest.fixture
def finished(recipe: Path, tmp_path: Path, wmtp_command: Command) -> Path:
    """A short finished run."""
    run = tmp_path / "finished"
    assert wmtp_command("train", "--recipe", recipe, "--out", run, "train.steps=2")[0] == 0
    return run


def test_a_checkpoint_of_another_model_is_refused_and_the_difference_named(
    finished: Path, recipe: Path, wmtp_command: Command
) -> None:
    command = ["train", "--recipe", recipe, "--out", finished, "train.steps=2", "--resume", "auto"]
    code, _, message = wmtp_command(*command, "model.architecture.hidden_size=32")
    assert code == 2
    assert "model.architecture.hidden_size: 16 in the checkpoint, 32 now" in message


def test_a_run_folder_with_a_run_is_not_overwritten(finished: Path, recipe: Path, wmtp_command: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    code, _, message = wmtp_command("train", "--recipe", recipe, "--out", finished)
    assert code == 2
    assert "--resume auto" in message
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_changed_data_is_noticed_on_resume(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    rows = [json.dumps({"prompt": f"p{i}", "response": f"r{i}"}) + "\n" for i in range(20)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(rows))
    command = ["train", "--recipe", recipe, "--out", tmp_path / "run", "train.steps=2", f"data.train.path={data}"]
    assert wmtp_command(*command)[0] == 0
    data.write_text("".join(rows[:-1]) + json.dumps({"prompt": "p19", "response": "other"}) + "\n")
    code, _, message = wmtp_command(*command, "--resume", "auto")
    assert code == 2
    assert "the data files have changed" in message


def test_resuming_what_does_not_exist_is_refused(recipe: Path, tmp_path: Path, wmtp_command: Command) -> None:
    code, _, message = wmtp_command("train", "--recipe", recipe, "--resume", tmp_path / "nothing")
    assert code == 2
    assert "no run folder" in message


def test_nothing_to_train_says_what_to_give(wmtp_command: Command) -> None:
    code, _, message = wmtp_command("train")
    assert code == 2
    assert "--recipe" in message


def test_a_critic_is_not_taken_for_a_language_model_nor_the_other_way_round(
    refused: Callable[..., str], finished: Path
) -> None:
    message = refused(f"objective={{weighting: {{scheme: critic, critic: '{finished}/final'}}}}")
    assert "is not a critic" in message


def test_an_unknown_command_and_option_exit_with_2(wmtp_command: Command) -> None:
    assert wmtp_command("trian")[0] == 2
    assert wmtp_command("train", "--recipes", "x")[0] == 2


def test_a_data_file_of_only_incorrect_rows_says_how_to_keep_them(refused: Callable[..., str], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"prompt": "p", "response": "r", "is_correct": false}\n')
    assert "data.solutions=all" in refused(f"data.train.path={path}")


def test_a_secret_in_an_override_is_not_printed(refused: Callable[..., str]) -> None:
    assert "hunter2" not in refused("model.api_key=hunter2")


def test_a_resolved_config_that_is_read_again_is_equal(tmp_path: Path) -> None:
    from wmtp.config import dump, load

    (tmp_path / "a.yaml").write_text(RECIPE)
    config = load([tmp_path / "a.yaml"])
    (tmp_path / "b.yaml").write_text(dump(config))
    assert load([tmp_path / "b.yaml"]) == config
