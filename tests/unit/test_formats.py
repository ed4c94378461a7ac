"""What is saved is what is loaded, to the last bit; whatever is wrong with a folder is told, and nothing is run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmtp.errors import ModelError, WmtpError
from wmtp.families import FAMILIES as HEADS_2K
from wmtp.formats.hf import (
    check_same_tokenizer,
    load_causal_lm,
    load_tokenizer,
    locate,
    model_config,
    random_causal_lm,
    tokenizer_fingerprint,
)
from wmtp.formats.native import MTPCard, ValueCard, load_model, load_value_model, read_card, save_model
from wmtp.model import MTPModel
from wmtp.testing import FAMILIES, VOCABULARY, tiny_base, tiny_model, tiny_tokenizer
from wmtp.value import HEADS, ValueModel

TOKENS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def model(family: str = "llama", num_heads: int = 3, **options: Any) -> MTPModel:
    """Heads differ from each other."""
    return tiny_model(family, num_heads, noise=0.05, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(model(), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A fresh copy of a good folder, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def fingerprint(path: Path) -> dict[str, str]:
    """Every file of a folder and its content."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def refused(call: Callable[[], Any]) -> str:
    """The message of the `ModelError` that `call` ends in."""
    with pytest.raises(ModelError) as caught:
        call()
    assert caught.value.exit_code == 2
    return str(caught.value)


# round trip


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_to_the_last_bit_and_transformers_reads_its_first_head(
    family: str, tied: bool, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    ours = model(family, tie_word_embeddings=tied).eval()
    save_model(ours, tmp_path / "m")
    again = load_model(str(tmp_path / "m")).eval()
    assert again.num_heads == 3
    assert same_state(again, ours)
    shared = again.base.get_output_embeddings().weight is again.base.get_input_embeddings().weight
    assert shared == tied
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        hidden = ours(TOKENS)
        assert all(torch.equal(x, y) for x, y in zip(again(TOKENS), hidden, strict=True))
        torch.testing.assert_close(plain.eval()(TOKENS).logits, ours.project(hidden[0]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(hidden[0], hidden[1], atol=1e-3)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_stored_under_the_names_that_transformers_itself_would_write(
    family: str, tied: bool, tmp_path: Path
) -> None:
    save_model(model(family, tie_word_embeddings=tied), tmp_path / "ours")
    tiny_base(family, tie_word_embeddings=tied).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / which / "model.safetensors") for which in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    configs = [json.loads((tmp_path / which / "config.json").read_text()) for which in ("ours", "theirs")]
    assert configs[0] == configs[1]
    assert configs[0]["architectures"] == [type(tiny_base(family)).__name__]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_of_the_weights_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    ours = model(dtype=dtype)
    save_model(ours, tmp_path / "m")
    assert same_state(load_model(str(tmp_path / "m"), dtype=dtype), ours)
    stored = load_file(tmp_path / "m" / "mtp_heads.safetensors") | load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}


def test_one_head_is_the_base_model_and_needs_no_file_of_heads(tmp_path: Path) -> None:
    ours = model(num_heads=1)
    save_model(ours, tmp_path / "m")
    assert not (tmp_path / "m" / "mtp_heads.safetensors").exists()
    assert same_state(load_model(str(tmp_path / "m")), ours)


def test_saving_twice_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_model(load_model(str(folder)), tmp_path / "again")
    assert fingerprint(tmp_path / "again") == fingerprint(folder)


def test_a_folder_is_named_by_a_file_url_too(folder: Path, tmp_path: Path) -> None:
    ours = load_model(folder.as_uri())
    save_model(ours, (tmp_path / "by url").as_uri())
    assert same_state(load_model(str(tmp_path / "by url")), ours)


def test_the_tokenizer_travels_with_the_model(tmp_path: Path) -> None:
    ours = tiny_tokenizer()
    save_model(model(), tmp_path / "m", ours)
    again = load_tokenizer(str(tmp_path / "m"))
    check_same_tokenizer(ours, again, "the saved model")
    assert tokenizer_fingerprint(ours) == tokenizer_fingerprint(again)
    text = "def f(x):\n    return 'größe'"
    assert again(text)["input_ids"] == ours(text)["input_ids"]
    assert again.eos_token_id == ours.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_of_a_model_is_what_its_file_says_whatever_the_type_of_the_model(
    family: str, tmp_path: Path
) -> None:
    ours = tiny_tokenizer()
    tiny_base(family).config.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    check_same_tokenizer(ours, again, "the saved model")
    text = "cafe\u0301 1234567890 def f(x):\n    return \ufb01"
    assert again(text)["input_ids"] == ours(text)["input_ids"]


def test_a_tokenizer_with_several_chat_templates_is_saved_with_all_of_them(tmp_path: Path) -> None:
    ours = tiny_tokenizer()
    ours.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    save_model(model(), tmp_path / "m", ours)
    assert load_tokenizer(str(tmp_path / "m")).chat_template == ours.chat_template


# number of heads


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_heads_than_stored_are_the_first_ones(folder: Path, count: int) -> None:
    whole, part = load_model(str(folder)), load_model(str(folder), num_heads=count)
    assert part.num_heads == count
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(part(TOKENS), whole(TOKENS)[:count], strict=True))


