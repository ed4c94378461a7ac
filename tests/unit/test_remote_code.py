"""Code of a model runs where its folder or repository was named, and nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_models import allowed_base, change, custom_model, custom_tokenizer, own_modules
from hub_server import client_of, serving
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from wmtp.cli import run_command
from wmtp.config import load
from wmtp.errors import ModelError, UsageError
from wmtp.export import export
from wmtp.formats.code import remote_code
from wmtp.formats.hf import load_causal_lm, load_tokenizer, model_config
from wmtp.formats.identity import model_fingerprint
from wmtp.formats.native import load_model, load_value_model, save_model
from wmtp.formats.reward import load_reward_model
from wmtp.formats.streamed import empty_causal_lm
from wmtp.model import MTPModel
from wmtp.prescoring import score
from wmtp.storage import ObjectPath, copy, resolve
from wmtp.trainer import dry_run, train
from wmtp.value import ValueModel

RECIPE = """
device: cpu
num_threads: 1
model: {path: SOURCE, heads: {num_heads: 2}}
data: {train: {path: "embedded://problems_validation.jsonl"}, max_length: 200, on_long_row: drop}
train: {steps: 2, batch_size: 4, micro_batch_size: 2, seed: 7}
"""
TOKENS = torch.arange(3, 12).view(1, 9)


@pytest.fixture(autouse=True)
def sprung(tmp_path: Path) -> Iterator[Path]:
    """A folder that is made when the code of a test's model runs."""
    with own_modules(tmp_path / "modules"):
        yield tmp_path / "modules" / "sprung"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return custom_model(tmp_path_factory.mktemp("made") / "custom")


@pytest.fixture
def custom(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "custom"))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return str(caught.value)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    code = run_command([str(argument) for argument in arguments])
    return code, "".join(capsys.readouterr())


