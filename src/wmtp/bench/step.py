"""The whole optimiser step beside a plain transformers loop with the same heads written naively.

    wmtp bench step --json step.json

Model: a random Llama of about 30M parameters (`--size`) with K heads, V = 32,000; data: rows of which about half is
prompt. All train the same rows with the same optimiser. benchmarks/README.md in the repository says how to read the
figures.

`naive` is what one writes first: hidden states of the decoder, K copies of its last layer, logits of every head over
every position stacked to [B, T, K, V], one cross-entropy with -100 for untrained targets, AdamW.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmtp import devices
from wmtp.bench import measuring
from wmtp.data.batches import Batch, collate
from wmtp.data.text import Row
from wmtp.flops import counter
from wmtp.heads import Branch
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective, Precision
from wmtp.optim import build_adamw
from wmtp.parts import prepare_model
from wmtp.step import train_step
from wmtp.targets import IGNORE, future_targets
from wmtp.weighting import Uniform

VOCABULARY = 32_000
VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
VARIANTS = ("naive", "wmtp", "wmtp_k1", "wmtp_compile", "wmtp_checkpointed")
SETTINGS = ("size", "heads", "rows", "length", "precision", "repeat")
Step = Callable[[], object]


SIZES = {"toy": (32, 2, 2, 500), "30m": (384, 8, 6, VOCABULARY), "600m": (1536, 16, 12, VOCABULARY)}
"""Width, layers, attention heads and vocabulary of the benchmark's models, by their size with 4 heads."""


def model_of(num_heads: int, size: str = "30m") -> MTPModel:
    """A random Llama with tied embeddings."""
    from transformers import AutoConfig, AutoModelForCausalLM

    width, layers, attention_heads, vocabulary = SIZES[size]
    config = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        intermediate_size=round(width * 8 / 3),
        num_hidden_layers=layers,
        num_attention_heads=attention_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return MTPModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32), num_heads).train()


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


def wmtp_step(model: MTPModel, batch: Batch, precision: Precision) -> Step:
    """The product's step with uniform weights."""
    return partial(train_step, model, adamw(model), MTPObjective(Uniform()), [batch], precision=precision)


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


def naive_step(model: MTPModel, batch: Batch, precision: Precision) -> Step:
    """The loop one writes first."""
    num_heads = model.num_heads
    base = model.base
    base.model.layers[-1] = base.model.layers[-1].layer
    naive = NaiveHeads(base, num_heads)
    optimizer = adamw(naive)
    target_BTK = future_targets(batch.tokens_BT, batch.trainable_BT, None, num_heads)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision():
            logits = naive(batch.tokens_BT)
            loss = F.cross_entropy(logits.flatten(0, 2), target_BTK.flatten(), ignore_index=IGNORE)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(naive.parameters(), 1.0)
        optimizer.step()

    return step


def wanted(settings: argparse.Namespace) -> list[str]:
    """The variants to measure: those of an option only with that option."""
    extra = {"wmtp_compile": settings.compile, "wmtp_checkpointed": settings.activation_checkpointing}
    return [name for name in VARIANTS if extra.get(name, True)]


def ready_model(variant: str, settings: argparse.Namespace) -> MTPModel:
    """The model of a variant on its device, compiled or recomputing activations where the variant says so."""
    model = model_of(1 if variant == "wmtp_k1" else settings.heads, settings.size).to(settings.device)
    prepare_model(model, checkpointing=variant == "wmtp_checkpointed", compiled=variant == "wmtp_compile")
    return model


def step_of(variant: str, settings: argparse.Namespace) -> Step:
    """A step of a variant that has run twice: whatever is compiled or allocated once is."""
    model = ready_model(variant, settings)
    batch = batch_of(settings.rows, settings.length, model.base.config.vocab_size).to(settings.device)
    precision = devices.precision(settings.device, settings.precision)
    step = (naive_step if variant == "naive" else wmtp_step)(model, batch, precision)
    step()
    step()
    return step


def steps_of(variants: Sequence[str], settings: argparse.Namespace) -> tuple[dict[str, Step], dict[str, str]]:
    """Steps that are ready, and why the others are not: torch.compile needs a compiler on some devices."""
    from torch._dynamo.exc import TorchDynamoException  # a second's import

    steps: dict[str, Step] = {}
    skipped: dict[str, str] = {}
    for variant in variants:
        try:
            steps[variant] = step_of(variant, settings)
        except TorchDynamoException as problem:
            skipped[variant] = f"torch.compile does not work here: {str(problem).strip().splitlines()[0]}"
    return steps, skipped


