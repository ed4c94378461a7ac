"""Does a critic find the mistake? Mutated programs of unseen problems, and faulty lines of real submissions.

    wmtp data mutate --data mbpp.jsonl --split train --variants 3 --out pairs.jsonl
    python scripts/critic_evidence.py mutants --data pairs.jsonl --model FOLDER --layers 12 --json mutants.json
    python scripts/critic_evidence.py condefects --data condefects.jsonl.gz --model FOLDER --layers 12 --json lines.json

The backbone is the first layers of a Llama-like language model, frozen, in bf16: hidden states are computed once, and
value heads are trained on them with the product's own losses, as `objective.backbone = frozen` does. Which step's head
is kept is decided by the pair accuracy on problems set aside for that; figures are over problems that no head has seen
and nothing was chosen by.

    pairs      share of (correct, wrong) pairs of one problem whose mean response values are in this order
    AUC        chance that a token of the mistake (or the faulty line) has a lower advantage than another token (line)
               of the same program, ties half; mean over programs. 0.5 is chance
    interval   95 %, percentiles of 10,000 draws of the problems with replacement

`log p` and `length` need no critic: the backbone's own log-probability, over all its layers; the longer response.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmtp.data.batches import pair_items
from wmtp.data.records import Record, parse
from wmtp.data.text import Row, encode
from wmtp.evaluation.passk import bootstrap
from wmtp.formats import hf
from wmtp.optim import build_adamw
from wmtp.value import ValueHead, lambda_return_loss, mean_response_value, pairwise_loss
from wmtp.weighting import gae

TEMPLATE = "{prompt}\n"
LOSSES = ("pairwise", "monte_carlo", "lambda_return", "combined")
PAIRS_A_STEP, EVERY = 8, 25
NOWHERE = -1


@dataclass
class Program:
    """A row, what the frozen backbone makes of it, and where its mistake is."""

    row: Row
    group: str
    """What must not be on both sides: the problem."""
    later: bool = True
    """Whether it is recent enough to be a test program."""
    parts: np.ndarray[Any, Any] | None = None
    """Per response token the unit that is ranked (token or line), or NOWHERE; None: the program is not ranked."""
    faulty: frozenset[int] = frozenset()
    """The units that hold the mistake."""
    hidden_TD: Tensor | None = None
    nll_T: Tensor | None = None
    """Of every token, by the whole model; 0 for the first."""


# Data


def token_offsets(tokenizer: Any, record: Record, row: Row) -> list[tuple[int, int]]:
    """Characters of the response that each response token holds; the EOS holds none."""
    prompt = TEMPLATE.format(prompt=record.prompt)
    spans = tokenizer(prompt + record.response, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    length = len(row.tokens) - row.response_start
    own = [(start - len(prompt), end - len(prompt)) for start, end in spans if end > len(prompt)]
    end = len(record.response)
    return [*own, (end, end)][:length]


def programs_of(records: Sequence[Record], tokenizer: Any, max_length: int) -> list[tuple[Record, Row]]:
    """Records that fit, as ids."""
    made = []
    for record in records:
        prompt = TEMPLATE.format(prompt=record.prompt)
        if len(tokenizer(prompt + record.response, add_special_tokens=False)["input_ids"]) < max_length - 1:
            made.append(record)
    if not made:
        return []
    rows, _ = encode(made, tokenizer, template=TEMPLATE, max_length=max_length)
    return list(zip(made, rows, strict=True))


def mutants(path: Path, tokenizer: Any, settings: argparse.Namespace) -> list[Program]:
    """Records that `wmtp data mutate` wrote; the unit is the token, the mistake is the changed span."""
    records = [parse(json.loads(line)) for line in path.read_text().splitlines()]
    programs = []
    for record, row in programs_of(records, tokenizer, settings.max_length):
        program = Program(row, record.problem_id)
        if "mutation" in record.about:
            low, high = record.about["mutation"]["span"]
            offsets = token_offsets(tokenizer, record, row)
            program.parts = np.arange(len(offsets))
            program.faulty = frozenset(i for i, (start, end) in enumerate(offsets) if start < high and end > low)
        programs.append(program)
    return programs


def condefects(path: Path, tokenizer: Any, settings: argparse.Namespace) -> list[Program]:
    """Submissions with a known faulty line, and their corrections; the unit is the line that is not blank."""
    with gzip.open(path, "rt") as file:
        found = [json.loads(line) for line in file]
    found.sort(key=lambda row: sha256(row["id"].encode()).hexdigest())
    chosen = [row for row in found if len(row["faulty"]) <= settings.max_characters][: settings.programs]
    dates = sorted(row["date"] for row in chosen)
    cut = dates[len(dates) * 6 // 10]
    programs = []
    for row in chosen:
        about = {"prompt": f"# {row['task']}", "problem_id": row["task"]}
        records = [Record(response=row[kind], is_correct=kind == "correct", **about) for kind in ("correct", "faulty")]
        for record, encoded in programs_of(records, tokenizer, settings.max_length):
            program = Program(encoded, row["task"], later=row["date"] >= cut)
            if not record.is_correct:
                mark_lines(program, record, token_offsets(tokenizer, record, encoded), int(row["fault_location"]))
            programs.append(program)
    return programs


def mark_lines(program: Program, record: Record, offsets: list[tuple[int, int]], fault: int) -> None:
    """The line of each response token, by where it starts; the fault counts lines from 1."""
    texts = [*record.response.split("\n"), ""]
    lines = [record.response.count("\n", 0, start) for start, _ in offsets]
    program.parts = np.array([line if texts[line].strip() else NOWHERE for line in lines])
    program.faulty = frozenset({fault - 1} & set(program.parts.tolist()))


def with_places(pairs: Sequence[Program]) -> list[Program]:
    """The same with rows' problems numbered by their group, as `pair_items` wants."""
    numbers: dict[str, int] = {}
    for program in pairs:
        place = numbers.setdefault(program.group, len(numbers))
        program.row = Row(program.row.tokens, program.row.response_start, place, program.row.reward, 0, program.group)
    return list(pairs)


