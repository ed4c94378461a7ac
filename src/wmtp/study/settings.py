"""The file of a study, and the arms and runs that it means. docs/studies.md shows one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wmtp import config_files
from wmtp.config import AboveZero, Config, Location, Positive, load
from wmtp.errors import ConfigError
from wmtp.storage import Place, place

POINTER = "study://"
"""In an arm's config: `study://ARM/final` is the final model of that arm's run of the same seed."""

FILES = {"configs": ".yaml", "budgets": ".json", "trials": ".yaml", "logs": ".log", "results": ".json"}
"""What a study keeps of each run beside its folder, by kind."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ArmConfig(_Part):
    """One arm: what it changes in the shared recipe."""

    recipes: list[Location] = []
    """Merged after the study's."""
    config: dict[str, Any] = {}
    """Merged after that; any part of a recipe."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Dotted key -> values. Every combination is an arm of its own: NAME-1, NAME-2, ..."""
    compare: bool = True
    """False for a run that others only need (a critic, a reference): no budget, no figures."""


class MetricConfig(_Part):
    """What arms are compared by. Name it before the study runs."""

    name: str = "loss/nll_head_1"
    """A key of the last evaluation in metrics.jsonl, or BENCHMARK/SUITE/pass_at_K of `evaluate`."""
    better: Literal["lower", "higher"] = "lower"
    at: Literal["last", "best", "mean"] = "last"
    """Of the evaluations on the way: the last; the best, which only one who sees the figure can choose; or their mean,
    which is larger (or lower) the sooner a run gets there."""

    @model_validator(mode="after")
    def _has_a_way(self) -> MetricConfig:
        if self.at != "last" and "/pass_at_" in self.name:
            raise ValueError(
                f"metric.at = {self.at!r} is for what every evaluation has; {self.name} has one figure: leave at out"
            )
        return self


class BudgetConfig(_Part):
    """What every compared arm may spend, in place of train.steps and train.epochs. Exactly one."""

    tokens: Positive | None = None
    """Of the rows trained on, padding left out."""
    flops: AboveZero | None = None
    """As `wmtp.flops` counts them, frozen scorers included."""
    seconds: AboveZero | None = None
    """Of steps (not of evaluations or saving), from the median step of a short run before each run."""

    @model_validator(mode="after")
    def _one(self) -> BudgetConfig:
        if sum(value is not None for value in (self.tokens, self.flops, self.seconds)) != 1:
            raise ValueError("give exactly one of tokens, flops and seconds")
        return self


class EvaluationConfig(_Part):
    """One `wmtp eval` of every compared arm's final model."""

    benchmark: str
    """`embedded`, or the kind that `data` must be."""
    data: Location | None = None
    """The benchmark's file."""
    split: str | None = None
    n: Positive = 1
    """Samples of each problem."""
    k: Annotated[list[Positive], Field(min_length=1)] = [1]
    """Of pass@k."""
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    """Null: 0 (greedy) for one sample, 0.8 for several."""
    max_new_tokens: Positive = 512
    require: Literal["strong", "best", "none"] = "best"
    """Isolation of programs."""


