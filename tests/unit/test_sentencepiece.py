"""A folder with SentencePiece's `tokenizer.model` is read as SentencePiece reads it, or refused."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from wmtp.data.records import Record
from wmtp.data.text import encode
from wmtp.errors import ModelError
from wmtp.formats import hf
from wmtp.formats.hf import check_same_tokenizer, load_tokenizer
from wmtp.storage import resolve


def records(count: int = 40) -> list[Record]:
    lines = resolve("embedded://problems_train.jsonl").read_text().splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [Record(row["problem_id"], row["prompt"], row["response"]) for row in rows]


def trained(size: int = 420) -> bytes:
    """A SentencePiece BPE model as Llama's: byte fallback, digits apart, a space in front."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    lines = [line for r in records() for line in f"{r.prompt}\n{r.response}".split("\n") if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=size, model_type="bpe", byte_fallback=True,
        remove_extra_whitespaces=False, split_digits=True, normalization_rule_name="identity", num_threads=1,
        minloglevel=3,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return trained()


def folder(path: Path, model: bytes, **files: dict[str, Any]) -> str:
    path.mkdir(exist_ok=True)
    (path / "tokenizer.model").write_bytes(model)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


LLAMA = {"tokenizer_class": "LlamaTokenizer"}


@pytest.mark.parametrize("files", [{}, {"config": {"model_type": "llama"}}, {"tokenizer_config": LLAMA}])
def test_ids_are_sentencepieces_whatever_lies_beside_the_model(
    files: dict[str, Any], model: bytes, tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    tokenizer = load_tokenizer(folder(tmp_path / "t", model, **files))
    own = SentencePieceProcessor(model_proto=model)
    for record in records():
        text = f"{record.prompt}\n{record.response}"
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text)


def test_the_response_is_what_is_trained_on(model: bytes, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder(tmp_path / "t", model))
    rows, _ = encode(records(), tokenizer, template="{prompt}\n", max_length=10_000)
    for row, record in zip(rows, records(), strict=True):
        assert row.tokens[0] == tokenizer.bos_token_id
        assert row.tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row.tokens[row.response_start : -1]).lstrip() == record.response.lstrip()


def test_policy_and_reference_are_compared_id_for_id(model: bytes, tmp_path: Path) -> None:
    policy = load_tokenizer(folder(tmp_path / "policy", model))
    check_same_tokenizer(policy, load_tokenizer(folder(tmp_path / "same", model)), "the reference")
    with pytest.raises(ModelError, match="the reference has another tokenizer than the policy"):
        check_same_tokenizer(policy, load_tokenizer(folder(tmp_path / "other", trained(400))), "the reference")


def test_a_reading_that_differs_is_refused(model: bytes, tmp_path: Path) -> None:
    source = folder(tmp_path / "t", model, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(ModelError, match=r"otherwise than SentencePiece does|cannot load a tokenizer"):
        load_tokenizer(source)


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    with pytest.raises(ModelError, match="is no SentencePiece model"):
        load_tokenizer(folder(tmp_path / "t", b"nonsense"))


def test_without_the_packages_their_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelError, match=r"install wmtp\[sentencepiece\]"):
        hf.load_tokenizer(folder(tmp_path / "t", b"nonsense"))
