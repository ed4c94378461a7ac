"""The newcomer's path: the blocks of docs/tutorial.md, taken from the page and run in their order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from guide import blocks, follow

DOCS = Path(__file__).parents[2] / "docs"
TUTORIALS = {"English": DOCS / "tutorial.md", "Korean": DOCS / "tutorial.ko.md"}
SHORT = ["train.steps=2", "train.batch_size=2", "train.eval_batches=1"]
"""Of the quickstart, whose full length .ci/run trains."""

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_a_newcomer_who_follows_the_tutorial_sees_four_arms_and_then_two_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wmtp_command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    said = follow(TUTORIALS["English"], wmtp_command, {"quickstart": SHORT})

    for text in ("baseline", "verifiable", "rho1", "critic", "tokens/s", "peak", "does not show that an arm"):
        assert text in said["quickstart"]
    first_look = Path("first-look/report.html").read_text()
    results = json.loads(Path("first-look/quickstart.json").read_text())
    assert {one["arm"] for one in results} == {"critic", "baseline", "verifiable", "rho1"}
    assert all(f'"label":"{one["arm"]}"' in first_look for one in results)
    assert wmtp_command("quickstart", "--out", "first-look")[0] == 2

    assert "20 steps" in said["check"]
    page = Path("page.html").read_text()
    for arm in ("baseline", "rho1"):
        assert f'"label":"{arm}"' in page
        lines = [json.loads(line) for line in Path("runs", arm, "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss/nll"] for line in lines if line["split"] == "train"]
        assert losses[-1] < losses[0]
        assert json.loads(Path("runs", arm, "eval/tokens.json").read_text())["problems"]
    assert "rho1" in said["study"]
    assert not Path("runs/compare").exists()


def test_the_korean_tutorial_has_the_same_files_and_commands() -> None:
    assert blocks(TUTORIALS["Korean"]) == blocks(TUTORIALS["English"])
    assert len(blocks(TUTORIALS["English"])) == 8


def test_the_tutorial_installs_as_the_readme_does() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    for page in TUTORIALS.values():
        for command in ("python3 -m venv .venv", ".venv/bin/pip install"):
            assert command in readme
            assert command in page.read_text()