class StudyConfig(_Part):
    """Arms x seeds."""

    name: Name
    recipes: Annotated[list[Location], Field(min_length=1)]
    """Of all arms, merged in order."""
    config: dict[str, Any] = {}
    """Of all arms, merged after the recipes."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
    baseline: Name
    """The arm that the others are compared with."""
    arms: Annotated[dict[Name, ArmConfig], Field(min_length=1)]
    metric: MetricConfig = MetricConfig()
    budget: BudgetConfig | None = None
    evaluate: list[EvaluationConfig] = []

    @model_validator(mode="after")
    def _fits_together(self) -> StudyConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds holds a seed twice; give different ones")
        of_baseline = self.arms.get(self.baseline)
        if of_baseline is None or of_baseline.grid or not of_baseline.compare:
            raise ValueError(f"baseline = {self.baseline!r} must be one of the arms, without a grid and compared")
        benchmarks = [evaluation.benchmark for evaluation in self.evaluate]
        if len(set(benchmarks)) < len(benchmarks):
            raise ValueError("evaluate names a benchmark twice; their results would have the same place: keep one")
        return self


@dataclass(frozen=True)
class Arm:
    """One arm, its grid resolved."""

    name: str
    about: str
    """Its place in the grid; empty without one."""
    compare: bool
    recipes: tuple[str, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, config, log and result."""
        return f"{self.arm.name}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study in its folder."""

    config: StudyConfig
    folder: Place
    arms: dict[str, Arm] = field(default_factory=dict)
    """In an order in which each comes after those that it needs."""
    needs: dict[str, frozenset[str]] = field(default_factory=dict)
    """Arm -> arms whose runs it reads."""

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a study that is cut short has whole seeds."""
        return [Run(arm, seed) for seed in self.config.seeds for arm in self.arms.values()]

    def run_folder(self, name: str) -> Place:
        """Of a run."""
        return self.folder / "runs" / name

    def file(self, kind: str, name: str) -> Place:
        """Of a run: one of `FILES`."""
        return self.folder / kind / (name + FILES[kind])

    def run_config(self, run: Run, steps: int | None = None) -> Config:
        """The config of a run.

        Args:
            steps: that its budget allows; None leaves the recipe's own length.

        Raises:
            ConfigError: what is wrong, with the arm's name.
        """
        length = [] if steps is None else [f"train={{steps: {steps}, epochs: null}}"]
        fixed = [f"train.seed={run.seed}", f"run_name={run.name}", f"runs={json.dumps(str(self.folder / 'runs'))}"]
        try:
            config = _merged(self.config, run.arm, [*fixed, *length])
        except ConfigError as problem:
            raise ConfigError(f"arm {run.arm.name}: {problem}") from problem
        return Config.model_validate(self._found(config.model_dump(), run.seed))

    def _found(self, value: Any, seed: int) -> Any:
        """The config with every pointer replaced by a path."""
        if isinstance(value, dict):
            return {name: self._found(part, seed) for name, part in value.items()}
        if isinstance(value, list):
            return [self._found(part, seed) for part in value]
        if not isinstance(value, str) or not value.startswith(POINTER):
            return value
        arm, _, rest = value.removeprefix(POINTER).partition("/")
        return str(self.run_folder(f"{arm}-seed{seed}") / rest)


def read_study(file: Place, out: str | None) -> Study:
    """The study of a file, its arms in order; nothing is written.

    Args:
        out: its folder; default: runs/NAME.

    Raises:
        ConfigError: the file, an arm's config, or arms that need one another in a circle.
    """
    try:
        config = config_files.load(StudyConfig, [file])
    except ConfigError:
        if {"objective", "train"} <= config_files.top_keys(file):
            raise ConfigError(f"{file} is a recipe, no study: train it with wmtp train --recipe {file}") from None
        raise
    folder = (Path("runs") / config.name if out is None else place(out)).absolute()
    arms = {arm.name: arm for name, given in config.arms.items() for arm in _arms(name, given)}
    if len(arms) < sum(1 for name, given in config.arms.items() for _ in _arms(name, given)):
        names = ", ".join(arms)
        raise ConfigError(f"{file}: two arms have the same name once grids are resolved ({names}); rename one")
    needs = {}
    for arm in arms.values():
        try:
            needs[arm.name] = frozenset(_pointed(_merged(config, arm, []).model_dump()))
        except ConfigError as problem:
            raise ConfigError(f"arm {arm.name}: {problem}") from problem
        unknown = needs[arm.name] - arms.keys()
        if unknown:
            raise ConfigError(
                f"arm {arm.name} points to {POINTER}{min(unknown)}, which is no arm; name one of {', '.join(arms)}"
            )
    return Study(config, folder, {name: arms[name] for name in _ordered(needs)}, needs)


def _arms(name: str, given: ArmConfig) -> Iterator[Arm]:
    own = [*_overrides(given.config)]
    recipes = tuple(given.recipes)
    for number, values in enumerate(product(*given.grid.values()), 1):
        point = dict(zip(given.grid, values, strict=True))
        about = ", ".join(f"{key}={json.dumps(value)}" for key, value in point.items())
        label = f"{name}-{number}" if given.grid else name
        yield Arm(label, about, given.compare, recipes, (*own, *_overrides(point)))


def _overrides(values: Mapping[str, Any]) -> list[str]:
    """As `key=value`; references to the environment are resolved already."""
    return [f"{key}={json.dumps(value).replace('${', '$${')}" for key, value in values.items()]


def _merged(study: StudyConfig, arm: Arm, last: list[str]) -> Config:
    files = [place(file) for file in (*study.recipes, *arm.recipes)]
    length = ["train={steps: 1, epochs: null}"] if study.budget is not None and arm.compare else []
    return load(files, [*_overrides(study.config), *arm.overrides, *length, *last])


def _pointed(value: Any) -> Iterator[str]:
    """The arms that a config points to."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _pointed(part)
    elif isinstance(value, str) and value.startswith(POINTER):
        yield value.removeprefix(POINTER).partition("/")[0]


def _ordered(needs: Mapping[str, frozenset[str]]) -> list[str]:
    """Arms in the file's order, each after those that it needs."""
    order: list[str] = []
    while len(order) < len(needs):
        ready = [name for name in needs if name not in order and needs[name] <= set(order)]
        if not ready:
            left = ", ".join(name for name in needs if name not in order)
            raise ConfigError(f"the arms {left} need one another in a circle; one must start from something else")
        order.append(ready[0])
    return order
