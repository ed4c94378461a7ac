"""The earlier system's `config.yaml` and `recipe.yaml` -> ours.

Theirs did a critic's two stages in one run; ours are two runs, so a critic's recipe becomes `critic.yaml` (stage 1) and
`recipe.yaml` (stage 2). References to the environment (`${NAME}`) stay references, so no secret is written.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wmtp.config import load
from wmtp.config_files import as_written, render
from wmtp.errors import ConfigError, UsageError
from wmtp.migration.keys import CHANGED, DROPPED, RENAMED, NoCounterpart, location
from wmtp.storage import write_atomic

ARMS = {
    "baseline-mtp": "baseline",
    "mtp-baseline": "baseline",
    "critic-wmtp": "critic",
    "rho1-wmtp": "rho1",
}
WHERE = ("device", "precision", "distributed", "runs", "tracking")
"""Sections of ours that go into `config.yaml`; the others are the recipe."""
REWARD_MODELS = ("paths.models.rm", "paths.models.rm_local", "model.rm_id")
VALIDATION_FRACTION = 0.05
EVAL_EVERY = 500
"""What the earlier system took where a recipe said nothing."""


@dataclass
class Migration:
    """What became of every key."""

    files: list[Path] = field(default_factory=list)
    """Written, in the order they are used."""
    converted: dict[str, str] = field(default_factory=dict)
    """Their key -> ours."""
    without: dict[str, str] = field(default_factory=dict)
    """Their key -> why it has no counterpart."""
    unknown: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)
    """For the user to do or to look at."""


def migrate(old_config: Path, old_recipe: Path, out: Path) -> Migration:
    """Convert two files of theirs into a folder of ours.

    Raises:
        UsageError: a file would be overwritten, or the recipe names no arm that is known.
        ConfigError: theirs cannot be read.
    """
    old = _Old(dict([*_leaves(as_written(old_config)), *_leaves(as_written(old_recipe))]))
    new: dict[str, Any] = {}
    for name, target in RENAMED.items():
        if old.has(name):
            _put(new, target, old.take(name, target))
    for name, (target, change) in CHANGED.items():
        if old.has(name):
            old.changed(name, target, change, new)
    arm = _arm(old)
    _model(old, new)
    _data(old, new, out)
    _length(old, new)
    _batch(old, new)
    _early_stopping(old, new, "train.early_stopping")
    recipes = {"recipe.yaml": new} if arm != "critic" else _stages(old, new)
    if arm == "rho1":
        _put(new, "objective", _rho1(old))
    where = {name: new[name] for name in WHERE if name in new}
    trees = {"config.yaml": where, **{n: {k: v for k, v in t.items() if k not in WHERE} for n, t in recipes.items()}}
    found = Migration(converted=old.converted, todo=old.todo)
    for name in old.rest():
        reason = _dropped(name)
        if reason is None:
            found.unknown.append(name)
        else:
            found.without[name] = reason
    found.without |= old.without
    _write(trees, out, found)
    return found


class _Old:
    """Their keys, dotted, and what has become of them so far."""

    def __init__(self, leaves: dict[str, Any]) -> None:
        self._left = leaves
        self.converted: dict[str, str] = {}
        self.without: dict[str, str] = {}
        self.todo: list[str] = []

    def has(self, name: str) -> bool:
        return self._left.get(name) is not None

    def is_value(self, name: str, value: Any) -> bool:
        return bool(self._left.get(name) == value)

    def take(self, name: str, target: str, default: Any = None) -> Any:
        """Its value, converted to `target`; the default if it is not there."""
        if not self.has(name):
            return default
        self.converted[name] = target
        return self._left.pop(name)

    def number(self, name: str, target: str, default: Any = None) -> Any:
        """The same, of a key that something is computed from.

        Raises:
            ConfigError: it is no number.
        """
        value = self.take(name, target, default)
        if value is not default and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise ConfigError(f"{name} must be a number to be converted, got {value!r}; mend it in the old file")
        return value

    def changed(self, name: str, target: str, change: Any, new: dict[str, Any]) -> None:
        """Put the changed value at `target`, or say why there is none."""
        value = self._left.pop(name)
        try:
            _put(new, target, change(value))
            self.converted[name] = target
        except NoCounterpart as problem:
            self.without[name] = str(problem)

    def drop(self, name: str, why: str) -> None:
        if self.has(name):
            self._left.pop(name)
            self.without[name] = why

    def rest(self) -> list[str]:
        """Keys that were not asked for, in their order."""
        return list(self._left)


def _arm(old: _Old) -> str:
    algo = old.take("train.algo", "objective")
    if algo is None:
        raise UsageError(f"the recipe has no train.algo, which names the arm: add one of {', '.join(ARMS)}")
    if algo not in ARMS:
        raise UsageError(f"train.algo of the recipe must be one of {', '.join(ARMS)}, got {algo!r}")
    return ARMS[algo]


def _model(old: _Old, new: dict[str, Any]) -> None:
    names = ("paths.models.base", "paths.models.base_local", "model.base_id")
    found = [name for name in names if old.has(name)]
    if not found:
        raise UsageError(f"the config names no base model: expected one of {', '.join(names)}, none is there")
    for name in reversed(found):
        _put(new, "model.path", location(old.take(name, "model.path")))


def _data(old: _Old, new: dict[str, Any], out: Path) -> None:
    sources = old.take("data.train.sources", "data.train.path", [])
    if not isinstance(sources, list):
        raise ConfigError(f"data.train.sources must be a list of names, got {sources!r}")
    paths = []
    for source in sources:
        name = next((n for n in (f"paths.datasets.{source}", f"paths.datasets.{source}_local") if old.has(n)), None)
        if name is None:
            old.todo.append(f"data.train.sources names {source!r}, but no path of it is in the config")
        else:
            paths.append(location(old.take(name, "data.train.path")))
    if len(paths) == 1:
        _put(new, "data.train.path", paths[0])
        old.todo.append(f"data.train.path = {paths[0]}: name the data file itself, where this is a folder")
    else:
        joined = out / "train.jsonl"
        _put(new, "data.train.path", str(joined))
        old.todo.append(f"one file of records first: wmtp data prepare {' '.join(paths) or 'FILE ...'} --out {joined}")
    _put(new, "data.validation_fraction", VALIDATION_FRACTION)
    old.todo.append(f"data.validation_fraction = {VALIDATION_FRACTION}: held-out problems, chosen here")


def _length(old: _Old, new: dict[str, Any]) -> None:
    """Steps or epochs, and the warm-up, which is a number of steps with us."""
    epochs, steps = old.number("train.num_epochs", "train.epochs"), None
    if epochs is not None:
        _put(new, "train.epochs", float(epochs))
        old.drop("train.max_steps", "train.epochs says when a run ends; exactly one of the two is allowed")
    elif old.has("train.max_steps"):
        steps = old.number("train.max_steps", "train.steps")
        _put(new, "train.steps", steps)
    else:
        _put(new, "train.epochs", 1.0)
        old.todo.append("train.epochs = 1: theirs set no end")
    if steps is not None:
        _put(new, "optim.warmup_steps", round(old.number("optim.warmup_ratio", "optim.warmup_steps", 0) * steps))
    old.drop("optim.warmup_ratio", "optim.warmup_steps is a number of steps: this share of those that --dry-run tells")


def _batch(old: _Old, new: dict[str, Any]) -> None:
    """Theirs is of one GPU, ours of a step."""
    rows, gpus = (
        old.number("data.train.batch_size", "train.batch_size"),
        old.number("launcher.resources.gpus", "train.batch_size", 1),
    )
    if rows is not None:
        _put(new, "train.batch_size", rows * max(1, gpus))
        _put(new, "train.micro_batch_size", rows)
        old.todo.append(f"train.batch_size = {rows} rows x {max(1, gpus)} GPUs: rows of a step, over all ranks")


def _early_stopping(old: _Old, new: dict[str, Any], theirs: str) -> None:
    enabled = old.take(f"{theirs}.enabled", "train.early_stopping", False)
    for name in ("monitor", "mode"):
        old.drop(f"{theirs}.{name}", "the loss that no weighting moves is watched; see train.early_stopping")
    names = {f"{theirs}.patience": "patience", f"{theirs}.min_delta": "min_delta"}
    for name, ours in names.items():
        if enabled and old.has(name):
            _put(new, f"train.early_stopping.{ours}", old.take(name, f"train.early_stopping.{ours}"))
        else:
            old.drop(name, "early stopping is off")
    if "early_stopping" in new["train"]:
        new["train"].setdefault("eval_every", EVAL_EVERY)
        old.todo.append(f"train.early_stopping counts evaluations, one every {new['train']['eval_every']} steps")


def _clip(old: _Old) -> list[float]:
    lowest, highest = old.number("loss.epsilon", "clip", 0.1), old.number("loss.max_weight", "clip", 3.0)
    return [float(lowest), float(highest)]


def _temperature(old: _Old, target: str) -> float:
    older = old.number("loss.temperature", target, 1.0)
    return float(old.number("loss.weight_temperature", target, older))


def _rho1(old: _Old) -> dict[str, Any]:
    """The objective of `rho1-wmtp`."""
    target = "objective.weighting.reference"
    names = ("paths.models.ref", "paths.models.ref_local", "model.ref_id")
    found = [location(old.take(name, target)) for name in names if old.has(name)]
    if not found:
        raise UsageError(f"rho1-wmtp needs a reference model: expected one of {', '.join(names)}, none is in the files")
    scheme: dict[str, Any] = {"scheme": "rho1", "reference": found[0]}
    mode = old.take("rho1.selection_mode", "objective.weighting.mode")
    skipped, kept = "rho1.skip_threshold_percentile", "rho1.percentile_top_p"
    if mode == "token_skip":
        scheme |= {"mode": "skip", "ratio": float(old.number(skipped, "objective.weighting.ratio", 0.3))}
    elif mode is None and old.has(kept):
        scheme |= {"mode": "select", "ratio": float(old.number(kept, "objective.weighting.ratio"))}
    else:
        scheme |= {"mode": "soft", "temperature": _temperature(old, "objective.weighting.temperature")}
        scheme["clip"] = _clip(old)
    unused = f"does nothing in mode {scheme['mode']!r}"
    for name in (skipped, kept, "loss.temperature", "loss.weight_temperature", "loss.epsilon", "loss.max_weight"):
        old.drop(name, unused)
    return {"kind": "mtp", "weighting": scheme}


def _stages(old: _Old, new: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Stage 1 trains the critic, stage 2 the policy with its advantages."""
    critic = copy.deepcopy(new)
    critic["train"].pop("early_stopping", None)
    name = f"{new.get('run_name', 'verifiable')}-critic"
    critic["run_name"] = name
    critic["model"].pop("heads", None)
    gamma, lam = float(old.number("critic.gamma", "gamma", 1.0)), float(old.number("critic.gae_lambda", "lam", 0.95))
    critic["objective"] = {
        "kind": "value",
        "loss": "lambda_return",
        "backbone": "frozen",
        "gamma": gamma,
        "lam": lam,
    }
    reward = _reward(old)
    if reward is not None:
        critic["objective"]["reward"] = reward
        old.todo.append("objective.reward.template: give it if the reward model's tokenizer has no chat template")
    _stage_1(old, critic)
    weighting = {
        "scheme": "critic",
        "critic": f"{new.get('runs', 'runs')}/{name}/final",
        "gamma": gamma,
        "lam": lam,
        "beta": _temperature(old, "objective.weighting.beta"),
        "clip": _clip(old),
    }
    new["objective"] = {"kind": "mtp", "weighting": weighting}
    following = float(old.number("critic.auxiliary_loss_coef", "objective.aux_value_loss", 0))
    if following > 0:
        new["objective"]["aux_value_loss"] = following
    labels = "" if reward is not None else ". Rows of critic.yaml need is_correct"
    old.todo.append(f"train critic.yaml first: recipe.yaml reads its final/{labels}")
    return {"critic.yaml": critic, "recipe.yaml": new}


