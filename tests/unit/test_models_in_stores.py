"""Model folders in an object store hold what they hold on a disk, and are read without a second copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wmtp import ranged
from wmtp.errors import ModelError
from wmtp.export import export
from wmtp.formats import hf
from wmtp.formats.identity import model_fingerprint
from wmtp.formats.native import copy_model, load_model, load_value_model, save_model
from wmtp.formats.remote import published
from wmtp.formats.streamed import empty_model, fill, missing
from wmtp.model import MTPModel
from wmtp.storage import ObjectPath, write_atomic
from wmtp.testing import memory_storage, tiny_base, tiny_tokenizer
from wmtp.value import ValueModel


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectPath]:
    monkeypatch.setattr(ranged, "RANGE", 1 << 12)
    with memory_storage() as made:
        yield made


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models have the same weights."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gpt2", True), ("qwen2", True)])
def test_a_folder_in_a_store_is_the_folder_on_a_disk_and_loads_as_the_same_model(
    bucket: ObjectPath, tmp_path: Path, family: str, tied: bool
) -> None:
    model = MTPModel(tiny_base(family, tie_word_embeddings=tied), 3)
    tokenizer = tiny_tokenizer()
    local, remote = (save_model(model, place, tokenizer) for place in (tmp_path / "m", bucket / "m"))
    assert sorted(path.name for path in local.iterdir()) == sorted(path.name for path in remote.iterdir())
    assert all((remote / path.name).read_bytes() == path.read_bytes() for path in local.iterdir())
    assert same(load_model(str(remote)), model)
    assert model_fingerprint(str(remote)) == model_fingerprint(str(local))
    again = copy_model(remote, bucket / "again")
    assert same(load_model(str(again)), model)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_share_of_a_model_is_read_by_its_rows_and_what_shares_a_weight_goes_on_sharing_it(
    bucket: ObjectPath, family: str, tied: bool
) -> None:
    model = MTPModel(tiny_base(family, tie_word_embeddings=tied), 3)
    folder = str(save_model(model, bucket / "m", tiny_tokenizer()))
    empty = empty_model(folder)
    assert missing(empty, folder) == []
    fill(empty, folder, torch.device("cpu"))
    assert same(empty, model)
    shared = empty.base.get_output_embeddings().weight is empty.base.get_input_embeddings().weight
    assert shared == tied


def test_what_was_read_becomes_the_models_own_weights(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(MTPModel(tiny_base(), 1), bucket / "m", tiny_tokenizer())
    read: set[int] = set()

    def noting(path: ObjectPath, widened: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        found = tensors_of(path, widened)
        read.update(tensor.data_ptr() for tensor in found.values())
        return found

    tensors_of = hf.tensors_of
    monkeypatch.setattr(hf, "tensors_of", noting)
    model = hf.load_causal_lm(str(bucket / "m"))
    assert {parameter.data_ptr() for parameter in model.parameters()} <= read


def test_a_large_model_in_several_files_is_put_together(bucket: ObjectPath) -> None:
    base = tiny_base()
    with hf.at_hand(bucket) as nothing:
        assert list(nothing.iterdir()) == []
    from wmtp.formats.remote import published

    published(bucket / "m", lambda made: base.save_pretrained(made, max_shard_size="20KB"))
    assert (bucket / "m" / "model.safetensors.index.json").is_file()
    assert same(hf.load_causal_lm(str(bucket / "m")), base)
    next((bucket / "m").glob("model-00002-*")).unlink()
    with pytest.raises(ModelError, match="model-00002"):
        hf.load_causal_lm(str(bucket / "m"))


def test_a_critic_comes_back(bucket: ObjectPath) -> None:
    critic = ValueModel(tiny_base(), "mlp", "full", "pairwise")
    save_model(critic, bucket / "c", tiny_tokenizer())
    assert same(load_value_model(str(bucket / "c")), critic)


def test_metas_pth_goes_out_and_comes_back_through_a_temporary_file(
    bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = MTPModel(tiny_base(), 2)
    save_model(model, bucket / "m", tiny_tokenizer())
    export(str(bucket / "m"), str(bucket / "meta"), "meta")
    assert {path.name for path in (bucket / "meta").files()} >= {"params.json", "consolidated.pth"}
    assert same(load_model(str(bucket / "meta")), model)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_model_is_none_and_may_be_written_again_but_other_things_may_not(bucket: ObjectPath) -> None:
    model, tokenizer = MTPModel(tiny_base(), 2), tiny_tokenizer()
    save_model(model, bucket / "m", tokenizer)

    def fails(_: object) -> None:
        raise KeyboardInterrupt

    broken = tiny_tokenizer()
    broken.save_pretrained = fails
    with pytest.raises(KeyboardInterrupt):
        save_model(model, bucket / "m", broken)
    with pytest.raises(ModelError):
        load_model(str(bucket / "m"))
    save_model(model, bucket / "m", tokenizer)
    assert same(load_model(str(bucket / "m")), model)
    write_atomic(bucket / "thesis" / "text.tex", "years")
    with pytest.raises(ModelError, match="no model folder"):
        save_model(model, bucket / "thesis", tokenizer)


def test_what_a_write_that_was_killed_has_sent_is_dropped_by_the_next(s3: ObjectPath) -> None:
    s3.store.upload((s3 / "model.safetensors").key).write(bytes(20 << 20))
    published(s3, lambda made: write_atomic(made / "config.json", "{}"))
    assert "Uploads" not in s3.store._ask("list", "", "list_multipart_uploads", Prefix=s3.prefix)
