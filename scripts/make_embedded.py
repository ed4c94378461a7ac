"""Build everything under src/wmtp/embedded: the problem pairs and the tiny tokenizer with its model configuration.

    python scripts/make_embedded.py            # rebuild in place
    python scripts/make_embedded.py --check    # rebuild elsewhere; exit 1 if the committed files differ

Whether a program is correct is never assumed: every hand-written solution and every mutant of it is run against the
tests of its problem, in the sandbox. The text of the programs comes from `ast.unparse` and the tokenizer files from
`transformers`, so a check needs the same versions of Python and of these libraries as the build.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from embedded_problems import Problem, load_problems
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from wmtp.data.mutate import OPERATORS, mutants, normalize
from wmtp.sandbox import Job, Limits, Sandbox

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "src" / "wmtp" / "embedded"
SEED = "wmtp-embedded-1"
WRONG_PER_PROBLEM = 6
NOT_ASSERTION_PER_PROBLEM = 2  # of these, as many may crash or hang instead of giving a wrong result
VALIDATION_SHARE = 0.2
VOCABULARY = 1024
MAX_LENGTH = 512
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

PASS, WRONG, CRASH, TIMEOUT = "pass", "wrong", "crash", "timeout"
QUICK_CPU_SECONDS = 0.25
CONFIRM_CPU_SECONDS = 2.0
CONFIRM_HASH_SEEDS = range(1, 6)

VERDICTS = {"passed": PASS, "wrong": WRONG, "error": CRASH, "memory": CRASH, "forbidden": CRASH, "timeout": TIMEOUT}


@dataclass(frozen=True)
class Candidate:
    """A mutant that fails its tests."""

    source: str
    operator: str
    solution: int
    verdict: str


@dataclass
class Built:
    """The rows of one problem: its correct programs and its chosen wrong ones."""

    problem: Problem
    correct: list[str]
    chosen: list[Candidate]


@cache
def sandbox(hash_seed: int) -> Sandbox:
    """One for all programs with this hash seed, on which the order of sets depends; it ends with the script."""
    made = Sandbox(require="strong", hash_seed=hash_seed)
    atexit.register(made.close)
    return made


def run_programs(programs: Sequence[str], tests: Sequence[str], cpu_seconds: float, hash_seed: int = 0) -> list[str]:
    """Run each program with the tests in the sandbox and return one verdict per program."""
    jobs = (Job(program, tests, Limits(cpu_s=cpu_seconds, memory_bytes=2**29)) for program in programs)
    verdicts = [verdict for _, verdict in sandbox(hash_seed).map(jobs)]
    undecided = next((verdict for verdict in verdicts if not verdict.decided), None)
    if undecided is not None:
        raise SystemExit(f"No verdict: {undecided.status}: {undecided.reason}")
    return [VERDICTS[verdict.status] for verdict in verdicts]


def confirmed(programs: Sequence[str], tests: Sequence[str]) -> list[bool | None]:
    """Per program: True if it passes under every hash seed, False if it fails under every one, None if it varies."""
    runs = [run_programs(programs, tests, CONFIRM_CPU_SECONDS, seed) for seed in CONFIRM_HASH_SEEDS]
    outcomes: list[bool | None] = []
    for verdicts in zip(*runs, strict=True):
        passed = {verdict == PASS for verdict in verdicts}
        outcomes.append(passed.pop() if len(passed) == 1 else None)
    return outcomes


def correct_programs(problem: Problem) -> list[str]:
    """The formatted solutions; the script stops if one of them fails or two of them are equal."""
    programs = [normalize(solution) for solution in problem.solutions]
    for test in problem.tests:
        ast.parse(test)
    for number, outcome in enumerate(confirmed(programs, problem.tests), 1):
        if outcome is not True:
            raise SystemExit(f"{problem.problem_id}: solution {number} does not pass its tests")
    if len(set(programs)) < len(programs) or len(programs) < 2:
        raise SystemExit(f"{problem.problem_id}: expected at least two solutions, all different")
    return programs


def failing_mutants(problem: Problem, correct: Sequence[str], counts: Counter[tuple[str, str]]) -> list[Candidate]:
    """Every mutant of every solution that fails the tests, counted by operator and verdict."""
    found = {}
    for number, program in enumerate(correct):
        for mutant in mutants(program):
            if mutant.source not in found and mutant.source not in correct:
                found[mutant.source] = (mutant.operator, number)
    verdicts = run_programs(list(found), problem.tests, QUICK_CPU_SECONDS)
    candidates = []
    for (source, (operator, number)), verdict in zip(found.items(), verdicts, strict=True):
        counts[operator, verdict] += 1
        if verdict != PASS:
            candidates.append(Candidate(source, operator, number, verdict))
    return candidates


def choose(problem: Problem, candidates: Sequence[Candidate], usage: Counter[str]) -> list[Candidate]:
    """Up to six mutants: wrong results before crashes, then spread over operators and solutions."""
    pool = list(candidates)
    random.Random(f"{SEED}:{problem.problem_id}").shuffle(pool)
    chosen: list[Candidate] = []
    while pool and len(chosen) < WRONG_PER_PROBLEM:
        operators = Counter(c.operator for c in chosen)
        solutions = Counter(c.solution for c in chosen)
        verdicts = Counter(WRONG if c.verdict == WRONG else CRASH for c in chosen)
        full = verdicts[CRASH] >= NOT_ASSERTION_PER_PROBLEM
        allowed = [c for c in pool if c.verdict == WRONG or not full] or pool
        ranks = {WRONG: 0, CRASH: 1, TIMEOUT: 1}
        best = min(
            allowed,
            key=lambda c: (operators[c.operator], solutions[c.solution], ranks[c.verdict], usage[c.operator]),
        )
        pool.remove(best)
        chosen.append(best)
        usage[best.operator] += 1
    return sorted(chosen, key=lambda c: (c.solution, list(OPERATORS).index(c.operator), c.source))


def choose_confirmed(
    problem: Problem, candidates: list[Candidate], usage: Counter[str], counts: Counter[tuple[str, str]]
) -> list[Candidate]:
    """Choose, run the choice again with more time and other hash seeds, and replace what does not fail every time."""
    while True:
        chosen = choose(problem, candidates, trial := usage.copy())
        outcomes = confirmed([c.source for c in chosen], problem.tests)
        unsteady = [c for c, outcome in zip(chosen, outcomes, strict=True) if outcome is not False]
        if not unsteady:
            usage.update(trial - usage)
            return chosen
        counts["", "unsteady"] += len(unsteady)
        candidates = [c for c in candidates if c not in unsteady]


def build_problems(problems: Iterable[Problem], counts: Counter[tuple[str, str]]) -> list[Built]:
    usage: Counter[str] = Counter()
    built = []
    for problem in problems:
        correct = correct_programs(problem)
        candidates = failing_mutants(problem, correct, counts)
        chosen = choose_confirmed(problem, candidates, usage, counts)
        if len(chosen) < 3:
            raise SystemExit(f"{problem.problem_id}: only {len(chosen)} wrong programs; add solutions or tests")
        built.append(Built(problem, correct, chosen))
    return built


def validation_ids(problems: Sequence[Problem]) -> set[str]:
    """The problems of the validation split: the same share of every difficulty."""
    chosen: set[str] = set()
    for difficulty in sorted({p.difficulty for p in problems}):
        ids = sorted(p.problem_id for p in problems if p.difficulty == difficulty)
        random.Random(f"{SEED}:split:{difficulty}").shuffle(ids)
        chosen.update(ids[: max(1, round(len(ids) * VALIDATION_SHARE))])
    return chosen


def rows(built: Built) -> list[dict[str, object]]:
    """The JSONL rows of one problem, the correct programs first."""
    programs = [(text, True, "embedded") for text in built.correct]
    programs += [(c.source, False, f"embedded:mutant:{c.operator}") for c in built.chosen]
    return [
        {
            "problem_id": built.problem.problem_id,
            "prompt": built.problem.prompt,
            "response": response,
            "is_correct": is_correct,
            "difficulty": built.problem.difficulty,
            "tests": list(built.problem.tests),
            "source": source,
        }
        for response, is_correct, source in programs
    ]


def write_jsonl(path: Path, records: Iterable[dict[str, object]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from `texts`; every text survives encoding and decoding unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }


def write_tokenizer(folder: Path, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(str(folder))
    config = json.dumps(model_config(tokenizer), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8", newline="\n")
    return tokenizer


def training_texts(built: Iterable[Built]) -> list[str]:
    """What the tokenizer learns from: each prompt once and each correct program once, in written order."""
    return [text for b in built for text in (b.problem.prompt, *b.correct)]


def print_mutants(counts: Counter[tuple[str, str]], built: Sequence[Built]) -> None:
    used = Counter(c.operator for b in built for c in b.chosen)
    print(f"\n{'operator':<18}{'tried':>7}{'wrong':>7}{'crash':>7}{'timeout':>9}{'survived':>10}{'used':>6}")
    total: Counter[str] = Counter()
    for operator in OPERATORS:
        row = {verdict: counts[operator, verdict] for verdict in (WRONG, CRASH, TIMEOUT, PASS)}
        total.update(row)
        print_mutant_row(operator, row, used[operator])
    print_mutant_row("all", total, used.total())
    print(f"{total[PASS]} mutants passed every test (equivalent or missed) and were dropped;")
    print(f"{counts['', 'unsteady']} chosen mutants did not fail under every hash seed and were replaced")


def print_mutant_row(name: str, row: dict[str, int], used: int) -> None:
    tried = sum(row.values())
    print(f"{name:<18}{tried:>7}{row[WRONG]:>7}{row[CRASH]:>7}{row[TIMEOUT]:>9}{row[PASS]:>10}{used:>6}")


def print_lengths(name: str, records: Sequence[dict[str, object]], tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [f"{record['prompt']}\n{record['response']}" for record in records]
    lengths = sorted(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    marks = {percent: lengths[(len(lengths) - 1) * percent // 100] for percent in (0, 10, 50, 90, 99, 100)}
    print(f"{name}: tokens of prompt + response: " + ", ".join(f"p{p} {n}" for p, n in marks.items()))


def print_split(name: str, built: Sequence[Built]) -> None:
    correct = sum(len(b.correct) for b in built)
    wrong = sum(len(b.chosen) for b in built)
    verdicts = Counter(c.verdict for b in built for c in b.chosen)
    levels = Counter(b.problem.difficulty for b in built)
    spread = ", ".join(f"difficulty {level}: {levels[level]}" for level in sorted(levels))
    print(f"{name}: {len(built)} problems ({spread}), {correct} correct and {wrong} wrong programs {dict(verdicts)}")


def build(folder: Path) -> None:
    """Write all files into `folder` and print what went in."""
    problems = load_problems()
    ids = [problem.problem_id for problem in problems]
    if len(set(ids)) < len(ids):
        raise SystemExit(f"Problem ids must be unique: {[i for i, n in Counter(ids).items() if n > 1]}")
    counts: Counter[tuple[str, str]] = Counter()
    built = build_problems(problems, counts)
    held_out = validation_ids(problems)
    splits = {
        "train": [b for b in built if b.problem.problem_id not in held_out],
        "validation": [b for b in built if b.problem.problem_id in held_out],
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder / "tiny-llama", training_texts(splits["train"]))
    for name, part in splits.items():
        records = [record for b in part for record in rows(b)]
        write_jsonl(folder / f"problems_{name}.jsonl", records)
        print_split(name, part)
        print_lengths(name, records, tokenizer)
    print_mutants(counts, built)
    size = sum(map(len, contents(folder).values()))
    print(f"vocabulary {len(tokenizer)}, {size / 1024:.0f} KiB in all")


def contents(folder: Path) -> dict[str, bytes]:
    """The built files below `folder`, by relative path."""
    files = [*folder.glob("problems_*.jsonl"), *folder.glob("tiny-llama/*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def check() -> int:
    """Rebuild in a temporary folder and compare; 1 if anything differs."""
    with tempfile.TemporaryDirectory() as temporary:
        build(Path(temporary))
        fresh, committed = contents(Path(temporary)), contents(TARGET)
    differing = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    for name in differing:
        print(f"differs: {name}")
    return 1 if differing else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Build src/wmtp/embedded.")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare with the committed files")
    if parser.parse_args().check:
        return check()
    build(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
