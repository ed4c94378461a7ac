"""What docs/data.md says about one's own data is what happens: its blocks are taken from the page and run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_guide_leads_from_own_rows_to_a_trained_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wmtp_command: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = dict(re.findall(r"<!-- \w+: (\S+) -->\n```\w+\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    commands = blocks.pop("sh")
    for name, text in blocks.items():
        Path(name).write_text(text)
    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        assert program == "wmtp"
        code, _, err = wmtp_command(*arguments)
        assert code == 0, err
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    made = [row for row in rows if "mutation" in row.get("about", {})]
    assert {row["problem_id"] for row in made} == {"double", "largest"}
    assert any(row["response"].endswith("x * x") and row["is_correct"] is False for row in rows)
    assert Path("runs/critic/final").is_dir()
