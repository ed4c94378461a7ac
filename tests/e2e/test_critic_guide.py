"""What docs/howto/critic.md says is what happens: its blocks are taken from the page and run on a part of MBPP."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from guide import blocks, follow

from wmtp.config import load

ROOT = Path(__file__).parents[2]
MBPP = ROOT.parent / "shared" / "data" / "mbpp" / "mbpp.jsonl"
GUIDE = ROOT / "docs" / "howto" / "critic.md"
SHORT = ["train.steps=2", "train.eval_every=2", "optim.warmup_steps=0"]


def test_every_command_of_the_guide_finds_a_config_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arms = {}
    for kind, name, text in blocks(GUIDE):
        if kind == "file":
            Path(name).write_text(text)
            continue
        for words in map(shlex.split, text.splitlines()):
            files = [Path(words[i + 1]) for i, word in enumerate(words) if word in ("--config", "--recipe")]
            if files:
                arms[" ".join(words[1:2] + words[-1:])] = load(files).arm
    assert arms == {
        "train runs/critic": "critic",
        "score verifiable.yaml": "verifiable",
        "train runs/verifiable": "verifiable",
        "train runs/shuffled": "shuffled_verifiable",
    }


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_guide_leads_from_programs_with_tests_to_a_weighted_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wmtp_command: Callable[..., tuple[int, str, str]]
) -> None:
    if not MBPP.is_file():
        pytest.skip("needs MBPP's own file in ../shared/data/mbpp")
    monkeypatch.chdir(tmp_path)
    rows = MBPP.read_text().splitlines(keepends=True)
    Path("mbpp.jsonl").write_text("".join(row for row in rows if 601 <= json.loads(row)["task_id"] <= 640))
    said = follow(GUIDE, wmtp_command, {"train": SHORT})
    assert "coloured by advantage" in said["look"]
    assert "scored tokens" in said["score"]
    assert all(f'"label":"{run}"' in Path("page.html").read_text() for run in ("critic", "verifiable", "shuffled"))
