"""An S3 server that refuses, fails or is gone: what is tried again, what is said, what is left."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from botocore.exceptions import ClientError, SSLError, UnauthorizedSSOTokenError
from s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, Proxy, Server

from wmtp.cli import run_command
from wmtp.errors import StorageError, UsageError
from wmtp.storage import (
    ObjectPath,
    blocks,
    copy,
    created,
    held,
    is_gone,
    lease,
    place,
    probe,
    sha256_file,
    write_atomic,
)
from wmtp.storage import s3 as client
from wmtp.testing import MemoryStore, memory_storage

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
        ({}, "s3://planted-key:planted-word@bucket/r.yaml", 2, "must hold no credentials"),
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


class Answers:
    """A client of S3 that fails always in one way."""

    meta = SimpleNamespace(endpoint_url="http://here")

    def __init__(self, problem: Exception) -> None:
        self.problem, self.asked = problem, 0

    def list_objects_v2(self, **_: Any) -> Any:
        self.asked += 1
        raise self.problem


def refused(code: str) -> ClientError:
    """An answer."""
    return ClientError({"Error": {"Code": code}}, "ListObjectsV2")


@pytest.mark.parametrize(
    ("problem", "said", "asked"),
    [
        (refused("ExpiredToken"), "ExpiredToken; http://here wants those of AWS_ACCESS_KEY_ID", 2),
        (refused("AccessDenied"), "AccessDenied: http://here does not let these credentials do that", 1),
        (refused("PermanentRedirect"), "the bucket is in another region than AWS_REGION says", 1),
        (refused("RequestTimeTooSkewed"), "this machine's clock is not that of http://here", 1),
        (UnauthorizedSSOTokenError(), "the AWS settings cannot be used: .* run aws sso login", 1),
        (SSLError(endpoint_url="https://here", error="[SSL: CERTIFICATE_VERIFY_FAILED]"), "AWS_CA_BUNDLE", 1),
    ],
)
def test_what_no_further_attempt_would_change_is_a_matter_of_settings_and_not_asked_again_but_with_new_credentials(
    problem: Exception, said: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(problem)
    monkeypatch.setattr(client, "_client", lru_cache(lambda pid: answers))
    with pytest.raises(StorageError, match=said) as told:
        client.S3Store("bucket").status("key")
    assert (told.value.exit_code, answers.asked) == (2, asked)


def test_credentials_that_are_replaced_in_their_file_are_used_from_then_on(
    s3: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in KEYS:
        monkeypatch.delenv(name)
    client.forget_client()
    file.write_text(f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key=expired\n")
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        s3.is_file()
    file.write_text(f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n")
    with created(s3 / "x") as stream:
        stream.write(bytes(12 << 20))
    assert (s3 / "x").stat().st_size == 12 << 20


class Slow:
    """A client of S3 that takes no part of an upload before it is let go."""

    def __init__(self) -> None:
        self.free, self.parts = threading.Event(), dict[int, int]()

    def create_multipart_upload(self, **_: Any) -> Any:
        return {"UploadId": "u"}

    def upload_part(self, *, PartNumber: int, Body: IO[bytes], **_: Any) -> Any:
        self.free.wait()
        self.parts[PartNumber] = len(Body.read())
        return {"ETag": str(PartNumber)}

    def complete_multipart_upload(self, *, MultipartUpload: Any, **_: Any) -> Any:
        assert [part["PartNumber"] for part in MultipartUpload["Parts"]] == sorted(self.parts)
        return {}


def test_an_upload_that_is_slower_than_its_writer_holds_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an object of 20 parts no more than those under way and one more are in memory."""
    slow, written, piece = Slow(), list[int](), bytes(1000)
    monkeypatch.setattr(client, "_client", lambda pid: slow)
    monkeypatch.setattr(client, "PART", len(piece))
    upload = client.S3Store("bucket").upload("key")

    def write() -> None:
        for _ in range(20):
            written.append(upload.write(piece))
        upload.finish()

    writer = threading.Thread(target=write)
    writer.start()
    writer.join(0.3)
    held = len(written)
    slow.free.set()
    writer.join()
    assert held <= client.PARTS_AT_ONCE + 1
    assert sum(slow.parts.values()) == 20 * len(piece)