@pytest.mark.parametrize("heads", HEADS_2K)
@torch.no_grad()
def test_more_heads_than_stored_are_those_and_behind_them_what_a_plain_model_gets(heads: str, tmp_path: Path) -> None:
    ours = model(heads=heads).eval()
    save_model(ours, tmp_path / "m")
    more = load_model(str(tmp_path / "m"), num_heads=5, init="zero").eval()
    assert (more.num_heads, more.family) == (5, heads)
    assert all(torch.equal(x, y) for x, y in zip(more(TOKENS)[:3], ours(TOKENS), strict=True))
    plain = MTPModel(load_causal_lm(str(tmp_path / "m")), 3, "zero", family=heads)
    assert same_state(more.extra_heads[2:], plain.extra_heads)


@pytest.mark.parametrize("heads", HEADS_2K)
def test_a_folder_with_one_head_is_a_plain_model_that_gets_heads_of_any_family(heads: str, tmp_path: Path) -> None:
    save_model(model(num_heads=1), tmp_path / "m")
    plain = MTPModel(load_causal_lm(str(tmp_path / "m")), 3, "zero", family=heads)
    assert same_state(load_model(str(tmp_path / "m"), heads=heads, num_heads=3, init="zero"), plain)


def test_heads_that_cannot_be_added_to_those_of_a_folder_are_refused(folder: Path) -> None:
    assert "has parallel heads" in refused(lambda: load_model(str(folder), heads="chain", num_heads=4))
    assert "was saved with heads" in refused(lambda: load_model(str(folder), num_heads=4, depth="matched"))
    assert "one model has one family" in refused(lambda: load_model(str(folder)).add_heads(1, family="linear"))


def test_a_model_without_heads_gets_four_or_as_many_as_asked_for(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "plain")
    assert load_model(str(tmp_path / "plain")).num_heads == 4
    assert load_model(str(tmp_path / "plain"), num_heads=6).num_heads == 6
    for count in (0, -1):
        assert str(count) in refused(lambda count=count: load_model(str(tmp_path / "plain"), num_heads=count))


def test_no_head_at_all_is_refused(folder: Path) -> None:
    assert "0 cannot be kept" in refused(lambda: load_model(str(folder), num_heads=0))


def test_another_head_family_than_is_stored_is_refused_and_so_is_an_unknown_one(folder: Path, tmp_path: Path) -> None:
    assert "has parallel heads, 'chain' were asked for" in refused(lambda: load_model(str(folder), heads="chain"))
    tiny_base().save_pretrained(tmp_path / "plain")
    assert "got 'tree'" in refused(lambda: load_model(str(tmp_path / "plain"), heads="tree"))


