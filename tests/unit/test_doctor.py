"""The doctor says what it tried, and a run that cannot work here is a failure with its remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch

from wmtp import devices, doctor
from wmtp.cli import run_command
from wmtp.config import TrackingConfig, load
from wmtp.doctor import Finding, examine
from wmtp.errors import StorageError
from wmtp.storage import resolve, write_atomic
from wmtp.testing import MemoryStore, memory_storage

RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"


def of(findings: list[Finding], topic: str, name: str) -> Finding:
    [found] = [finding for finding in findings if (finding.topic, finding.name) == (topic, name)]
    return found


@pytest.fixture(scope="module")
def machine() -> list[Finding]:
    return examine()


def test_the_machine_is_examined_without_a_recipe(machine: list[Finding]) -> None:
    topics = ["software", "devices", "memory", "sandbox", "optional packages"]
    assert list(dict.fromkeys(finding.topic for finding in machine)) == topics
    assert of(machine, "software", "torch").text == torch.__version__
    assert "products in float32" in of(machine, "devices", "cpu").text
    assert of(machine, "sandbox", "isolation").text.startswith("level ")
    assert not [finding for finding in machine if finding.state == "ok" and finding.remedy]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_absent_and_no_failure(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda one: one == "cpu")
    findings = list(doctor._devices())
    assert of(findings, "devices", kind).state == "absent"
    assert of(findings, "devices", "cpu").text.endswith("`auto` takes it")


def test_a_data_type_that_fails_when_tried_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(device: torch.device, dtype: torch.dtype) -> None:
        if dtype is torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(doctor, "_multiply", multiply)
    text = of(list(doctor._devices()), "devices", "cpu").text
    assert "products in float32, float16;" in text
    assert "attention in float32, bfloat16" in text


def test_a_recipe_that_can_run_here_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--recipe", str(RECIPE), "--out", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    run = {finding["name"]: finding["state"] for finding in found["findings"] if finding["topic"] == "run"}
    assert run == {"folder": "ok", "dry run": "ok", "memory": "ok"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("required", "state"), [("false", "less"), ("true", "failed")])
def test_a_store_of_runs_that_does_not_answer_is_told_and_only_a_required_one_is_a_failure(
    required: str, state: str, tmp_path: Path
) -> None:
    config = load([RECIPE], [f"tracking={{uri: 'http://127.0.0.1:1', required: {required}, timeout_s: 1}}"])
    finding = doctor._tracking(config, cast(TrackingConfig, config.tracking))
    assert finding.state == state
    assert "http://127.0.0.1:1" in finding.text


def test_a_database_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    config = load([RECIPE], [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"])
    finding = doctor._tracking(config, cast(TrackingConfig, config.tracking))
    assert (finding.state, finding.text) == ("ok", f"sqlite:///{tmp_path}/mlflow.db: will be made")
    assert not list(tmp_path.iterdir())


def test_a_run_that_does_not_fit_is_a_failure_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda device: 2**10)
    assert run_command(["doctor", "--recipe", str(RECIPE), "--out", str(tmp_path / "run")]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.00 GiB available" in shown
    assert "train.activation_checkpointing=true" in shown


def test_missing_data_and_a_folder_that_takes_nothing_are_both_told(capsys: pytest.CaptureFixture[str]) -> None:
    missing = "data.train.path=/nowhere/data.jsonl"
    assert run_command(["doctor", "--recipe", str(RECIPE), "--out", "/proc/wmtp", "--json", missing]) == 1
    found = json.loads(capsys.readouterr().out)
    failed = {one["name"]: one["text"] for one in found["findings"] if one["state"] == "failed"}
    assert set(failed) == {"folder", "dry run"}
    assert "/proc takes no file" in failed["folder"]


def test_a_run_in_an_object_store_is_probed_and_what_it_names_is_looked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory_storage() as bucket:
        write_atomic(bucket / "train.jsonl", resolve("embedded://problems_train.jsonl").read_bytes())
        data = [f"data.{role}.path={bucket / name}" for role, name in (("train", "train.jsonl"), ("validation", "no"))]
        arguments = ["doctor", "--recipe", str(RECIPE), "--out", str(bucket / "run"), "--json", *data]
        assert run_command(arguments) == 1
        found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"] if one["topic"] == "run"}
        assert "was listed, written, read" in found["folder"]["text"]
        assert found["data.train.path"]["state"] == "ok"
        assert found["data.validation.path"]["text"] == "there is nothing at memory://bucket/no"
        assert [path.name for path in bucket.files()] == ["train.jsonl"]
        monkeypatch.setattr(MemoryStore, "create", lambda *_: True)
        assert "ignores conditions" in doctor._probed("folder", bucket / "run").text
        with monkeypatch.context() as denied:
            denied.setattr(MemoryStore, "abandon", lambda store, prefix: refuse(store, prefix, b""))
            assert doctor._probed("folder", bucket / "run").state == "failed"
        monkeypatch.setattr(MemoryStore, "put", refuse)
        assert doctor._probed("folder", bucket / "run").state == "failed"


def refuse(self: MemoryStore, key: str, data: bytes) -> None:
    raise StorageError(f"cannot write {key}: AccessDenied", settings=True)


def test_an_override_without_a_recipe_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "train.steps=3"]) == 2
    assert "give --recipe" in capsys.readouterr().err


def test_a_config_without_a_recipe_says_where_runs_would_be_and_who_follows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("device: cpu\nruns: memory://bucket/runs\ntracking: {uri: 'http://127.0.0.1:1', required: true}\n")
    with memory_storage() as bucket:
        assert run_command(["doctor", "--config", str(file), "--json", "tracking.timeout_s=1"]) == 1
        assert not bucket.exists()
    found = json.loads(capsys.readouterr().out)["findings"]
    run = {one["name"]: one["state"] for one in found if one["topic"] == "run"}
    assert run == {"folder": "ok", "tracking": "failed"}
    assert run_command(["doctor", "--config", str(file), "train.steps=3"]) == 2
    assert "model: this key is required" in capsys.readouterr().err


def test_a_folder_that_a_run_makes_is_tried_and_not_looked_for() -> None:
    with memory_storage() as bucket:
        config = load([RECIPE], [f"data.cache={bucket / 'cache'}"])
        found = {finding.name: finding.state for finding in doctor._where(config, str(bucket / "run"))}
    assert found == {"folder": "ok", "data.cache": "ok"}
