"""The data and the tokenizer that ship inside the package."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

import wmtp
from wmtp.data.mutate import OPERATORS, normalize
from wmtp.sandbox import Job, Limits, Sandbox

FOLDER = Path(wmtp.__file__).parent / "embedded"
SPLITS = ("train", "validation")
KEYS = ["problem_id", "prompt", "response", "is_correct", "difficulty", "tests", "source"]
SAMPLE = 60


@cache
def read(split: str) -> list[dict[str, Any]]:
    text = (FOLDER / f"problems_{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def both() -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in read(split)]


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER / "tiny-llama")


def test_everything_together_is_small() -> None:
    names = {p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*") if p.suffix in {".json", ".jsonl"}}
    assert names == {
        "problems_train.jsonl",
        "problems_validation.jsonl",
        "tiny-llama/config.json",
        "tiny-llama/tokenizer.json",
        "tiny-llama/tokenizer_config.json",
    }
    assert sum((FOLDER / name).stat().st_size for name in names) < 2_000_000


def test_every_row_follows_the_schema() -> None:
    sources = {f"embedded:mutant:{name}" for name in OPERATORS}
    for row in both():
        assert list(row) == KEYS
        assert row["difficulty"] in {1, 2, 3}
        assert 4 <= len(row["tests"]) <= 8
        assert all(test.startswith("assert ") and "\n" not in test for test in row["tests"])
        assert row["response"] == normalize(row["response"])
        assert row["source"] == "embedded" if row["is_correct"] else row["source"] in sources


def test_no_problem_is_in_both_splits() -> None:
    train, validation = ({row["problem_id"] for row in read(split)} for split in SPLITS)
    assert len(train) >= 100
    assert len(validation) >= 20
    assert not train & validation
    assert not {row["prompt"] for row in read("train")} & {row["prompt"] for row in read("validation")}
    assert not {row["response"] for row in read("train")} & {row["response"] for row in read("validation")}


@pytest.mark.parametrize("split", SPLITS)
def test_every_problem_has_enough_programs_of_both_kinds(split: str) -> None:
    kinds = Counter((row["problem_id"], row["is_correct"]) for row in read(split))
    for problem in {row["problem_id"] for row in read(split)}:
        assert kinds[problem, True] >= 2, problem
        assert kinds[problem, False] >= 3, problem
    assert {row["difficulty"] for row in read(split)} == {1, 2, 3}


@pytest.mark.parametrize("split", SPLITS)
def test_the_rows_of_a_problem_are_neighbours_without_duplicates(split: str) -> None:
    ids = [row["problem_id"] for row in read(split)]
    blocks = [problem for problem, before in zip(ids, [None, *ids], strict=False) if problem != before]
    assert len(blocks) == len(set(blocks))
    pairs = [(row["problem_id"], row["response"]) for row in read(split)]
    assert len(pairs) == len(set(pairs))


def test_a_sample_of_programs_keeps_its_verdict_when_run_again() -> None:
    sample = random.Random(0).sample(both(), SAMPLE)
    jobs = (Job(row["response"], row["tests"], id=(row["problem_id"], row["is_correct"])) for row in sample)
    with Sandbox(limits=Limits(cpu_s=2)) as sandbox:
        assert [job.id for job, verdict in sandbox.map(jobs) if verdict.passed != job.id[1]] == []


def test_the_tokenizer_returns_every_text_unchanged() -> None:
    odd = "def f(x):\n\treturn x  ==  'é \\n 😀'\n\n\n    # not . , ! it's\r\n"
    texts = [odd, *{row[key] for row in both() for key in ("prompt", "response")}]
    encoded = tokenizer()(texts, return_offsets_mapping=True)
    assert tokenizer().decode([i for ids in encoded["input_ids"] for i in ids]) == "".join(texts)
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        assert len(offsets) == len(ids)
        assert offsets[-1][1] == len(text)


def test_every_row_fits_the_model() -> None:
    texts = [row["prompt"] + "\n" + row["response"] for row in both()]
    assert max(map(len, tokenizer()(texts)["input_ids"])) + 2 <= tokenizer().model_max_length == 512


def test_the_configuration_matches_the_tokenizer() -> None:
    config = AutoConfig.from_pretrained(FOLDER / "tiny-llama")
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.vocab_size == len(tokenizer())
    assert tokenizer().is_fast
    for name, text in (("bos", "<|bos|>"), ("eos", "<|eos|>"), ("pad", "<|pad|>")):
        assert getattr(tokenizer(), f"{name}_token") == text
        assert getattr(tokenizer(), f"{name}_token_id") == getattr(config, f"{name}_token_id")
    assert len({config.bos_token_id, config.eos_token_id, config.pad_token_id}) == 3


def test_no_file_names_a_machine_path() -> None:
    for path in FOLDER.rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        assert not any(part in text for part in ("/home/", "/root/", "/tmp/", "/work/", "name_or_path"))
