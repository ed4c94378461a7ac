"""Memory and time of the weighted multi-token loss, forward and backward, beside other ways to compute it.

    wmtp bench loss --quick --json loss.json

The hidden states and the unembedding are given; what is measured ends with their gradients. benchmarks/README.md in
the repository says what each variant does, what is counted as memory, and how to read the table.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmtp import devices
from wmtp.bench import measuring
from wmtp.loss import Unembedding
from wmtp.loss_backends import BACKENDS, backend_loss, refusal
from wmtp.loss_fused import default_chunk, fused_loss
from wmtp.ranks import alone
from wmtp.targets import IGNORE
from wmtp.weighting import Rho1
from wmtp.weighting.base import SchemeInput

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
KEPT = 0.6
"""Share of the pairs that rho1's `select` keeps."""
ISSUE_CASE = {"vocabulary": 32_000, "rows": 1024, "width": 512, "dtype": "float32"}


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    heads: int
    vocabulary: int
    fraction: float
    """Share of the rows that have a target."""
    weights: str
    """`known` before the losses, or `batch`: chosen by the losses of the whole batch."""
    rows: int = 1024
    """Rows per head, B*T."""
    width: int = 512
    dtype: str = "float32"


@dataclass
class Inputs:
    """What every variant is given."""

    case: Case
    hidden_K: list[Tensor]
    projection_VD: Tensor
    target_BTK: Tensor
    known_BTK: Tensor
    reference_nll_BTK: Tensor

    @property
    def chunk(self) -> int:
        """Rows of logits at once, for the variants that take a chunk size from us."""
        return default_chunk(self.case.vocabulary, self.projection_VD.device.type, self.projection_VD.dtype)

    def leaves(self) -> list[Tensor]:
        """The tensors whose gradient is wanted."""
        return [self.projection_VD, *self.hidden_K]

    def forget_gradients(self) -> None:
        """As `optimizer.zero_grad()` leaves them."""
        for leaf in self.leaves():
            leaf.grad = None

    def zero_gradients(self) -> None:
        """As they are between the micro-batches of a step: allocated, to be added to."""
        for leaf in self.leaves():
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)

    def weights(self, nll_BTK: Tensor) -> Tensor:
        """The 0/1 weights that the losses decide."""
        B = self.target_BTK.shape[0]
        seen = SchemeInput(
            target_BTK=self.target_BTK,
            response_BT=(self.target_BTK != IGNORE).any(-1),
            reward_B=self.known_BTK.new_ones(B),
            reference_nll_BTK=self.reference_nll_BTK,
            nll_BTK=nll_BTK,
        )
        (weight_BTK,) = Rho1("select", ratio=KEPT, scope="micro").weights([seen], alone, True)
        assert weight_BTK is not None
        return torch.where(self.target_BTK != IGNORE, weight_BTK.to(nll_BTK.dtype), 0.0)


def build(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Random inputs whose logits have about unit variance. The rows without a target come first, as a prompt does."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    B = 2 if case.rows % 2 == 0 else 1
    T, K = case.rows // B, case.heads
    shape = (B, T, K)

    def leaf(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator) * scale).to(device, dtype).requires_grad_()

    target_BTK = torch.randint(case.vocabulary, shape, generator=generator)
    target_BTK[:, : T - round(T * case.fraction)] = IGNORE
    return Inputs(
        case,
        [leaf(B, T, case.width) for _ in range(K)],
        leaf(case.vocabulary, case.width, scale=case.width**-0.5),
        target_BTK.to(device),
        (0.1 + 2.9 * torch.rand(shape, generator=generator)).to(device),
        torch.randn(shape, generator=generator).to(device),
    )


# The variants. Each leaves d(sum of weight * nll) in the leaves' `.grad`, added to what is there.