def logits(base: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = base.eval()(TOKENS).logits
    return found


# what runs


LOADS: list[Callable[[str], Any]] = [
    model_config, load_causal_lm, load_model, load_tokenizer, load_reward_model, empty_causal_lm,
]  # fmt: skip


@pytest.mark.parametrize(
    ("load", "named"),
    [*((load, "nothing") for load in LOADS), *((load_model, named) for named in ("another", "inside", "above"))],
)
def test_code_that_was_not_named_does_not_run_and_the_message_says_how_to_name_it(
    load: Callable[[str], Any], named: str, custom: Path, sprung: Path, tmp_path: Path
) -> None:
    custom_tokenizer(custom)
    another = shutil.copytree(custom, tmp_path / "another")
    (custom / "inside").mkdir()
    names = {"nothing": [], "another": [str(another)], "inside": [str(custom / "inside")], "above": [str(tmp_path)]}
    with remote_code(*names[named]):
        said = refused(lambda: load(str(custom)))
    assert not sprung.exists()
    assert all(text in said for text in (str(custom), "_own.py", f"--remote-code {custom}", "remote_code: ["))


def test_code_that_was_named_runs_and_is_the_model(custom: Path, sprung: Path, tmp_path: Path) -> None:
    base = allowed_base(custom)
    assert sprung.exists()
    assert type(base).__name__ == "OwnForCausalLM"
    change(custom / "config.json", model_type="llama")
    assert not torch.allclose(logits(load_causal_lm(str(custom))), logits(base)), "as transformers' own Llama"
    with remote_code(str(custom)):
        named = load_causal_lm(str(custom))
        empty = empty_causal_lm(str(custom))
    assert torch.equal(logits(named), logits(base)), "named code goes before transformers' own"
    assert type(empty).__name__ == "OwnForCausalLM"


def test_a_name_ends_with_its_block_and_a_folder_has_many_names(
    custom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(custom)
    monkeypatch.chdir(tmp_path)
    for name in ("custom", "./custom/", str(tmp_path / "link"), custom.as_uri()):
        with remote_code(name):
            load_causal_lm(str(custom))
        refused(lambda: load_causal_lm(str(custom)))
    with remote_code(str(custom)), remote_code("organisation/other"):
        load_causal_lm(str(custom))


def test_the_code_of_a_tokenizer_runs_if_it_was_named(custom: Path, sprung: Path) -> None:
    custom_tokenizer(custom)
    change(custom / "config.json", model_type="llama", auto_map={})
    load_causal_lm(str(custom))
    refused(lambda: load_tokenizer(str(custom)))
    assert not sprung.exists()
    with remote_code(str(custom)):
        assert type(load_tokenizer(str(custom))).__name__ == "OwnTokenizer"


def test_code_of_another_repository_must_be_named_too(custom: Path, sprung: Path, tmp_path: Path) -> None:
    theirs = custom_model(tmp_path / "theirs")
    mine = custom_model(
        tmp_path / "mine",
        AutoConfig=f"{theirs}--configuration_own.OwnConfig",
        AutoModelForCausalLM=f"{theirs}--modeling_own.OwnForCausalLM",
    )
    for named in ([], [str(mine)], [str(theirs)]):
        with remote_code(*named):
            said = refused(lambda: load_causal_lm(str(mine)))
        assert f"configuration_own.py, modeling_own.py of {theirs}" in said
        lacking = {str(mine), str(theirs)} - set(named)
        assert all((f"--remote-code {one}" in said) == (one in lacking) for one in (str(mine), str(theirs)))
    assert not sprung.exists()
    with remote_code(str(mine), str(theirs)):
        load_causal_lm(str(mine))


@pytest.mark.parametrize(
    "reference",
    [
        "/elsewhere/file.Class",
        "../file.Class",
        "Class",
        "a.b.C",
        "",
        "src--/elsewhere/file.Class",
        "a---file.Class",
        "a--b--file.Class",
        "--file.Class",
    ],
)
def test_a_class_outside_of_the_folder_or_without_a_file_is_refused(reference: str, custom: Path, sprung: Path) -> None:
    change(custom / "config.json", auto_map={"AutoConfig": reference})
    with remote_code(str(custom)):
        assert "names no class" in refused(lambda: load_causal_lm(str(custom)))
    assert not sprung.exists()


def test_another_config_in_the_place_of_the_one_that_was_looked_at_is_refused(custom: Path, sprung: Path) -> None:
    change(custom / "config.json", configuration_files=["config.4.0.0.json"])
    for named in ([], [str(custom)]):
        with remote_code(*named):
            assert "configuration_files" in refused(lambda: load_causal_lm(str(custom)))
    assert not sprung.exists()


def test_a_model_and_an_adapter_in_one_folder_are_refused(custom: Path) -> None:
    (custom / "adapter_config.json").write_text("{}")
    with remote_code(str(custom)):
        assert "holds a model and an adapter" in refused(lambda: load_causal_lm(str(custom)))


def test_a_model_whose_code_changed_is_another_model(custom: Path) -> None:
    before = model_fingerprint(str(custom))
    with (custom / "modeling_own.py").open("a") as code:
        code.write("# changed")
    assert model_fingerprint(str(custom)) != before


@pytest.mark.parametrize("code", ["def", "undefined_name", "raise ValueError('no')", "import no_such_package", ""])
def test_code_that_does_not_run_is_an_error_that_names_the_model(code: str, custom: Path) -> None:
    (custom / "configuration_own.py").write_text(code)
    with remote_code(str(custom)):
        assert str(custom) in refused(lambda: load_causal_lm(str(custom)))


def test_an_architecture_whose_parts_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    odd = custom_model(tmp_path / "odd", AutoModelForCausalLM="modeling_own.OddForCausalLM")
    with remote_code(str(odd)):
        assert "OwnModel has 2 norms" in refused(lambda: MTPModel(load_without_norm(odd), 2))


def load_without_norm(folder: Path) -> Any:
    """Its second norm is in the weights too."""
    weights = load_file(folder / "model.safetensors")
    extra = {f"model.norm_of_its_own.{name}": torch.ones(32) for name in ("weight", "bias")}
    save_file(weights | extra, folder / "model.safetensors", metadata={"format": "pt"})
    return load_causal_lm(str(folder))


def test_code_in_an_object_store_does_not_run(custom: Path, sprung: Path, moto: ObjectPath) -> None:
    for file in custom.iterdir():
        copy(file, moto / "custom" / file.name)
    source = str(moto / "custom")
    with remote_code(source):
        assert "copy it to a disk" in refused(lambda: load_causal_lm(source))
    assert "copy it to a disk" in refused(lambda: load_causal_lm(source))
    assert not sprung.exists()


# by hub id


def test_by_hub_id_the_id_is_the_name_and_another_repository_is_another_name(
    custom: Path, sprung: Path, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    theirs = {name: f"organisation/code--{reference}" for name, reference in OWN.items()}
    borrowing = custom_model(tmp_path / "borrowing", **theirs)
    with serving(tmp_path / "hub") as hub, client_of(hub, tmp_path / "cache"):
        hub.add("organisation/code", custom)
        hub.add("organisation/borrowing", borrowing)
        for name in ("organisation/code", "organisation/borrowing"):
            assert f"--remote-code {name}" in refused(lambda name=name: load_causal_lm(name))
        with remote_code("organisation/other"):
            refused(lambda: load_causal_lm("organisation/code"))
        with remote_code("organisation/borrowing"):
            said = refused(lambda: load_causal_lm("organisation/borrowing"))
        assert "of organisation/code" in said
        assert "--remote-code organisation/code" in said
        assert not sprung.exists()
        with remote_code("organisation/code"):
            expected = logits(load_causal_lm("organisation/code"))
        assert torch.equal(expected, logits(allowed_base(custom)))
        with remote_code("organisation/borrowing", "organisation/code"):
            assert torch.equal(expected, logits(load_causal_lm("organisation/borrowing")))


OWN = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


# a run


@pytest.fixture
def recipe(custom: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("SOURCE", str(custom)))
    return path


def test_a_run_that_names_the_code_trains_saves_and_its_model_must_be_named_again(
    recipe: Path, custom: Path, sprung: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, final = tmp_path / "run", tmp_path / "run" / "final"
    order = ["train", "--recipe", recipe, "--out", run]
    for further in ([], [f"remote_code=[{tmp_path}]"], ["--dry-run"]):
        code, printed = command(capsys, *order, *further)
        assert (code, f"--remote-code {custom}" in printed, printed.count("\n")) == (2, True, 1), printed
    assert not sprung.exists()
    assert not run.exists()
    named = f"remote_code=[{custom}]"
    assert command(capsys, *order, "--dry-run", named)[0] == 0
    code, printed = command(capsys, *order, named)
    assert code == 0, printed
    assert {"configuration_own.py", "modeling_own.py"} <= {path.name for path in final.iterdir()}
    config = json.loads((final / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_own.OwnForCausalLM"

    shutil.rmtree(sprung)
    ask = ["generate", "--model", final, "--prompt", "def f", "--max-new-tokens", "3", "--json"]
    for further in ([], ["--remote-code", custom]):
        code, printed = command(capsys, *ask, *further)
        assert (code, f"--remote-code {final}" in printed) == (2, True), printed
    assert not sprung.exists()
    code, printed = command(capsys, *ask, "--remote-code", final)
    assert code == 0, printed

    export_run = ["export", "--model", run, "--to", "hf", "--out", tmp_path / "plain"]
    code, printed = command(capsys, *export_run)
    assert (code, f"--remote-code {custom}" in printed) == (2, True), printed
    assert command(capsys, *export_run, "--remote-code", custom)[0] == 0
    with remote_code(str(final)):
        trained = load_model(str(final))
    trained.keep_heads(1)
    plain = MTPModel(allowed_base(tmp_path / "plain"), 1)
    assert all(torch.equal(x, y) for x, y in zip(trained(TOKENS), plain(TOKENS), strict=True))


def test_inspecting_a_run_names_its_code(recipe: Path, custom: Path, tmp_path: Path, sprung: Path) -> None:
    train(recipe, [f"remote_code=[{custom}]", "data.validation_fraction=0.5"], out=tmp_path / "run")
    shutil.rmtree(sprung)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("typer.echo", lambda text="", **_: said.append(str(text)))
        assert run_command(["inspect", str(tmp_path / "run")]) == 2
    assert f"--remote-code {tmp_path / 'run' / 'final'}" in said[-1]
    assert "configuration_own.py, modeling_own.py" in said[-1]
    assert not sprung.exists()


def test_a_dry_run_with_the_code_needs_what_one_of_its_like_does(recipe: Path, custom: Path) -> None:
    found = []
    config = load([recipe], [f"remote_code=[{custom}]"])
    dry_run(config, lambda estimate, notes: found.append(estimate))
    change(custom / "config.json", model_type="llama", auto_map={})
    dry_run(load([recipe]), lambda estimate, notes: found.append(estimate))
    assert found[0].total == found[1].total


# out


@pytest.fixture
def ours(custom: Path, tmp_path: Path) -> Path:
    model = MTPModel(allowed_base(custom), 2, "fresh")
    with remote_code(str(custom)):
        return Path(str(save_model(model, tmp_path / "ours", load_tokenizer(str(custom)))))


@pytest.mark.parametrize("target", ["wmtp", "hf", "head:2"])
def test_exports_carry_the_code_and_are_read_back_with_it(
    target: str, ours: Path, sprung: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError):
        export(str(ours), str(tmp_path / "out"), target)
    assert not (tmp_path / "out").exists()
    with remote_code(str(ours)):
        out = export(str(ours), str(tmp_path / "out"), target)
        original = load_model(str(ours))
    assert (out / "modeling_own.py").read_text() == (ours / "modeling_own.py").read_text()
    refused(lambda: load_model(str(out)))
    with remote_code(str(out)):
        again = load_model(str(out), num_heads=2 if target == "wmtp" else 1)
    theirs = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert torch.equal(logits(theirs), again.project(again.eval()(TOKENS)[0]))
    expected = original(TOKENS)[1:] if target == "head:2" else original(TOKENS)
    assert all(torch.equal(x, y) for x, y in zip(again(TOKENS), expected, strict=False))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("meta", "its model_type is 'own_llama'"),
        ("vllm-mimo", "MiMo's format holds"),
        ("sglang-mimo", "MiMo's format holds"),
        ("vllm-medusa", "its heads are parallel"),
        ("adapter", "is no checkpoint"),
    ],
)
def test_formats_of_one_architecture_refuse_it(target: str, says: str, ours: Path, tmp_path: Path) -> None:
    with remote_code(str(ours)), pytest.raises(UsageError, match=says):
        export(str(ours), str(tmp_path / "out"), target)


def test_it_is_not_exported_to_an_object_store(ours: Path, moto: ObjectPath) -> None:
    with remote_code(str(ours)), pytest.raises(UsageError, match="give a local --out"):
        export(str(ours), str(moto / "out"))
    assert not (moto / "out").exists()


def test_a_critic_and_a_reward_model_with_code_of_their_own_go_by_the_same_rule(
    custom: Path, sprung: Path, tmp_path: Path
) -> None:
    critic = ValueModel(allowed_base(custom), "linear", "frozen", "pairwise")
    folder = save_model(critic, tmp_path / "critic")
    shutil.rmtree(sprung)
    refused(lambda: load_value_model(str(folder)))
    assert not sprung.exists()
    with remote_code(str(folder)):
        again = load_value_model(str(folder))
    assert all(again.state_dict()[name].equal(value) for name, value in critic.state_dict().items())
    weights = load_file(custom / "model.safetensors")
    weights = {name: value for name, value in weights.items() if name.startswith("model.")}
    save_file(weights | {"score.weight": torch.ones(1, 32)}, custom / "model.safetensors", metadata={"format": "pt"})
    change(custom / "config.json", num_labels=1, id2label={"0": "x"}, label2id={"x": 0})
    with remote_code(str(custom)):
        assert type(load_reward_model(str(custom)).base).__name__ == "OwnForSequenceClassification"


@pytest.mark.parametrize(
    "fields",
    [{"attn_implementation": "someone/kernel"}, {"text_config": {"attn_implementation": {"": "someone/kernel@main"}}}],
)
def test_attention_by_code_of_the_hub_is_refused(fields: dict[str, Any], custom: Path) -> None:
    change(custom / "config.json", model_type="llama", auto_map={}, **fields)
    with remote_code(str(custom), "someone/kernel"):
        assert "code of someone/kernel" in refused(lambda: load_causal_lm(str(custom)))


def test_a_frozen_model_of_a_recipe_goes_by_the_same_rule(custom: Path, sprung: Path, tmp_path: Path) -> None:
    """So does `wmtp score`, which asks it."""
    plain = Path(shutil.copytree(custom, tmp_path / "plain"))
    change(plain / "config.json", model_type="llama", auto_map={})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("SOURCE", str(plain)))
    weighting = f"objective={{kind: mtp, weighting: {{scheme: rho1, reference: '{custom}'}}}}"
    said = refused(lambda: score(load([recipe], [weighting]), out=str(tmp_path / "scores")))
    assert f"--remote-code {custom}" in said
    assert not sprung.exists()
    _, card = score(load([recipe], [weighting, f"remote_code=[{custom}]"]), out=str(tmp_path / "scores"))
    assert card.tokens > 0


def test_an_index_reads_a_tokenizer_by_the_same_rule(
    custom: Path, sprung: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    custom_tokenizer(custom)
    records = tmp_path / "records.jsonl"
    shutil.copy(resolve("embedded://problems_validation.jsonl"), records)
    order = ["data", "index", records, "--tokenizer", custom]
    code, printed = command(capsys, *order)
    assert (code, f"--remote-code {custom}" in printed, sprung.exists()) == (2, True, False), printed
    code, printed = command(capsys, *order, "--remote-code", custom)
    assert code == 0, printed
