"""What `--to hf` writes is what vLLM's own files of models load, tensor for tensor, where these files are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_code import engine_file, located
from safetensors.torch import load_file
from torch import Tensor
from vllm_layers import OWN, PARTS, Options

from wmtp.export import export
from wmtp.formats.hf import model_config
from wmtp.formats.native import save_model
from wmtp.testing import FAMILIES, tiny_model, tiny_tokenizer

CASES = [(family, tied) for family in FAMILIES for tied in (True, False) if (family, tied) != ("gemma2", False)]
"""vLLM's Gemma 2 has no unembedding of its own, and refuses weights that do."""
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def expected(name: str, state: dict[str, Tensor], family: str) -> Tensor:
    """What a tensor of vLLM's should be: several of the model's one below the other; of GPT-2's `[in, out]`, turned."""
    for whole, parts in FUSED.items():
        if f".{whole}." in name:
            return torch.cat([state[name.replace(whole, part)] for part in parts])
    return state[name].T if family == "gpt2" and ".h." in name and state[name].ndim == 2 else state[name]


@pytest.mark.parametrize(("family", "tied"), CASES)
@torch.no_grad()
def test_vllms_own_loader_finds_every_tensor_of_the_base_model(family: str, tied: bool, tmp_path: Path) -> None:
    file = f"model_executor/models/{family}.py"
    located("vllm", file)
    model = tiny_model(family, 2, noise=0.1, vocab_size=272, tie_word_embeddings=tied)
    for parameter in model.base.parameters():
        parameter.normal_()  # no two norms or biases are the same
    save_model(model, tmp_path / "m", tiny_tokenizer())
    folder = Path(str(export(str(tmp_path / "m"), str(tmp_path / "out"), "hf")))
    config = model_config(str(folder))
    options = Options(model_config=Options(hf_config=config))
    with engine_file("vllm", file, OWN, PARTS) as vllm:
        target = getattr(vllm, config.architectures[0])(vllm_config=options)
        for parameter in target.parameters():
            parameter.fill_(torch.nan)
        target.load_weights(iter(load_file(folder / "model.safetensors").items()))
    state = {model.hf_key(name): value for name, value in model.state_dict().items() if name.startswith("base.")}
    found = dict(target.named_parameters())
    assert all(torch.equal(value, expected(name, state, family)) for name, value in found.items())
    assert ("lm_head.weight" in found) != tied
