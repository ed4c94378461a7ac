"""A chain head in MiMo's files: what the engines' loaders and equations make of them is what the head gives here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_code import engine_file, whole
from engines import Mimo
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmtp.errors import ModelError, WmtpError
from wmtp.export import export
from wmtp.formats.hf import load_causal_lm, model_config
from wmtp.formats.mimo import check_mimo, write_mimo
from wmtp.formats.native import load_model, save_model
from wmtp.model import MTPModel
from wmtp.testing import tiny_model, tiny_tokenizer

TOKENS = torch.randint(3, 60, (1, 9), generator=torch.Generator().manual_seed(0))
FAMILIES: dict[str, dict[str, Any]] = {"qwen2": {}, "llama": {}, "mistral": {"sliding_window": None}}


def made(family: str, *, num_heads: int = 2, gain: float = 0.3, **options: Any) -> MTPModel:
    """A model whose norms are not all ones and whose biases are not all zeros."""
    model = tiny_model(family, num_heads, heads="chain", noise=0.1, **FAMILIES.get(family, {}), **options)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(gain * torch.randn_like(parameter) if "norm" in name else torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sglangs_equations_on_the_files_are_the_model_and_its_head(family: str, tmp_path: Path) -> None:
    """At positions from 1 on; at position 0 both engines put 0 for the embedding, which moves later ones."""
    model = made(family)
    write_mimo(model, tmp_path, "sglang")
    got = Mimo(tmp_path, "sglang", first=1).logits(TOKENS)
    for logits, hidden in zip(got, model(TOKENS), strict=True):
        torch.testing.assert_close(logits[:, :-1], model.project(hidden)[:, :-1], rtol=1e-4, atol=1e-4)
    target, drafted = Mimo(tmp_path, "sglang").logits(TOKENS)
    torch.testing.assert_close(target, got[0], rtol=1e-4, atol=1e-4)
    assert (drafted - got[1]).abs().max() > 1e-3


@torch.no_grad()
def test_vllms_equations_are_the_head_where_the_final_norms_weight_is_uniform_and_near_it_where_it_is_not(
    tmp_path: Path,
) -> None:
    for gain in (0.0, 0.3):
        model = made("llama", gain=gain)
        if gain == 0.0:
            model.final_norm.get_parameter("weight").fill_(1.7)
        write_mimo(model, tmp_path, "vllm")
        target, drafted = Mimo(tmp_path, "vllm", first=1).logits(TOKENS)
        first, second = (model.project(hidden) for hidden in model(TOKENS))
        torch.testing.assert_close(target, first, rtol=1e-4, atol=1e-4)
        away = float((drafted - second)[:, :-1].abs().max() / second.abs().max())
        assert away < (1e-5 if gain == 0.0 else 0.1)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_the_folder_is_read_back_and_transformers_reads_the_base_model(tied: bool, tmp_path: Path) -> None:
    model = made("llama", tie_word_embeddings=tied)
    save_model(model, tmp_path / "m", tiny_tokenizer())
    folder = export(str(tmp_path / "m"), str(tmp_path / "out"), "sglang-mimo")
    again = load_model(str(folder)).eval()
    assert (again.family, again.num_heads) == ("chain", 2)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again(TOKENS), model(TOKENS), strict=True))
    assert torch.equal(load_causal_lm(str(folder)).eval()(TOKENS).logits, model.project(model(TOKENS)[0]))
    export(str(tmp_path / "m"), str(tmp_path / "other"), "vllm-mimo")
    with pytest.raises(ModelError, match="written for vLLM"):
        load_model(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("family", "options", "told"),
    [
        ("llama", {"num_heads": 3}, "it has 3 heads"),
        ("qwen3", {}, "model_type is 'qwen3'"),
        ("mistral", {"sliding_window": 4}, "sliding window"),
        ("llama", {"head_dim": 6}, "head_dim is 6"),
        ("llama", {"attention_bias": True}, "biases that Qwen2's has not"),
    ],
)
def test_what_the_engines_do_not_compute_is_refused(
    family: str, options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    options = {**FAMILIES.get(family, {}), "num_heads": 2, **options}
    with pytest.raises(ModelError, match=told):
        write_mimo(tiny_model(family, heads="chain", **options), tmp_path, "sglang")


def test_config_and_tensors_that_do_not_agree_are_noticed(tmp_path: Path) -> None:
    model = made("llama")
    write_mimo(model, tmp_path, "sglang")
    check_mimo(model, tmp_path, "sglang")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(WmtpError, match="and the tensors do not agree: model"):
        check_mimo(model, tmp_path, "sglang")
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.mtp_layers.0.input_proj.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WmtpError, match="does not read back"):
        check_mimo(model, tmp_path, "sglang")


TEXTS = ("def f(x):\n    return x + 1\n", "cafe\u0301 \ufb01", "1234567890")


def test_a_tokenizer_that_transformers_would_read_as_qwen2s_is_apart_and_is_what_an_engine_is_given(
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    tokenizer, told = tiny_tokenizer(), list[str]()
    save_model(made("llama"), tmp_path / "m", tokenizer)
    folder = Path(str(export(str(tmp_path / "m"), str(tmp_path / "out"), "vllm-mimo", told.append)))
    assert not list(folder.glob("tokenizer*.json"))
    assert told == [f"the engine must be told where the tokenizer is: {folder}/tokenizer (vllm: --tokenizer)"]
    read = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert [read(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_qwen2s_own_tokenizer_is_where_engines_look_for_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = made("qwen2")
    model.base.config.save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "out").mkdir()
    write_mimo(model, tmp_path / "out", "vllm", AutoTokenizer.from_pretrained(tmp_path / "m"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "tokenizer").exists()


# The engines' own code, where its files are.


def positions() -> Tensor:
    """From 1 on: at position 0 both engines put 0 for the embedding."""
    return torch.arange(1, 1 + TOKENS.shape[1])


def following() -> Tensor:
    """The token after each, and 0 behind the last."""
    return F.pad(TOKENS[0, 1:], (0, 1))


def own_tensors(folder: Path) -> list[tuple[str, Tensor]]:
    return list(load_file(folder / "model.safetensors").items())


@torch.no_grad()
def test_vllms_own_code_makes_the_head_of_the_files(tmp_path: Path) -> None:
    """Its loader and its draft layer; the final norm's weight is uniform, see above."""
    model = made("qwen2")
    model.final_norm.get_parameter("weight").fill_(1.7)
    write_mimo(model, tmp_path, "vllm")
    parts = SimpleNamespace(hf_config=model_config(str(tmp_path)))
    options = SimpleNamespace(model_config=parts, cache_config=None, quant_config=None)
    with engine_file("vllm", "model_executor/models/mimo_mtp.py") as vllm:
        draft = vllm.MiMoMTP(vllm_config=options)
        draft.load_weights(own_tensors(tmp_path))
        before, _ = Mimo(tmp_path, "vllm", first=1).states(TOKENS)
        logits = draft.compute_logits(draft(following(), positions(), before[0]))
    assert whole(draft)
    torch.testing.assert_close(logits[:-1], model.project(model(TOKENS)[1])[0, :-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sglangs_own_code_makes_the_model_and_the_head_of_the_files(tmp_path: Path) -> None:
    """Its loaders, and its draft layer on the target model's state."""
    model = made("qwen2")
    write_mimo(model, tmp_path, "sglang")
    config = model_config(str(tmp_path))
    with engine_file("sglang", "srt/models/mimo.py") as sglang:
        target = sglang.MiMoForCausalLM(config)
        target.load_weights(own_tensors(tmp_path))
    assert whole(target)
    hidden = target.model.embed_tokens(TOKENS[0])
    for layer in target.model.layers:
        hidden = layer(positions(), hidden, forward_batch=None)
    normed = target.model.norm(hidden)
    first, second = (model.project(hidden)[0] for hidden in model(TOKENS))
    torch.testing.assert_close(F.linear(normed, target.lm_head.weight), first, rtol=1e-4, atol=1e-4)
    batch = SimpleNamespace(spec_info=SimpleNamespace(hidden_states=normed))
    with engine_file("sglang", "srt/models/mimo_mtp.py") as sglang:
        draft = sglang.MiMoMTP(config)
        draft.load_weights(own_tensors(tmp_path))
        hidden = draft.model(following(), positions(), batch)
    assert whole(draft)
    logits = F.linear(hidden, draft.lm_head.weight)
    torch.testing.assert_close(logits[:-1], second[:-1], rtol=1e-4, atol=1e-4)
