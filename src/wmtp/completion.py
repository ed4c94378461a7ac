"""From a model folder and texts to texts: what `wmtp generate` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wmtp import devices
from wmtp.data.records import BadRow, conversation
from wmtp.data.text import chat_prompt, check_template, has_chat_template, prompt_ids
from wmtp.decoding import Generation, Sampling, StopStrings, generate_many
from wmtp.errors import DataError, UsageError
from wmtp.formats.hf import load_tokenizer
from wmtp.formats.native import load_model
from wmtp.runfolder import DEFAULT_TEMPLATE, template_of
from wmtp.storage import Place

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Prompt:
    """What a model is asked."""

    text: str
    messages: tuple[Mapping[str, str], ...] = ()
    """A conversation, in whose place `text` is its last message."""


@dataclass(frozen=True)
class Completion:
    """What a model says after a prompt."""

    prompt: str
    asked: str
    """The prompt as the model read it, in its template."""
    text: str
    """Special tokens left out, up to the first stop string."""
    generation: Generation


def complete(
    model: str,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    mode: str,
    sampling: Sampling | None,
    seed: int,
    stop: Sequence[str],
    template: str | None,
    device: str,
    tell: Callable[[str], None],
) -> Iterator[Completion]:
    """One completion per prompt, in their order.

    Conversations are put into the tokenizer's chat template, other prompts into `template`, as training does.

    Args:
        model: a model folder or hub id; heads are added to a plain model (copies of its last layer, which draft badly).
        template: None takes that of the model's run, and of a model that lies in none the default.
        tell: is told what prompts are put into.

    Raises:
        UsageError: what cannot be loaded or continued; before the first completion.
        DataError: the chat template refuses a conversation.
    """
    if device not in DEVICES:
        raise UsageError(f"--device must be one of {', '.join(DEVICES)}; got {device!r}")
    if template is not None:
        check_template(template, where="--template")
    tokenizer = load_tokenizer(model)
    texts = _asked(model, prompts, tokenizer, template, tell)
    loaded = load_model(model).to(devices.pick(device))
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
        Completion(prompt.text, text, stopping.text(generation.tokens[0]), generation)
        for prompt, text, generation in zip(prompts, texts, generations, strict=True)
    )


def _asked(
    model: str, prompts: Sequence[Prompt], tokenizer: Any, template: str | None, tell: Callable[[str], None]
) -> list[str]:
    """Prompts as the model reads them."""
    chat, talks = has_chat_template(tokenizer), [bool(prompt.messages) for prompt in prompts]
    if any(talks) and not chat:
        raise UsageError(
            f"the tokenizer of {model} has no chat template for conversations: leave out --chat, and give texts as "
            '"prompt"; --template says what is put around them'
        )
    if any(talks):
        tell("conversations are put into the tokenizer's chat template")
    around = ""
    if not all(talks):
        around, whose = _template(model, template)
        hint = "; --chat takes the tokenizer's chat template instead" if chat else ""
        tell(f"prompts are put into {around!r}, {whose}{hint}")
    return [
        chat_prompt(prompt.messages, tokenizer, f"prompt {number}")
        if prompt.messages
        else around.format(prompt=prompt.text)
        for number, prompt in enumerate(prompts)
    ]


def _template(model: str, given: str | None) -> tuple[str, str]:
    """The template of prompts that are no conversation, and whose it is."""
    if given is not None:
        return given, "as --template says"
    found = template_of(model)
    return (DEFAULT_TEMPLATE, "the default") if found is None else (found, "as in the model's run")


def as_document(completions: Sequence[Completion]) -> dict[str, Any]:
    """Texts and figures as JSON knows them."""
    total = Generation(tuple(row for completion in completions for row in completion.generation.rows))
    rows = [(c, c.generation.rows[0]) for c in completions]
    return {
        "completions": [
            {"prompt": c.prompt, "asked": c.asked, "text": c.text}
            | {"tokens": len(row.tokens), "forwards": row.forwards, "finish": row.finish}
            for c, row in rows
        ],
        "tokens_per_forward": total.tokens_per_forward,
        "drafted": list(total.drafted),
        "accepted": list(total.accepted),
        "acceptance": list(total.acceptance),
    }


def said(text: str) -> Prompt:
    """A text as what a user says in a conversation of one message."""
    return Prompt(text, ({"role": "user", "content": text},))


def read_prompts(path: Place) -> list[Prompt]:
    """The `messages`, or else the `prompt`, of every line of a JSON Lines file; other fields are left alone.

    Raises:
        DataError: the file cannot be read, a line is no object with one of them (named), or there is none.
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


def _prompt(line: str, where: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except ValueError as problem:
        raise DataError(f'{where}: not JSON: {problem}; expected an object with a text "prompt"') from problem
    if isinstance(row, dict) and row.get("messages"):
        try:
            messages = conversation(row["messages"], "messages")
        except BadRow as problem:
            raise DataError(f"{where}: {problem}; mend the row") from problem
        return Prompt(messages[-1]["content"], messages)
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise DataError(f'{where}: expected an object with a text "prompt", or with "messages", got {line:.60}')
    return Prompt(prompt)


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
