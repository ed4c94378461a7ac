"""The earlier system's two files become ours, and nothing of them is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wmtp.cli import run_command
from wmtp.config import Config, load
from wmtp.errors import ConfigError, UsageError
from wmtp.migration import Migration, migrate
from wmtp.migration.conversion import _leaves
from wmtp.migration.keys import CHANGED, DROPPED, RENAMED
from wmtp.storage import resolve

CONFIG = """
project: team
seed: 42
log_interval: 100
storage: {mode: s3, s3: {bucket: team, region: eu-west-1}}
s3_auth: {access_key_id: "${AWS_ACCESS_KEY_ID}", secret_access_key: hunter2hunter2}
paths:
  models: {base: "embedded://tiny-llama", rm: "s3://team/models/rm/", ref: "file://./models/sheared/"}
  datasets: {mbpp: "embedded://problems_train.jsonl", contest: data/contest, humaneval: data/humaneval}
  checkpoints: {base_path: "file://./checkpoints", save_interval: 1000, keep_last: 5, save_final: true}
mlflow: {experiment: group/first, tracking_uri: "${MLFLOW_URI}", registry_uri: "s3://team/mlruns"}
launcher: {target: vessl, resources: {gpus: 4, gpu_type: A100}}
devices:
  compute_backend: cpu
  mixed_precision: bf16
  num_proc: 8
  distributed: {enabled: true, backend: nccl, timeout: 1800}
  fsdp: {enabled: true, auto_wrap: true, activation_ckpt: true, sharding: full_shard, offload_params: false}
"""
RECIPE = """
run: {name: first_run, tags: [first, second]}
data:
  train: {sources: [mbpp], max_length: 128, batch_size: 2, pack_sequences: true, num_workers: 2}
  eval: {sources: [mbpp, humaneval], max_length: 2048}
train:
  algo: %s
  full_finetune: true
  num_epochs: 1
  max_steps: 30000
  eval_interval: 500
  early_stopping: {enabled: true, patience: 200, min_delta: 1e-5, monitor: wmtp_loss}
