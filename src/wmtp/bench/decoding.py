"""Decoding with the heads beside plain decoding, transformers' `generate`, prompt lookup and an assistant model.

    wmtp train --recipe recipes/decoding_embedded_cpu.yaml --out runs/decoding
    wmtp bench decoding --model runs/decoding/final --json decoding.json

Several models (`--model A B`) are lines of one table. What has been measured is told on stderr as it comes.
Greedy, on prompts of the embedded problems, or of `--data`. Without `--model`: a random Llama, whose heads are never
right.
benchmarks/README.md in the repository says how to read the figures.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from wmtp.bench import measuring, trees
from wmtp.data.sources import read_records
from wmtp.data.text import prompt_ids
from wmtp.decoding import Generation, eos_of, generate
from wmtp.families import FAMILIES
from wmtp.formats.hf import load_causal_lm, load_tokenizer, random_causal_lm
from wmtp.formats.native import load_model
from wmtp.model import MTPModel
from wmtp.storage import resolve

VERSION = 2
"""Of the JSON: raised when a key changes its meaning or goes away."""
VARIANTS = ("plain", "speculative", "longest", "hopeless", "transformers", "prompt_lookup", "assisted")
DATA = "embedded://problems_validation.jsonl"
SETTINGS = ("model", "assistant", "data", "prompts", "repeat", "seconds", "clock", "candidates")
"""What the JSON repeats."""
LOOKUP = 10
"""Tokens that prompt lookup drafts, as in transformers' documentation."""
RANDOM = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 12}
RANDOM |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "eos_token_id": 1}
SMALL = RANDOM | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}

Tokens = list[list[int]]


