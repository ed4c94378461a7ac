"""The whole optimiser step beside a plain transformers loop with the same heads written naively.

    python benchmarks/step.py --json step.json

Model: a random Llama of about 30M parameters with K heads, V = 32,000; data: rows of which about half is prompt. Both
train the same rows with the same optimiser. README.md beside this file says how to read the figures.

`naive` is what one writes first: hidden states of the decoder, K copies of its last layer, logits of every head over
every position stacked to [B, T, K, V], one cross-entropy with -100 for untrained targets, AdamW.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmtp import devices
from wmtp.data.batches import Batch, collate
from wmtp.data.text import Row
from wmtp.heads import Branch
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.optim import build_adamw
from wmtp.step import train_step
from wmtp.targets import future_targets
from wmtp.weighting import Uniform

VOCABULARY = 32_000
VARIANTS = ("naive", "wmtp", "wmtp_k1")
Step = Callable[[], None]


def model_of(num_heads: int, small: bool = False) -> MTPModel:
    """The benchmark's model: width 384, 8 layers, tied embeddings; about 30M parameters with 4 heads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    width, layers, vocabulary = (32, 2, 500) if small else (384, 8, VOCABULARY)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        intermediate_size=round(width * 8 / 3),
        num_hidden_layers=layers,
        num_attention_heads=width // 16 if small else 6,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return MTPModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32), num_heads)


