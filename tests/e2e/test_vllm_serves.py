"""vLLM itself, its CPU build, serves what is exported: the model's tokens, and the heads' drafts.

It needs an environment of its own (`docs/models.md`), whose interpreter WMTP_VLLM names.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.decoding import generate
from wmtp.export import export
from wmtp.formats.native import save_model
from wmtp.model import MTPModel
from wmtp.testing import tiny_model, tiny_tokenizer

PYTHON = os.environ.get("WMTP_VLLM", "")
WIDE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
"""Its attention knows no heads as narrow as the other tests'."""
PROMPT = torch.randint(3, 260, (12,), generator=torch.Generator().manual_seed(0)).tolist()
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def served(folder: Path, speculative: dict[str, Any]) -> dict[str, Any]:
    """What vLLM says."""
    command = [PYTHON, str(Path(__file__).parent / "vllm_serve.py"), str(folder), json.dumps(PROMPT)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SETTINGS
    done = subprocess.run(
        [*command, json.dumps(speculative)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@torch.no_grad()
def drafts(model: MTPModel, tokens: Sequence[int]) -> dict[str, Any]:
    """How often heads 2..K draft, and are right, if they draft after every accepted token, all that fits."""
    sequence = [*PROMPT, *tokens]
    said = [model.project(hidden)[0].argmax(-1).tolist() for hidden in model(torch.tensor([sequence]))]
    place, count, accepted = len(PROMPT) - 1, 0, [0] * (model.num_heads - 1)
    while place + 2 < len(sequence):
        right = 0
        for k in range(1, model.num_heads):
            if place + 1 + k >= len(sequence) or said[k][place] != sequence[place + 1 + k]:
                break
            accepted[k - 1] += 1
            right += 1
        place, count = place + 1 + right, count + 1
    return {"drafts": count, "accepted": accepted}


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="WMTP_VLLM names no interpreter that has vLLM")
@pytest.mark.parametrize(("heads", "count"), [("linear", 4), ("chain", 2)])
def test_it_says_the_models_tokens_and_accepts_the_drafts_that_the_heads_make_here(
    heads: str, count: int, tmp_path: Path
) -> None:
    """This final norm's weight is uniform: only there is a chain head's draft in vLLM the head's (`test_mimo.py`)."""
    model = tiny_model("llama", count, init="zero", heads=heads, noise=0.02, vocab_size=272, **WIDE).eval()
    save_model(model, tmp_path / "m", tiny_tokenizer())
    speculative: dict[str, Any] = {"method": "mtp", "num_speculative_tokens": 1}
    folder = tmp_path / "served"
    if heads == "linear":
        export(str(tmp_path / "m"), str(tmp_path / "drafts"), "vllm-medusa")
        speculative = {"method": "medusa", "model": str(tmp_path / "drafts"), "num_speculative_tokens": 3}
    export(str(tmp_path / "m"), str(folder), "hf" if heads == "linear" else "vllm-mimo")
    said = served(folder, speculative)
    tokens = generate(model, [PROMPT], 16, "plain", eos=()).tokens[0]
    expected = drafts(model, tokens)
    assert sum(expected["accepted"]) > 0
    assert said == {"tokens": tokens, **expected}