@pytest.mark.parametrize(("size", "parts"), [(30, [10] * 3), (35, [10, 10, 10, 5]), (90, [10] * 3 + [20] * 3)])
def test_parts_grow_so_that_ten_thousand_are_enough_and_none_is_empty(
    size: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [client.PART * (1 + number // client.PARTS_OF_A_SIZE) for number in range(10_000)]
    assert (sum(sizes) > 400 << 30, max(sizes) < 5 << 30) == (True, True)
    taken = Slow()
    taken.free.set()
    monkeypatch.setattr(client, "_client", lambda pid: taken)
    monkeypatch.setattr(client, "PART", 10)
    monkeypatch.setattr(client, "PARTS_OF_A_SIZE", 3)
    upload = client.S3Store("bucket").upload("key")
    for _ in range(size // 5):
        upload.write(bytes(5))
    upload.finish()
    assert [taken.parts[number] for number in sorted(taken.parts)] == parts


@pytest.mark.parametrize(("region", "used"), [("eu-west-1", "eu-west-1"), ("", "ap-northeast-2")])
def test_the_region_of_the_environment_comes_before_that_of_a_profile(
    region: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\nregion = ap-northeast-2\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    client.forget_client()
    assert client._client(os.getpid()).meta.region_name == used
    client.forget_client()


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


def test_an_answer_that_stops_in_the_middle_is_given_up_and_asked_for_again(
    s3: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 1.0)
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.001)
    content = os.urandom(1 << 20)
    write_atomic(s3 / "x", content)
    with Proxy(Server(os.environ["AWS_ENDPOINT_URL_S3"]), share=0.0, stalled=2) as proxy:
        through(proxy.server, monkeypatch)
        assert b"".join(blocks(s3 / "x")) == content
        assert proxy.failed == 2


def test_a_part_that_takes_longer_than_a_time_out_arrives(s3: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out is of a block that stands still, not of all that is sent."""
    monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    content, direct = os.urandom(client.PART), Server(os.environ["AWS_ENDPOINT_URL_S3"])
    with Proxy(direct, share=0.0, slow=0.015) as proxy:
        through(proxy.server, monkeypatch)
        with created(s3 / "x") as stream:
            stream.write(content)
    through(direct, monkeypatch)
    assert (s3 / "x").read_bytes() == content


@pytest.mark.parametrize(("codes", "code"), [(["SlowDown", "InternalError"], 0), (["SlowDown", "AccessDenied"], 2)])
def test_an_object_that_could_not_be_removed_is_tried_again_where_that_can_help(
    codes: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [{"Errors": [{"Key": "b", "Code": name}]} for name in codes] + [{}]
    removing = SimpleNamespace(meta=Answers.meta, delete_objects=lambda **_: answers.pop(0))
    monkeypatch.setattr(client, "_client", lambda pid: removing)
    with nullcontext() if not code else pytest.raises(StorageError, match=codes[-1]) as told:
        client.S3Store("bucket").remove(["a", "b"])
    assert len(answers) == bool(code)
    assert not code or told.value.exit_code == code


def test_an_upload_that_somebody_dropped_is_told_and_leaves_no_object(
    s3: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule of the bucket, or another process, while this one slept."""
    upload = s3.store.upload((s3 / "x").key)
    upload.write(bytes(client.PART))
    s3.store.abandon(s3.prefix)
    with pytest.raises(StorageError, match=r"the upload of s3://.*/x was dropped by the server"):
        upload.write(bytes((1 + client.PARTS_AT_ONCE) * client.PART))
    upload.abort()
    assert not (s3 / "x").exists()


def test_what_fails_late_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that takes a minute has as many attempts as any other."""
    now, pieces = [0.0], [b"all of it", b""]

    class Late:
        def get_object(self, **_: Any) -> Any:
            now[0] += 2 * client.PATIENCE_S
            piece = pieces.pop()
            body = SimpleNamespace(read=lambda count: piece, close=lambda: None)
            return {"Body": body, "ContentRange": "bytes 0-8/9"}

    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None))
    monkeypatch.setattr(client, "_client", lambda pid: Late())
    view = bytearray(9)
    client.S3Store("bucket").read_into("key", 0, memoryview(view))
    assert view == b"all of it"


# Other servers


def test_objects_are_removed_from_a_server_that_wants_the_older_sum(
    s3: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(s3 / "x", b"x")
    with Proxy(Server(os.environ["AWS_ENDPOINT_URL_S3"]), share=0.0, older=True) as proxy:
        through(proxy.server, monkeypatch)
        (s3 / "x").unlink()
        assert not s3.exists()


def test_a_bucket_of_another_region_is_asked_there(s3: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(Server(os.environ["AWS_ENDPOINT_URL_S3"]), share=0.0, region="eu-west-1") as proxy:
        through(proxy.server, monkeypatch)
        with created(s3 / "x") as stream:
            stream.write(b"x" * (9 << 20))
        assert (s3 / "x").read_bytes() == b"x" * (9 << 20)


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


def test_a_process_is_gone_when_it_has_ended_and_was_waited_for_and_not_before() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_gone(child.pid)
    child.communicate()
    assert is_gone(child.pid)
    assert is_gone(2**70)
    assert not is_gone(os.getpid())
    assert not is_gone(1)


@pytest.mark.parametrize("machine", ["", "elsewhere"])
def test_a_lock_of_a_holder_that_is_gone_is_taken(quick: ObjectPath, machine: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_by(dead.pid, machine or lease._machine(), quick)
    with held(quick, "another is here"):
        assert b"other" not in quick.read_bytes()


def test_a_holder_whose_renewal_was_done_though_nobody_heard_of_it_goes_on(
    quick: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, lost, replace = list[int](), list[bytes](), MemoryStore.replace

    def unheard(self: MemoryStore, key: str, old: bytes, new: bytes) -> bool:
        done = replace(self, key, old, new)
        if not lost:
            lost.append(new)
            raise StorageError("no answer")
        return done

    monkeypatch.setattr(lease.os, "_exit", ended.append)
    monkeypatch.setattr(lease.outcome, "end", lambda *_: None)
    monkeypatch.setattr(MemoryStore, "replace", unheard)
    with held(quick, "another is here"):
        until = time.monotonic() + 20
        while not ended and json.loads(quick.read_bytes())["beat"] < 3 and time.monotonic() < until:
            time.sleep(0.02)
    assert lost
    assert not ended


def test_a_store_that_answers_conditions_with_501_is_refused_before_anything_is_trained(refusing: ObjectPath) -> None:
    with (
        pytest.raises(StorageError, match=r"cannot write once .*NotImplemented: .* has no such request") as told,
        held(refusing / ".lock", "another is here"),
    ):
        pass
    assert told.value.exit_code == 2
    with pytest.raises(StorageError, match="has no such request"):
        probe(refusing)
    assert not refusing.exists()


def test_a_store_that_ignores_conditions_is_found_out_by_the_probe(rclone: ObjectPath) -> None:
    assert probe(rclone) == ["created once"]
    assert not rclone.exists()


def test_a_store_that_is_gone_is_told_by_who_waits_for_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
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