@pytest.mark.parametrize(
    ("dtype", "family"),
    [*((torch.float32, family) for family in FAMILIES), (torch.bfloat16, "llama"), (torch.bfloat16, "gpt2")],
)
@pytest.mark.parametrize("heads", ["linear", "chain"])
def test_heads_of_every_family_come_back_to_the_last_bit(
    family: str, heads: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    made = model(family, heads=heads, dtype=dtype)
    save_model(made, tmp_path / "made")
    ours = load_model(str(tmp_path / "made"), dtype=dtype).eval()  # keeps in fp32 what a cast to bf16 would round
    assert same_state(ours, made)
    save_model(ours, tmp_path / "m")
    assert read_card(str(tmp_path / "m")) == MTPCard(heads=heads, num_heads=3)  # type: ignore[arg-type]
    again = load_model(str(tmp_path / "m"), dtype=dtype).eval()
    assert again.family == heads
    assert same_state(again, ours)
    if dtype == torch.float32:  # a model that is cast when it is there has cast its rotary frequencies too
        fewer = load_model(str(tmp_path / "m"), num_heads=2)
        with torch.no_grad():
            assert all(torch.equal(x, y) for x, y in zip(again(TOKENS), ours(TOKENS), strict=True))
            assert torch.equal(fewer(TOKENS)[1], ours(TOKENS)[1])


def test_a_model_with_heads_made_of_its_own_layers_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    ours = MTPModel(tiny_base(num_hidden_layers=5), 3, depth="matched")
    save_model(ours, tmp_path / "m")
    again = load_model(str(tmp_path / "m"))
    assert same_state(again, ours)
    assert again.num_layers == 3


def test_a_model_without_heads_gets_those_of_the_family_that_is_asked_for(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "plain")
    for heads in ("linear", "chain"):
        assert load_model(str(tmp_path / "plain"), heads=heads, num_heads=2, init="zero").family == heads
    matched = load_model(str(tmp_path / "plain"), num_heads=2, depth="matched")
    assert (matched.num_layers, matched.num_heads) == (2, 2)


# critic


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("head", HEADS)
def test_a_critic_comes_back_to_the_last_bit(head: str, tied: bool, tmp_path: Path) -> None:
    ours = ValueModel(tiny_base(tie_word_embeddings=tied), head, "full", "lambda_return").eval()
    save_model(ours, tmp_path / "critic")
    assert read_card(str(tmp_path / "critic")) == ValueCard(head=head, loss="lambda_return")
    again = load_value_model(str(tmp_path / "critic")).eval()
    assert same_state(again, ours)
    assert (again.backbone, again.loss) == ("frozen", "lambda_return")
    assert not any(p.requires_grad for p in again.base.parameters())
    with torch.no_grad():
        assert torch.equal(again(TOKENS), ours(TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_stands_on_any_family(family: str, tmp_path: Path) -> None:
    ours = ValueModel(tiny_base(family), "linear").eval()
    save_model(ours, tmp_path / "critic")
    with torch.no_grad():
        assert torch.equal(load_value_model(str(tmp_path / "critic")).eval()(TOKENS), ours(TOKENS))


def test_a_critic_is_no_language_model_and_the_other_way_round(folder: Path, tmp_path: Path) -> None:
    save_model(ValueModel(tiny_base()), tmp_path / "critic")
    assert "is a critic" in refused(lambda: load_model(str(tmp_path / "critic")))
    assert "is not a critic (kind 'mtp')" in refused(lambda: load_value_model(str(folder)))
    tiny_base().save_pretrained(tmp_path / "plain")
    assert "is not a critic (a plain model)" in refused(lambda: load_value_model(str(tmp_path / "plain")))


# card


def test_a_card_says_what_was_added_and_a_plain_folder_has_none(folder: Path, tmp_path: Path) -> None:
    assert read_card(str(folder)) == MTPCard(num_heads=3)
    tiny_base().save_pretrained(tmp_path / "plain")
    assert read_card(str(tmp_path / "plain")) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe\x00",
        b"null",
        b"5",
        b"[1]",
        b'"kind"',
        b"{}",
        b'{"kind": "lora", "num_heads": 3}',
        b'{"kind": "mtp"}',
        b'{"kind": "mtp", "num_heads": 2.5}',
        b'{"kind": "mtp", "num_heads": 3, "heads": "tree"}',
        b'{"kind": "mtp", "num_heads": 3, "format": 2}',
        b'{"kind": "mtp", "num_heads": 3, "more": 1}',
        b'{"kind": "value", "head": "tanh", "loss": "pairwise"}',
        b'{"kind": "value", "head": "linear", "loss": "mse"}',
        b'{"kind": "value", "head": "linear"}',
        b"[" * 10**5,
        b'{"kind":' * 10**5,
    ],
    ids=lambda content: repr(content[:50]),
)
def test_garbage_in_place_of_a_card_is_refused_and_the_file_named(folder: Path, content: bytes) -> None:
    (folder / "wmtp.json").write_bytes(content)
    for load in (read_card, load_model, load_value_model):
        assert str(folder / "wmtp.json") in refused(lambda load=load: load(str(folder)))


def test_a_card_with_an_impossible_number_of_heads_is_refused(folder: Path) -> None:
    for count in (0, -5):
        (folder / "wmtp.json").write_text(json.dumps({"kind": "mtp", "num_heads": count}))
        assert str(count) in refused(lambda: load_model(str(folder)))


# tensors

FILES = ["model.safetensors", "mtp_heads.safetensors"]


def edit(path: Path, change: Callable[[dict[str, Tensor], str], Any]) -> str:
    """Change a file's tensors; the name of the one that `change` is about."""
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    change(tensors, name)
    save_file(tensors, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("file", FILES)
def test_a_missing_tensor_is_named(folder: Path, file: str) -> None:
    name = edit(folder / file, lambda tensors, name: tensors.pop(name))
    told = refused(lambda: load_model(str(folder)))
    assert name in told
    assert str(folder) in told


@pytest.mark.parametrize("file", FILES)
def test_an_unexpected_tensor_is_named(folder: Path, file: str) -> None:
    edit(folder / file, lambda tensors, _: tensors.update({"one.too.many": torch.zeros(2)}))
    told = refused(lambda: load_model(str(folder)))
    assert "one.too.many" in told
    assert str(folder) in told


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("shape", [(3, 5), (32,), (64, 32), (0, 32)])
def test_a_tensor_of_another_shape_is_named(folder: Path, file: str, shape: tuple[int, ...]) -> None:
    name = edit(folder / file, lambda tensors, name: tensors.update({name: torch.zeros(shape)}))
    told = refused(lambda: load_model(str(folder)))
    assert name in told
    assert str(folder) in told


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder: Path, file: str, keep: float) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert str(folder) in refused(lambda: load_model(str(folder)))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [b"garbage" * 99, b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", b"\x80\x02}q\0."])
def test_a_file_that_is_no_safetensors_is_refused(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    assert str(folder) in refused(lambda: load_model(str(folder)))


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_missing_or_a_directory_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert str(folder) in refused(lambda: load_model(str(folder)))
    (folder / file).mkdir()
    assert str(folder) in refused(lambda: load_model(str(folder)))


def test_a_value_head_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = save_model(ValueModel(tiny_base(), "linear"), tmp_path / "critic")
    (path / "wmtp.json").write_text(json.dumps({"kind": "value", "head": "mlp", "loss": "pairwise"}))
    assert "layers.2.weight" in refused(lambda: load_value_model(str(path)))
    (path / "value_head.safetensors").unlink()
    assert "value_head.safetensors" in refused(lambda: load_value_model(str(path)))


# config


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"5",
        b"[1]",
        b"{}",
        b"[" * 10**5,
        b'{"model_type": "no-such-model"}',
        b'{"model_type": 5}',
        b'{"model_type": "llama", "hidden_size": "wide"}',
        b'{"model_type": "llama", "hidden_size": -1}',
        b'{"model_type": "llama", "num_attention_heads": 0}',
    ],
    ids=lambda content: repr(content[:50]),
)
def test_garbage_in_place_of_a_config_is_refused_and_the_folder_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    for load in (load_model, load_causal_lm, model_config):
        assert str(folder) in refused(lambda load=load: load(str(folder)))


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}')
    assert "causal language model" in refused(lambda: load_model(str(folder)))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({}, "model_type = None"),
        ({"model_type": "no-such-model"}, "'no-such-model'"),
        ({"model_type": ["llama"]}, "llama"),
        ({"model_type": "llama", "hiden_size": 32}, "model.architecture.hiden_size"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "llama", "num_attention_heads": 0}, "llama config"),
        ({"model_type": "t5"}, "causal language model"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused_and_its_key_named(
    architecture: dict[str, Any], message: str
) -> None:
    assert message in refused(lambda: random_causal_lm(architecture, 64, 0))


def test_a_random_model_is_a_function_of_its_seed_and_leaves_the_global_generator_alone() -> None:
    tiny = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    tiny |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (random_causal_lm(tiny, 50, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_state(first, again)
    assert not same_state(first, other)
    assert first.config.vocab_size == 50
    assert random_causal_lm({**tiny, "vocab_size": 70}, 50, 1).config.vocab_size == 70


# places


def test_a_file_an_empty_folder_and_a_missing_place_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (
        (folder / "config.json", "is a file; a model folder"),
        (tmp_path / "nowhere", "no model folder at"),
        (tmp_path / "empty", "has no config.json; a whole model folder was expected"),
    ):
        told = refused(lambda path=path: load_model(str(path)))
        assert message in told
        assert str(path) in told


@pytest.mark.parametrize("source", ["./nowhere", "../nowhere", "a/b/c", "nowhere", "file:///no/where"])
def test_what_has_not_the_form_of_a_hub_id_is_never_looked_up_there(source: str) -> None:
    assert source in refused(lambda: locate(source))


def test_a_hub_id_is_taken_as_it_is() -> None:
    assert locate("organisation/name") == "organisation/name"


# nothing is run


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_the_trap_works(tmp_path: Path) -> None:
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "mtp_heads.safetensors"])
def test_a_pickle_is_refused_and_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    for file in FILES if name == "pytorch_model.bin" else [name]:
        (folder / file).unlink()
    torch.save({"weight": Trap(tmp_path / "sprung")}, folder / name)
    assert str(folder) in refused(lambda: load_model(str(folder)))
    assert not (tmp_path / "sprung").exists()


def test_code_in_a_model_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    for config in (
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"auto_map": {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Slow", "evil.Fast"]}},
    ):
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Fast"}))
        for load in (load_model, model_config, load_tokenizer):
            assert str(folder) in refused(lambda load=load: load(str(folder)))
    assert not (tmp_path / "sprung").exists()


# tokenizers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_tokenizer_is_named(family: str, tmp_path: Path) -> None:
    """For some types of models transformers would make an empty one."""
    tiny_base(family).config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    assert f"cannot load a tokenizer from {tmp_path}" in refused(lambda: load_tokenizer(str(tmp_path)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"5",
        b"{}",
        b"[" * 10**5,
        b'{"model": 5}',
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "?"}}',
    ],
    ids=lambda content: repr(content[:50]),
)
def test_garbage_in_place_of_a_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").write_bytes(content)
    assert str(tmp_path / "t") in refused(lambda: load_tokenizer(str(tmp_path / "t")))


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "t")
    assert "has no EOS token" in refused(lambda: load_tokenizer(str(tmp_path / "t")))


