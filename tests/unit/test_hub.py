"""Models by hub id, fetched by huggingface_hub's own client from a hub that runs here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TOKEN, Hub, client_of, environment, serving
from safetensors.torch import save_file

from wmtp.cli import run_command
from wmtp.errors import ModelError
from wmtp.export import export
from wmtp.formats.hf import load_causal_lm, load_tokenizer, model_config
from wmtp.formats.hub import commit_of, forget
from wmtp.formats.identity import model_fingerprint
from wmtp.formats.native import load_model, load_value_model, save_model
from wmtp.formats.reward import load_reward_model
from wmtp.testing import tiny_base, tiny_model, tiny_tokenizer
from wmtp.value import ValueModel

NAME = "organisation/tiny"
RECIPE = """
device: cpu
num_threads: 1
model: {path: SOURCE, heads: {num_heads: 2}}
data: {train: {path: "embedded://problems_validation.jsonl"}, max_length: 200, on_long_row: drop}
train: {steps: 2, batch_size: 4, micro_batch_size: 2, seed: 7}
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub") as made, client_of(made, tmp_path / "cache"):
        yield made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as anybody publishes it, in three shards, with a pickle of the same weights beside it."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    base = tiny_base(vocab_size=269, max_position_embeddings=256)
    base.save_pretrained(folder, max_shard_size="40KB")
    torch.save(base.state_dict(), folder / "pytorch_model.bin")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return folder


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code, and all that was printed; nothing of it is a secret or a traceback."""
    capsys.readouterr()
    code = run_command([str(argument) for argument in arguments])
    printed = "".join(capsys.readouterr())
    assert TOKEN not in printed
    assert "Traceback" not in printed
    return code, printed


def only_line(printed: str) -> str:
    """The one line of an error."""
    assert printed.startswith("wmtp: ")
    assert printed.count("\n") == 1, printed
    return printed


# in


def test_a_model_by_id_is_that_of_the_folder_and_no_pickle_of_it_is_fetched(hub: Hub, plain: Path) -> None:
    hub.add(NAME, plain)
    assert same(load_causal_lm(NAME), load_causal_lm(str(plain)))
    assert load_tokenizer(NAME).get_vocab() == tiny_tokenizer().get_vocab()
    wanted = {path.name for path in plain.iterdir()} - {"pytorch_model.bin"}
    assert hub.fetched() == wanted
    assert f"Bearer {TOKEN}" in hub.tokens["127.0.0.1"]
    assert hub.tokens["localhost"] == {None}, "no secret leaves the hub"


def test_config_and_tokenizer_are_fetched_without_weights_and_asked_for_once(hub: Hub, plain: Path) -> None:
    hub.add(NAME, plain)
    assert model_config(NAME).hidden_size == 32
    load_tokenizer(NAME)
    assert not any(name.endswith(".safetensors") for name in hub.fetched())
    assert sum("/revision/" in path for _, path in hub.requests) == 1


def test_the_commit_is_that_of_the_hub_and_the_fingerprint_is_of_it(hub: Hub, plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "mine"))
    hub.add(NAME, folder)
    first, fingerprint = hub.commit(NAME), model_fingerprint(NAME)
    assert commit_of(NAME) == first
    (folder / "README.md").write_text("changed")
    assert commit_of(NAME) == first, "a process sees one commit"
    forget()
    assert commit_of(NAME) == hub.commit(NAME) != first
    assert model_fingerprint(NAME) != fingerprint


def test_heads_and_value_heads_come_with_their_models(hub: Hub, tmp_path: Path) -> None:
    ours, critic = tiny_model(num_heads=3, noise=0.05), ValueModel(tiny_base(), "linear", "frozen", "pairwise")
    hub.add("organisation/heads", Path(str(save_model(ours, tmp_path / "heads"))))
    hub.add("organisation/critic", Path(str(save_model(critic, tmp_path / "critic"))))
    assert same(load_model("organisation/heads"), ours)
    assert same(load_value_model("organisation/critic"), critic)


def test_a_model_with_layers_for_multi_token_prediction_comes_with_them(hub: Hub, tmp_path: Path) -> None:
    save_model(tiny_model("qwen2", 2, heads="chain", noise=0.05, vocab_size=269), tmp_path / "ours", tiny_tokenizer())
    folder = export(str(tmp_path / "ours"), str(tmp_path / "mimo"), "sglang-mimo")
    hub.add("organisation/mimo", Path(str(folder)))
    found = load_model("organisation/mimo")
    assert (found.family, found.num_heads) == ("chain", 2)
    assert same(found, load_model(str(folder)))


def test_an_adapter_by_id_is_added_to_its_model_by_id(hub: Hub, plain: Path, tmp_path: Path) -> None:
    layer, folder = "model.layers.0.self_attn.q_proj", tmp_path / "adapter"
    folder.mkdir()
    card = {"peft_type": "LORA", "base_model_name_or_path": NAME, "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(card))
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    pair = {f"base_model.model.{layer}.lora_{which}.weight": x for which, x in (("A", down), ("B", up))}
    save_file(pair, folder / "adapter_model.safetensors")
    hub.add(NAME, plain)
    hub.add("organisation/adapter", folder)
    expected = load_causal_lm(str(plain)).get_parameter(f"{layer}.weight") + 2 * up @ down
    torch.testing.assert_close(load_causal_lm("organisation/adapter").get_parameter(f"{layer}.weight"), expected)


def test_a_reward_model_by_id_is_that_of_the_folder(hub: Hub, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    config = tiny_base().config
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    hub.add("organisation/reward", tmp_path / "reward")
    assert same(load_reward_model("organisation/reward"), load_reward_model(str(tmp_path / "reward")))


def test_a_model_by_id_trains_and_generates(
    hub: Hub, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(NAME, plain)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("SOURCE", NAME))
    code, printed = command(capsys, "train", "--recipe", recipe, "--out", tmp_path / "run")
    assert code == 0, printed
    assert load_model(str(tmp_path / "run" / "final")).num_heads == 2
    code, printed = command(capsys, "generate", "--model", NAME, "--prompt", "def f", "--max-new-tokens", "4")
    assert code == 0, printed


@pytest.mark.exhaustive
def test_a_new_process_finds_the_hub_by_its_environment(hub: Hub, plain: Path, tmp_path: Path) -> None:
    hub.add(NAME, plain)
    order = ["generate", "--model", NAME, "--prompt", "def f", "--max-new-tokens", "4", "--json"]
    where = {**os.environ, **environment(hub, tmp_path / "home"), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "wmtp", *order], env=where, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["completions"]) == 1
    assert TOKEN not in done.stdout + done.stderr
    again = {**where, "HF_HUB_OFFLINE": "1"}
    hub.down = True
    done = subprocess.run(
        [sys.executable, "-m", "wmtp", *order], env=again, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# what goes wrong


@pytest.mark.parametrize(
    ("name", "goes_wrong", "code", "says"),
    [
        ("organisation/other", lambda hub: None, 2, "there is no model organisation/other on the hub"),
        (NAME, lambda hub: hub.gated.add(NAME), 2, f"{NAME} on the hub is gated"),
        (NAME, lambda hub: setattr(hub, "down", True), 1, f"cannot fetch {NAME} from the hub"),
        ("organisation/no--id", lambda hub: None, 2, "organisation/no--id is no hub id"),
    ],
    ids=["none", "gated", "down", "no id"],
)
def test_a_hub_that_refuses_is_one_line_and_an_exit_code(
    hub: Hub,
    plain: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    goes_wrong: Callable[[Hub], Any],
    code: int,
    says: str,
) -> None:
    hub.add(NAME, plain)
    goes_wrong(hub)
    got, printed = command(capsys, "generate", "--model", name, "--prompt", "x", "--json")
    assert (got, says in only_line(printed)) == (code, True), printed


def test_a_hub_that_is_not_there_is_one_line(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, printed = command(capsys, "generate", "--model", NAME, "--prompt", "x", "--json")
    assert (code, "cannot fetch" in only_line(printed)) == (1, True)


def test_offline_a_model_comes_from_the_cache_and_one_that_is_not_there_is_named(
    hub: Hub, plain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.add(NAME, plain)
    hub.add("organisation/half", plain)
    loaded = load_causal_lm(NAME)
    model_config("organisation/half")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    asked = len(hub.requests)
    assert same(load_causal_lm(NAME), loaded)
    for name in ("organisation/other", "organisation/half"):
        code, printed = command(capsys, "generate", "--model", name, "--prompt", "x", "--json")
        assert (code, "HF_HUB_OFFLINE is set" in only_line(printed)) == (2, True), printed
    assert len(hub.requests) == asked


def test_an_answer_that_breaks_off_is_asked_for_again_where_it_ended(
    hub: Hub, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.add(NAME, plain)
    hub.cut = {path.name: 2 for path in plain.glob("*.safetensors")}
    assert same(load_causal_lm(NAME), load_causal_lm(str(plain)))


def test_a_hub_that_dies_in_mid_file_is_one_line_and_leaves_no_half_of_a_file(
    hub: Hub, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.add(NAME, plain)
    shard = sorted(plain.glob("*.safetensors"))[0].name
    hub.cut = {shard: 1000}
    code, printed = command(capsys, "generate", "--model", NAME, "--prompt", "x", "--json")
    assert (code, "cannot fetch" in only_line(printed)) == (1, True), printed
    assert not list((tmp_path / "cache").rglob(shard))
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    hub.cut = {}
    assert same(load_causal_lm(NAME), load_causal_lm(str(plain)))


def test_a_file_that_ends_early_is_noticed(hub: Hub, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add(NAME, plain)
    hub.short = {sorted(plain.glob("*.safetensors"))[0].name}
    code, printed = command(capsys, "generate", "--model", NAME, "--prompt", "x", "--json")
    assert (code, "should be of size" in only_line(printed)) == (1, True), printed


def test_what_is_said_of_files_holds_for_those_of_the_hub(hub: Hub, plain: Path, tmp_path: Path) -> None:
    """Headers, shards, checksums: they are looked at as in a folder."""
    folder = Path(str(save_model(tiny_model(), tmp_path / "ours")))
    damaged = folder / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    hub.add("organisation/damaged", folder)
    with pytest.raises(ModelError, match="SHA256SUMS"):
        load_model("organisation/damaged")
    lacking = Path(shutil.copytree(plain, tmp_path / "lacking"))
    sorted(lacking.glob("*.safetensors"))[0].unlink()
    hub.add("organisation/lacking", lacking)
    with pytest.raises(ModelError, match="lacks model-00001"):
        load_model("organisation/lacking")
    pickled = Path(shutil.copytree(plain, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors*")))
    hub.add("organisation/pickled", pickled)
    with pytest.raises(ModelError):
        load_model("organisation/pickled")
    assert "pytorch_model.bin" not in hub.fetched()
