"""Runs with all of their files in an object store: the same runs as on a disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import ACCESS_KEY, SECRET_KEY, Proxy, Server
from tests_recipe import with_few_rows

from wmtp import checkpoint, terminal
from wmtp.cli import run_command
from wmtp.config import load
from wmtp.formats.hf import load_tokenizer
from wmtp.formats.native import save_model
from wmtp.model import MTPModel
from wmtp.storage import ObjectPath, Place, copy, place
from wmtp.storage import s3 as client
from wmtp.testing import memory_storage, tiny_base
from wmtp.trainer import Silent, run

SRC = Path(client.__file__).parents[2]
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


@pytest.mark.exhaustive  # in S3, and with faults, always: the next one
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


def through(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of this process go there from now on."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    client.forget_client()


@pytest.mark.fault
def test_a_run_that_is_killed_goes_on_from_s3_through_failing_requests_as_if_nothing_had_happened(
    s3: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Config, data, model, checkpoints and final model are in S3, nothing is written locally, no secret anywhere."""
    recipe = with_few_rows(tmp_path)
    local = start_model(tmp_path / "start")
    uploaded(local, s3 / "start")
    of = "model={{architecture: null, tokenizer: null, path: '{}'}}"
    run(load([recipe], [*SHORT, of.format(local)]), out=tmp_path / "run")
    for name in ("train.jsonl", "validation.jsonl", "recipe.yaml"):
        copy(tmp_path / name, s3 / name)
    arguments = ["train", "--recipe", f"{s3}/recipe.yaml", "--out", f"{s3}/run", *SHORT, of.format(s3 / "start")]
    arguments += [f"data.{role}.path={s3 / role}.jsonl" for role in ("train", "validation")]
    empty = tmp_path / "empty"
    for name in ("home", "tmp", "here"):
        (empty / name).mkdir(parents=True)
    environment = os.environ | {"HOME": str(empty / "home"), "TMPDIR": str(empty / "tmp"), "PYTHONPATH": str(SRC)}
    killed = subprocess.run(
        [sys.executable, "-m", "wmtp", *arguments], cwd=empty / "here",
        env=environment | {"WMTP_FAULT": "before_save:2:kill9", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    assert [path for path in empty.rglob("*") if path.is_file()] == []
    assert [path.name for path in checkpoint.list_steps(s3 / "run" / "checkpoints")] == ["step_00000002"]
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    with Proxy(Server(os.environ["AWS_ENDPOINT_URL_S3"]), share=0.2, seed=2) as proxy:
        through(proxy.server, monkeypatch)
        assert run_command([*arguments, "--resume", "auto"]) == 0
        assert proxy.failed > 5
    through(Server(environment["AWS_ENDPOINT_URL_S3"]), monkeypatch)
    assert same_model(tmp_path / "run" / "final", s3 / "run" / "final")
    assert losses(tmp_path / "run") == losses(s3 / "run")
    said = killed.stdout + killed.stderr + "".join(capfd.readouterr())
    content = b"".join(path.read_bytes() for path in (s3 / "run").files())
    for secret in (SECRET_KEY, ACCESS_KEY):
        assert secret not in said
        assert secret.encode() not in content


def test_a_server_that_is_gone_for_good_ends_the_run_with_1_and_the_last_checkpoint_is_whole(
    s3: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    direct = Server(os.environ["AWS_ENDPOINT_URL_S3"])
    proxy = Proxy(direct, share=0.0)

    class Cuts(Silent):
        def step(self, step: int, metrics: dict[str, Any]) -> None:
            if step == 5:  # when the save of step 2 is over
                proxy.gone = True

    monkeypatch.setattr(client, "ATTEMPTS", 2)
    monkeypatch.setattr(terminal, "reporter", lambda *_, **__: Cuts())
    recipe = with_few_rows(tmp_path)
    with proxy:
        through(proxy.server, monkeypatch)
        overrides = ["checkpoint.every=2", "train.steps=10"]
        code = run_command(["train", "--recipe", str(recipe), "--out", f"{s3}/run", *overrides])
    assert code == 1
    told = capfd.readouterr().err
    assert f"cannot write {s3}/run" in told
    assert "gave no good answer after 2 attempts" in told
    assert SECRET_KEY not in told
    through(direct, monkeypatch)
    newest = checkpoint.newest(s3 / "run" / "checkpoints", on_bad=lambda path, reason: pytest.fail(reason))
    assert newest is not None
    assert newest.name in ("step_00000002", "step_00000004")