def naive(inputs: Inputs) -> None:
    """Logits `[N, K, V]` of all heads at once. Nothing but the local name `nll` is held, to be fair to its peak."""
    hidden_NKD = torch.stack([hidden.flatten(0, 1) for hidden in inputs.hidden_K], 1)
    nll_BTK = F.cross_entropy(
        _accurate(F.linear(hidden_NKD, inputs.projection_VD)).flatten(0, 1),
        inputs.target_BTK.flatten(),
        reduction="none",
        ignore_index=IGNORE,
    ).view_as(inputs.target_BTK)
    weight_BTK = inputs.known_BTK if inputs.case.weights == "known" else inputs.weights(nll_BTK.detach())
    torch.autograd.backward((nll_BTK * weight_BTK).sum())


def per_head(inputs: Inputs) -> None:
    """One head's logits at a time, only of rows that matter, and its backward pass before the next head."""

    def nll_of(hidden_RD: Tensor, target_R: Tensor) -> Tensor:
        return F.cross_entropy(_accurate(F.linear(hidden_RD, inputs.projection_VD)), target_R, reduction="none")

    for weight_R, hidden_RD, target_R in _weighted_rows(inputs, nll_of):
        torch.autograd.backward((nll_of(hidden_RD, target_R) * weight_R).sum())


def torch_lce(inputs: Inputs) -> None:
    """torch's chunked `linear_cross_entropy` over the rows of all heads in one call, so that there is one dW.

    `reduction="none"`, for the weights: its backward pass computes the logits again.
    """
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=inputs.chunk)

    def nll_of(hidden_RD: Tensor, target_R: Tensor) -> Tensor:
        nll_R = F.linear_cross_entropy(hidden_RD, inputs.projection_VD, target_R, reduction="none", options=options)
        return _accurate(nll_R)

    weight, hidden, target = zip(*_weighted_rows(inputs, nll_of), strict=True)
    torch.autograd.backward((nll_of(torch.cat(hidden), torch.cat(target)) * torch.cat(weight)).sum())


def of_wmtp(compiled: bool, inputs: Inputs) -> None:
    """This repository's fused loss, as `wmtp.objective` calls it."""
    unembedding, seen, weight_BTK = Unembedding(inputs.projection_VD), None, inputs.known_BTK
    if inputs.case.weights == "batch":
        with torch.no_grad():
            seen = fused_loss(inputs.hidden_K, unembedding, inputs.target_BTK, compiled=compiled)
        weight_BTK = inputs.weights(seen.nll_BTK)
    loss = fused_loss(inputs.hidden_K, unembedding, inputs.target_BTK, weight_BTK, seen=seen, compiled=compiled)
    torch.autograd.backward(loss.weighted_sum)


def wmtp_norms(inputs: Inputs) -> None:
    """The same, with the norm of every row's gradient as a by-product."""
    loss = fused_loss(
        inputs.hidden_K, Unembedding(inputs.projection_VD), inputs.target_BTK, inputs.known_BTK, gradient_norms=True
    )
    torch.autograd.backward(loss.weighted_sum)


def matmuls(inputs: Inputs) -> None:
    """The limit: the three matrix products of every row that has a gradient, into one reused chunk of logits.

    With `batch` weights the logits of all rows come first, since a method that holds one chunk needs them twice. The
    rows kept are the first `KEPT` of them. No softmax, no target: the gradients are numbers of the right shape only.
    """
    case, projection_VD = inputs.case, inputs.projection_VD.detach()
    trainable_NK = (inputs.target_BTK != IGNORE).flatten(0, 1)
    buffer_CV = projection_VD.new_empty(min(inputs.chunk, case.rows), case.vocabulary)
    projection_grad = torch.empty_like(projection_VD)
    for k, hidden in enumerate(inputs.hidden_K):
        rows = trainable_NK[:, k].nonzero().squeeze(-1)
        hidden_RD = _picked(hidden.detach().flatten(0, 1), rows)
        if case.weights == "batch":
            for hidden_CD in torch.split(hidden_RD, inputs.chunk):
                torch.mm(hidden_CD, projection_VD.T, out=buffer_CV[: len(hidden_CD)])
            rows = rows[: round(KEPT * len(rows))]
            hidden_RD = hidden_RD[: len(rows)]
        grad_RD = torch.empty_like(hidden_RD)
        for i, (hidden_CD, grad_CD) in enumerate(
            zip(torch.split(hidden_RD, inputs.chunk), torch.split(grad_RD, inputs.chunk), strict=True)
        ):
            logits_CV = torch.mm(hidden_CD, projection_VD.T, out=buffer_CV[: len(hidden_CD)])
            torch.mm(logits_CV, projection_VD, out=grad_CD)
            projection_grad.addmm_(logits_CV.T, hidden_CD, beta=0 if k == i == 0 else 1)
        _add_gradient(hidden, _spread(grad_RD, rows, case.rows).view_as(hidden))
    _add_gradient(inputs.projection_VD, projection_grad)


