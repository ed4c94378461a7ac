"""What holds on the CPU holds on this machine's GPU: loss, training, resuming, decoding, predicted memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wmtp import devices
from wmtp.config import load
from wmtp.decoding import generate
from wmtp.estimate import estimate
from wmtp.families import FAMILIES as HEADS
from wmtp.loss import LossSum, Unembedding, plain_nll, reduce_loss
from wmtp.loss_fused import fused_loss
from wmtp.objective import MTPObjective
from wmtp.optim import build_adamw
from wmtp.parts import build, prepare_model
from wmtp.step import train_step
from wmtp.targets import IGNORE
from wmtp.testing import FAMILIES, random_batch, tiny_model
from wmtp.weighting import Uniform

DEVICE = devices.pick("auto")
RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"

if DEVICE.type == "cpu":
    pytest.skip("this machine has neither CUDA nor MPS", allow_module_level=True)

REPEATABLE = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""cuBLAS gives the same bits from run to run only with workspaces of its own."""


def gradients(kind: str, like: torch.dtype, device: torch.device, dtype: torch.dtype, softcap: float | None) -> Any:
    """Of hidden states and unembedding: a problem whose numbers `like` has, computed on `device` in `dtype`."""
    random = torch.Generator().manual_seed(3)
    B, T, K, V, D = 2, 40, 3, 1000, 64
    inputs = [*torch.randn(K, B, T, D, generator=random), torch.randn(V, D, generator=random) / 4]
    target_BTK = torch.randint(V, (B, T, K), generator=random)
    target_BTK[:, :7] = IGNORE
    weight_BTK = 3 * torch.rand(B, T, K, generator=random) * (torch.rand(B, T, K, generator=random) < 0.6)
    target_BTK, weight_BTK = target_BTK.to(device), weight_BTK.to(device)
    leaves = [each.to(like).to(device, dtype).requires_grad_() for each in inputs]
    loss_of(kind, leaves, softcap, target_BTK, weight_BTK).weighted_sum.backward()
    return [leaf.grad.to("cpu").double() for leaf in leaves if leaf.grad is not None]


def loss_of(kind: str, leaves: list[Tensor], softcap: float | None, target: Tensor, weight: Tensor) -> LossSum:
    hidden_K, unembedding = leaves[:-1], Unembedding(leaves[-1], None, softcap)
    if kind != "plain":
        return fused_loss(hidden_K, unembedding, target, weight, chunk=48, compiled=kind == "compiled")
    return reduce_loss(*plain_nll(hidden_K, unembedding, target), target, weight)


def distance(got: Tensor, truth: Tensor) -> float:
    return float((got - truth).norm() / truth.norm())


@pytest.mark.filterwarnings("ignore")  # of torch.compile
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("fused", torch.float32), ("fused", torch.bfloat16), ("compiled", torch.bfloat16)], ids=str
)
def test_the_fused_loss_on_the_device_is_as_near_the_truth_as_the_plain_one(
    kind: str, dtype: torch.dtype, softcap: float | None
) -> None:
    truth = gradients("plain", dtype, torch.device("cpu"), torch.float64, softcap)
    plain = gradients("plain", dtype, DEVICE, dtype, softcap)
    fused = gradients(kind, dtype, DEVICE, dtype, softcap)
    for ours, naive, exact in zip(fused, plain, truth, strict=True):
        assert distance(ours, exact) <= 1.05 * distance(naive, exact) + 1e-7


def losses(
    family: str, heads: str, device: torch.device, precision: str = "fp32", compiled: bool = False
) -> list[float]:
    """Of five steps on one batch."""
    model = tiny_model(family, 3, heads=heads, noise=0.05).to(device)
    prepare_model(model, checkpointing=False, compiled=compiled)
    optimizer = build_adamw(model, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    batch, objective = random_batch(seed=2).to(device), MTPObjective(Uniform())
    context = devices.precision(device, precision)
    steps = [train_step(model, optimizer, objective, [batch], precision=context) for _ in range(5)]
    return [step.metrics["loss/weighted"] for step in steps]


@pytest.mark.parametrize(
    ("family", "heads"), [*((family, "parallel") for family in FAMILIES), ("llama", "linear"), ("llama", "chain")]
)
def test_steps_on_the_device_are_those_of_the_cpu(family: str, heads: str) -> None:
    assert losses(family, heads, DEVICE) == pytest.approx(losses(family, heads, torch.device("cpu")), rel=1e-4)


def test_bf16_steps_learn_what_fp32_steps_learn() -> None:
    low, full = losses("llama", "parallel", DEVICE, "bf16"), losses("llama", "parallel", DEVICE)
    assert low == pytest.approx(full, rel=0.02)
    assert low != full


@pytest.mark.filterwarnings("ignore")  # torch.compile reads .grad of non-leaves and uses torch.jit.script_method
def test_compiled_layers_agree_without_graph_breaks() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    compiled = losses("llama", "parallel", DEVICE, compiled=True)
    assert compiled == pytest.approx(losses("llama", "parallel", DEVICE), rel=1e-4)
    assert not counters["graph_break"]


@pytest.mark.parametrize("heads", HEADS)
def test_greedy_decoding_with_drafts_is_that_without(heads: str) -> None:
    model = tiny_model("llama", 4, heads=heads, noise=0.02).to(DEVICE).eval()
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 64, (length,), generator=random).tolist() for length in (1, 9, 4, 14)]
    plain = generate(model, prompts, 24, "plain", eos=())
    assert generate(model, prompts, 24, eos=(), draft_length=3).tokens == plain.tokens


def train(out: Path, *extra: str, fault: str = "") -> int:
    files = ["--recipe", str(RECIPE), "--out", str(out), f"device={DEVICE.type}", *extra]
    command = [sys.executable, "-m", "wmtp", "train", *files]
    return subprocess.run(command, env=REPEATABLE | {"WMTP_FAULT": fault}, check=False, capture_output=True).returncode


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def figures(run: Path) -> list[dict[str, Any]]:
    """The journal without what depends on the clock."""
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "mem/"))} for line in journal(run)]


@pytest.mark.fault
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_on_the_device_and_resumed_is_the_undisturbed_one(tmp_path: Path, precision: str) -> None:
    extra = (f"precision={precision}", "checkpoint.every=3")
    assert train(tmp_path / "whole", *extra) == 0
    assert train(tmp_path / "broken", *extra, fault="after_backward:8:kill9") == -9
    assert train(tmp_path / "broken", *extra, "--resume", "auto") == 0
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    for file in (tmp_path / "whole" / "final").glob("*.safetensors"):
        ours, theirs = load_file(file), load_file(tmp_path / "broken" / "final" / file.name)
        assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA's allocator tells its peak")
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_of_memory_is_within_a_tenth_of_what_was_predicted(
    tmp_path: Path, precision: str, recomputed: bool
) -> None:
    width = "hidden_size: 768, intermediate_size: 2048, num_hidden_layers: 8, num_attention_heads: 12"
    options = [
        f"model.architecture={{{width}}}",
        f"precision={precision}",
        f"train={{steps: 3, batch_size: 16, micro_batch_size: 8, eval_every: 100, "
        f"activation_checkpointing: {str(recomputed).lower()}}}",
    ]
    predicted = estimate(build(load([RECIPE], [*options, f"device={DEVICE.type}"]))).total
    torch.cuda.empty_cache()
    assert train(tmp_path / "run", *options) == 0
    measured = max(line.get("mem/peak_bytes", 0) for line in journal(tmp_path / "run"))
    assert measured == pytest.approx(predicted, rel=0.1)
