"""Linear heads as vLLM reads Medusa's: what its equations make of the files is what the heads give here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from wmtp.errors import ModelError, WmtpError
from wmtp.export import export
from wmtp.formats.medusa import check_medusa, write_medusa
from wmtp.formats.native import save_model
from wmtp.testing import FAMILIES, tiny_model, tiny_tokenizer

TOKENS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma2"])
@torch.no_grad()
def test_vllms_equations_on_the_files_are_the_heads(family: str, tmp_path: Path) -> None:
    """`x = x + silu(layers.0(x))` per block, then the one `lm_head` (vllm/model_executor/models/medusa.py)."""
    model = tiny_model(family, 4, heads="linear", noise=0.1)
    write_medusa(model, tmp_path)
    config, tensors = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    assert (config["num_heads"], config["num_hidden_layers"], config["medusa_fc_bias"]) == (3, 1, False)
    first, *others = model(TOKENS)
    assert tensors["lm_head.weight"].shape == (config["vocab_size"], config["hidden_size"])
    for j, expected in enumerate(others):
        hidden = first + F.silu(F.linear(first, tensors[f"blocks.{j}.layers.0.weight"]))
        got = config["logit_scale"] * F.linear(hidden, tensors["lm_head.weight"])
        torch.testing.assert_close(got, model.project(expected), rtol=1e-5, atol=1e-5)
    assert len(tensors) == 4


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("llama", {"heads": "chain"}, "4 chain ones"),
        ("llama", {"heads": "linear", "num_heads": 1}, "1 linear ones"),
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


def test_it_is_exported_by_its_name(tmp_path: Path) -> None:
    source = save_model(tiny_model("llama", 3, heads="linear"), tmp_path / "m", tiny_tokenizer())
    assert sorted(p.name for p in export(str(source), str(tmp_path / "out"), "vllm-medusa").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