class Vocabulary:
    """What `check_same_tokenizer` looks at."""

    def __init__(self, **ids: int) -> None:
        self.ids = ids

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)


@pytest.mark.parametrize(
    ("ours", "theirs", "index"),
    [
        ({"a": 0, "b": 1, "c": 2}, {"a": 0, "x": 1, "c": 2}, 1),
        ({"a": 0, "b": 1, "c": 2}, {"b": 0, "a": 1, "c": 2}, 0),
        ({"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2}, 2),
        ({"a": 0, "b": 1, "c": 2}, {"a": 0, "b": 1}, 2),
        ({"a": 0, "c": 2}, {"a": 0, "b": 1, "c": 2}, 1),
        ({"a": 0, "b": 1, "c": 2}, {"a": 0, "c": 2}, 1),
        ({"a": 0, "b": 1}, {"a": 0, "x": 1, "b": 2}, 1),
    ],
)
def test_the_first_id_that_means_something_else_is_named(
    ours: dict[str, int], theirs: dict[str, int], index: int
) -> None:
    policy, other = Vocabulary(**ours), Vocabulary(**theirs)
    told = refused(lambda: check_same_tokenizer(policy, other, "the critic"))
    assert told.startswith("the critic has another tokenizer than the policy")
    of = [{i: token for token, i in side.items()}.get(index) for side in (theirs, ours)]
    assert f"first difference at id {index} ({of[0]!r} against {of[1]!r})" in told
    assert tokenizer_fingerprint(policy) != tokenizer_fingerprint(other)


def test_equal_vocabularies_pass_in_any_order() -> None:
    one, other = Vocabulary(a=0, b=1), Vocabulary(b=1, a=0)
    check_same_tokenizer(one, other, "the critic")
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)


# all or nothing


class Full:
    """A tokenizer whose folder has run out of space half-way."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")


def test_a_save_that_fails_leaves_the_old_folder_as_it_was_and_nothing_behind(folder: Path) -> None:
    before = fingerprint(folder.parent)
    with pytest.raises(WmtpError, match=r"cannot write the model folder.*No space left") as caught:
        save_model(model(seed=9), folder, Full())
    assert caught.value.exit_code == 1
    assert fingerprint(folder.parent) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_save_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    class Interrupted:
        def save_pretrained(self, folder: Path) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_model(model(), tmp_path / "m", Interrupted())
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_model_replaces_all_of_it(folder: Path) -> None:
    (folder / "mtp_heads.safetensors").rename(folder / "left-over.safetensors")
    ours = model("gpt2", 1)
    save_model(ours, folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "wmtp.json",
    ]
    assert same_state(load_model(str(folder)), ours)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_saving_through_a_link_replaces_what_it_points_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    ours = model(seed=4)
    save_model(ours, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same_state(load_model(str(folder)), ours)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "model"]


def test_saving_makes_the_folders_above(tmp_path: Path) -> None:
    assert save_model(model(), tmp_path / "a" / "b" / "m") == tmp_path / "a" / "b" / "m"
    (tmp_path / "empty").mkdir()
    assert load_model(str(save_model(model(), tmp_path / "empty"))).num_heads == 3


def test_saving_never_deletes_a_folder_or_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.txt").write_text("three years")
    (tmp_path / "notes.txt").write_text("keep")
    before = fingerprint(tmp_path)
    for place in ("thesis", "notes.txt", "."):
        assert "is no model folder" in refused(lambda place=place: save_model(model(), tmp_path / place))
    with pytest.raises(WmtpError, match="cannot write the model folder"):
        save_model(model(), tmp_path / "notes.txt" / "m")
    assert fingerprint(tmp_path) == before
