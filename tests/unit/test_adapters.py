"""Adapters on trunk and heads: what is trained, what is saved, and that a merged model computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.adapters import add_adapters, is_adapter, merge_adapters
from wmtp.config import Config, ModelConfig
from wmtp.errors import ConfigError
from wmtp.families import FAMILIES as HEADS
from wmtp.formats.native import load_model, save_model
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.optim import build_adamw
from wmtp.parts import choose_trained
from wmtp.step import train_step
from wmtp.testing import FAMILIES, VOCABULARY, random_batch, tiny_model
from wmtp.weighting import Uniform

pytest.importorskip("peft", reason="adapters need peft: pip install 'wmtp[lora]'")

TOKENS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
PARTS = ("trunk", "heads", "both")


def config_of(on: str, **lora: Any) -> Config:
    """Only `model.lora` matters."""
    model = {"path": "m", "heads": {"num_heads": 3}, "lora": {"rank": 2, "alpha": 6.0, "on": on, **lora}}
    return Config.model_validate({"model": model, "data": {"train": {"path": "d"}}, "train": {"steps": 1}})


def adapted(family: str = "llama", heads: str = "parallel", on: str = "both", **lora: Any) -> MTPModel:
    """A model whose adapters are not zero any more."""
    model = tiny_model(family, 3, heads=heads, noise=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        choose_trained(config_of(on, **lora), model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if is_adapter(name):
                    parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("on", PARTS)
@pytest.mark.parametrize("heads", HEADS)
def test_a_step_moves_adapters_and_heads_without_any_and_nothing_else(heads: str, on: str) -> None:
    model = adapted(heads=heads, on=on).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_adamw(model, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    train_step(model, optimizer, MTPObjective(Uniform()), [random_batch(seed=1), random_batch(seed=2)])
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    adapters = {name for name in before if is_adapter(name)}
    whole = {name for name in before if name.startswith("extra_heads.")} if on == "trunk" else set()
    assert moved == adapters | whole
    kinds = {"base": on != "heads", "extra_heads": on != "trunk"}
    assert {name.split(".")[0] for name in adapters} == {kind for kind, has in kinds.items() if has}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    "family", [f if f in ("llama", "gpt2") else pytest.param(f, marks=pytest.mark.exhaustive) for f in FAMILIES]
)
@torch.no_grad()
def test_the_saved_model_has_no_adapters_and_computes_what_the_adapted_one_does(
    family: str, heads: str, tmp_path: Path
) -> None:
    model = adapted(family, heads).double().eval()
    expected, plain = model(TOKENS), tiny_model(family, 3, heads=heads, noise=0.1).double().eval()(TOKENS)
    save_model(model, tmp_path / "m")
    again = load_model(str(tmp_path / "m"), dtype=torch.float64).eval()
    assert not any(is_adapter(name) for name in again.state_dict())
    for got, wanted, without in zip(again(TOKENS), expected, plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        assert (wanted - without).abs().max() > 0.1
    merge_adapters(model)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_adapters_on_what_is_used_by_its_weight_alone_are_refused() -> None:
    options: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "option": "model.lora"}
    for target, kind in (("lm_head", "output"), ("embed_tokens", "input")):
        with pytest.raises(ConfigError, match=f"names the {kind} embedding"):
            add_adapters(tiny_model(tie_word_embeddings=False).base, targets=[target], **options)
    with pytest.raises(ConfigError, match=r"model\.lora\.targets"):
        adapted(targets=["no_such_module"])


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"heads": {"trained": "heads"}, "lora": {}}, "model.lora says what is trained"),
        ({"heads": {"num_heads": 1}, "lora": {"on": "both"}}, "needs model.heads.num_heads of at least 2"),
    ],
)
def test_adapters_that_contradict_the_heads_are_refused(model: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModelConfig.model_validate({"path": "m", **model})