def _picked(value_ND: Tensor, rows: Tensor) -> Tensor:
    return value_ND if len(rows) == len(value_ND) else value_ND[rows]


def _spread(value_RD: Tensor, rows: Tensor, count: int) -> Tensor:
    """Undo `_picked`; 0 in the other rows."""
    if len(rows) == count:
        return value_RD
    return value_RD.new_zeros(count, value_RD.shape[1]).index_copy_(0, rows, value_RD)


def of_backend(name: str, inputs: Inputs) -> None:
    """Another library's kernels as `objective.loss=NAME` calls them, a chunk of rows of one head at a time."""
    unembedding = Unembedding(inputs.projection_VD)
    if inputs.case.weights == "known":
        loss = backend_loss(name, inputs.hidden_K, unembedding, inputs.target_BTK, inputs.known_BTK)
    else:
        with torch.no_grad():
            seen = backend_loss(name, inputs.hidden_K, unembedding, inputs.target_BTK)
        weight_BTK = inputs.weights(seen.nll_BTK)
        loss = backend_loss(name, inputs.hidden_K, unembedding, inputs.target_BTK, weight_BTK, seen=seen)
    torch.autograd.backward(loss.weighted_sum)


VARIANTS: dict[str, Callable[[Inputs], None]] = {
    "naive": naive,
    "per_head": per_head,
    "torch_lce": torch_lce,
    "liger": partial(of_backend, "liger"),
    "cce": partial(of_backend, "cce"),
    "wmtp": partial(of_wmtp, False),
    "wmtp_compiled": partial(of_wmtp, True),
    "wmtp_norms": wmtp_norms,
    "matmuls": matmuls,
}
"""A further variant is a function above and a line here: then it is timed, measured, listed and tested like these."""


def _accurate(value: Tensor) -> Tensor:
    """fp32 where the compute dtype is lower, as every variant of the loss must."""
    return value if value.dtype == torch.float64 else value.float()


def _add_gradient(leaf: Tensor, gradient: Tensor) -> None:
    if leaf.grad is None:
        leaf.grad = gradient
    else:
        leaf.grad += gradient


