"""What a folder holds is told by its files; peft's adapters are read as strictly as models, and merge as by peft."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmtp.errors import ModelError
from wmtp.formats.hf import load_causal_lm, load_tokenizer, tokenizer_fingerprint
from wmtp.formats.identity import model_fingerprint
from wmtp.formats.kind import kind_of
from wmtp.formats.meta import write_meta
from wmtp.formats.native import load_model, load_value_model, read_card, save_model
from wmtp.testing import VOCABULARY, tiny_base, tiny_model, tiny_tokenizer
from wmtp.value import ValueModel

peft: Any = pytest.importorskip("peft", reason="adapters need peft: pip install 'wmtp[lora]'")
TOKENS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def adapter(base: Path, folder: Path, **options: Any) -> Tensor:
    """An adapter that peft itself makes and saves; the logits of the model with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model = peft.get_peft_model(
            load_causal_lm(str(base)), peft.LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", **options)
        )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(folder)
        logits: Tensor = model.eval()(TOKENS).logits
    return logits


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model with a tokenizer, whose vocabulary is larger than the model's."""
    folder = tmp_path_factory.mktemp("plain")
    tiny_base().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def good(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of it."""
    folder = tmp_path_factory.mktemp("good")
    adapter(plain, folder)
    return folder


@pytest.fixture
def copied(good: Path, tmp_path: Path) -> Path:
    """One to be damaged."""
    return Path(shutil.copytree(good, tmp_path / "copied"))


def classifier(folder: Path) -> Path:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_config(tiny_base().config).save_pretrained(folder)
    return folder


def test_the_kind_is_told_by_the_files(plain: Path, good: Path, tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    write_meta(tiny_model("llama", 2), tmp_path / "meta")
    made = {
        "causal": plain,
        "ours": save_model(tiny_model(num_heads=2), tmp_path / "ours"),
        "meta": tmp_path / "meta",
        "adapter": good,
        "classifier": classifier(tmp_path / "causal"),  # its name says nothing
    }
    assert {kind: kind_of(folder) for kind, folder in made.items()} == {kind: kind for kind in made}


def test_a_classifier_is_named_where_a_language_model_is_expected(tmp_path: Path) -> None:
    folder = str(classifier(tmp_path / "m"))
    for load in (load_causal_lm, load_model):
        with pytest.raises(ModelError, match="is a sequence classifier, such as a reward model"):
            load(folder)
    with pytest.raises(ModelError, match="is not a critic"):
        load_value_model(folder)


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {}), ("gpt2", {"fan_in_fan_out": True}), ("qwen2", {"use_rslora": True})],
)
@torch.no_grad()
def test_an_adapter_makes_of_its_model_what_peft_makes_of_it(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    tiny_base(family).save_pretrained(tmp_path / "base")
    expected = adapter(tmp_path / "base", tmp_path / "adapter", **options)
    got = load_causal_lm(str(tmp_path / "adapter")).eval()(TOKENS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (got - load_causal_lm(str(tmp_path / "base")).eval()(TOKENS).logits).abs().max() > 0.1


def test_an_adapter_has_the_heads_and_the_tokenizer_of_its_model_and_an_identity_of_its_own(tmp_path: Path) -> None:
    base = save_model(tiny_model(num_heads=3, heads="chain"), tmp_path / "base", tiny_tokenizer())
    adapter(base, tmp_path / "adapter")
    folder = str(tmp_path / "adapter")
    assert read_card(folder) == read_card(str(base))
    assert load_model(folder).num_heads == 3
    assert tokenizer_fingerprint(load_tokenizer(folder)) == tokenizer_fingerprint(tiny_tokenizer())
    before = model_fingerprint(folder)
    save_model(tiny_model(num_heads=3, heads="chain", seed=5), base, tiny_tokenizer())
    assert model_fingerprint(folder) != before


QUERY = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update({QUERY.replace("1", "7") + ".lora_A.weight": torch.ones(2, 32)}), "matches no layer"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 32)}), "is an embedding"),
        (lambda t: t.update({QUERY + ".lora_C.weight": torch.ones(2, 32)}), "lora_C.weight matches nothing"),
        (lambda t: t.pop(QUERY + ".lora_B.weight"), "lora_B.weight is missing"),
        (lambda t: t.update({QUERY + ".lora_A.weight": torch.ones(2, 16)}), r"lora_A.weight is \(2, 16\)"),
        (lambda t: t[QUERY + ".lora_A.weight"].fill_(float("inf")), "not finite"),
        (lambda t: t.clear(), "holds no LoRA tensors"),
    ],
)
def test_a_tensor_that_fits_nothing_is_named_and_nothing_is_passed_over(
    change: Callable[[dict[str, Tensor]], Any], told: str, copied: Path
) -> None:
    tensors = load_file(copied / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, copied / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=told) as caught:
        load_model(str(copied))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": 0}, "r: "),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "use_dora = True is not understood"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "no model folder at /nowhere"),
    ],
)
def test_an_adapter_that_is_more_than_a_product_or_belongs_to_nothing_is_refused(
    change: dict[str, Any], told: str, copied: Path
) -> None:
    path = copied / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=told):
        load_model(str(copied))


def test_an_adapter_of_an_adapter_and_one_of_a_critic_are_refused(good: Path, copied: Path, tmp_path: Path) -> None:
    critic = save_model(ValueModel(tiny_base()), tmp_path / "critic")
    config = json.loads((copied / "adapter_config.json").read_text())
    for base, told in ((good, "which is an adapter itself"), (critic, "is a critic")):
        (copied / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
        with pytest.raises(ModelError, match=told):
            load_model(str(copied))
