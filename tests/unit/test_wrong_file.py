"""A file or an option in the wrong place is answered in one line, with the command that was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wmtp.cli import run_command
from wmtp.data.sources import read_records
from wmtp.errors import DataError

ROOT = Path(__file__).parents[2]
RECIPE, STUDY = (str(ROOT / "recipes" / f"{name}_embedded_cpu.yaml") for name in ("baseline", "study"))
Told = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Told:
    """The message of a command that ends with exit code 2."""

    def command(*arguments: str) -> str:
        assert run_command(list(arguments)) == 2
        return capsys.readouterr().err

    return command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "mine.yaml"], "did you mean --recipe mine.yaml?"),
        (["train", "--recipe", STUDY], f"start it with wmtp study --study {STUDY}"),
        (["study", "--study", RECIPE], f"train it with wmtp train --recipe {RECIPE}"),
        (["eval", "--benchmark", "embedded"], "--model MODEL is missing"),
        (["eval", "--suite", "heads"], "--suite heads needs --model"),
    ],
)
def test_what_was_meant_is_said(arguments: list[str], told: str, refused: Told) -> None:
    message = refused(*arguments)
    assert told in message
    assert message.count("\n") == 1


def test_a_study_does_not_go_into_a_runs_folder(tmp_path: Path, refused: Told) -> None:
    (tmp_path / "provenance.json").touch()
    assert "is the folder of a run" in refused("study", "--study", STUDY, "--out", str(tmp_path), "--dry-run")


def test_an_index_that_is_made_anew_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    told = []
    for _ in range(2):
        assert run_command(["data", "index", str(tmp_path / "rows.jsonl")]) == 0
        told.append(capsys.readouterr().err)
    assert told == ["", f"{tmp_path / 'rows.jsonl.index'} was there: the index in it is made anew\n"]


def test_a_csv_file_is_refused_with_the_way_to_convert_it_unless_it_holds_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response\np,r\n")
    with pytest.raises(DataError, match=r"CSV is not read.*convert it to Parquet: pip install pyarrow"):
        read_records(path)
    path.write_text('{"prompt": "p", "response": "r"}\n')
    assert len(read_records(path)[0]) == 1
