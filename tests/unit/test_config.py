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
import torch
from pydantic import BaseModel

from wmtp import config as door
from wmtp.arms import build_scheme, head_coefficients, scheme_options
from wmtp.config import Config, load
from wmtp.errors import ConfigError
from wmtp.schedule import Schedule
from wmtp.study.budget import trial
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
    parts = get_args(get_args(door.WeightingConfig)[0])
    return {name: part for part in parts for name in get_args(part.model_fields["scheme"].annotation)}


def test_every_scheme_has_a_config_and_every_config_a_scheme() -> None:
    assert weighting_configs().keys() == {*SCHEMES, "own"}


def simple_names() -> list[str]:
    return [get_args(part.model_fields["scheme"].annotation)[0] for part in get_args(door.SimpleConfig)]


@pytest.mark.parametrize("name", [name for name in simple_names() if name in SCHEMES])
def test_a_schemes_config_has_its_arguments_with_its_defaults(name: str) -> None:
    part = weighting_configs()[name]
    needed = {field: "x" for field in ("critic", "reference") if field in part.model_fields}
    options = scheme_options(part(scheme=name, **needed), steps=1)
    arguments = {
        n: p.default for n, p in inspect.signature(SCHEMES[name]).parameters.items() if p.kind is not p.VAR_POSITIONAL
    }
    arguments.pop("kwargs", None)
    assert options == {n: d for n, d in arguments.items() if d is not inspect.Parameter.empty}


TWO_PARTS = "scheme: hybrid, parts: [{scheme: uniform}, {scheme: gradient}]"
TWO_REFERENCES = "scheme: hybrid, parts: [{scheme: rho1, reference: x}, {scheme: rho1, reference: y}]"
STARTS_AT_0 = "[{start: 0, end: 1}, 0, 0, 0]"


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
    control = "{scheme: shuffled, of: {scheme: critic, critic: x}}"
    assert loaded(tmp_path, f"objective={{kind: mtp, weighting: {control}}}").arm == "shuffled_verifiable"


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
        ("objective={kind: mtp, weighting: {scheme: grpo, mode: positive, beta: 2.0}}", "mode 'positive'"),
        ("objective={kind: mtp, weighting: {scheme: hybrid, parts: [{scheme: uniform}]}}", "at least 2 items"),
        (f"objective={{kind: mtp, weighting: {{{TWO_PARTS}, shares: [0.5, 0.5]}}}}", "do nothing in a product"),
        (f"objective={{kind: mtp, weighting: {{{TWO_PARTS}, combine: mixture, shares: [0.5, 0.4]}}}}", "add up to 1"),
        (f"objective={{kind: mtp, weighting: {{{TWO_REFERENCES}}}}}", "share one reference, got 2"),
        ("objective={kind: mtp, weighting: {scheme: own, builder: here}}", "expected MODULE:NAME"),
        ("objective={kind: mtp, weighting: {scheme: own, builder: mine.Hard}}", "did you mean mine:Hard?"),
        ("steps=3", "did you mean train.steps?"),
        ("device=gpu", "did you mean 'cuda'?"),
        ("train.steps=[]", "expected an integer"),
        ("data.max_length=2", "override 'data.max_length=2': configuration: model.heads.num_heads = 4"),
        ("objective={kind: mtp, weighting: {scheme: rho1, reference: x, ratio: {start: 0, end: 0.5}}}", "ratio.start"),
        (f"objective={{kind: mtp, head_coefficients: {STARTS_AT_0}}}", "all 0"),
        ("train.early_stopping={}", "need data.validation"),
        ("run_name=../x", "run_name"),
        ("model.path=y", "exactly one of model.path"),
        ("model.architecture={model_type: llama}", "needs model.tokenizer"),
        ("precision=fp16", "precision"),
        ("train.steps='10'", "expected an integer"),
        ("model.heads={family: linear, depth: matched}", "model.heads.depth = 'matched' needs family 'parallel'"),
        ("model.heads={num_heads: 1, trained: heads}", "needs num_heads of at least 2, got 1"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, override)
    assert told in str(caught.value)


