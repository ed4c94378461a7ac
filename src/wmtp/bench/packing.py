"""Micro-batches by token budget beside packed rows: which computes the same documents in less time?

    wmtp bench packing --json packing.json

The same documents go forward and backward through the same random Llama with K heads, arranged as

- `token_budget`: what the product does. Steps of rows of neighbouring lengths, cut into micro-batches of at most so
  many positions, padded to the longest row of each;
- `packed_L`: documents put, longest first, into the first row of L positions that has room. Positions start again at
  0 in every document, which makes transformers mask attention between documents; no target crosses a document;
- `random_padded`: rows in random order, so many to a micro-batch, padded to the longest.

The documents are those of a few of the product's steps, taken at even distances from a pool of 32 sorted by length.
Before anything is timed, the losses of the packed documents are compared with those of each document by itself.
benchmarks/README.md in the repository says how to read the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp.bench import measuring
from wmtp.config import load
from wmtp.data.batches import Batch, Batches, collate, single_items
from wmtp.data.orders import POOL
from wmtp.data.text import Row
from wmtp.dataset import build_data
from wmtp.errors import WmtpError
from wmtp.formats import hf
from wmtp.model import MTPModel, mtp_loss
from wmtp.objective import MTPObjective
from wmtp.ranks import alone
from wmtp.storage import resolve
from wmtp.weighting import Uniform

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
PAD = 0
TOLERANCE = 1e-5
"""Of a packed document's losses, relative and absolute, beside those of the document by itself."""
RECIPE = "embedded://recipes/quickstart.yaml"
SETTINGS = ("width", "layers", "heads", "vocabulary", "tokens", "steps", "row_length", "repeat", "seed")
SMALL = {"width": 64, "layers": 3, "vocabulary": 500, "tokens": 512, "steps": 2, "row_length": [256], "repeat": 2}

# Documents.


def embedded_shapes(longest: int) -> NDArray[np.int64]:
    """`[n, 2]`: length and first response token of the embedded problems' rows, as the quickstart reads them."""
    config = load([resolve(RECIPE)], [])
    rows = build_data(config, hf.load_tokenizer(config.model.tokenizer_source)).train.rows
    return np.array(
        [(min(len(row.tokens), longest), row.response_start) for row in rows if row.response_start < longest]
    )


