"""The config door: no option that nothing reads, no scheme whose options differ from its arguments."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from wmtp import config as door
from wmtp.config import Config, load
from wmtp.errors import ConfigError
from wmtp.parts import scheme_options
from wmtp.weighting import SCHEMES

SOURCE = Path(door.__file__).parent
MINIMAL = """
model: {architecture: embedded://tiny-llama}
data: {train: {path: x.jsonl}}
train: {steps: 1}
"""


def part_classes() -> Iterator[type[BaseModel]]:
    for value in vars(door).values():
        if inspect.isclass(value) and issubclass(value, BaseModel) and value.__module__ == door.__name__:
            yield value


def weighting_configs() -> dict[str, type[BaseModel]]:
    union = get_args(door.WeightingConfig)[0]
    return {get_args(part.model_fields["scheme"].annotation)[0]: part for part in get_args(union)}


def test_every_scheme_has_a_config_and_every_config_a_scheme() -> None:
    assert weighting_configs().keys() == SCHEMES.keys()


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_a_schemes_config_has_its_arguments_with_its_defaults(name: str) -> None:
    part = weighting_configs()[name]
    needed = {field: "x" for field in ("critic", "reference") if field in part.model_fields}
    options = scheme_options(part(scheme=name, **needed))
    arguments = {
        n: p.default for n, p in inspect.signature(SCHEMES[name]).parameters.items() if p.kind is not p.VAR_POSITIONAL
    }
    arguments.pop("kwargs", None)
    assert options == {n: d for n, d in arguments.items() if d is not inspect.Parameter.empty}


def attributes_read() -> set[str]:
    names: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


def test_every_option_is_read_somewhere() -> None:
    read = attributes_read()
    schemes = {name for part in weighting_configs().values() for name in part.model_fields}
    unread = {
        f"{part.__name__}.{name}"
        for part in part_classes()
        for name in part.model_fields
        if name not in read and name not in schemes
    }
    assert not unread


def test_checking_a_config_imports_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    code = (
        "import sys; from pathlib import Path; from wmtp.config import load; load([Path(sys.argv[1])]); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(path)], check=True, timeout=60)


def test_help_and_import_load_no_torch() -> None:
    code = (
        "import sys, wmtp; from wmtp.cli import run_command; assert run_command(['train', '--help']) == 0; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60, capture_output=True)


def loaded(tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return load([path], overrides)


def test_the_arm_follows_from_objective_and_weighting(tmp_path: Path) -> None:
    assert loaded(tmp_path).arm == "baseline"
    assert loaded(tmp_path, "objective={kind: value}").arm == "critic"
    assert loaded(tmp_path, "objective={kind: mtp, weighting: {scheme: critic, critic: x}}").arm == "verifiable"
    assert loaded(tmp_path, "objective={kind: mtp, weighting: {scheme: rho1, reference: x}}").arm == "rho1"


def test_local_paths_become_absolute_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = loaded(tmp_path, "model={path: some/model, architecture: null}", "data.train.path=rows.jsonl")
    assert config.model.path == "some/model"
    assert config.data.train.path == str(tmp_path / "rows.jsonl")
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert loaded(tmp_path, "model={path: some/model, architecture: null}").model.path == str(tmp_path / "some/model")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("objective={kind: mtp, head_coefficients: [0, 0, 0, 0]}", "all 0"),
        ("objective={kind: mtp, head_coefficients: [1, 1, 1, 1], head_decay: 0.5}", "at most one"),
        ("objective={kind: mtp, loss: plain, logits_chunk: 8}", "does nothing with loss 'plain'"),
        ("objective={kind: mtp, weighting: {scheme: rho1, reference: x, mode: soft, ratio: 0.5}}", "mode 'soft'"),
        ("objective={kind: mtp, weighting: {scheme: critic, critic: x, clip: [3, 1]}}", "above the highest"),
        ("train.early_stopping={}", "need data.validation"),
        ("run_name=../x", "run_name"),
        ("model.path=y", "exactly one of model.path"),
        ("model.architecture={model_type: llama}", "needs model.tokenizer"),
        ("precision=fp16", "precision"),
        ("train.steps='10'", "expected an integer"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, override)
    assert told in str(caught.value)


def test_early_stopping_watches_only_what_is_measured(tmp_path: Path) -> None:
    validation = ["data.validation_fraction=0.1", "train.eval_every=1"]
    assert loaded(tmp_path, *validation, "train.early_stopping={metric: loss/nll_head_4}")
    with pytest.raises(ConfigError, match="must be one of"):
        loaded(tmp_path, *validation, "train.early_stopping={metric: loss/nll_head_5}")


def test_head_decay_gives_geometric_coefficients(tmp_path: Path) -> None:
    objective: Any = loaded(tmp_path, "objective={kind: mtp, head_decay: 0.5}").objective
    assert objective.coefficients(3) == [1.0, 0.5, 0.25]