def _weighted_rows(
    inputs: Inputs, nll_of: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Weights, hidden states and targets of each head's rows that have a gradient."""
    weight_BTK = inputs.known_BTK
    valid_BTK = inputs.target_BTK != IGNORE
    if inputs.case.weights == "batch":
        nll_BTK = torch.zeros_like(weight_BTK)
        with torch.no_grad():
            for k, (hidden_RD, target_R) in enumerate(_rows(inputs, valid_BTK)):
                nll_BTK[:, :, k][valid_BTK[:, :, k]] = nll_of(hidden_RD, target_R).to(nll_BTK)
        weight_BTK = inputs.weights(nll_BTK)
    chosen_BTK = valid_BTK & (weight_BTK > 0)
    for k, (hidden_RD, target_R) in enumerate(_rows(inputs, chosen_BTK)):
        yield weight_BTK[:, :, k][chosen_BTK[:, :, k]], hidden_RD, target_R


def _rows(inputs: Inputs, chosen_BTK: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for k, hidden_BTD in enumerate(inputs.hidden_K):
        index = chosen_BTK[:, :, k].flatten().nonzero().squeeze(-1)
        yield hidden_BTD.flatten(0, 1)[index], inputs.target_BTK[:, :, k].flatten()[index]


# Whether a variant can run at all.


def obstacle(variant: str, case: Case, device: torch.device) -> str | None:
    """Why a variant cannot run here, or None."""
    if variant == "wmtp_norms" and case.weights == "batch":
        return "norms come with the one visit of known weights"
    if variant == "torch_lce" and not hasattr(nn, "LinearCrossEntropyOptions"):
        return f"torch {torch.__version__} has no chunked linear_cross_entropy"
    if variant == "wmtp_compiled":
        if case.dtype != "bfloat16":
            return "compiling changes nothing but lower precisions"
        compiler = devices.compiler(device)
        return None if compiler.problem is None else f"{compiler.name}: {compiler.problem}"
    if variant in BACKENDS:
        width_1D = torch.empty(1, case.width, device=device, dtype=getattr(torch, case.dtype))
        return refusal(variant, Unembedding(width_1D), width_1D.dtype, device)
    if variant in ("naive", "per_head"):
        rows = case.rows * (case.heads if variant == "naive" else 1)
        needed, free = 3 * 4 * rows * case.vocabulary, free_bytes(device)
        if free is not None and needed > 0.8 * free:
            return f"would hold about {needed / 2**30:.1f} GiB of logits; {free / 2**30:.1f} GiB are free"
    return None


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free now, where the system tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and platform.system() == "Linux":
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return None


def extra_memory(variant: str, case: Case, device: torch.device) -> dict[str, int] | None:
    """`fresh` and `adding` extra bytes of a variant; None where they cannot be measured."""
    if device.type == "cpu":
        if not measuring.has_peak(device):
            return None
        order = json.dumps({"variant": variant, "case": asdict(case)})
        measured: dict[str, int] = measuring.in_child("loss", ["--measure-memory", order])
        return measured
    return measure_memory(variant, case, device)


def measure_memory(variant: str, case: Case, device: torch.device) -> dict[str, int]:
    """Peak above the inputs and their gradients, in this process. The gradients' own bytes are never counted.

    `fresh`: there are no gradients before. `adding`: there are, from an earlier micro-batch.
    """
    inputs = build(case, device)
    run = partial(VARIANTS[variant], inputs)
    run()
    gradients = sum(leaf.grad.nbytes for leaf in inputs.leaves() if leaf.grad is not None)
    adding = measuring.growth(run, device)
    inputs.forget_gradients()
    return {"fresh": measuring.growth(run, device) - gradients, "adding": adding}


# The grid, the report.


def measure_group(cases: Sequence[Case], options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """All variants of cases that differ in their weights only, as JSON rows."""
    reasons = {(name, case): obstacle(name, case, device) for case in cases for name in options.variant}
    taken = _times([key for key, reason in reasons.items() if reason is None], options.repeat, device)
    rows = []
    for (name, case), reason in reasons.items():
        memory = extra_memory(name, case, device) if reason is None and options.memory else None
        rows.append(_row(name, case, reason, taken, memory))
    for row in rows:
        row["memory_to_naive"] = _memory_ratio(row, rows)
    return rows


def _times(wanted: Sequence[tuple[str, Case]], repeat: int, device: torch.device) -> dict[tuple[str, str], list[float]]:
    """Seconds of each (variant, weights) from no gradients; the inputs are freed afterwards."""
    if repeat == 0:
        return {}
    inputs = {case: build(case, device) for case in {case: None for _, case in wanted}}
    runs = {(name, case.weights): partial(VARIANTS[name], inputs[case]) for name, case in wanted}
    of_weights = {case.weights: own for case, own in inputs.items()}
    return measuring.interleaved(runs, repeat, device, lambda key: of_weights[key[1]].forget_gradients())


def _row(
    variant: str,
    case: Case,
    reason: str | None,
    taken: dict[tuple[str, str], list[float]],
    memory: dict[str, int] | None,
) -> dict[str, Any]:
    def of(name: str, weights: str = case.weights) -> list[float]:
        return taken.get((name, weights), [])

    mine = of(variant)
    return {
        **asdict(case),
        "variant": variant,
        "skipped": reason,
        "seconds": mine,
        "median_seconds": median(mine) if mine else None,
        "to_naive": measuring.ratio(mine, of("naive")),
        "to_matmuls": measuring.ratio(mine, of("matmuls")),
        "to_wmtp": measuring.ratio(mine, of("wmtp")),
        "to_known": measuring.ratio(mine, of(variant, "known")),
        "extra_bytes": memory and memory["fresh"],
        "extra_bytes_adding": memory and memory["adding"],
        "memory_to_naive": None,
    }


def _memory_ratio(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    base = next((r for r in rows if r["variant"] == "naive" and r["weights"] == row["weights"]), None)
    if base is None or not base["extra_bytes"] or row["extra_bytes"] is None:
        return None
    return float(row["extra_bytes"] / base["extra_bytes"])


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What this repository says of its loss, beside what was just measured; a claim without its case has no value."""

    def find(variant: str, **want: Any) -> dict[str, Any]:
        want = {"heads": 4, "fraction": 1.0, "weights": "known", **ISSUE_CASE, **want}
        same = (r for r in rows if r["variant"] == variant and all(r[name] == value for name, value in want.items()))
        return next(same, {})

    def middle(row: dict[str, Any], key: str) -> float | None:
        return row[key][0] if row.get(key) else None

    four, one = find("wmtp").get("extra_bytes"), find("wmtp", heads=1).get("extra_bytes")
    table = [
        ("extra memory, to naive", 1 / 12, find("wmtp").get("memory_to_naive")),
        ("extra memory, to K=1", 1.1, four / one if four and one else None),
        ("time, to naive", 0.85, middle(find("wmtp"), "to_naive")),
        ("time, to the matrix products", 1.06, middle(find("wmtp"), "to_matmuls")),
        ("time at fraction 0.5, to naive", 0.5, middle(find("wmtp", fraction=0.5), "to_naive")),
        ("time of rho1 select, to known weights", 1.05, middle(find("wmtp", weights="batch"), "to_known")),
        ("time with gradient norms, to without", 1.03, middle(find("wmtp_norms"), "to_wmtp")),
    ]
    return [
        {"claim": name, "at_most": limit, "measured": value, "met": None if value is None else value <= limit}
        for name, limit, value in table
    ]


COLUMNS = ("K", "V", "fraction", "weights", "variant", "median s", "to naive", "to matmuls", "to wmtp",
           "to known", "extra MiB", "adding MiB", "mem to naive")  # fmt: skip


def table_line(row: dict[str, Any]) -> list[str]:
    """One row of the table, as text."""

    head = [str(row["heads"]), str(row["vocabulary"]), str(row["fraction"]), row["weights"], row["variant"]]
    if row["skipped"]:
        return [*head, f"skipped: {row['skipped']}"]
    return [
        *head,
        "-" if row["median_seconds"] is None else f"{row['median_seconds']:.3f}",
        *(measuring.spread(row[key]) for key in ("to_naive", "to_matmuls", "to_wmtp", "to_known")),
        measuring.mebibytes(row["extra_bytes"]),
        measuring.mebibytes(row["extra_bytes_adding"]),
        "-" if row["memory_to_naive"] is None else f"{row['memory_to_naive']:.3f}",
    ]


def claim_lines(found: Sequence[dict[str, Any]]) -> str:
    """The claims as text."""
    words = {True: "yes", False: "NO", None: "not measured"}
    lines = [["claim", "at most", "measured", "met"]]
    for row in found:
        measured = "-" if row["measured"] is None else f"{row['measured']:.3f}"
        lines.append([row["claim"], f"{row['at_most']:.3f}", measured, words[row["met"]]])
    return measuring.aligned(lines)


class Preset(NamedTuple):
    """Defaults under a name."""

    about: str
    options: dict[str, Any]


PRESETS = {
    "quick": Preset(
        "K = 1 and 4, V = 32000, fractions 1.0 and 0.5",
        {"heads": [1, 4], "vocabulary": [32_000], "fraction": [1.0, 0.5]},
    ),
    "heads": Preset(
        "K = 1, 2, 4 and 8, V = 32000, every row trained",
        {"heads": [1, 2, 4, 8], "vocabulary": [32_000], "fraction": [1.0]},
    ),
    "vocabulary": Preset(
        "K = 4, V = 128000, N = 512 rows, fractions 1.0, 0.5 and 0.25",
        {"heads": [4], "vocabulary": [128_000], "fraction": [1.0, 0.5, 0.25], "rows": 512},
    ),
    "gpu": Preset(
        "K = 4, V = 32000 and 128000, D = 4096, N = 4096 rows, every row trained, bfloat16: for a GPU",
        {
            "heads": [4],
            "vocabulary": [32_000, 128_000],
            "fraction": [1.0],
            "rows": 4096,
            "width": 4096,
            "dtype": "bfloat16",
        },
    ),
    "bf16": Preset(
        "K = 4, V = 32000, every row trained, bfloat16",
        {"heads": [4], "vocabulary": [32_000], "fraction": [1.0], "dtype": "bfloat16"},
    ),
}
"""Without one: the whole grid."""


def grid(options: argparse.Namespace) -> list[list[Case]]:
    """Groups of cases that are measured interleaved: same K, V and fraction."""
    base = Case(1, 1, 1.0, "known", options.rows, options.width, options.dtype)
    return [
        [replace(base, heads=k, vocabulary=v, fraction=f, weights=w) for w in options.weights]
        for v in options.vocabulary
        for k in options.heads
        for f in options.fraction
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line: a preset replaces defaults, an option by itself goes before both."""
    parser = measuring.parser("loss", __doc__)
    about = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    parser.add_argument("--preset", choices=tuple(PRESETS), help=about)
    parser.add_argument("--quick", dest="preset", action="store_const", const="quick", help="same as --preset quick")
    parser.add_argument("--device", type=measuring.device, default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--repeat", type=measuring.count, default=5, help="rounds after the warm-up; 0: memory only")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="time only")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--heads", type=measuring.positive, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--vocabulary", type=measuring.positive, nargs="+", default=[32_000, 128_000])
    parser.add_argument("--fraction", type=measuring.share, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--weights", choices=("known", "batch"), nargs="+", default=["known", "batch"])
    parser.add_argument("--variant", choices=tuple(VARIANTS), nargs="+", default=list(VARIANTS))
    parser.add_argument("--rows", type=measuring.positive, default=1024, help="rows per head (B*T)")
    parser.add_argument("--width", type=measuring.positive, default=512, help="D")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    preset = parser.parse_args(arguments).preset
    if preset is not None:
        parser.set_defaults(**PRESETS[preset].options)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, show: Callable[[str], None] = print) -> dict[str, Any]:
    """The whole grid, as the JSON document."""
    about, rows = measuring.machine(options.device, options.dtype), []
    show("\n".join(f"{name}: {value}" for name, value in about.items()))
    for cases in grid(options):
        rows += measure_group(cases, options, options.device)
        show(f"measured K={cases[0].heads} V={cases[0].vocabulary} fraction={cases[0].fraction}")
    settings = {"repeat": options.repeat, "preset": options.preset, "kept": KEPT}
    document = {"version": VERSION, "benchmark": "loss", "machine": about, "settings": settings, "cases": rows}
    return document | {"claims": claims(rows)}


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    if options.measure_memory:
        order = json.loads(options.measure_memory)
        print(json.dumps(measure_memory(order["variant"], Case(**order["case"]), torch.device("cpu"))))
        return 0
    document = measure(options)
    print("\n" + measuring.aligned([COLUMNS, *(table_line(row) for row in document["cases"])]))
    print("\n" + claim_lines(document["claims"]))
    measuring.write(document, options.json)
    return 0
