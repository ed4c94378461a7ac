"""A run that trains adapters: saved, resumed, exported merged and by themselves."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests_recipe import with_few_rows

from wmtp.adapters import is_adapter
from wmtp.config import load
from wmtp.errors import UsageError
from wmtp.export import export
from wmtp.formats.hf import load_causal_lm, load_tokenizer, random_causal_lm
from wmtp.trainer import run

pytest.importorskip("peft", reason="adapters need peft: pip install 'wmtp[lora]'")
SHORT = "train={steps: 4, batch_size: 8, micro_batch_size: 8, eval_every: 2, eval_batches: 1, log_every: 1}"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{f.name}/{k}": v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def same(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_adapters_are_trained_saved_merged_resumed_and_exported(tmp_path: Path) -> None:
    recipe = with_few_rows(tmp_path)
    tokenizer = load_tokenizer("embedded://tiny-llama")
    base = tmp_path / "base"
    random_causal_lm(load([recipe]).model.architecture or {}, len(tokenizer), seed=1).save_pretrained(base)
    tokenizer.save_pretrained(base)
    chosen = [f"model={{path: '{base}', architecture: null, tokenizer: null, lora: {{rank: 2, on: both}}}}", SHORT]
    config = load([recipe], [*chosen, "checkpoint.every=2", "train.seed=3"])
    whole = run(config, out=tmp_path / "whole")
    assert whole.train["grad_norm"] > 0
    assert not any(is_adapter(name) for name in tensors(tmp_path / "whole" / "final"))
    assert not same(tmp_path / "whole" / "final", base)
    run(config, out=tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_00000004")
    run(config, out=tmp_path / "again", resume="auto")
    assert same(tmp_path / "again" / "final", tmp_path / "whole" / "final")
    merged = export(str(tmp_path / "whole"), str(tmp_path / "merged"))
    assert same(merged, tmp_path / "whole" / "final")
    adapter = export(str(tmp_path / "whole"), str(tmp_path / "adapter"), "adapter")
    _is_what_peft_reads(base, adapter, merged)
    with pytest.raises(UsageError, match="a model folder has none"):
        export(str(merged), str(tmp_path / "other"), "adapter")


@torch.no_grad()
def _is_what_peft_reads(base: Path, adapter: Path, merged: Path) -> None:
    from peft import PeftModel

    tokens = torch.arange(3, 12)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        theirs = PeftModel.from_pretrained(load_causal_lm(str(base)), str(adapter)).eval()
    ours = load_causal_lm(str(merged)).eval()
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=1e-4, atol=1e-5)
    read = load_causal_lm(str(adapter)).state_dict()
    assert all(torch.equal(read[name], value) for name, value in ours.state_dict().items())