def batch_of(rows: int, length: int, vocabulary: int) -> Batch:
    """Rows of mixed lengths, sorted as the product's batches are; about half of each row is prompt."""
    generator = torch.Generator().manual_seed(0)
    lengths = sorted(torch.randint(int(0.85 * length), length + 1, (rows,), generator=generator).tolist())
    made = [
        Row(torch.randint(3, vocabulary, (n,), generator=generator).int().numpy(), n // 2, 0, 1.0, 0) for n in lengths
    ]
    return collate(made, range(rows), pad_id=0)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """The same optimiser for both."""
    return build_adamw(model, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def wmtp_step(model: MTPModel, batch: Batch) -> Step:
    """The product's step with uniform weights."""
    optimizer, objective = adamw(model), MTPObjective(Uniform())
    return lambda: void(train_step(model, optimizer, objective, [batch]))


def void(_: Any) -> None:
    """Drop a result."""


class NaiveHeads(nn.Module):
    """K heads and stacked logits, straight from the transformers model."""

    def __init__(self, base: Any, num_heads: int) -> None:
        super().__init__()
        self.base = base
        self.extra = nn.ModuleList(copy.deepcopy(base.model.layers[-1]) for _ in range(num_heads - 1))
        base.model.layers[-1] = Branch(base.model.layers[-1])

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits `[B, T, K, V]`."""
        self.base.model(input_ids=tokens_BT, use_cache=False)
        trunk = self.base.model.layers[-1].take()
        layers = [self.base.model.layers[-1].layer, *self.extra]
        hidden = torch.stack([self.base.model.norm(trunk.through(layer)) for layer in layers], 2)
        logits: Tensor = self.base.lm_head(hidden)
        return logits


def naive_step(model: MTPModel, batch: Batch) -> Step:
    """The loop one writes first."""
    num_heads = model.num_heads
    base = model.base
    base.model.layers[-1] = base.model.layers[-1].layer
    naive = NaiveHeads(base, num_heads)
    optimizer = adamw(naive)
    target_BTK = future_targets(batch.tokens_BT, batch.trainable_BT, None, num_heads)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = naive(batch.tokens_BT)
        F.cross_entropy(logits.flatten(0, 2), target_BTK.flatten(), ignore_index=-100).backward()
        torch.nn.utils.clip_grad_norm_(naive.parameters(), 1.0)
        optimizer.step()

    return step


def step_of(variant: str, settings: argparse.Namespace) -> Step:
    """A ready step of a variant."""
    model = model_of(1 if variant == "wmtp_k1" else settings.heads, settings.small).to(settings.torch_device)
    vocabulary = model.base.config.vocab_size
    batch = batch_of(settings.rows, settings.length, vocabulary).to(settings.torch_device)
    return naive_step(model, batch) if variant == "naive" else wmtp_step(model, batch)


def seconds_of(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per step, variants taking turns; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            synchronise(device)
            started = time.perf_counter()
            step()
            synchronise(device)
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_of(variant: str, settings: argparse.Namespace) -> int:
    """Peak bytes of a step above what stays (weights, gradients, optimiser), measured in this process."""
    step = step_of(variant, settings)
    step()
    step()
    devices.reset_peak_memory(settings.torch_device)
    before = devices.peak_memory(settings.torch_device)
    step()
    return devices.peak_memory(settings.torch_device) - before


def peak_in_child(variant: str, settings: argparse.Namespace) -> int:
    """`peak_of` in a process of its own whose allocator gives memory back at once."""
    command = [sys.executable, __file__, "--peak", variant, "--heads", str(settings.heads)]
    command += ["--rows", str(settings.rows), "--length", str(settings.length), "--device", settings.device]
    command += ["--small"] if settings.small else []
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout.strip().splitlines()[-1])


def flops_of(step: Step) -> int:
    """Operations of one step, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    steps = {variant: step_of(variant, settings) for variant in VARIANTS}
    flops = {variant: flops_of(step) for variant, step in steps.items()}
    seconds = seconds_of(steps, settings.repeat, settings.torch_device)
    return {
        "version": 1,
        "benchmark": "step",
        "machine": {
            "device": str(settings.torch_device),
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        },
        "settings": {name: getattr(settings, name) for name in ("heads", "rows", "length", "repeat")},
        "tokens": batch_of(settings.rows, settings.length, 1000).num_tokens,
        "parameters": {variant: parameters_of(variant, settings) for variant in VARIANTS},
        "median_seconds": {variant: statistics.median(each) for variant, each in seconds.items()},
        "speed_to_naive": ratios(seconds["naive"], seconds["wmtp"]),
        "time_per_flop_to_k1": scaled(ratios(seconds["wmtp"], seconds["wmtp_k1"]), flops["wmtp_k1"] / flops["wmtp"]),
        "flops": flops,
        "extra_bytes": {variant: peak_in_child(variant, settings) for variant in VARIANTS},
    }


def parameters_of(variant: str, settings: argparse.Namespace) -> int:
    """Size of a variant's model."""
    model = model_of(1 if variant == "wmtp_k1" else settings.heads, settings.small)
    return sum(p.numel() for p in model.parameters())


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Median, lowest and highest of the ratios within each round."""
    each = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    return [statistics.median(each), each[0], each[-1]]


def scaled(values: list[float], factor: float) -> list[float]:
    """Every value times a factor."""
    return [value * factor for value in values]


def show(result: dict[str, Any]) -> None:
    """A table for people."""
    print(f"{result['machine']}\n{result['settings']}, {result['tokens']:,} tokens a step")
    for variant in VARIANTS:
        print(
            f"{variant:8} {result['parameters'][variant] / 1e6:6.1f}M parameters  "
            f"{result['tokens'] / result['median_seconds'][variant]:10,.0f} tokens/s  "
            f"{result['extra_bytes'][variant] / 2**20:8,.0f} MiB extra  {result['flops'][variant] / 1e9:8,.1f} GFLOP"
        )
    memory = result["extra_bytes"]["wmtp"] / result["extra_bytes"]["naive"]
    print("tokens/s to naive: {:.2f} ({:.2f}-{:.2f})".format(*result["speed_to_naive"]))
    print(f"extra memory to naive: {memory:.3f}")
    print("time per FLOP, K heads to one: {:.2f} ({:.2f}-{:.2f})".format(*result["time_per_flop_to_k1"]))


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--small", action="store_true", help="a toy model, to try the script")
    parser.add_argument("--peak", choices=VARIANTS, help="print one variant's peak bytes and stop")
    settings = parser.parse_args(given)
    settings.torch_device = devices.pick(settings.device)
    return settings


def main() -> None:
    """Run it."""
    settings = arguments()
    if settings.peak:
        print(peak_of(settings.peak, settings))
        return
    result = measure(settings)
    show(result)
    if settings.json:
        settings.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
