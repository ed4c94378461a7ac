"""Steps that read stored scores beside the baseline's step and beside asking the frozen model; scoring beside forwards.

    wmtp bench scores --json scores.json

Model, critic and reference: random Llamas of one size (`--width`, `--layers`); data: the embedded held-out problems.
Every variant is built as `wmtp train` builds it and trains the same batches; every variant runs once per round.
Scoring: all rows through `wmtp score`'s own loop (collating, asking, hashing, writing) beside the bare forward pass of
the same model over the same batches, tensors in place (for a reference with its logits, as `transformers` has them).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from wmtp import prescoring
from wmtp.bench import measuring
from wmtp.config import Config
from wmtp.data.batches import Batch, collate
from wmtp.distributed import World
from wmtp.formats import hf
from wmtp.formats.native import save_model
from wmtp.model import MTPModel
from wmtp.parts import build
from wmtp.scores import ScoreFile, read_card
from wmtp.step import train_step
from wmtp.value import ValueModel

VERSION = 2
"""Of the JSON: raised when a key changes its meaning or goes away."""
TOKENIZER = "embedded://tiny-llama"
SCHEMES = {
    "verifiable": {"scheme": "critic", "critic": "{models}/critic"},
    "rho1": {"scheme": "rho1", "reference": "{models}/reference"},
    "rho1_soft": {"scheme": "rho1", "reference": "{models}/reference", "mode": "soft"},
}


def architecture(settings: argparse.Namespace) -> dict[str, Any]:
    """A Llama of the wanted size."""
    return {
        "model_type": "llama",
        "hidden_size": settings.width,
        "intermediate_size": settings.width * 8 // 3,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": max(1, settings.width // 32),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def save_models(settings: argparse.Namespace, folder: Path) -> None:
    """A critic and a reference."""
    tokenizer = hf.load_tokenizer(TOKENIZER)
    bases = [hf.random_causal_lm(architecture(settings), len(tokenizer), seed) for seed in (1, 2)]
    save_model(ValueModel(bases[0], "mlp"), folder / "critic", tokenizer)
    save_model(MTPModel(bases[1], 1), folder / "reference", tokenizer)


def config_of(settings: argparse.Namespace, folder: Path, scheme: str | None, *, stored: bool = False) -> Config:
    """The recipe of a variant."""
    weighting = {"scheme": "uniform"}
    if scheme is not None:
        weighting = {name: value.format(models=folder) for name, value in SCHEMES[scheme].items()}
        weighting |= {"scores": str(folder / f"scores_{scheme}")} if stored else {}
    return Config.model_validate(
        {
            "device": settings.device.type,
            "model": {
                "architecture": architecture(settings),
                "tokenizer": TOKENIZER,
                "heads": {"num_heads": settings.heads},
            },
            "data": {"train": {"path": "embedded://problems_validation.jsonl"}, "max_length": settings.length},
            "objective": {"kind": "mtp", "weighting": weighting},
            "train": {"steps": 1000, "batch_size": settings.rows},
        }
    )


def step_of(config: Config) -> Callable[[], object]:
    """Something that does the run's next step."""
    parts, numbers = build(config), count()

    def step() -> None:
        number = next(numbers)
        batches = [batch.to(parts.device) for batch in parts.data.train.at(number)]
        parts.objective.begin(number + 1)
        train_step(parts.model, parts.optimizer, parts.objective, batches, precision=parts.precision)

    return step


def steps_of(settings: argparse.Namespace, folder: Path) -> dict[str, Callable[[], object]]:
    """The step of every variant."""
    steps = {"baseline": step_of(config_of(settings, folder, None))}
    for scheme in SCHEMES:
        prescoring.score(config_of(settings, folder, scheme), out=str(folder / f"scores_{scheme}"))
        for stored in (False, True):
            name = f"{scheme}_{'stored' if stored else 'online'}"
            steps[name] = step_of(config_of(settings, folder, scheme, stored=stored))
    return steps


