"""What became of the earlier system's keys: renamed, changed in value, or without a counterpart.

A key stands for itself and for all below it. What is in none of the tables is unknown, and told as such. What takes
more than one key to say (data, arms, batch size, warm-up) is in `wmtp.migration.conversion`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wmtp.errors import ConfigError
from wmtp.redaction import without_credentials

RENAMED: Mapping[str, str] = {
    "seed": "train.seed",
    "log_interval": "train.log_every",
    "paths.checkpoints.save_interval": "checkpoint.every",
    "paths.checkpoints.keep_last": "checkpoint.keep_last",
    "paths.checkpoints.save_final": "checkpoint.save_final",
    "mlflow.experiment": "tracking.experiment",
    "devices.compute_backend": "device",
    "devices.distributed.timeout": "distributed.timeout_s",
    "devices.fsdp.activation_ckpt": "train.activation_checkpointing",
    "devices.fsdp.offload_params": "distributed.cpu_offload",
    "devices.fsdp.cpu_offload": "distributed.cpu_offload",
    "run.name": "run_name",
    "run.tags": "tags",
    "model.mtp.n_heads": "model.heads.num_heads",
    "train.save_interval": "checkpoint.every",
    "train.checkpointing.save_interval": "checkpoint.every",
    "train.checkpointing.keep_last": "checkpoint.keep_last",
    "train.checkpointing.save_final": "checkpoint.save_final",
    "train.eval_interval": "train.eval_every",
    "data.train.max_length": "data.max_length",
    "data.train.num_workers": "data.workers",
    "optim.lr": "optim.lr",
    "optim.weight_decay": "optim.weight_decay",
    "optim.betas": "optim.betas",
    "optim.grad_clip": "optim.clip_norm",
    "optim.scheduler": "optim.schedule",
}
"""Theirs -> ours, the value as it is."""


class NoCounterpart(Exception):
    """A value that cannot be said in our config; says why, and what to do instead."""


def _one_of(choices: Mapping[str, str], else_: str) -> Callable[[Any], str]:
    def choose(value: Any) -> str:
        found = choices.get(str(value).lower())
        if found is None:
            raise NoCounterpart(else_)
        return found

    return choose


def location(value: Any) -> str:
    """A path of theirs; `file://./x`, which is no URL, is the relative path x.

    Raises:
        ConfigError: it holds credentials, which would be written into a file of ours.
    """
    text = str(value)
    if without_credentials(text) != text:
        raise ConfigError(f"{without_credentials(text)!r} holds credentials: take them out of the old file; {_AWS}")
    return (text.removeprefix("file://") if text.startswith("file://.") else text).rstrip("/") or text


def _store(value: Any) -> str:
    text = str(value)
    if without_credentials(text) != text:
        raise NoCounterpart("it holds credentials: a whole address with them goes into MLFLOW_TRACKING_URI")
    if text.startswith(("http://", "https://", "sqlite:", "postgresql", "mysql", "mssql", "${")):
        return text
    raise NoCounterpart("MLflow no longer keeps runs in a folder or bucket; without it, runs/mlflow.db is the store")


CHANGED: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "paths.checkpoints.base_path": ("runs", location),
    "mlflow.tracking_uri": ("tracking.uri", _store),
    "devices.mixed_precision": (
        "precision",
        _one_of(
            {"bf16": "bf16", "fp32": "fp32", "no": "fp32", "none": "fp32"},
            "there is no fp16 training; the default is fp32, bf16 halves the memory",
        ),
    ),
    "devices.fsdp.sharding": (
        "distributed.strategy",
        _one_of(
            {
                "full": "FULL_SHARD",
                "full_shard": "FULL_SHARD",
                "shard_grad_op": "SHARD_GRAD_OP",
                "no_shard": "NO_SHARD",
                "hybrid_shard": "HYBRID_SHARD",
            },
            "strategies are FULL_SHARD, SHARD_GRAD_OP, HYBRID_SHARD, NO_SHARD",
        ),
    ),
}
"""Theirs -> ours, and what becomes of the value."""

_AWS = "S3 is set up by the standard AWS settings (AWS_REGION, AWS_PROFILE, ...), never in a config"
_LAUNCH = "a job is launched by torchrun, `wmtp train --ranks N` or your scheduler"

DROPPED: Mapping[str, str] = {
    "project": "a name for people only; see tracking.experiment and run_name",
    "storage": f"the path's scheme decides; {_AWS}",
    "s3_auth": _AWS,
    "mlflow.registry_uri": "the registry is where the runs are",
    "mlflow.artifact_location": "a server decides; a database keeps them beside the runs, in mlartifacts",
    "launcher": _LAUNCH,
    "devices.device_ids": "set CUDA_VISIBLE_DEVICES",
    "devices.num_proc": "data.workers is the only number of workers",
    "devices.distributed": _LAUNCH,
    "devices.fsdp": "FSDP is used with several ranks, and wraps decoder layers and heads",
    "paths.cache": "nothing is cached in a folder of its own; data.cache keeps tokenised rows if you ask for it",
    "paths.datasets": "only the data sets that data.train.sources names are read",
    "model.tokenizer_type": "the tokenizer is recognised by its files",
    "model.tokenizer_pad_side": "padding is ours to place, and weighs nothing",
    "model.mtp.horizon": "the number of heads, always",
    "train.full_finetune": "everything is trained; model.heads.trained restricts it",
    "train.stage1.enabled": "stage 1 is a run of its own",
    "train.stage1.save_value_head": "the critic's final/ has it",
    "pretrain.enabled": "stage 1 is a run of its own",
    "pretrain.save_value_head": "the critic's final/ has it",
    "data.train.pack_sequences": "rows are not packed; train.micro_batch_tokens bounds a micro-batch by its positions",
    "data.eval": "benchmarks are `wmtp eval --benchmark`; held-out loss is of data.validation_fraction",
    "optim.optimizer": "AdamW is the only optimizer",
    "loss.weight_norm": "weights are normalised by the loss: their sum is its denominator",
    "loss.lambda": "a factor on the whole loss is a learning rate in disguise",
    "critic.token_spread": "GAE spreads the reward",
    "critic.delta_mode": "deltas are temporal differences",
    "critic.normalize": "advantages are whitened over a step (objective.weighting.whiten)",
    "critic.discount_lambda": "gae_lambda is the one that GAE has",
    "critic.value_coef": "the critic is frozen while the policy learns",
    "critic.use_pseudo_rewards": "a reward is a label or a verdict, never invented",
    "rho1.score": "the excess is signed; an absolute gap keeps what the model already knows better",
    "rho1.min_ce_diff": "no threshold beside the ratio",
    "rho1.refresh_per_epoch": "the excess is of the present policy, always",
    "eval": "options of `wmtp eval` (--temperature, --top-p, --n, --benchmark)",
}
"""Theirs -> why there is none of ours."""
