"""Runs with all of their files in an object store: the same runs as on a disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_recipe import with_few_rows

from wmtp import checkpoint
from wmtp.config import load
from wmtp.formats.hf import load_tokenizer
from wmtp.formats.native import save_model
from wmtp.model import MTPModel
from wmtp.storage import ObjectPath, Place, copy, place
from wmtp.testing import memory_storage, tiny_base
from wmtp.trainer import Silent, run

SHORT = ["train.steps=4", "train.eval_every=2", "checkpoint.every=2", "train.log_every=1"]
ROLES = ("train.jsonl", "validation.jsonl")


@pytest.fixture
def bucket() -> Iterator[ObjectPath]:
    with memory_storage() as made:
        yield made


def uploaded(folder: Path, to: ObjectPath) -> ObjectPath:
    """A local folder in the store."""
    for path in folder.rglob("*"):
        if path.is_file():
            copy(path, to / path.relative_to(folder).as_posix())
    return to


def same_model(one: Place, other: Place) -> bool:
    """Whether two folders hold the same files of a model, to the last byte."""
    names = ("model.safetensors", "mtp_heads.safetensors", "config.json", "wmtp.json", "generation_config.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def losses(run_folder: Place) -> list[tuple[int, str, float]]:
    """What the journal says, but times."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["split"], line["loss/nll"]) for line in lines]


class StopsAfter(Silent):
    """Ends a run, without saving, after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """As if it was killed."""
        if step == self.at:
            raise RuntimeError("killed")


def start_model(folder: Path) -> Path:
    """A model with heads and its tokenizer."""
    model = MTPModel(tiny_base("llama", vocab_size=1024, max_position_embeddings=256), 3)
    return Path(str(save_model(model, folder, load_tokenizer("embedded://tiny-llama"))))


def test_a_run_in_a_store_is_the_run_on_a_disk_also_when_it_goes_on(tmp_path: Path, bucket: ObjectPath) -> None:
    recipe = with_few_rows(tmp_path)
    local = start_model(tmp_path / "start")
    remote = uploaded(local, bucket / "start")
    for name in ("train.jsonl", "validation.jsonl", "recipe.yaml"):
        copy(tmp_path / name, bucket / name)
    of = "model={{architecture: null, tokenizer: null, path: '{}'}}"
    where = [f"data.{role}.path={bucket / name}" for role, name in zip(("train", "validation"), ROLES, strict=True)]
    run(load([recipe], [*SHORT, of.format(local)]), out=tmp_path / "run")
    config = load([place(f"{bucket}/recipe.yaml")], [*SHORT, of.format(remote), *where])
    with pytest.raises(RuntimeError, match="killed"):
        run(config, out=str(bucket / "run"), reporter=StopsAfter(3))
    assert [path.name for path in checkpoint.list_steps(bucket / "run" / "checkpoints")] == ["step_00000002"]
    again = Silent()
    run(config, out=str(bucket / "run"), resume="auto", reporter=again)
    assert any("resumed from memory://bucket/run/checkpoints/step_00000002" in note for note in again.notes)
    assert same_model(tmp_path / "run" / "final", bucket / "run" / "final")
    assert losses(tmp_path / "run") == losses(bucket / "run")
    assert not (bucket / "run" / ".lock").exists()