def _reward(old: _Old) -> dict[str, str] | None:
    """What the critic foresees: a reward model's score where theirs named one; None for labels."""
    found = [name for name in REWARD_MODELS if old.has(name)]
    if not found or not old.is_value("critic.target", "rm_sequence"):
        why = "labels (is_correct) are the reward; another takes critic.target = rm_sequence and a reward model"
        for name in ("critic.target", *found):
            old.drop(name, why)
        return None
    old.take("critic.target", "objective.reward")
    models = [location(old.take(name, "objective.reward.model")) for name in found]
    return {"model": models[0]}


def _stage_1(old: _Old, critic: dict[str, Any]) -> None:
    for theirs in ("pretrain", "train.stage1"):
        epochs = old.number(f"{theirs}.num_epochs", "train.epochs")
        if epochs is not None:
            critic["train"].pop("steps", None)
            _put(critic, "train.epochs", float(epochs))
            old.drop(f"{theirs}.max_steps", "train.epochs says when a run ends; exactly one of the two is allowed")
        elif old.has(f"{theirs}.max_steps"):
            critic["train"].pop("epochs", None)
            _put(critic, "train.steps", old.take(f"{theirs}.max_steps", "train.steps"))
        if old.has(f"{theirs}.lr"):
            _put(critic, "optim.lr", old.take(f"{theirs}.lr", "optim.lr"))
            old.drop("critic.value_lr", f"the learning rate of stage 1 is {theirs}.lr")
        _early_stopping(old, critic, f"{theirs}.early_stopping")
    if old.has("critic.value_lr"):
        _put(critic, "optim.lr", old.take("critic.value_lr", "optim.lr"))


