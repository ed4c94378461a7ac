"""Runs whose object store fails while they train: what it costs, and how the command ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_recipe import with_few_rows

from wmtp import best, checkpoint, dataset, trainer
from wmtp.config import Config, load
from wmtp.errors import CheckpointError, StorageError
from wmtp.formats.native import load_value_model
from wmtp.storage import ObjectPath
from wmtp.testing import MemoryStore, memory_storage
from wmtp.trainer import Silent, run

SHORT = ["train={steps: 6, batch_size: 8, micro_batch_size: 8, eval_every: 2, eval_batches: 1, log_every: 1}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe on few rows."""
    return with_few_rows(tmp_path_factory.mktemp("recipe"), train=40, validation=20)


@pytest.fixture
def bucket() -> Iterator[ObjectPath]:
    with memory_storage() as made:
        yield made


def refuse(wanted: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch, *, settings: bool = False) -> None:
    """Objects of these keys cannot be written."""
    put = MemoryStore.put

    def refusing(self: MemoryStore, key: str, data: bytes) -> None:
        if wanted(key):
            raise StorageError("the store refuses", settings=settings)
        put(self, key, data)

    monkeypatch.setattr(MemoryStore, "put", refusing)


def critic(recipe: Path, accuracies: list[float], monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run whose evaluations find these pair accuracies."""
    left, original = iter(accuracies), trainer.evaluate

    def evaluate(*arguments: Any, **options: Any) -> dict[str, float]:
        return original(*arguments, **options) | {"value/pair_accuracy": next(left), "loss/weighted": 1.0}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    return load([recipe], ["objective={kind: value}", *SHORT, "checkpoint={every: 3, select: best}"])


def test_a_best_model_that_cannot_be_written_costs_that_model_and_the_run_ends_with_the_best_that_could(
    recipe: Path, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, reporter = critic(recipe, [0.5, 0.9, 0.7], monkeypatch), Silent()
    refuse(lambda key: "best/step_00000004" in key, monkeypatch)
    run(config, out=bucket / "run", reporter=reporter)
    assert "step 4: the best model was not written: the store refuses; training goes on" in reporter.notes
    found = best.find(bucket / "run")
    assert found is not None
    assert found.name.startswith("step_00000006-")
    final = bucket / "run" / "final"
    assert sorted(path.name for path in final.iterdir()) == sorted(path.name for path in found.iterdir())
    assert all((final / path.name).read_bytes() == path.read_bytes() for path in found.iterdir())
    load_value_model(str(final))


def test_three_best_models_in_a_row_that_cannot_be_written_end_the_run_and_its_checkpoint_is_whole(
    recipe: Path, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = critic(recipe, [0.5, 0.6, 0.7], monkeypatch)
    refuse(lambda key: "best/" in key, monkeypatch)
    with pytest.raises(CheckpointError, match="the store refuses"):
        run(config, out=bucket / "run")
    newest = checkpoint.newest(bucket / "run" / "checkpoints", on_bad=lambda _, reason: pytest.fail(reason))
    assert newest is not None
    assert newest.name == "step_00000003"


@pytest.mark.parametrize(("refused", "code"), [("", 2), ("final/", 1)])
def test_a_store_that_denies_ends_a_run_with_2_before_the_first_step_and_with_1_after_it(
    recipe: Path,
    bucket: ObjectPath,
    monkeypatch: pytest.MonkeyPatch,
    wmtp_command: Callable[..., tuple[int, str, str]],
    refused: str,
    code: int,
) -> None:
    refuse(lambda key: refused in key, monkeypatch, settings=True)
    found, _, told = wmtp_command("train", "--recipe", recipe, "--out", bucket / "run", *SHORT)
    assert found == code
    assert "the store refuses" in told
    assert "Traceback" not in told


def test_a_data_file_that_a_store_refuses_is_not_called_a_wrong_data_file(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor starts a run again whose store failed, and not one whose data is wrong."""

    def refuse_all(self: MemoryStore, key: str) -> Any:
        raise StorageError("the store refuses")

    monkeypatch.setattr(MemoryStore, "status", refuse_all)
    with pytest.raises(StorageError, match="the store refuses"):
        dataset._content(bucket / "train.jsonl")
