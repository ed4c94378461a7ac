"""Linear heads as vLLM reads Medusa's: what its equations make of the files is what the heads give here."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_code import engine_file, whole
from engines import medusa_logits
from safetensors.torch import load_file

from wmtp.errors import ModelError, WmtpError
from wmtp.export import export
from wmtp.formats.medusa import check_medusa, write_medusa
from wmtp.formats.native import save_model
from wmtp.testing import tiny_model, tiny_tokenizer

TOKENS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_vllms_equations_on_the_files_are_the_heads(tmp_path: Path) -> None:
    """Of every architecture: `test_export_table.py`."""
    model = tiny_model("llama", 4, heads="linear", noise=0.1)
    write_medusa(model, tmp_path)
    first, *others = model(TOKENS)
    for got, expected in zip(medusa_logits(tmp_path, first), others, strict=True):
        torch.testing.assert_close(got, model.project(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("llama", {"heads": "chain"}, "its heads are chain"),
        ("llama", {"heads": "linear", "num_heads": 1}, "it has one head"),
        ("gemma2", {"heads": "linear"}, "soft cap"),
    ],
)
def test_what_vllms_medusa_does_not_compute_is_refused(
    family: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=says):
        write_medusa(tiny_model(family, **options), tmp_path)


def test_files_that_are_not_what_was_meant_are_noticed(tmp_path: Path) -> None:
    model = tiny_model("llama", 2, heads="linear", noise=0.1)
    write_medusa(model, tmp_path)
    check_medusa(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_heads": 2}))
    with pytest.raises(WmtpError, match="does not read back"):
        check_medusa(model, tmp_path)


def test_it_is_exported_by_its_name_and_its_user_told_which_vllm_serves_it(tmp_path: Path) -> None:
    source = save_model(tiny_model("llama", 3, heads="linear"), tmp_path / "m", tiny_tokenizer())
    folder, told = tmp_path / "out", list[str]()
    export(str(source), str(folder), "vllm-medusa", told.append)
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "config.json", "model.safetensors"]
    assert told == [f"vLLM has Medusa up to version 0.32.0; later ones do not serve {folder}"]


@torch.no_grad()
def test_vllms_own_code_makes_the_heads_of_the_files(tmp_path: Path) -> None:
    """Its config class, loader and heads, where vLLM's files are."""
    model = tiny_model("llama", 4, heads="linear", noise=0.1)
    write_medusa(model, tmp_path)
    with engine_file("vllm", "transformers_utils/configs/medusa.py") as vllm:
        config = vllm.MedusaConfig.from_pretrained(tmp_path)
    draft = SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=config))
    with engine_file("vllm", "model_executor/models/medusa.py") as vllm:
        heads = vllm.Medusa(vllm_config=SimpleNamespace(speculative_config=draft))
        heads.load_weights(load_file(tmp_path / "model.safetensors").items())
        first, *others = model(TOKENS)
        more = len(signature(heads.compute_logits).parameters) - 1  # older versions: how to sample
        logits = heads.compute_logits(heads(first), *[None] * more)
    assert whole(heads)
    for got, expected in zip(logits, others, strict=True):
        torch.testing.assert_close(got, model.project(expected), rtol=1e-5, atol=1e-5)
