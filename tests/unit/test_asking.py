"""A model is asked as it was trained, and what was asked of which model is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_chat_text import CHATML

from wmtp.evaluation.problems import read_benchmark
from wmtp.evaluation.run import Ask, Subject, answer, content_of, prompt_of
from wmtp.formats.hub import forget
from wmtp.formats.identity import model_fingerprint
from wmtp.testing import tiny_model, tiny_tokenizer

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add."}]
ROWS = [
    {"problem_id": "talk", "prompt": "Add.", "messages": TALK, "tests": ["assert True"]},
    {"problem_id": "text", "prompt": "Add.", "tests": ["assert True"]},
]


def test_a_conversation_is_asked_by_the_chat_template_and_another_problem_by_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    benchmark, read, asked = read_benchmark(tmp_path / "rows.jsonl"), tiny_tokenizer(), list[str]()
    read.chat_template = CHATML
    subject = Subject("tiny", tiny_model(num_heads=1, vocab_size=len(read)), read)

    def ids(prompts: list[str]) -> list[list[int]]:
        asked.extend(prompts)
        return [[5]] * len(prompts)

    monkeypatch.setattr(subject, "ids", ids)
    for number, template in enumerate(("Q: {prompt}\n", None)):
        ask = Ask(template=template, max_new_tokens=1)
        answer(subject, benchmark.problems, ask, tmp_path / f"{number}.jsonl", lambda text: None)
    talk = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"
    assert asked == [talk, "Q: Add.\n", "Add.\n", "Add.\n"]
    assert prompt_of(benchmark, Ask(template="{prompt}")) == "chat template"
    assert prompt_of(benchmark, Ask()) == "benchmark"


def test_a_hub_model_is_told_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the hub with two commits, of which the branch is at one and then at the other."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    stored = tmp_path / "models--someone--tiny"
    (stored / "refs").mkdir(parents=True)
    found, fingerprints = list[Any](), set[str]()
    for commit in ("a" * 40, "b" * 40):
        tiny_model(num_heads=1).base.config.save_pretrained(stored / "snapshots" / commit)
        (stored / "refs" / "main").write_text(commit)
        forget()  # a process sees one commit
        found.append(content_of("someone/tiny"))
        fingerprints.add(model_fingerprint("someone/tiny"))
    assert found == [{"weights": {}, "commit": "a" * 40}, {"weights": {}, "commit": "b" * 40}]
    assert len(fingerprints) == 2
