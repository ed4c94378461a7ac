"""`wmtp eval`: problems, answers, verdicts, figures; each stored, so that none is made twice.

A folder of one benchmark holds `samples.jsonl` (what the model answered), `verdicts.jsonl` (how each program did),
`about.json` (what both are of) and, beside it, `BENCHMARK.json`, the result. A run that was interrupted goes on where
it was; one that would mix two models, prompts or versions of a benchmark is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wmtp import devices
from wmtp.data.text import check_template, prompt_ids, render
from wmtp.decoding import Sampling, StopStrings, generate_many
from wmtp.errors import DataError, UsageError
from wmtp.evaluation.judging import Judged, Key, figures, judge, only, read_verdicts, unsampled
from wmtp.evaluation.problems import Benchmark, Problem
from wmtp.evaluation.samples import Sample, by_problem, from_answer, read_samples, write_rows
from wmtp.formats.hf import folder_of, load_tokenizer, locate
from wmtp.formats.hub import commit_of, is_id
from wmtp.formats.meta import WEIGHTS
from wmtp.formats.native import load_model, read_card
from wmtp.model import MTPModel
from wmtp.sandbox import Requirement, Sandbox
from wmtp.storage import drop_torn_line, matches, sha256_file, write_atomic
from wmtp.storage import place as located

Report = Callable[[str], None]


@dataclass(frozen=True)
class Ask:
    """How a model is asked.

    Attributes:
        samples: Answers per problem at each temperature; at temperature 0 it is always one.
        temperatures: 0 is greedy.
        template: With `{prompt}`, as `data.template` of a recipe, for what is no conversation (these are rendered by
            the tokenizer's chat template); None takes the benchmark's own prompt.
        mode: `speculative` (with the heads; the same distribution) or `plain`.

    Raises:
        UsageError: a number out of range.
    """

    samples: int = 1
    temperatures: tuple[float, ...] = (0.0,)
    max_new_tokens: int = 512
    top_p: float = 1.0
    seed: int = 0
    template: str | None = None
    mode: str = "speculative"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1:
            raise UsageError(
                f"samples and max_new_tokens must be at least 1, got {self.samples}, {self.max_new_tokens}"
            )
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise UsageError(f"temperatures must be one or several different numbers, got {list(self.temperatures)}")
        for temperature in self.temperatures:
            if temperature < 0:
                raise UsageError(f"a temperature must be 0 (greedy) or above, got {temperature}")
            Sampling(temperature=temperature or 1.0, top_p=self.top_p)
        if self.template is not None:
            check_template(self.template)

    def count(self, temperature: float) -> int:
        """Samples of each problem."""
        return self.samples if temperature > 0 else 1


@dataclass
class Subject:
    """A model to be evaluated."""

    source: str
    model: MTPModel
    tokenizer: Any
    facts: dict[str, Any] = field(default_factory=dict)
    """What it is, for the record."""

    @classmethod
    def load(cls, source: str, device: str = "auto") -> Subject:
        """A model folder or hub id; one without heads is taken as it is.

        Raises:
            ModelError, ConfigError: as the loaders.
        """
        model = load_model(source, num_heads=1 if read_card(source) is None else None)
        model.to(devices.pick(device)).eval()
        facts = {"source": source, "heads": model.num_heads, **content_of(source)}
        return cls(source, model, load_tokenizer(source), facts)

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Prompts as token ids."""
        return prompt_ids(prompts, self.tokenizer)


def content_of(source: str) -> dict[str, Any]:
    """What tells one content of a folder or hub id from another: SHA-256 of each file of weights, or the commit."""
    if is_id(locate(source)):
        return {"weights": {}, "commit": commit_of(source)}
    folder = folder_of(source)
    files = [*matches(folder, "*.safetensors"), *matches(folder, WEIGHTS)]
    return {"weights": {path.name: sha256_file(path) for path in files}}


def evaluate(
    benchmark: Benchmark,
    folder: Path,
    *,
    ks: Sequence[int],
    subject: Subject | None = None,
    ask: Ask | None = None,
    samples_file: Path | None = None,
    require: Requirement = "best",
    partial: bool = False,
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Scores a model, or samples that are there, and writes `folder/BENCHMARK.json`.

    Args:
        subject, ask: the model and how it is asked; or
        samples_file: anybody's samples, in place of both.
        partial: score only the problems that have samples. The result says how many were left out.
        report: gets a line of progress now and then.

    Returns:
        What is in the file.

    Raises:
        UsageError: neither or both of model and samples, too few samples for a k, a folder that holds something else.
        DataError: broken samples or verdicts, or problems without samples and not `partial`.
        SandboxError: the isolation that is required cannot be had.
    """
    if (subject is None) == (samples_file is None):
        raise UsageError("either a model or a file of samples is needed, and not both")
    place = folder / benchmark.name
    place.mkdir(parents=True, exist_ok=True)
    ask = ask or Ask()
    about: dict[str, Any] = {
        "benchmark": benchmark.name,
        "file_sha256": sha256_file(located(benchmark.path)),
        "split": benchmark.split,
    }
    if subject is not None:
        about |= {"model": subject.facts, "ask": asdict(ask), "prompt": prompt_of(benchmark, ask)}
    else:
        assert samples_file is not None
        about |= {"samples_sha256": sha256_file(samples_file)}
    _check_same(place / "about.json", json.loads(json.dumps(about)))
    if subject is not None:
        samples_file = place / "samples.jsonl"
        answer(subject, benchmark.problems, ask, samples_file, report)
    assert samples_file is not None
    samples = by_problem(read_samples(samples_file), benchmark.problems)
    missing = unsampled(samples)
    if missing and not partial:
        raise DataError(
            f"{len(missing):,} of {len(benchmark.problems):,} problems have no sample, the first is {missing[0]!r}; "
            "sample them, or score only the others with --partial"
        )
    problems = only(benchmark.problems, samples)
    with Sandbox(require=require) as sandbox:
        verdicts = _judged(samples, problems, sandbox, place / "verdicts.jsonl", report)
        isolation = sandbox.isolation.to_dict()
    result = about | {
        "problems": len(problems),
        "problems_without_samples": len(missing),
        "isolation": isolation,
        "results": figures(samples, problems, verdicts, ks),
    }
    write_atomic(folder / f"{benchmark.name}.json", json.dumps(result, indent=2) + "\n")
    return result


def prompt_of(benchmark: Benchmark, ask: Ask) -> str:
    """Whose prompt the model is given."""
    if ask.template is None:
        return "benchmark"
    return "chat template" if any(problem.record.messages for problem in benchmark.problems) else "run"


def answer(subject: Subject, problems: Sequence[Problem], ask: Ask, path: Path, report: Report) -> None:
    """Append the answers that `path` lacks: problem by problem, temperature by temperature."""
    have = by_problem(read_samples(path), problems) if _begun(path) else {}
    prompts = subject.ids(
        [
            problem.prompt if ask.template is None else render(problem.record, subject.tokenizer, ask.template)[0]
            for problem in problems
        ]
    )
    stop = StopStrings(subject.tokenizer, problems[0].stop)
    for temperature in ask.temperatures:
        count = ask.count(temperature)
        done = next(
            (at for at, problem in enumerate(problems)
             if sum(one.temperature == temperature for one in have.get(problem.id, [])) < count),
            len(problems),
        )  # fmt: skip
        generations = generate_many(
            subject.model,
            prompts,
            first=done,
            samples=count,
            max_new_tokens=ask.max_new_tokens,
            mode=ask.mode if subject.model.num_heads > 1 else "plain",
            sampling=Sampling(temperature=temperature, top_p=ask.top_p) if temperature > 0 else None,
            seed=ask.seed,
            stop=stop,
        )
        for problem, generation in zip(problems[done:], generations, strict=True):
            there = sum(one.temperature == temperature for one in have.get(problem.id, []))
            texts = [stop.text(row.tokens) for row in generation.rows][there:]
            write_rows(path, (from_answer(problem, text, temperature).row() for text in texts))
            report(f"temperature {temperature:g}: {problem.id} answered")


def _judged(
    samples: Mapping[str, Sequence[Sample]], problems: Sequence[Problem], sandbox: Sandbox, path: Path, report: Report
) -> dict[Key, Judged]:
    """All verdicts: those that are stored, and the others, which are stored as they come."""
    known = read_verdicts(path) if _begun(path) else {}
    made = dict(known)

    def new() -> Iterator[dict[str, Any]]:
        for judged in judge(samples, problems, sandbox, known):
            made[judged.key] = judged
            report(f"{judged.task_id} {judged.suite}: {judged.status}")
            yield asdict(judged)

    write_rows(path, new())
    return made


def _begun(path: Path) -> bool:
    """Whether a file has rows, once what an interrupted run left incomplete is cut off."""
    if path.exists():
        drop_torn_line(path)
    return path.exists() and path.stat().st_size > 0


def _check_same(path: Path, about: dict[str, Any]) -> None:
    """What is in a folder must be of the same model, prompts and problems as what is about to be added."""
    if not path.exists():
        write_atomic(path, json.dumps(about, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_bytes())
    except ValueError as problem:
        raise DataError(f"{path} is damaged: {problem}; choose another --out, or remove {path.parent}") from problem
    if before == about:
        return
    different = [key for key in {**before, **about} if before.get(key) != about.get(key)]
    raise UsageError(
        f"{path.parent} holds samples and verdicts of something else: {', '.join(different)} differ. Choose another "
        "--out, or remove that folder"
    )
