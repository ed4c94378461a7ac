"""From a model folder and texts to texts: what `wmtp generate` does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wmtp import devices
from wmtp.data.text import check_template, prompt_ids
from wmtp.decoding import Generation, Sampling, StopStrings, generate_many
from wmtp.errors import DataError, UsageError
from wmtp.formats.hf import load_tokenizer
from wmtp.formats.native import load_model
from wmtp.storage import Place

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Completion:
    """What a model says after a prompt."""

    prompt: str
    text: str
    """Special tokens left out, up to the first stop string."""
    generation: Generation


def complete(
    model: str,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    mode: str,
    sampling: Sampling | None,
    seed: int,
    stop: Sequence[str],
    template: str,
    device: str,
) -> Iterator[Completion]:
    """One completion per prompt, in their order.

    Args:
        model: a model folder or hub id; heads are added to a plain model (copies of its last layer, which draft badly).
        template: `data.template` of the training.

    Raises:
        UsageError: what cannot be loaded or continued; before the first completion.
    """
    check_template(template)
    if device not in DEVICES:
        raise UsageError(f"--device must be one of {', '.join(DEVICES)}; got {device!r}")
    tokenizer = load_tokenizer(model)
    loaded = load_model(model).to(devices.pick(device))
    texts = [template.format(prompt=prompt) for prompt in prompts]
    stopping = StopStrings(tokenizer, stop)
    generations = generate_many(
        loaded,
        prompt_ids(texts, tokenizer),
        max_new_tokens=max_new_tokens,
        mode=mode,
        sampling=sampling,
        seed=seed,
        stop=stopping if stop else None,
    )
    return (
        Completion(prompt, stopping.text(generation.tokens[0]), generation)
        for prompt, generation in zip(prompts, generations, strict=True)
    )


def as_document(completions: Sequence[Completion]) -> dict[str, Any]:
    """Texts and figures as JSON knows them."""
    total = Generation(tuple(row for completion in completions for row in completion.generation.rows))
    rows = [(c.prompt, c.text, c.generation.rows[0]) for c in completions]
    return {
        "completions": [
            {"prompt": p, "text": t, "tokens": len(row.tokens), "forwards": row.forwards, "finish": row.finish}
            for p, t, row in rows
        ],
        "tokens_per_forward": total.tokens_per_forward,
        "drafted": list(total.drafted),
        "accepted": list(total.accepted),
        "acceptance": list(total.acceptance),
    }


def read_prompts(path: Place) -> list[str]:
    """The `prompt` of every line of a JSON Lines file; other fields are left alone.

    Raises:
        DataError: the file cannot be read, a line is no object with a text `prompt` (named), or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else problem
        raise DataError(f"cannot read prompts from {path}: {why}; expected JSON Lines") from problem
    prompts = [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise DataError(f'{path} has no line with a prompt; expected an object with a text "prompt" in each')
    return prompts


def _prompt(line: str, where: str) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError as problem:
        raise DataError(f'{where}: not JSON: {problem}; expected an object with a text "prompt"') from problem
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise DataError(f'{where}: expected an object with a text "prompt", got {line:.60}')
    return prompt


def sampling_of(temperature: float, top_p: float, top_k: int | None, min_p: float) -> Sampling | None:
    """How to draw; None, the likeliest token, at temperature 0.

    Raises:
        UsageError: a number outside its range, or one that temperature 0 leaves idle.
    """
    if temperature > 0:
        return Sampling(temperature, top_p, top_k, min_p)
    if temperature < 0:
        raise UsageError(f"--temperature must be at least 0, got {temperature}")
    if top_p != 1 or top_k is not None or min_p != 0:
        raise UsageError(
            "--top-p, --top-k and --min-p do nothing at temperature 0: leave them out, or give --temperature"
        )
    return None
