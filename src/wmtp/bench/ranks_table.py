"""What a rank needs at Llama-2-7B's shape with 4 heads on 4 GPUs: every arm of the `*_6.7b_4xa100` recipes.

Nothing is measured, and nothing is read but shapes: critic and reference are as large as the policy.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wmtp.arms import build_scheme
from wmtp.bench import measuring
from wmtp.config import Config, MTPObjectiveConfig
from wmtp.estimate import estimate
from wmtp.formats.hf import random_causal_lm, without_parameters
from wmtp.memory import total
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.parts import Parts, build
from wmtp.rehearsal import Model
from wmtp.value import ValueModel

RANKS = 4
LLAMA_2_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
TRAIN = {"epochs": 3, "batch_size": 64, "micro_batch_tokens": 8192}
LENGTH = 2048
ARMS: dict[str, dict[str, Any]] = {
    "baseline": {"kind": "mtp", "weighting": {"scheme": "uniform"}},
    "verifiable": {"kind": "mtp", "weighting": {"scheme": "critic", "critic": "a/critic"}},
    "rho1": {
        "kind": "mtp",
        "weighting": {"scheme": "rho1", "reference": "a/reference", "mode": "select", "ratio": 0.6},
    },
    "critic": {"kind": "value", "loss": "pairwise", "head": "mlp", "backbone": "frozen"},
}
ASKED = {"baseline": 30, "verifiable": 30, "rho1": 35}
"""GB of a rank under FULL_SHARD; 90 without sharding."""
GB = 10**9


def config_of(arm: str, data: str) -> Config:
    """The recipe's, on the shape instead of a folder."""
    settings = {
        "precision": "bf16",
        "model": {"architecture": LLAMA_2_7B, "tokenizer": "embedded://tiny-llama", "heads": {"num_heads": 4}},
        "data": {"train": {"path": data}, "max_length": LENGTH},
        "objective": ARMS[arm],
        "train": TRAIN if arm == "critic" else {**TRAIN, "activation_checkpointing": True},
        "distributed": {"strategy": "NO_SHARD" if arm == "critic" else "FULL_SHARD"},
    }
    return Config.model_validate(settings)


def frozen_of(arm: str) -> list[Model]:
    """Critic or reference, without weights."""
    if arm not in ("verifiable", "rho1"):
        return []
    with without_parameters():
        base = random_causal_lm(LLAMA_2_7B, 0, 0)
        model: Model = ValueModel(base, "mlp", "frozen") if arm == "verifiable" else MTPModel(base, 1)
    return [model.eval().requires_grad_(False)]


def parts_of(arm: str, data: str) -> Parts:
    """As if on GPUs, and as if critic and reference were there."""
    config = config_of(arm, data)
    plain = config.model_copy(update={"objective": config_of("baseline", data).objective})
    parts = build(config if arm == "critic" else plain, weights=False)
    if isinstance(config.objective, MTPObjectiveConfig):
        scheme = build_scheme(config.objective.weighting, config.train.seed, parts.steps)
        parts = replace(parts, config=config, objective=MTPObjective(scheme), frozen=frozen_of(arm))
    return replace(parts, device=torch.device("cuda"))


def write_rows(file: Path) -> str:
    """Pairs of rows of `LENGTH` tokens; the file's path."""
    words = " ".join(str(number) for number in range(LENGTH))
    rows = ({"problem_id": str(i // 2), "prompt": "x", "response": words, "is_correct": i % 2 == 0} for i in range(128))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def table() -> list[dict[str, Any]]:
    """One object per arm and strategy."""
    found = []
    with tempfile.TemporaryDirectory(prefix="wmtp-ranks-") as folder:
        data = write_rows(Path(folder) / "rows.jsonl")
        for arm in ARMS:
            parts = parts_of(arm, data)
            needed = estimate(parts, RANKS)
            for needs in needed.needs:
                chosen = needs.strategy == needed.strategy
                line = {"arm": arm, "strategy": needs.strategy, "recipe": chosen, "bytes": needs.bytes}
                found.append(line | {"total_bytes": total(needs.bytes), "state_bytes": needs.state_bytes})
    return found


PARTS = ("weights", "optimiser", "gradients", "frozen scorer", "fetched weights", "transfer buffers", "activations")


def show(lines: Sequence[dict[str, Any]]) -> None:
    """For people, in GB."""
    print(
        f"Llama-2-7B's shape, 4 heads, {RANKS} GPUs, bf16, micro-batches of {TRAIN['micro_batch_tokens']} tokens; GB "
        "(10^9 bytes) of a rank at the peak of a step, beside what CUDA takes; * is the recipe's strategy\n"
    )
    rows: list[Sequence[str]] = [("arm", "strategy", *PARTS, "loss", "together", "asked")]
    for line in lines:
        figures = [line["bytes"].get(name, 0) for name in PARTS]
        figures += [line["total_bytes"] - sum(figures), line["total_bytes"]]
        asked = ASKED.get(line["arm"]) if line["strategy"] == "FULL_SHARD" else None
        rows.append(
            (
                line["arm"],
                line["strategy"] + ("*" if line["recipe"] else ""),
                *(f"{figure / GB:.1f}" for figure in figures),
                "-" if asked is None else str(asked),
            )
        )
    print(measuring.aligned(rows))