def peak_of(variant: str, settings: argparse.Namespace) -> int:
    """Peak bytes of a step above what stays (weights, gradients, optimiser), measured in this process."""
    return measuring.growth(step_of(variant, settings), settings.device)


def flops_of(step: Step) -> int:
    """Operations of one step, counted by torch."""
    with counter() as counted:
        step()
    return int(counted.get_total_flops())


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    steps, skipped = steps_of(wanted(settings), settings)
    # The counter does not see into compiled code.
    flops = {variant: flops_of(step) for variant, step in steps.items() if variant != "wmtp_compile"}
    seconds = measuring.interleaved(steps, settings.repeat, settings.device)
    memory = settings.memory and measuring.has_peak(settings.device)
    peak = {name: measuring.in_child("step", [*settings.given, "--peak", name]) if memory else None for name in steps}
    of_flops = flops["wmtp_k1"] / flops["wmtp"]
    k_to_one = measuring.ratio(seconds["wmtp"], seconds["wmtp_k1"]) or []
    return {
        "version": VERSION,
        "benchmark": "step",
        "machine": measuring.machine(settings.device, settings.precision),
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        "tokens": batch_of(settings.rows, settings.length, 1000).num_tokens,
        "parameters": {variant: parameters_of(variant, settings) for variant in steps},
        "skipped": skipped,
        "seconds": seconds,
        "median_seconds": {variant: statistics.median(each) for variant, each in seconds.items()},
        "speed_to_naive": measuring.ratio(seconds["naive"], seconds["wmtp"]),
        "time_to_wmtp": {variant: measuring.ratio(each, seconds["wmtp"]) for variant, each in seconds.items()},
        "time_per_flop_to_k1": [value * of_flops for value in k_to_one],
        "flops": flops,
        "extra_bytes": peak,
    }


def parameters_of(variant: str, settings: argparse.Namespace) -> int:
    """Size of a variant's model."""
    model = model_of(1 if variant == "wmtp_k1" else settings.heads, settings.size)
    return sum(p.numel() for p in model.parameters())


COLUMNS = ("variant", "parameters", "tokens/s", "time to wmtp", "extra MiB", "GFLOP")


def show(result: dict[str, Any]) -> None:
    """A table for people."""
    print(f"{result['tokens']:,} tokens a step\n")
    lines: list[Sequence[str]] = [COLUMNS]
    for variant, median in result["median_seconds"].items():
        flops = result["flops"].get(variant)
        lines.append(
            [
                variant,
                f"{result['parameters'][variant] / 1e6:.1f}M",
                f"{result['tokens'] / median:,.0f}",
                measuring.spread(result["time_to_wmtp"][variant]),
                measuring.mebibytes(result["extra_bytes"][variant]),
                "-" if flops is None else f"{flops / 1e9:,.1f}",
            ]
        )
    lines += [[variant, f"skipped: {reason}"] for variant, reason in result["skipped"].items()]
    print(measuring.aligned(lines))
    print(f"\ntokens/s to naive: {measuring.spread(result['speed_to_naive'])}")
    memory = result["extra_bytes"]
    if memory["wmtp"] is not None:
        print(f"extra memory to naive: {memory['wmtp'] / memory['naive']:.3f}")
    print(f"time per FLOP, K heads to one: {measuring.spread(result['time_per_flop_to_k1'])}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = measuring.parser("step", __doc__)
    parser.add_argument("--device", type=measuring.device, default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--heads", type=measuring.positive, default=4)
    parser.add_argument("--rows", type=measuring.positive, default=4)
    parser.add_argument("--length", type=measuring.positive, default=256, help="tokens of the longest row; at least 16")
    parser.add_argument("--repeat", type=measuring.positive, default=5, help="rounds after the warm-up")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast")
    parser.add_argument("--compile", action="store_true", help="also the step with train.compile")
    parser.add_argument(
        "--activation-checkpointing", action="store_true", help="also the step with train.activation_checkpointing"
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="time only")
    parser.add_argument("--size", choices=tuple(SIZES), default="30m", help="of the model; 600m is for a GPU")
    parser.add_argument(
        "--small", dest="size", action="store_const", const="toy", help="same as --size toy, to try the command"
    )
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    if settings.length < 16:
        parser.error(f"argument --length: got {settings.length}, expected at least 16")
    settings.given = list(arguments)
    return settings


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    settings = parse(arguments)
    if settings.peak:
        print(json.dumps(peak_of(settings.peak, settings)))
        return 0
    measuring.tell(measure(settings), show, settings.json)
    return 0