optim: {optimizer: adamw, lr: 2.0e-5, weight_decay: 0.01, betas: [0.9, 0.999], grad_clip: 1.0, scheduler: cosine, warmup_ratio: 0.03}
loss: {weight_norm: mean1.0_clip, lambda: 0.3, weight_temperature: 0.7, epsilon: 0.05, max_weight: 3.0}
eval: {protocol: meta-mtp, sampling: {temperature: 0.7, top_p: 0.9, n: 20}, metrics: [mbpp_exact]}
"""  # noqa: E501
SECRET = "hunter2hunter2"
PRETRAIN = """
pretrain: {enabled: true, num_epochs: 3, max_steps: 10000, lr: 1e-4, early_stopping: {enabled: false, patience: 50}}
critic: {target: rm_sequence, token_spread: gae, gamma: 0.99, gae_lambda: 0.9, value_lr: 5e-5, auxiliary_loss_coef: 0.1}
"""
RHO1 = "rho1: {selection_mode: %s, skip_threshold_percentile: 0.25, min_ce_diff: 0.01}\n"


def migrated(folder: Path, algo: str, more: str = "", config: str = CONFIG) -> Migration:
    (folder / "old.yaml").write_text(config)
    (folder / "old_recipe.yaml").write_text(RECIPE % algo + more)
    return migrate(folder / "old.yaml", folder / "old_recipe.yaml", folder / "new")


def loaded(found: Migration, name: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("MLFLOW_URI", "http://127.0.0.1:5000")
    return load([found.files[0], next(path for path in found.files if path.name == name)])


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("baseline-mtp", "unheard: {of: 1}\n"),
        ("critic-wmtp", PRETRAIN),
        ("rho1-wmtp", RHO1 % "token_skip"),
        ("rho1-wmtp", RHO1 % "weighted"),
    ],
)
def test_every_key_is_converted_or_listed_with_the_reason_or_called_unknown(
    algo: str, more: str, tmp_path: Path
) -> None:
    import yaml

    found = migrated(tmp_path, algo, more)
    told = [*found.converted, *found.without, *found.unknown]
    assert sorted(told) == sorted(key for key, _ in _leaves(yaml.safe_load(CONFIG + RECIPE % algo + more)))
    assert found.unknown == (["unheard.of"] if "unheard" in more else [])


def test_the_baseline_says_the_same_in_our_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = loaded(migrated(tmp_path, "baseline-mtp"), "recipe.yaml", monkeypatch)
    assert (ours.arm, ours.name, ours.tags) == ("baseline", "first_run", ["first", "second"])
    assert (ours.device, ours.precision, ours.distributed.strategy) == ("cpu", "bf16", "FULL_SHARD")
    assert (ours.train.batch_size, ours.train.micro_batch_size, ours.train.epochs) == (8, 2, 1.0)
    assert (ours.checkpoint.every, ours.checkpoint.keep_last) == (1000, 5)
    assert (ours.optim.lr, ours.optim.clip_norm, ours.optim.betas) == (2e-5, 1.0, (0.9, 0.999))
    assert ours.runs == str(Path("checkpoints").absolute())
    assert ours.tracking is not None
    assert (ours.tracking.uri, ours.tracking.experiment) == ("http://127.0.0.1:5000", "group/first")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_skip", {"mode": "skip", "ratio": 0.25}),
        ("weighted", {"mode": "soft", "temperature": 0.7, "clip": (0.05, 3.0)}),
    ],
)
def test_both_modes_of_rho1_are_said(
    mode: str, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighting = loaded(migrated(tmp_path, "rho1-wmtp", RHO1 % mode), "recipe.yaml", monkeypatch).schemes[0]
    assert {name: getattr(weighting, name) for name in expected} == expected


def test_a_critic_s_two_stages_are_two_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = migrated(tmp_path, "critic-wmtp", PRETRAIN)
    first, second = loaded(found, "critic.yaml", monkeypatch), loaded(found, "recipe.yaml", monkeypatch)
    assert (first.arm, first.optim.lr, first.train.epochs) == ("critic", 1e-4, 3.0)
    assert (second.arm, second.optim.lr) == ("verifiable", 2e-5)
    scheme = second.schemes[0]
    assert scheme.critic == f"{first.runs}/{first.name}/final"  # type: ignore[union-attr]
    assert (scheme.gamma, scheme.lam, scheme.beta) == (0.99, 0.9, 0.7)  # type: ignore[union-attr]
    assert first.objective.reward.model == "s3://team/models/rm"  # type: ignore[union-attr]
    assert second.objective.aux_value_loss == 0.1  # type: ignore[union-attr]


def test_a_critic_of_labels_has_no_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = migrated(tmp_path, "critic-wmtp", PRETRAIN.replace("rm_sequence", "labels"))
    assert loaded(found, "critic.yaml", monkeypatch).objective.reward is None  # type: ignore[union-attr]
    assert {"critic.target", "paths.models.rm"} <= found.without.keys()


def test_a_recipe_without_an_arm_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the recipe has no train.algo.* add one of baseline-mtp"):
        migrated(tmp_path, "null")


@pytest.mark.exhaustive
def test_a_converted_recipe_passes_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_URI", "http://127.0.0.1:5000")
    rows = resolve("embedded://problems_train.jsonl").read_text().splitlines(keepends=True)[::8]
    (tmp_path / "few.jsonl").write_text("".join(rows))
    few = CONFIG.replace("embedded://problems_train.jsonl", str(tmp_path / "few.jsonl"))
    found = migrated(tmp_path, "critic-wmtp", PRETRAIN, few)
    architecture = ["model.path=null", "model.architecture=embedded://tiny-llama"]
    files = ["--config", str(found.files[0]), "--recipe", str(tmp_path / "new" / "critic.yaml")]
    assert run_command(["train", *files, "--dry-run", "--out", str(tmp_path / "run"), *architecture]) == 0, (
        capsys.readouterr().err
    )


def test_what_does_not_load_yet_is_said_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_URI", "http://127.0.0.1:5000")
    found = migrated(tmp_path, "baseline-mtp", config=CONFIG.replace("keep_last: 5", "keep_last: many"))
    assert any("checkpoint.keep_last = 'many': expected an integer" in todo for todo in found.todo)


def test_a_batch_size_that_is_no_number_is_told_with_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.yaml").write_text(CONFIG)
    (tmp_path / "recipe.yaml").write_text((RECIPE % "baseline-mtp").replace("batch_size: 2", "batch_size: '${SIZE}'"))
    files = [str(tmp_path / name) for name in ("old.yaml", "recipe.yaml")]
    assert run_command(["migrate", *files, "--out", str(tmp_path / "new")]) == 2
    assert "data.train.batch_size must be a number" in capsys.readouterr().err


def test_a_run_of_so_many_steps_warms_up_for_a_share_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.yaml").write_text(CONFIG)
    (tmp_path / "recipe.yaml").write_text((RECIPE % "baseline-mtp").replace("  num_epochs: 1\n", ""))
    found = migrate(tmp_path / "old.yaml", tmp_path / "recipe.yaml", tmp_path / "new")
    ours = loaded(found, "recipe.yaml", monkeypatch)
    assert (ours.train.steps, ours.optim.warmup_steps) == (30000, 900)


def test_no_secret_is_written_or_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = migrated(tmp_path, "baseline-mtp")
    assert "s3_auth.secret_access_key" in found.without
    assert not any("hunter2" in path.read_text() for path in found.files)
    assert "uri: ${MLFLOW_URI}" in found.files[0].read_text().replace('"', "")
    files = [str(tmp_path / name) for name in ("old.yaml", "old_recipe.yaml")]
    assert run_command(["migrate", *files, "--out", str(tmp_path / "again"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "hunter2" not in out
    assert json.loads(out)["todo"]


def test_credentials_in_an_address_are_not_copied(tmp_path: Path) -> None:
    found = migrated(tmp_path, "baseline-mtp", config=CONFIG.replace("${MLFLOW_URI}", f"http://me:{SECRET}@host"))
    assert "MLFLOW_TRACKING_URI" in found.without["mlflow.tracking_uri"]
    assert not any(SECRET in path.read_text() for path in found.files)
    with pytest.raises(ConfigError, match="holds credentials") as told:
        migrated(tmp_path, "baseline-mtp", config=CONFIG.replace("embedded://tiny-llama", f"s3://me:{SECRET}@models"))
    assert SECRET not in str(told.value)


def test_files_that_are_there_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    migrated(tmp_path, "baseline-mtp")
    files = [str(tmp_path / name) for name in ("old.yaml", "old_recipe.yaml")]
    assert run_command(["migrate", *files, "--out", str(tmp_path / "new")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_documented_table_has_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text()
    missing = [key for key in [*RENAMED, *CHANGED, *DROPPED] if f"`{key}`" not in page]
    assert missing == []