@dataclass(frozen=True)
class Setup:
    """What is decoded, and with what."""

    model: MTPModel
    hopeless: MTPModel
    """The same trunk and head 1, with random heads beside it."""
    base: Any
    """The same model as transformers loads it."""
    assistant: Any | None
    texts: list[str]
    """Prompts of all distinct problems."""
    tokenizer: Any
    prompts: Tokens
    eos: list[int]

    def with_prompts(self, count: int) -> Setup:
        """With so many prompts, spread over all problems."""
        texts = self.texts
        chosen = [texts[i * len(texts) // count] for i in range(count)]
        return replace(self, prompts=prompt_ids(chosen, self.tokenizer))


def setup_of(model_source: str | None, settings: argparse.Namespace) -> Setup:
    """Models on their device, and the problems."""
    source = model_source or "embedded://tiny-llama"
    tokenizer = load_tokenizer(source)
    if model_source is None:
        base = random_causal_lm(SMALL if settings.small else RANDOM, len(tokenizer), seed=0)
        model = MTPModel(copy.deepcopy(base), settings.heads or 4, family=settings.family or "parallel")
    else:
        base, model = load_causal_lm(source), load_model(source, num_heads=settings.heads)
    hopeless = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in hopeless.extra_heads.parameters():
            parameter.normal_()
    assistant = None if settings.assistant is None else load_causal_lm(settings.assistant).to(settings.device).eval()
    records, _ = read_records(resolve(settings.data))
    return Setup(
        model.to(settings.device).eval(),
        hopeless.to(settings.device).eval(),
        base.to(settings.device).eval(),
        assistant,
        list(dict.fromkeys(f"{record.prompt}\n" for record in records)),
        tokenizer,
        [],
        eos_of(model),
    )


def ours(model: MTPModel, setup: Setup, batch: int, length: int, **options: Any) -> Generation:
    """All prompts, so many at a time."""
    batches = [setup.prompts[i : i + batch] for i in range(0, len(setup.prompts), batch)]
    done = [generate(model, prompts, length, eos=setup.eos, **options) for prompts in batches]
    return Generation(tuple(row for generation in done for row in generation.rows))


def theirs(setup: Setup, batch: int, length: int, **options: Any) -> Tokens:
    """The same by transformers: rows are padded on the left, and on the right once they have ended."""
    done: Tokens = []
    for i in range(0, len(setup.prompts), batch):
        tokens_BT, mask_BT = left_padded(setup.prompts[i : i + batch])
        device = setup.base.device
        grown = setup.base.generate(
            tokens_BT.to(device),
            attention_mask=mask_BT.to(device),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=setup.eos,
            pad_token_id=setup.eos[0],
            **options,
        )
        done += [until_end(row, setup.eos) for row in grown[:, tokens_BT.shape[1] :].tolist()]
    return done


def left_padded(prompts: Tokens) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]`."""
    longest = max(map(len, prompts))
    tokens = [[*[0] * (longest - len(prompt)), *prompt] for prompt in prompts]
    mask = [[*[0] * (longest - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    return torch.tensor(tokens), torch.tensor(mask)


def until_end(tokens: list[int], eos: Sequence[int]) -> list[int]:
    """Up to the first EOS, which counts."""
    return tokens[: next((n for n, token in enumerate(tokens, 1) if token in eos), len(tokens))]


def obstacle(variant: str, batch: int, setup: Setup) -> str | None:
    """Why a variant cannot run here."""
    if variant in ("prompt_lookup", "assisted") and batch > 1:
        return "transformers does this for one row only"
    if variant == "assisted" and setup.assistant is None:
        return "no --assistant was given"
    if variant in ("speculative", "longest", "hopeless") and setup.model.num_heads == 1:
        return "the model has one head"
    return None


def run_of(variant: str, setup: Setup, batch: int, length: int) -> Callable[[], Generation | Tokens]:
    """One pass over all prompts."""
    made: dict[str, Callable[[], Generation | Tokens]] = {
        "plain": partial(ours, setup.model, setup, batch, length, mode="plain"),
        "speculative": partial(ours, setup.model, setup, batch, length),
        "longest": partial(ours, setup.model, setup, batch, length, draft_length=setup.model.num_heads - 1),
        "hopeless": partial(ours, setup.hopeless, setup, batch, length),
        "transformers": partial(theirs, setup, batch, length),
        "prompt_lookup": partial(theirs, setup, batch, length, prompt_lookup_num_tokens=LOOKUP),
        "assisted": partial(theirs, setup, batch, length, assistant_model=setup.assistant),
    }
    return made[variant]


def cases_of(setup: Setup, batch: int, length: int, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Every variant at one batch size and length, in turns."""
    setup = setup.with_prompts(max(settings.prompts, batch))
    reasons = {variant: obstacle(variant, batch, setup) for variant in settings.variant}
    runs = {v: run_of(v, setup, batch, length) for v, reason in reasons.items() if reason is None}
    results: dict[str, Generation | Tokens] = {}
    about = {"family": setup.model.family, "batch": batch, "length": length}
    print(f"measuring batch {batch}, length {length}: {', '.join(runs)}", file=sys.stderr, flush=True)

    def keep(variant: str, run: Callable[[], Generation | Tokens]) -> Callable[[], None]:
        def kept() -> None:
            results[variant] = run()

        return kept

    seconds = measuring.interleaved(
        {variant: keep(variant, run) for variant, run in runs.items()},
        settings.repeat,
        settings.device,
        clock=measuring.CLOCKS[settings.clock],
        most_seconds=settings.seconds,
    )
    plain = tokens_of(results["plain"])
    cases = [
        about
        | {"variant": variant, "skipped": reason}
        | (figures(results[variant], plain, seconds[variant], seconds["plain"]) if reason is None else {})
        for variant, reason in reasons.items()
    ]
    for case in cases:
        print("  ".join(line_of(case)), file=sys.stderr, flush=True)
    return cases


def trees_of(setup: Setup, settings: argparse.Namespace) -> dict[str, Any]:
    """What trees of drafts would give in the longest of these texts."""
    setup = setup.with_prompts(settings.prompts)
    continuations = ours(setup.model, setup, max(settings.batch), max(settings.length), mode="plain").tokens
    return trees.figures(setup.model, setup.prompts, continuations, settings)


def tokens_of(result: Generation | Tokens) -> Tokens:
    """New tokens of every prompt."""
    return result.tokens if isinstance(result, Generation) else result


def figures(
    result: Generation | Tokens, plain: Tokens, seconds: Sequence[float], plain_seconds: Sequence[float]
) -> dict[str, Any]:
    """What one variant did and took; what transformers accepted on the way it does not tell."""
    tokens = tokens_of(result)
    told = result if isinstance(result, Generation) else None
    return {
        "tokens": sum(map(len, tokens)),
        "same_as_plain": sum(a == b for a, b in zip(tokens, plain, strict=True)) / len(plain),
        "seconds": list(seconds),
        "median_seconds": statistics.median(seconds),
        "speed_to_plain": measuring.ratio(plain_seconds, seconds),
        "tokens_per_forward": None if told is None else told.tokens_per_forward,
        "drafted": None if told is None else told.drafted,
        "accepted": None if told is None else told.accepted,
    }


def measure_model(source: str | None, settings: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    setup = setup_of(source, settings)
    return {
        "model": source,
        "heads": setup.model.num_heads,
        "family": setup.model.family,
        "layers": setup.model.num_layers,
        "parameters": sum(p.numel() for p in setup.model.parameters()),
        "cases": [
            case
            for length, batch in product(settings.length, settings.batch)
            for case in cases_of(setup, batch, length, settings)
        ],
        "trees": None if settings.candidates is None else trees_of(setup, settings),
    }


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    disable_progress_bar()
    return {
        "version": VERSION,
        "benchmark": "decoding",
        "machine": measuring.machine(settings.device, "float32"),
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        "models": [measure_model(source, settings) for source in settings.model or [None]],
    }


COLUMNS = (
    "heads",
    "batch",
    "length",
    "variant",
    "tokens/s",
    "speed to plain",
    "tokens/forward",
    "accepted",
    "same as plain",
)


def line_of(case: dict[str, Any]) -> list[str]:
    """A row of the table."""
    about = [case["family"], str(case["batch"]), str(case["length"]), case["variant"]]
    if case["skipped"] is not None:
        return [*about, f"skipped: {case['skipped']}"]
    shares = [a / d for a, d in zip(case["accepted"] or [], case["drafted"] or [], strict=True) if d]
    return [
        *about,
        f"{case['tokens'] / case['median_seconds']:,.0f}",
        measuring.spread(case["speed_to_plain"]),
        "-" if case["tokens_per_forward"] is None else f"{case['tokens_per_forward']:.2f}",
        " ".join(f"{share:.0%}" for share in shares) or "-",
        f"{case['same_as_plain']:.0%}",
    ]


def show(result: dict[str, Any]) -> None:
    """A table for people."""
    models = result["models"]
    for each in models:
        print(f"{each['parameters']:,} parameters, {each['layers']} layers, K = {each['heads']} ({each['family']})")
    print("\n" + measuring.aligned([COLUMNS, *(line_of(case) for each in models for case in each["cases"])]))
    for each in models:
        if each["trees"] is not None:
            print("\n".join(["", f"{each['family']} heads", *trees.lines_of(each["trees"])]))


def folder(text: str) -> str:
    """A model folder that is there, or a hub id."""
    if not Path(text).is_dir() and text.count("/") != 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a model folder")
    return text


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = measuring.parser("decoding", __doc__)
    parser.add_argument("--device", type=measuring.device, default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--model", type=folder, nargs="+", help="model folders with heads; default: a random one")
    parser.add_argument("--assistant", type=folder, help="a smaller model, for transformers' assisted generation")
    parser.add_argument("--data", default=DATA, help="records whose prompts are continued; default: the recipe's own")
    parser.add_argument("--heads", type=measuring.positive, help="use only so many; default: all, or 4")
    parser.add_argument("--family", choices=FAMILIES, help="of a random model's heads; default: parallel")
    parser.add_argument("--batch", type=measuring.positive, nargs="+", default=[1, 4, 16])
    parser.add_argument("--length", type=measuring.positive, nargs="+", default=[32, 96], help="most new tokens")
    parser.add_argument("--prompts", type=measuring.positive, default=4, help="at least; and a batch is always full")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="plain is always there")
    parser.add_argument("--repeat", type=measuring.positive, default=5, help="rounds after the warm-up")
    parser.add_argument(
        "--seconds", type=measuring.positive, default=30, help="no round of a batch and length begins later than that"
    )
    parser.add_argument("--candidates", type=measuring.positive, help="also count trees of so many drafts a place")
    parser.add_argument("--clock", choices=measuring.CLOCKS, default="wall", help="cpu: time on the cores alone")
    parser.add_argument("--small", action="store_true", help="a toy model, to try the command")
    settings = parser.parse_args(arguments)
    if settings.small and settings.model is not None:
        parser.error("argument --small: --model was given, and it is as large as it is; leave one of them out")
    if settings.family is not None and settings.model is not None:
        parser.error("argument --family: --model was given, and it has heads of its own; leave one of them out")
    settings.variant = [name for name in VARIANTS if name in settings.variant or name == "plain"]
    return settings


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    settings = parse(arguments)
    measuring.tell(measure(settings), show, settings.json)
    return 0
