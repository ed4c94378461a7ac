"""What `wmtp eval` was asked for, checked, and the call that does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from wmtp.data.records import Record
from wmtp.data.sources import read_records
from wmtp.data.text import render
from wmtp.decoding import MODES
from wmtp.errors import UsageError
from wmtp.evaluation.problems import KINDS, Benchmark, read_benchmark
from wmtp.evaluation.run import Ask, Report, Subject, evaluate
from wmtp.evaluation.suites import Corpus, heads, perplexity, speed
from wmtp.runfolder import DEFAULT_TEMPLATE, template_of
from wmtp.sandbox import Requirement
from wmtp.storage import ObjectPath, Place, place, resolve, write_atomic

EMBEDDED = "embedded://problems_validation.jsonl"
SUITES = ("heads", "perplexity", "speed")
SPEED_TOKENS = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The options of `wmtp eval`, as they were given."""

    model: str | None
    benchmark: str | None
    data: str | None
    samples: str | None
    suite: str | None
    out: str | None
    n: int | None
    k: str
    temperature: str | None
    top_p: float
    max_new_tokens: int
    seed: int
    mode: str
    prompt: str
    split: str | None
    require: str
    partial: bool
    batches: str
    lengths: str
    device: str


def run(options: Options, report: Report) -> tuple[dict[str, Any], Path]:
    """The result, and the file it was written to.

    Raises:
        UsageError: options that are wrong or do not go together; and what `evaluate` and the suites raise.
    """
    _one_of("--mode", options.mode, MODES)
    _one_of("--prompt", options.prompt, ("auto", "benchmark", "run"))
    _one_of("--require", options.require, get_args(Requirement))
    if options.suite is not None:
        _one_of("--suite", options.suite, SUITES)
        return _suite(options)
    if options.model is None and options.samples is None:
        raise UsageError("--model MODEL is missing: whose answers are judged; or --from FILE, with samples there are")
    return _benchmark(options, _folder(options), report)


def _benchmark(options: Options, folder: Path, report: Report) -> tuple[dict[str, Any], Path]:
    ks = _numbers("--k", options.k, int)
    count = options.n or max(ks)
    chosen = options.temperature or ("0" if count == 1 else "0.8")
    benchmark = _read(options)
    template = _template(options)
    ask = Ask(
        samples=count,
        temperatures=_numbers("--temperature", chosen, float),
        max_new_tokens=options.max_new_tokens,
        top_p=options.top_p,
        seed=options.seed,
        template=template,
        mode=options.mode,
    )
    if options.samples is None and any(k > count for k in ks):
        raise UsageError(f"--k {options.k} needs at least {max(ks)} samples of each problem, --n is {count}")
    result = evaluate(
        benchmark,
        folder,
        ks=ks,
        subject=None if options.model is None else Subject.load(options.model, options.device),
        ask=ask,
        samples_file=None if options.samples is None else resolve(options.samples),
        require=cast(Requirement, options.require),
        partial=options.partial,
        report=report,
    )
    return result, folder / f"{benchmark.name}.json"


def _suite(options: Options) -> tuple[dict[str, Any], Path]:
    if options.model is None:
        raise UsageError(f"--suite {options.suite} needs --model")
    folder = _folder(options)
    subject = Subject.load(options.model, options.device)
    template = _template(options) or DEFAULT_TEMPLATE
    records = _records(options)
    about = {"suite": options.suite, "model": subject.facts, "data": str(_data(options)), "template": template}
    result: dict[str, Any]
    if options.suite == "speed":
        batches, lengths = _numbers("--batches", options.batches, int), _numbers("--lengths", options.lengths, int)
        prompts = subject.ids([render(record, subject.tokenizer, template)[0] for record in records])
        rows = speed(subject.model, prompts, batches=batches, lengths=lengths, new_tokens=SPEED_TOKENS)
        result = {"new_tokens": SPEED_TOKENS, "rows": rows}
    else:
        longest = getattr(subject.model.base.config, "max_position_embeddings", None) or 2**20
        corpus = Corpus.of(records, subject.tokenizer, template, longest)
        result = (heads if options.suite == "heads" else perplexity)(subject.model, corpus)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{options.suite}.json"
    write_atomic(path, json.dumps(about | result, indent=2) + "\n")
    return about | result, path


def _folder(options: Options) -> Path:
    """Where results go; checked before any work is done."""
    if options.out is not None:
        return resolve(options.out)
    if options.model is not None:
        path = place(options.model)
        if isinstance(path, ObjectPath):
            raise UsageError(f"--out FOLDER is needed, a local one: {path} is not on this disk")
        if (path.parent / "config.yaml").is_file():
            return path.parent / "eval"
    raise UsageError("--out FOLDER is needed: the model does not lie in a run folder (RUN/final)")


def _read(options: Options) -> Benchmark:
    if options.benchmark == "embedded":
        return replace(read_benchmark(_data(options), "records", options.split), name="embedded")
    if options.benchmark is not None:
        _one_of("--benchmark", options.benchmark, (*KINDS, "embedded"))
    return read_benchmark(_data(options), options.benchmark, options.split)


def _records(options: Options) -> list[Record]:
    records, _ = read_records(_data(options), role="validation", split=options.split, option="--split")
    return [record for record in records if record.is_correct is not False]


def _data(options: Options) -> Place:
    if options.benchmark == "embedded":
        return resolve(EMBEDDED)
    if options.data is None:
        raise UsageError("--data FILE is needed: the file of the benchmark (or --benchmark embedded)")
    return place(options.data)


def _template(options: Options) -> str | None:
    if options.prompt == "benchmark" or options.model is None:
        return None
    template = template_of(options.model)
    if template is None and options.prompt == "run":
        raise UsageError(f"--prompt run: {options.model} does not lie in a run folder, so no template is known")
    return template


def _numbers(name: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError as problem:
        raise UsageError(f"{name} must be numbers with commas between them, got {text!r}") from problem
    if any(number < 0 or (kind is int and number < 1) for number in numbers):  # type: ignore[operator]
        raise UsageError(f"{name} must be positive numbers, got {text!r}")
    return numbers


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
