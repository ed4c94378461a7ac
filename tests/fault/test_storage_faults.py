"""An S3 server that refuses, fails or is gone: what is tried again, what is said, what is left."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, Proxy, Server

from wmtp import checkpoint
from wmtp.cli import run_command
from wmtp.errors import StorageError, UsageError
from wmtp.storage import ObjectPath, copy, created, held, lease, place, sha256_file, write_atomic
from wmtp.storage import s3 as client
from wmtp.testing import memory_storage

SRC = Path(client.__file__).parents[2]
ROOT = Path(__file__).parents[2]
E2E = ROOT / "tests" / "e2e"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def through(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of this process go there from now on."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    client.forget_client()


# What is said


@pytest.mark.parametrize(
    ("change", "location", "code", "said"),
    [
        ({}, f"s3://{BUCKET}/nothing.yaml", 2, "no such file"),
        ({}, "s3://no-such-bucket/r.yaml", 2, "there is no bucket 'no-such-bucket' at http://127.0.0.1"),
        ({"AWS_SECRET_ACCESS_KEY": "planted-wrong-secret"}, f"s3://{BUCKET}/r.yaml", 2, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "planted-wrong-key"}, f"s3://{BUCKET}/r.yaml", 2, "AWS_ACCESS_KEY_ID"),
        (dict.fromkeys(KEYS, ""), f"s3://{BUCKET}/r.yaml", 2, "there are no credentials"),
        ({"AWS_PROFILE": "nobody"}, f"s3://{BUCKET}/r.yaml", 2, "AWS settings cannot be used"),
        ({"AWS_ENDPOINT_URL_S3": "no url"}, f"s3://{BUCKET}/r.yaml", 2, "AWS settings cannot be used"),
        ({"AWS_ENDPOINT_URL_S3": "http://me:planted-word@127.0.0.1:9"}, f"s3://{BUCKET}/r.yaml", 1, "after 2 attempts"),
        ({}, "s3://planted-key:planted-word@bucket/r.yaml", 2, "holds no credentials"),
        ({}, "s3:///r.yaml", 2, "names no bucket"),
        ({}, f"s3://{BUCKET}/a/../r.yaml", 2, "no plain location"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code_and_without_secrets(
    s3: ObjectPath,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    location: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    client.forget_client()
    assert run_command(["train", "--recipe", location]) == code
    told = capsys.readouterr().err
    assert said in told
    assert "planted" not in told
    assert "Traceback" not in told


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    client.forget_client()
    with pytest.raises(UsageError, match=r"pip install 'wmtp\[s3\]'"):
        place("s3://bucket/key").is_file()


# What is tried again


def test_a_server_that_fails_a_third_of_requests_gives_and_takes_every_byte(
    s3: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(client, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(client, "ATTEMPTS", 20)
    monkeypatch.setattr(client, "PART", 5 << 20)
    with Proxy(Server(os.environ["AWS_ENDPOINT_URL_S3"]), share=1 / 3, seed=1) as proxy:
        through(proxy.server, monkeypatch)
        piece = os.urandom(1 << 20)
        with created(s3 / "x") as stream:
            for _ in range(17):
                stream.write(piece)
        copy(s3 / "x", s3 / "y")
        for number in range(12):
            write_atomic(s3 / "small" / f"{number}", f"{number}")
        assert sha256_file(s3 / "y") == hashlib.sha256(piece * 17).hexdigest()
        assert sorted(int(path.read_text()) for path in (s3 / "small").iterdir()) == list(range(12))
        assert s3.store.create((s3 / "once").key, b"mine")
        assert not s3.store.create((s3 / "once").key, b"yours")
        assert s3.store.replace((s3 / "once").key, b"mine", b"next")
        s3.store.remove([path.key for path in s3.files()])
        assert not s3.exists()
        assert proxy.failed > 10


# A run


def test_a_run_that_is_killed_goes_on_from_s3_through_failing_requests_as_if_nothing_had_happened(
    s3: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Config, data, model, checkpoints and final model are in S3, nothing is written locally, no secret anywhere."""
    sys.path.insert(0, str(E2E))
    from test_object_store import SHORT, losses, same_model, start_model, uploaded
    from tests_recipe import with_few_rows

    from wmtp.config import load
    from wmtp.trainer import run

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
        env=environment | {"WMTP_FAULT": "step_begin:4:kill9", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    assert [path for path in empty.rglob("*") if path.is_file()] == []
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
    sys.path.insert(0, str(E2E))
    from tests_recipe import with_few_rows

    from wmtp import terminal
    from wmtp.trainer import Silent

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


# The lock


def left_by(pid: int, machine: str, path: ObjectPath) -> None:
    """The lock of a process that did not give it back."""
    write_atomic(path, json.dumps({"owner": "other", "machine": machine, "pid": pid, "beat": 7}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectPath]:
    monkeypatch.setattr(lease, "LEASE_S", 0.6)
    with memory_storage() as bucket:
        yield bucket / ".lock"


def test_of_two_holders_the_second_is_refused_while_the_first_lives(quick: ObjectPath) -> None:
    with (
        held(quick, "another is here"),
        pytest.raises(UsageError, match="another is here: process"),
        held(quick, "another is here"),
    ):
        pass
    with held(quick, "another is here"):
        pass
    assert not quick.exists()


@pytest.mark.parametrize("machine", ["", "elsewhere"])
def test_a_lock_of_a_holder_that_is_gone_is_taken(quick: ObjectPath, machine: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_by(dead.pid, machine or lease._machine(), quick)
    with held(quick, "another is here"):
        assert b"other" not in quick.read_bytes()


def test_a_store_that_is_gone_is_told_by_who_waits_for_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    from wmtp.testing import MemoryStore
    from wmtp.tracking import Journal

    def gone(self: MemoryStore, key: str, data: bytes) -> None:
        raise StorageError("the store is gone")

    with memory_storage() as bucket:
        journal = Journal(bucket / "metrics.jsonl")
        with monkeypatch.context() as patched:
            patched.setattr(MemoryStore, "put", gone)
            journal.log(1, "train", {"loss": 1.0})
            with pytest.raises(StorageError, match="gone"):
                journal.settle()
        with journal:
            journal.log(2, "train", {"loss": 0.5})
        assert (bucket / "metrics.jsonl").read_text().count("\n") == 2
