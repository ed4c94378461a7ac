"""The files that vLLM serves Medusa heads from, for `linear` heads.

    config.json          model_type medusa: how many heads, how wide
    model.safetensors    blocks.{j}.layers.0.weight    A of head j + 2        lm_head.weight    the shared unembedding

vLLM reads `z + SiLU(A z)` from them as it stands here (`vllm/model_executor/models/medusa.py`), up to version
0.32.0; later ones have no Medusa. The model itself is served beside it, from `--to hf`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from wmtp.errors import ModelError, WmtpError
from wmtp.formats.remote import tensors_of
from wmtp.formats.scan import check_safetensors
from wmtp.model import MTPModel
from wmtp.storage import Place

LAST_VLLM = "0.32.0"
"""The last version of vLLM that has Medusa."""


def medusa_config(model: MTPModel) -> dict[str, Any]:
    """`config.json`.

    Raises:
        ModelError: heads, or an unembedding, that vLLM's Medusa does not compute.
    """
    unembedding = model.unembedding()
    vocabulary, width = unembedding.projection_VD.shape
    if model.family != "linear":
        raise ModelError(f"Medusa's files hold linear heads; its heads are {model.family}: take --to wmtp")
    if model.num_heads == 1:
        raise ModelError("Medusa's files hold linear heads; it has one head: take --to hf")
    if unembedding.bias_V is not None or unembedding.softcap is not None:
        raise ModelError(
            "vLLM's Medusa knows neither a bias nor a soft cap of the unembedding; this model has one: take --to wmtp"
        )
    return {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": width,
        "vocab_size": vocabulary,
        "truncated_vocab_size": vocabulary,
        "num_heads": model.num_heads - 1,
        "num_hidden_layers": 1,
        "medusa_fc_bias": False,
        "original_lm_head": True,
        "logit_scale": unembedding.scale,
    }


def medusa_tensors(model: MTPModel) -> dict[str, Tensor]:
    """`model.safetensors`."""
    heads = enumerate(model.extra_heads)
    tensors = {f"blocks.{j}.layers.0.weight": head.get_parameter("linear.weight") for j, head in heads}
    every: dict[str, Tensor] = {**tensors, "lm_head.weight": model.unembedding().projection_VD}
    return {name: tensor.detach().contiguous() for name, tensor in every.items()}


def write_medusa(model: MTPModel, folder: Path) -> None:
    """Both files.

    Raises:
        ModelError: see `medusa_config`.
    """
    from safetensors.torch import save_file

    config = medusa_config(model)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(medusa_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})


def check_medusa(model: MTPModel, folder: Place) -> None:
    """Raise `WmtpError` unless both files hold what they should."""
    check_safetensors(folder / "model.safetensors")
    found, expected = tensors_of(folder / "model.safetensors"), medusa_tensors(model)
    same = found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)
    if not same or json.loads((folder / "config.json").read_bytes()) != medusa_config(model):
        raise WmtpError(f"{folder} does not read back as it was written")