def split(programs: Sequence[Program], seed: int) -> tuple[list[Program], list[Program], list[Program]]:
    """Training, selection and test: by problem; a test program is also later than the training programs."""

    def share(program: Program) -> float:
        digest = sha256(f"{seed}\0{program.group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    dated = any(not program.later for program in programs)
    low, high = (0.5, 0.6) if dated else (0.6, 0.7)
    early = [program for program in programs if not (dated and program.later)]
    training = [program for program in early if share(program) < low]
    selection = [program for program in early if low <= share(program) < high]
    return training, selection, [program for program in programs if share(program) >= high and program.later]


# The frozen backbone


def shortened(model: Any, layers: int) -> Any:
    """The first layers of the decoder."""
    short = copy.copy(model.base_model)
    short._modules = dict(model.base_model._modules)
    short.layers = model.base_model.layers[:layers]
    short.config = copy.deepcopy(model.config)
    short.config.num_hidden_layers = layers
    return short


@torch.no_grad()
def look(model: Any, programs: Sequence[Program], layers: int, scored: set[int], seconds: float) -> None:
    """Fill in hidden states, and losses where they are wanted (by `id`), problem by problem until the time is up."""
    short = shortened(model, layers)
    started, group = time.perf_counter(), ""
    for number, program in enumerate(programs, 1):
        if program.group != group and time.perf_counter() - started > seconds:
            print(f"the time is up: {number - 1} of {len(programs)} programs", file=sys.stderr, flush=True)
            return
        group = program.group
        tokens = torch.from_numpy(program.row.tokens.astype(np.int64)).unsqueeze(0)
        if id(program) in scored:
            out = model.base_model(input_ids=tokens, use_cache=False, output_hidden_states=True)
            program.hidden_TD = model.base_model.norm(out.hidden_states[layers])[0].half()
            logits = model.lm_head(out.last_hidden_state[0, :-1]).float()
            nll = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
            program.nll_T = torch.cat([torch.zeros(1), nll])
        else:
            program.hidden_TD = short(input_ids=tokens, use_cache=False).last_hidden_state[0].half()
        if number % 50 == 0:
            print(f"{number} of {len(programs)}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


# Heads


def batch_of(programs: Sequence[Program]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, response mask and rewards of some programs, padded."""
    longest = max(len(program.row.tokens) for program in programs)
    first = programs[0].hidden_TD
    assert first is not None
    hidden_BTD = torch.zeros(len(programs), longest, first.shape[1])
    mask_BT = torch.zeros(len(programs), longest, dtype=torch.bool)
    for b, program in enumerate(programs):
        assert program.hidden_TD is not None
        length = len(program.row.tokens)
        hidden_BTD[b, :length] = program.hidden_TD.float()
        mask_BT[b, program.row.response_start : length] = True
    return hidden_BTD, mask_BT, torch.tensor([program.row.reward for program in programs])


def loss_of(kind: str, values_BT: Tensor, mask_BT: Tensor, rewards_B: Tensor) -> Tensor:
    """The product's losses, as `ValueObjective` combines them."""
    pairs = pairwise_loss(values_BT, mask_BT).loss_sum / (len(values_BT) // 2)
    if kind == "pairwise":
        return pairs
    lam = 1.0 if kind == "monte_carlo" else 0.95
    returns = lambda_return_loss(values_BT, mask_BT, rewards_B, gamma=1.0, lam=lam) / len(values_BT)
    return returns if kind != "combined" else 0.5 * pairs + 0.5 * returns


def pairs_of(programs: Sequence[Program]) -> list[tuple[int, ...]]:
    """(correct, wrong) places."""
    return pair_items([program.row for program in programs])


def train_head(kind: str, training: list[Program], selection: list[Program], settings: argparse.Namespace) -> ValueHead:
    """The head of the evaluation with the best pair accuracy on the selection problems."""
    torch.manual_seed(settings.seed)
    first = training[0].hidden_TD
    assert first is not None
    head = ValueHead(first.shape[1], settings.head)
    optimizer = build_adamw(head, lr=settings.lr, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    random, pairs = np.random.default_rng(settings.seed), pairs_of(training)
    best, kept = -1.0, copy.deepcopy(head)
    for step in range(1, settings.steps + 1):
        chosen = random.choice(len(pairs), PAIRS_A_STEP, replace=len(pairs) < PAIRS_A_STEP)
        hidden_BTD, mask_BT, rewards_B = batch_of([training[i] for c in chosen for i in pairs[c]])
        optimizer.zero_grad()
        loss_of(kind, head(hidden_BTD), mask_BT, rewards_B).backward()
        optimizer.step()
        if step % EVERY == 0:
            accuracy = bootstrap(by_problem(selection, pair_results(head, selection))).mean
            if accuracy > best:
                best, kept = accuracy, copy.deepcopy(head)
    return kept


# Figures


@torch.no_grad()
def values_of(head: ValueHead, program: Program) -> Tensor:
    """`values_T` of one program."""
    assert program.hidden_TD is not None
    values_T: Tensor = head(program.hidden_TD.float().unsqueeze(0))[0]
    return values_T


def pair_results(head: ValueHead, programs: Sequence[Program]) -> Iterator[tuple[str, float]]:
    """(problem, 1 for a pair in the right order, 0 else; half for a tie)."""
    means = []
    for program in programs:
        values_T = values_of(head, program)
        mask = torch.zeros(1, len(values_T), dtype=torch.bool)
        mask[0, program.row.response_start :] = True
        means.append(float(mean_response_value(values_T.unsqueeze(0), mask)))
    return ((programs[good].group, 0.5 + 0.5 * np.sign(means[good] - means[bad])) for good, bad in pairs_of(programs))


def by_problem(programs: Sequence[Program], results: Iterator[tuple[str, float]]) -> list[float]:
    """The mean of each problem."""
    found: dict[str, list[float]] = defaultdict(list)
    for group, result in results:
        found[group].append(result)
    return [float(np.mean(each)) for each in found.values()]


def advantage_of(head: ValueHead, program: Program, lam: float) -> Tensor:
    """Advantages of the response tokens, by the product's `gae`."""
    values_T = values_of(head, program)
    mask = torch.zeros(1, len(values_T), dtype=torch.bool)
    mask[0, program.row.response_start :] = True
    advantage = gae(values_T.unsqueeze(0), mask, torch.zeros(1), gamma=1.0, lam=lam, terminal="value")
    return advantage[0, program.row.response_start :]


def auc_of(program: Program, score_R: Tensor) -> float | None:
    """How well a low score of a unit (mean over its tokens) tells the mistake; None where it cannot be told."""
    assert program.parts is not None
    units = sorted(set(program.parts.tolist()) - {NOWHERE})
    means = {unit: float(score_R[torch.from_numpy(program.parts == unit)].mean()) for unit in units}
    faulty = [means[unit] for unit in units if unit in program.faulty]
    others = [means[unit] for unit in units if unit not in program.faulty]
    if not faulty or not others:
        return None
    wins = [(other > bad) + 0.5 * (other == bad) for bad in faulty for other in others]
    return float(np.mean(wins))


def auc_interval(programs: Sequence[Program], score: Callable[[Program], Tensor]) -> dict[str, float]:
    """Mean over problems of the mean AUC of their programs."""
    ranked = [program for program in programs if program.parts is not None and program.faulty]
    found = [(p.group, auc) for p in ranked if (auc := auc_of(p, score(p))) is not None]
    return interval(by_problem(programs, iter(found))) | {"programs": len(found)}


def interval(values: list[float]) -> dict[str, float]:
    """Mean, 95 % interval, number of problems."""
    drawn = bootstrap(values)
    return {"mean": drawn.mean, "low": drawn.low, "high": drawn.high, "problems": drawn.problems}


def log_probability(program: Program) -> Tensor:
    """The language model's own, of the response tokens."""
    assert program.nll_T is not None
    return -program.nll_T[program.row.response_start :]


def length_pairs(programs: Sequence[Program]) -> Iterator[tuple[str, float]]:
    """As `pair_results`, by the number of response tokens: what a critic that only counts would reach."""
    lengths = [len(program.row.tokens) - program.row.response_start for program in programs]
    return (
        (programs[good].group, 0.5 + 0.5 * np.sign(lengths[good] - lengths[bad])) for good, bad in pairs_of(programs)
    )


def log_probability_pairs(programs: Sequence[Program]) -> Iterator[tuple[str, float]]:
    """As `pair_results`, by the mean log-probability of a response's tokens."""
    means = [float(log_probability(program).mean()) for program in programs]
    return ((programs[good].group, 0.5 + 0.5 * np.sign(means[good] - means[bad])) for good, bad in pairs_of(programs))


# The command


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    started = time.perf_counter()
    tokenizer = hf.load_tokenizer(settings.model)
    model = hf.load_causal_lm(settings.model, torch.bfloat16).eval()
    read = {"mutants": mutants, "condefects": condefects}[settings.task]
    training, selection, test = (
        with_places(part) for part in split(read(settings.data, tokenizer, settings), settings.seed)
    )
    everything = sorted([*training, *selection, *test], key=lambda p: sha256(p.group.encode()).hexdigest())
    look(model, everything, settings.layers, {id(program) for program in test}, settings.seconds)
    training, selection, test = ([p for p in part if p.hidden_TD is not None] for part in (training, selection, test))
    result: dict[str, Any] = {
        "task": settings.task,
        "settings": {name: str(value) for name, value in vars(settings).items() if name not in ("json", "task")},
        "programs": {"training": len(training), "selection": len(selection), "test": len(test)},
        "tokens": sum(len(program.row.tokens) for program in (*training, *selection, *test)),
        "log p": {
            "pairs": interval(by_problem(test, log_probability_pairs(test))),
            "auc": auc_interval(test, log_probability),
        },
        "length": {"pairs": interval(by_problem(test, length_pairs(test)))},
    }
    for kind in LOSSES:
        head = train_head(kind, training, selection, settings)
        result[kind] = {"pairs": interval(by_problem(test, pair_results(head, test)))}
        for lam in (0.0, 0.95):
            result[kind][f"auc lam {lam}"] = auc_interval(test, lambda p, h=head, a=lam: advantage_of(h, p, a))
        print(kind, json.dumps(result[kind]), file=sys.stderr, flush=True)
    return result | {"seconds": time.perf_counter() - started}


def shown(figure: dict[str, float]) -> str:
    """Mean and interval as text."""
    return f"{figure['mean']:.3f} ({figure['low']:.3f}-{figure['high']:.3f})"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("mutants", "condefects"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True, help="folder of a language model")
    parser.add_argument("--layers", type=int, default=12, help="of it, that the critic reads")
    parser.add_argument("--head", default="linear")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seconds", type=float, default=600, help="look at no further problem after so long")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=256, help="longer programs are left out")
    parser.add_argument("--max-characters", type=int, default=500, help="condefects: longer programs are left out")
    parser.add_argument("--programs", type=int, default=400, help="condefects: at most so many submissions")
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    result = measure(settings)
    problems = result["log p"]["pairs"]["problems"]
    print(f"{result['programs']} programs, {result['tokens']:,} tokens; {problems} test problems")
    for name in ("log p", "length", *LOSSES):
        print(f"{name:14}", "  ".join(f"{figure} {shown(value)}" for figure, value in result[name].items()))
    if settings.json is not None:
        settings.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