def long_tail_shapes(longest: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`[n, 2]`: lognormal lengths around a median of 100 tokens, one in six above 270; half of each is prompt."""
    lengths = np.exp(random.normal(np.log(100), 1.0, size=4096)).astype(np.int64).clip(8, longest)
    return np.stack([lengths, lengths // 2], 1)


def documents(kind: str, tokens: int, longest: int, vocabulary: int, seed: int) -> list[Row]:
    """At least `tokens` tokens in documents of random ids; those longer than `longest` are cut there."""
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    shapes = embedded_shapes(longest) if kind == "embedded" else long_tail_shapes(longest, random)
    rows: list[Row] = []
    for length, start in itertools.cycle(random.permutation(shapes)):
        rows.append(Row(random.integers(3, vocabulary, length, dtype=np.int32), int(start), len(rows), 1.0, 0))
        tokens -= int(length)
        if tokens <= 0:
            break
    return rows


# Arrangements.


@dataclass(frozen=True)
class Micro:
    """One micro-batch."""

    batch: Batch
    position_BT: Tensor | None = None
    """Place of each token in its document; None where each row is one document from its start."""
    places: tuple[tuple[int, int, int], ...] = ()
    """(document, row, first position) of everything that is packed here."""

    def to(self, device: torch.device) -> Micro:
        """The same on a device."""
        position = None if self.position_BT is None else self.position_BT.to(device)
        return Micro(self.batch.to(device), position, self.places)


@dataclass(frozen=True)
class Sample:
    """The product's pool of steps, and those of them whose documents are measured."""

    pool: Sequence[Row]
    batches: Batches
    numbers: Sequence[int]
    rows: Sequence[Row]
    """The documents of these steps."""

    @classmethod
    def of(cls, pool: Sequence[Row], tokens: int, steps: int, seed: int) -> Sample:
        """Steps of about `tokens` tokens, at even distances when the pool's are sorted by length."""
        per_step = rows_per_step(pool, tokens)
        batches = Batches(pool, single_items(pool), batch_size=per_step, seed=seed, pad_id=PAD)
        by_length = sorted(range(len(batches)), key=lambda n: sum(len(pool[i].tokens) for i in batches.rows_of(n)))
        steps = min(steps, len(by_length))
        numbers = [by_length[(2 * place + 1) * len(by_length) // (2 * steps)] for place in range(steps)]
        return cls(pool, batches, numbers, [pool[i] for n in numbers for i in batches.rows_of(n)])


def rows_per_step(rows: Sequence[Row], tokens: int) -> int:
    """How many rows have about so many tokens."""
    return max(1, round(tokens * len(rows) / sum(len(row.tokens) for row in rows)))


def token_budget(batches: Batches, numbers: Sequence[int], tokens: int) -> list[Micro]:
    """The product's micro-batches of these steps."""
    return [Micro(batch) for number in numbers for batch in batches.at(number, tokens=tokens)]


def random_padded(rows: Sequence[Row], tokens: int, seed: int) -> list[Micro]:
    """Steps in random order, each one micro-batch."""
    order = np.random.Generator(np.random.Philox(key=[seed, 1])).permutation(len(rows)).tolist()
    size = rows_per_step(rows, tokens)
    return [Micro(collate(rows, order[i : i + size], PAD)) for i in range(0, len(order), size)]


def packed(rows: Sequence[Row], tokens: int, row_length: int) -> list[Micro]:
    """Packed rows, as many to a micro-batch as `tokens` positions hold."""
    bins = first_fit([len(row.tokens) for row in rows], row_length)
    size = max(1, tokens // row_length)
    return [pack(rows, bins[i : i + size], row_length) for i in range(0, len(bins), size)]


def first_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Documents of each packed row: longest first, each into the first row with room for it."""
    bins: list[list[int]] = []
    room: list[int] = []
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((b for b, free in enumerate(room) if free >= lengths[document]), None)
        if place is None:
            place = len(bins)
            bins.append([])
            room.append(row_length)
        bins[place].append(document)
        room[place] -= lengths[document]
    return bins


def pack(rows: Sequence[Row], bins: Sequence[Sequence[int]], row_length: int) -> Micro:
    """Rows of several documents. Padding behind them is a document of its own, which has no targets."""
    shape = (len(bins), row_length)
    tokens, trainable = np.full(shape, PAD, np.int64), np.zeros(shape, bool)
    document, position = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    places = []
    for b, chosen in enumerate(bins):
        end = 0
        for i in chosen:
            start, end = end, end + len(rows[i].tokens)
            tokens[b, start:end] = rows[i].tokens
            trainable[b, start + rows[i].response_start : end] = True
            document[b, start:end] = i
            position[b, start:end] = np.arange(end - start)
            places.append((i, b, start))
        position[b, end:] = np.arange(row_length - end)
    batch = Batch(
        tokens_BT=torch.from_numpy(tokens),
        trainable_BT=torch.from_numpy(trainable),
        reward_B=torch.full((len(bins),), float("nan")),
        row_B=tuple(chosen[0] for chosen in bins),
        num_tokens=sum(len(rows[i].tokens) for i, _, _ in places),
        document_BT=torch.from_numpy(document),
    )
    return Micro(batch, torch.from_numpy(position), tuple(places))


def arrange(way: str, sample: Sample, options: argparse.Namespace, *, whole_pool: bool = False) -> list[Micro]:
    """The micro-batches of one way, of the sample or of all its pool."""
    rows = sample.pool if whole_pool else sample.rows
    if way == "token_budget":
        numbers = range(len(sample.batches)) if whole_pool else sample.numbers
        return token_budget(sample.batches, numbers, options.tokens)
    if way == "random_padded":
        return random_padded(rows, options.tokens, options.seed)
    return packed(rows, options.tokens, int(way.removeprefix("packed_")))


# The model, one pass over all documents.


class PackedModel(MTPModel):
    """The product's model, told beforehand which positions its decoder gets next; the product's batches have none."""

    position_BT: Tensor | None = None

    def __init__(self, base: Any, num_heads: int) -> None:
        super().__init__(base, num_heads)
        self.decoder.register_forward_pre_hook(self._positions, with_kwargs=True)

    def _positions(self, _: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        known = {} if self.position_BT is None else {"position_ids": self.position_BT}
        return arguments, keywords | known


def model_of(options: argparse.Namespace) -> PackedModel:
    """A random Llama with K heads: heads of width 64 in its attention, tied embeddings."""
    architecture = {
        "model_type": "llama",
        "hidden_size": options.width,
        "intermediate_size": round(options.width * 8 / 3),
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.width // 64,
        "max_position_embeddings": max(options.row_length),
        "tie_word_embeddings": True,
    }
    base = hf.random_causal_lm(architecture, options.vocabulary, options.seed)
    return PackedModel(base, options.heads).to(options.device).train()


def forward_backward(model: PackedModel, micros: Sequence[Micro]) -> float:
    """The product's forward and backward pass over all micro-batches, without the optimiser. The mean loss."""
    objective = MTPObjective(Uniform())
    batches = [micro.batch for micro in micros]
    model.zero_grad(set_to_none=True)
    total = objective.known_total(model, batches)
    loss = torch.zeros_like(total)
    for micro, plan in zip(micros, objective.plan(model, batches, alone, True), strict=True):
        model.position_BT = micro.position_BT
        meter = objective.backward(model, micro.batch, plan, total, alone, nullcontext)
        loss += meter.sums["weighted_sum"] / total
    return float(loss)


def check_packing(model: PackedModel, rows: Sequence[Row], micros: Sequence[Micro]) -> float:
    """The largest difference between a packed document's losses and those of the document by itself.

    Raises:
        WmtpError: it is above the tolerance, or another pair has a loss.
    """
    worst = 0.0
    with torch.no_grad():
        for micro in micros:
            model.position_BT = micro.position_BT
            packed_BTK = mtp_loss(model, micro.batch).nll_BTK
            model.position_BT = None
            for document, b, start in micro.places:
                alone_TK = mtp_loss(model, collate(rows, [document], PAD).to(packed_BTK.device)).nll_BTK[0]
                packed_TK = packed_BTK[b, start : start + len(alone_TK)]
                worst = max(worst, float((packed_TK - alone_TK).abs().max()))
                same = torch.allclose(packed_TK, alone_TK, rtol=TOLERANCE, atol=TOLERANCE)
                if not same or not torch.equal(packed_TK > 0, alone_TK > 0):
                    raise WmtpError(
                        f"packing changes the losses of document {document} by up to {worst:.1e}, expected at most "
                        f"{TOLERANCE:.0e}: this model's attention does not keep packed documents apart"
                    )
    return worst


# The measurement, the report.


def ways_of(options: argparse.Namespace) -> list[str]:
    """What is compared."""
    return ["token_budget", *(f"packed_{length}" for length in options.row_length), "random_padded"]


def sample_of(kind: str, options: argparse.Namespace) -> Sample:
    """Documents of one kind: those too long for the shortest packed row are cut, for every way alike."""
    pool = documents(kind, options.tokens * POOL, min(options.row_length), options.vocabulary, options.seed)
    return Sample.of(pool, options.tokens, options.steps, options.seed)


def on_device(micros: Sequence[Micro], options: argparse.Namespace) -> list[Micro]:
    """The same where the model is."""
    return [micro.to(options.device) for micro in micros]


def padding_share(micros: Sequence[Micro]) -> float:
    """Positions that hold no token, as a share of all."""
    return 1 - sum(micro.batch.num_tokens for micro in micros) / sum(micro.batch.tokens_BT.numel() for micro in micros)


def peak_of(kind: str, way: str, options: argparse.Namespace) -> int:
    """Peak bytes of a pass above weights and gradients, in this process: of its two largest micro-batches."""
    micros = sorted(arrange(way, sample_of(kind, options), options), key=lambda micro: micro.batch.tokens_BT.numel())
    run = partial(forward_backward, model_of(options), on_device(micros[-2:], options))
    run()
    return measuring.growth(run, options.device)


def measure_kind(kind: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts about the documents, and one JSON row per way."""
    sample, model = sample_of(kind, options), model_of(options)
    rows = sample.rows
    arranged = {way: on_device(arrange(way, sample, options), options) for way in ways_of(options)}
    differences = {way: check_packing(model, rows, micros) for way, micros in arranged.items() if micros[0].places}
    lengths = [len(row.tokens) for row in rows]
    about = {
        "number": len(rows),
        "tokens": sum(lengths),
        "trained_tokens": sum(len(row.tokens) - row.response_start for row in rows),
        "shortest": min(lengths),
        "median": median(lengths),
        "longest": max(lengths),
        "largest_nll_difference": max(differences.values()),
    }
    runs = {way: partial(forward_backward, model, micros) for way, micros in arranged.items()}
    seconds = measuring.interleaved(runs, options.repeat, options.device)
    memory = options.memory and measuring.has_peak(options.device)
    cases = []
    for way, micros in arranged.items():
        peak = measuring.in_child("packing", [*options.given, "--peak", kind, way]) if memory else None
        of_pool = padding_share(arrange(way, sample, options, whole_pool=True))
        cases.append(_case(kind, way, micros, about, seconds, of_pool, peak))
    return about, cases


def _case(
    kind: str,
    way: str,
    micros: Sequence[Micro],
    about: dict[str, Any],
    seconds: dict[str, list[float]],
    padding_of_pool: float,
    peak: int | None,
) -> dict[str, Any]:
    middle = median(seconds[way])
    return {
        "documents": kind,
        "way": way,
        "micro_batches": len(micros),
        "positions": sum(micro.batch.tokens_BT.numel() for micro in micros),
        "padding_share": padding_share(micros),
        "padding_share_of_pool": padding_of_pool,
        "seconds": seconds[way],
        "median_seconds": middle,
        "microseconds_per_token": middle / about["tokens"] * 1e6,
        "microseconds_per_trained_token": middle / about["trained_tokens"] * 1e6,
        "to_token_budget": measuring.ratio(seconds[way], seconds["token_budget"]),
        "extra_bytes": peak,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison, as the JSON document."""
    kinds, cases = {}, []
    for kind in options.documents:
        kinds[kind], of_kind = measure_kind(kind, options)
        cases += of_kind
        print(f"measured {kind}", flush=True)
    return {
        "version": VERSION,
        "benchmark": "packing",
        "machine": measuring.machine(options.device, "float32"),
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "documents": kinds,
        "cases": cases,
    }


COLUMNS = ("documents", "way", "micro-batches", "positions", "padding", "in a pool", "us/token", "us/trained token",
           "time to token_budget", "extra MiB")  # fmt: skip


def show(document: dict[str, Any]) -> None:
    """A table for people."""
    for kind, about in document["documents"].items():
        print(
            f"{kind}: {about['number']} documents, {about['tokens']:,} tokens ({about['trained_tokens']:,} trained), "
            f"{about['shortest']} to {about['longest']}, median {about['median']:.0f}; packed losses are those of each "
            f"document by itself within {about['largest_nll_difference']:.1e}"
        )
    lines: list[Sequence[str]] = [COLUMNS]
    for case in document["cases"]:
        lines.append(
            [
                *(str(case[name]) for name in ("documents", "way", "micro_batches", "positions")),
                f"{case['padding_share']:.1%}",
                f"{case['padding_share_of_pool']:.1%}",
                f"{case['microseconds_per_token']:.0f}",
                f"{case['microseconds_per_trained_token']:.0f}",
                measuring.spread(case["to_token_budget"]),
                measuring.mebibytes(case["extra_bytes"]),
            ]
        )
    print("\n" + measuring.aligned(lines))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line: `--small` replaces defaults, an option by itself goes before both."""
    kinds = ("embedded", "long_tail")
    parser = measuring.parser("packing", __doc__)
    parser.add_argument("--documents", choices=kinds, nargs="+", default=list(kinds))
    parser.add_argument("--row-length", type=measuring.positive, nargs="+", default=[512, 1024], help="of packed rows")
    parser.add_argument("--tokens", type=measuring.positive, default=4096, help="of a step; positions of a micro-batch")
    parser.add_argument(
        "--steps", type=measuring.positive, default=8, help="of a pool of 32, whose documents are measured"
    )
    parser.add_argument("--width", type=measuring.positive, default=256, help="D, a multiple of 64")
    parser.add_argument("--layers", type=measuring.positive, default=6)
    parser.add_argument("--heads", type=measuring.positive, default=4)
    parser.add_argument("--vocabulary", type=measuring.positive, default=8000)
    parser.add_argument("--repeat", type=measuring.positive, default=3, help="rounds after the warm-up")
    parser.add_argument("--seed", type=measuring.count, default=0)
    parser.add_argument("--device", type=measuring.device, default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="time only")
    parser.add_argument("--small", action="store_true", help="a toy model, to try the command")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    if parser.parse_args(arguments).small:
        parser.set_defaults(**SMALL)
    options = parser.parse_args(arguments)
    if options.width % 64:
        parser.error(f"argument --width: got {options.width}, expected a multiple of 64")
    if options.vocabulary < 8:
        parser.error(f"argument --vocabulary: got {options.vocabulary}, expected at least 8")
    if min(options.row_length) < 64:
        parser.error(f"argument --row-length: got {min(options.row_length)}, expected at least 64")
    options.row_length = sorted(set(options.row_length))
    options.given = list(arguments)
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    if options.peak:
        kind, way = options.peak
        print(json.dumps(peak_of(kind, way, options)))
        return 0
    measuring.tell(measure(options), show, options.json)
    return 0
