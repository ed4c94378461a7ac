"""What a run does on a device, for machines that are faked by what they say of themselves."""

from __future__ import annotations

import platform
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp import devices, doctor
from wmtp.cli import run_command
from wmtp.config import load
from wmtp.decoding import compile_layers
from wmtp.errors import ConfigError, not_on_mps, out_of_memory
from wmtp.testing import tiny_model

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "tests" / "e2e" / "small_recipe.yaml"


@dataclass(frozen=True)
class Machine:
    """What torch and the system say of it."""

    cuda: bool = False
    cuda_bf16: bool = False
    mps: bool = False
    macos: int = 0
    programs: tuple[str, ...] = ()
    triton: bool = False


@dataclass(frozen=True)
class Expected:
    """What follows, for the device that `auto` takes."""

    kind: str
    bf16: bool
    widest: torch.dtype
    compiler: tuple[str, str | None]
    """Its name, and what is wrong with it."""


MACHINES = {
    "a CPU with a compiler": (
        Machine(programs=("g++",)),
        Expected("cpu", True, torch.float64, ("g++", None)),
    ),
    "a CPU without one": (
        Machine(),
        Expected("cpu", True, torch.float64, ("g++", "it is not here")),
    ),
    "CUDA with bf16": (
        Machine(cuda=True, cuda_bf16=True, triton=True),
        Expected("cuda", True, torch.float64, ("triton", None)),
    ),
    "CUDA without bf16": (
        Machine(cuda=True, programs=("g++",)),
        Expected("cuda", False, torch.float64, ("triton", "it is not installed")),
    ),
    "a Mac": (
        Machine(mps=True, macos=14, programs=("clang++",)),
        Expected("mps", True, torch.float32, ("clang++", None)),
    ),
    "an older Mac": (
        Machine(mps=True, macos=13, programs=("clang++",)),
        Expected("mps", False, torch.float32, ("clang++", None)),
    ),
    "a Mac without its GPU": (
        Machine(macos=14, programs=("clang++",)),
        Expected("cpu", True, torch.float64, ("clang++", None)),
    ),
}


@pytest.fixture(params=MACHINES)
def expected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Expected:
    machine, expected = MACHINES[request.param]
    fake(machine, monkeypatch)
    return expected


def fake(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine.cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: machine.cuda_bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: machine.mps)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: machine.macos >= major)
    monkeypatch.setattr(platform, "system", lambda: "Darwin" if machine.macos else "Linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in machine.programs else None)
    monkeypatch.setattr(devices, "find_spec", lambda name: object() if machine.triton else None)
    monkeypatch.setattr(devices, "_trial", lambda name: None)


def test_auto_takes_the_fastest_kind_that_is_here(expected: Expected) -> None:
    assert devices.pick("auto") == torch.device(expected.kind)


def test_a_kind_that_is_not_here_is_refused_with_those_that_are(
    expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"cuda", "mps"} - {expected.kind}
    for kind in absent:
        with pytest.raises(ConfigError, match=rf"device = '{kind}' is not available here; use one of: .*cpu"):
            devices.pick(kind)


def test_bf16_is_autocast_where_the_device_has_it_and_an_error_elsewhere(expected: Expected) -> None:
    device = torch.device(expected.kind)
    assert devices.precision(device, "fp32") is nullcontext
    if not expected.bf16:
        with pytest.raises(ConfigError, match=r"bfloat16.*use fp32"):
            devices.precision(device, "bf16")
        return
    made: Any = devices.precision(device, "bf16")
    assert isinstance(made, partial)
    assert (made.func, made.args, made.keywords) == (torch.autocast, (expected.kind,), {"dtype": torch.bfloat16})


def test_nothing_wider_than_fp32_is_asked_of_a_device_that_has_no_fp64(expected: Expected) -> None:
    assert devices.widest_float(torch.device(expected.kind)) is expected.widest


def test_compiling_without_a_compiler_is_refused_before_training(expected: Expected) -> None:
    device = torch.device(expected.kind)
    assert devices.compiler(device) == expected.compiler
    if expected.compiler[1] is None:
        devices.check_compiler(device, "train.compile")
        return
    with pytest.raises(ConfigError, match=f"train.compile needs .*{expected.compiler[1]}"):
        devices.check_compiler(device, "train.compile")


def program(folder: Path, text: str) -> str:
    """A program that does what a shell script says."""
    file = folder / "compiler"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("options", [["train.compile=true"], ["objective.loss=compiled", "precision=bf16"]])
def test_a_run_that_asks_for_a_missing_compiler_is_told_so_by_a_dry_run(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    arguments = ["train", "--recipe", str(RECIPE), "--out", str(tmp_path / "run"), "--dry-run", *options]
    assert run_command(arguments) == 2
    said = capsys.readouterr().err
    assert f"{options[0].split('=')[0]}" in said
    assert "needs no-such-compiler for device = 'cpu', but it is not here" in said


linux = pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere a compiler is looked for and not tried")


@linux
def test_a_compiler_that_cannot_compile_is_refused_with_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = "trial.cpp:1:10: fatal error: Python.h: No such file or directory"
    monkeypatch.setenv("CXX", program(tmp_path, f"echo '{said}' >&2; exit 1"))
    with pytest.raises(ConfigError, match=r"objective.loss = compiled needs .*\(trial.cpp.* Python.h: No such file"):
        devices.check_compiler(torch.device("cpu"), "objective.loss = compiled")


@linux
def test_layers_are_not_compiled_for_decoding_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", program(tmp_path, "exit 7"))
    with pytest.raises(ConfigError, match=r"decoding.compile_layers needs .*exit code 7"):
        compile_layers(tiny_model("llama", 2))


@linux
def test_the_compiler_that_is_here_is_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    log = tmp_path / "calls"
    monkeypatch.setenv("CXX", program(tmp_path, f'echo called >> {log}; exec g++ "$@"'))
    for _ in range(2):
        devices.check_compiler(torch.device("cpu"), "train.compile")
    assert log.read_text() == "called\n"


MISSING = NotImplementedError(
    "The operator 'aten::_linalg_eigh' is not currently implemented for the MPS device. If you want this op to be "
    "added, comment on the issue. As a temporary fix, you can set the environment variable "
    "`PYTORCH_ENABLE_MPS_FALLBACK=1`."
)
WIDE = TypeError(
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 "
    "instead."
)


@pytest.mark.parametrize(("problem", "named"), [(MISSING, "aten::_linalg_eigh"), (WIDE, "float64")])
def test_what_an_apple_gpu_lacks_is_a_message_that_names_it_and_the_ways_out(problem: Exception, named: str) -> None:
    said = str(not_on_mps(problem))
    assert named in said
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in said
    assert "device=cpu" in said
    assert out_of_memory(problem) is None


@pytest.mark.parametrize("problem", [TypeError("MPS"[:2]), NotImplementedError("no CUDA"), RuntimeError("MPS")])
def test_any_other_error_stays_a_defect(problem: Exception) -> None:
    assert not_on_mps(problem) is None


@pytest.mark.parametrize(("value", "state"), [("1", "less"), ("0", "ok"), (None, "ok")])
def test_the_doctor_says_who_does_what_mps_lacks(
    value: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(devices.MPS_FALLBACK, raising=False)
    if value is not None:
        monkeypatch.setenv(devices.MPS_FALLBACK, value)
    assert doctor._fallback().state == state


def test_the_profile_for_macs_is_one_process_without_workers_in_fp32() -> None:
    config = load([RECIPE, ROOT / "configs" / "mps.yaml"])
    assert (config.device, config.precision, config.data.workers, config.train.compile) == ("mps", "fp32", 0, False)