def scoring_of(config: Config, folder: Path) -> tuple[dict[str, Callable[[], object]], int]:
    """The product's scoring of all rows, the bare forward passes, and how many tokens that is."""
    job = prescoring.prepare(config, None, "float32", prescoring.BATCH_TOKENS)
    batches = [collate(job.rows, rows, job.pad_id).to(job.device) for rows in job.batches]
    turns = count()

    def product() -> None:
        file = ScoreFile(folder / f"bench_{next(turns)}", job.card, job.scored_spans())
        prescoring.score_batches(job, file, file.begin(), World(), lambda text: None)

    (scorer,) = job.scorers
    if isinstance(scorer.model, ValueModel):
        model: Any = scorer.model
    else:  # as transformers has it: in an `MTPModel` the base runs without its last layer
        bare = hf.load_causal_lm(scorer.wanted.source).to(job.device).eval()
        model = partial(bare, use_cache=False)
    runs: dict[str, Callable[[], object]] = {"score": product, "forward": partial(bare_forward, model, batches)}
    return runs, sum(batch.num_tokens for batch in batches)


@torch.no_grad()
def bare_forward(model: Callable[[torch.Tensor], object], batches: Sequence[Batch]) -> None:
    """The model's own forward pass, and nothing else."""
    for batch in batches:
        model(batch.tokens_BT)


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    import transformers

    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="wmtp-scores-") as temporary:
        folder = Path(temporary)
        save_models(settings, folder)
        clock = measuring.CLOCKS[settings.clock]
        seconds = measuring.interleaved(steps_of(settings, folder), settings.repeat, settings.device, clock=clock)
        throughput = {}
        for scheme in ("verifiable", "rho1"):
            runs, tokens = scoring_of(config_of(settings, folder, scheme), folder / scheme)
            taken = measuring.interleaved(runs, settings.passes, settings.device, clock=clock)
            throughput[scheme] = {
                "tokens_per_s": tokens / median(taken["score"]),
                "to_forward": measuring.ratio(taken["forward"], taken["score"]),
            }
        sizes = {scheme: size_of(folder / f"scores_{scheme}") for scheme in SCHEMES}
    return {
        "version": VERSION,
        "benchmark": "scores",
        "machine": measuring.machine(settings.device, "float32"),
        "settings": {
            n: getattr(settings, n) for n in ("width", "layers", "heads", "rows", "length", "clock", "repeat", "passes")
        },
        "median_seconds": {variant: median(each) for variant, each in seconds.items()},
        "time_to_baseline": {variant: measuring.ratio(each, seconds["baseline"]) for variant, each in seconds.items()},
        "scoring": throughput,
        "bytes_per_token": sizes,
    }


def size_of(folder: Path) -> float:
    """Bytes of a folder of scores per token that has one."""
    return sum(file.stat().st_size for file in folder.iterdir()) / read_card(folder).tokens


def show(result: dict[str, Any]) -> None:
    """Tables for people."""
    lines: list[Sequence[str]] = [("step", "ms", "time to baseline")]
    for variant, seconds in result["median_seconds"].items():
        lines.append((variant, f"{1000 * seconds:.0f}", measuring.spread(result["time_to_baseline"][variant])))
    print(measuring.aligned(lines))
    for scheme, figures in result["scoring"].items():
        print(
            f"\nscoring {scheme}: {figures['tokens_per_s']:,.0f} tokens/s, {measuring.spread(figures['to_forward'])} "
        )
        print(f"of the bare forward pass; {result['bytes_per_token'][scheme]:.2f} bytes a token stored")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = measuring.parser("scores", __doc__)
    parser.add_argument("--device", type=measuring.device, default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--width", type=measuring.positive, default=256)
    parser.add_argument("--layers", type=measuring.positive, default=6)
    parser.add_argument("--heads", type=measuring.positive, default=4)
    parser.add_argument("--rows", type=measuring.positive, default=8, help="of a step")
    parser.add_argument("--length", type=measuring.positive, default=256, help="tokens of the longest row")
    parser.add_argument("--clock", choices=measuring.CLOCKS, default="wall", help="cpu where other work is going on")
    parser.add_argument("--repeat", type=measuring.positive, default=15, help="rounds of steps after the warm-up")
    parser.add_argument("--passes", type=measuring.positive, default=3, help="rounds of scoring after the warm-up")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    settings = parse(arguments)
    measuring.tell(measure(settings), show, settings.json)
    return 0
