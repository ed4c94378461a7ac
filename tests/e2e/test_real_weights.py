"""Real pretrained weights, SmolLM2-135M, the whole way: load, attach heads, train, score, decode, export, compare.

The folder is made once (`docs/models.md`) and named by WMTP_SMOLLM2.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from wmtp.data.batches import Batch
from wmtp.decoding import generate
from wmtp.export import export
from wmtp.formats.hf import load_causal_lm, load_tokenizer
from wmtp.formats.native import load_model, save_model
from wmtp.objective import MTPObjective
from wmtp.optim import build_adamw
from wmtp.scoring import reference_scores
from wmtp.step import train_step
from wmtp.weighting import Uniform

SOURCE = os.environ.get("WMTP_SMOLLM2", "")
TEXT = "\n\n\n".join(f"def {name}(a, b):\n    return a {sign} b" for name, sign in (("add", "+"), ("multiply", "*")))


@pytest.mark.exhaustive
@pytest.mark.skipif(not SOURCE, reason="WMTP_SMOLLM2 names no folder of SmolLM2-135M")
def test_smollm2_goes_the_whole_way(tmp_path: Path) -> None:
    tokenizer, plain = load_tokenizer(SOURCE), load_causal_lm(SOURCE).eval()
    model = load_model(SOURCE, num_heads=3)
    prompt = tokenizer("The capital of France is")["input_ids"]
    assert tokenizer.decode(generate(model, [prompt], 2).tokens[0]) == " Paris."
    tokens_BT = torch.tensor([tokenizer(TEXT)["input_ids"]])
    batch = Batch(tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool), torch.ones(1), (0,), tokens_BT.numel())
    with torch.no_grad():
        logits = plain(tokens_BT).logits[:, :-1]
        expected = F.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
        scores = reference_scores(model, batch, 1, alignment="next").flatten()
    torch.testing.assert_close(scores[scores != 0], expected, rtol=1e-4, atol=1e-4)
    model.train_only("heads")
    optimizer = build_adamw(model, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    history = [train_step(model, optimizer, MTPObjective(Uniform()), [batch]).metrics for _ in range(8)]
    for head in (2, 3):
        assert history[-1][f"loss/nll_head_{head}"] < 0.5 * history[0][f"loss/nll_head_{head}"]
    assert history[-1]["loss/nll_head_1"] == pytest.approx(history[0]["loss/nll_head_1"], rel=1e-6)
    start = [tokens_BT[0, :12].tolist()]
    drafted, alone = (generate(model, start, 24, mode=mode, eos=()) for mode in ("speculative", "plain"))
    assert drafted.tokens == alone.tokens
    assert sum(drafted.accepted) > 0
    save_model(model, tmp_path / "m", tokenizer)
    again = load_causal_lm(str(export(str(tmp_path / "m"), str(tmp_path / "hf"), "hf"))).eval()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in plain.state_dict().items())
    theirs = again.generate(torch.tensor(start), max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert theirs[0, 12:].tolist() == alone.tokens[0]