def _dropped(name: str) -> str | None:
    """Why a key has no counterpart: of its own, or of what it stands below."""
    parts = name.split(".")
    if parts[:2] == ["paths", "models"] or name in ("model.ref_id", "model.rm_id"):
        return "no scheme of this arm asks that model"
    if parts[0] in ("loss", "critic", "rho1") and name not in DROPPED:
        return "does nothing in this arm" if name in ARM_KEYS else None
    return next(
        (DROPPED[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in DROPPED), None
    )


ARM_KEYS = frozenset(
    [
        *(f"loss.{name}" for name in ("temperature", "weight_temperature", "epsilon", "max_weight")),
        *(f"critic.{name}" for name in ("gamma", "gae_lambda", "value_lr", "target", "auxiliary_loss_coef")),
        *(f"rho1.{name}" for name in ("selection_mode", "skip_threshold_percentile", "percentile_top_p")),
    ]
)
"""Converted in some arms."""


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(prefix, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]


def _put(tree: dict[str, Any], target: str, value: Any) -> None:
    *sections, last = target.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
    tree[last] = value


def _write(trees: dict[str, dict[str, Any]], out: Path, found: Migration) -> None:
    found.files = [out / name for name in trees]
    there = [path for path in found.files if path.exists()]
    if there:
        raise UsageError(f"{there[0]} is there already; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    for name, tree in trees.items():
        write_atomic(out / name, render(tree))
    for recipe in found.files[1:]:
        try:
            load([found.files[0], recipe])
        except ConfigError as problem:
            found.todo.append(f"{recipe} does not load yet: {problem}")