def test_a_run_that_asks_models_names_no_scores_however_deep_they_stand(tmp_path: Path) -> None:
    parts = "[{scheme: critic, critic: c, scores: s}, {scheme: rho1, reference: r, scores: s}, {scheme: gradient}]"
    weighting = f"{{scheme: shuffled, of: {{scheme: hybrid, parts: {parts}}}}}"
    config = loaded(tmp_path, f"objective={{kind: mtp, weighting: {weighting}}}")
    assert [getattr(scheme, "scores", "-") is None for scheme in config.schemes] == [False, False, False]
    assert [getattr(scheme, "scores", "-") for scheme in config.asking_models().schemes] == [None, None, "-"]
    assert config.asking_models().schemes[0].critic == config.schemes[0].critic


def test_scores_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scores are those of a critic or a reference"):
        loaded(tmp_path, "objective={kind: mtp, weighting: {scheme: own, builder: 'a:b', scores: s}}")


def test_early_stopping_watches_only_what_is_measured(tmp_path: Path) -> None:
    validation = ["data.validation_fraction=0.1", "train.eval_every=1"]
    assert loaded(tmp_path, *validation, "train.early_stopping={metric: loss/nll_head_4}")
    with pytest.raises(ConfigError, match="must be one of"):
        loaded(tmp_path, *validation, "train.early_stopping={metric: loss/nll_head_5}")


def coefficients(config: Config, step: int) -> list[float]:
    """c_k of a run of 11 steps."""
    objective = config.objective
    assert isinstance(objective, door.MTPObjectiveConfig)
    at = head_coefficients(objective, 3, 11, torch.device("cpu"))
    assert at is not None
    return at(step).tolist()


def test_head_decay_gives_geometric_coefficients(tmp_path: Path) -> None:
    assert coefficients(loaded(tmp_path, "objective={kind: mtp, head_decay: 0.5}"), 1) == [1.0, 0.5, 0.25]


def test_head_coefficients_may_be_scheduled_over_the_run_or_over_given_steps(tmp_path: Path) -> None:
    decay = loaded(tmp_path, "objective={kind: mtp, head_decay: {start: 1, end: 0.5}}")
    assert [coefficients(decay, step) for step in (1, 6, 11)] == [[1, 1, 1], [1, 0.75, 0.5625], [1, 0.5, 0.25]]
    several = "[1, {start: 0, end: 1, steps: 3}, 0.5]"
    given = loaded(tmp_path, "model.heads.num_heads=3", f"objective={{kind: mtp, head_coefficients: {several}}}")
    assert [coefficients(given, step) for step in (1, 2, 3, 9)] == [
        [1, 0, 0.5],
        [1, 0.5, 0.5],
        [1, 1, 0.5],
        [1, 1, 0.5],
    ]


def test_a_schedule_without_steps_spans_the_run(tmp_path: Path) -> None:
    ratio = "{start: 0.8, end: 0.4, shape: cosine}"
    config = loaded(tmp_path, f"objective={{kind: mtp, weighting: {{scheme: rho1, reference: x, ratio: {ratio}}}}}")
    assert isinstance(config.objective, door.MTPObjectiveConfig)
    scheme: Any = build_scheme(config.objective.weighting, seed=0, steps=9)
    assert scheme.ratio == Schedule(0.8, 0.4, 9, "cosine")


@pytest.mark.parametrize("loss", ["pairwise", "lambda_return", "monte_carlo", "combined"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_a_critics_config_is_read_back_as_it_was_written(tmp_path: Path, loss: str, select: str) -> None:
    config = loaded(
        tmp_path,
        f"objective={{kind: value, loss: {loss}}}",
        f"checkpoint.select={select}",
        "data.validation_fraction=0.5",
    )
    again = tmp_path / "again.yaml"
    for one in (config, trial(config)):
        again.write_text(door.dump(one))
        assert load([again]) == one


def test_a_nested_weighting_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    parts = "[{scheme: gradient, alpha: {start: 0.5, end: 1}}, {scheme: grpo}]"
    nested = f"{{scheme: inverted, of: {{scheme: hybrid, parts: {parts}, combine: mixture, shares: [0.25, 0.75]}}}}"
    config = loaded(tmp_path, f"objective={{kind: mtp, weighting: {nested}}}")
    again = tmp_path / "again.yaml"
    again.write_text(door.dump(config))
    assert load([again]) == config
    assert isinstance(config.objective, door.MTPObjectiveConfig)
    scheme: Any = build_scheme(config.objective.weighting, seed=0, steps=5)
    assert [type(part).__name__ for part in scheme.of.parts] == ["Gradient", "GRPO"]
