"""Continuing prompts: one batch, or as many prompts as there are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wmtp.decoding.batch import Finish, Options, Row, decode_batch
from wmtp.decoding.sampling import Sampling
from wmtp.decoding.stopping import Stop
from wmtp.decoding.trunk import check_cached
from wmtp.errors import UsageError
from wmtp.model import MTPModel

MODES = ("speculative", "plain")

SORTED_TOGETHER = 16
"""Batches whose prompts are sorted by length together; results wait for the slowest of them."""


@dataclass(frozen=True)
class Continuation:
    """The new tokens of one row."""

    tokens: list[int]
    """They end with EOS where `finish` is `eos`, with the token that completes the stop string where it is `stop`."""
    finish: Finish
    """`eos`, `stop`, `length` (`max_new_tokens` reached) or `context` (the model's context is full)."""
    forwards: int
    """Forwards of the trunk the row took part in, the prompt's included; plain decoding takes one per token."""
    drafted: tuple[int, ...]
    """`[K - 1]`: how often a token was drafted for each place after the next."""
    accepted: tuple[int, ...]
    """`[K - 1]`: how often it was accepted, it and all before it."""


@dataclass(frozen=True)
class Generation:
    """Rows that were asked for together."""

    rows: tuple[Continuation, ...]

    @property
    def tokens(self) -> list[list[int]]:
        """New tokens of each row."""
        return [row.tokens for row in self.rows]

    @property
    def forwards(self) -> int:
        """Forwards that the longest-running row took part in."""
        return max(row.forwards for row in self.rows)

    @property
    def drafted(self) -> tuple[int, ...]:
        """`[K - 1]`, over the rows."""
        return tuple(map(sum, zip(*(row.drafted for row in self.rows), strict=True)))

    @property
    def accepted(self) -> tuple[int, ...]:
        """`[K - 1]`, over the rows."""
        return tuple(map(sum, zip(*(row.accepted for row in self.rows), strict=True)))

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Accepted share of what was drafted for each place; NaN where nothing was."""
        return tuple(a / d if d else float("nan") for a, d in zip(self.accepted, self.drafted, strict=True))

    @property
    def tokens_per_forward(self) -> float:
        """New tokens of a row per forward it took part in; 1 for plain decoding."""
        return sum(len(row.tokens) for row in self.rows) / sum(row.forwards for row in self.rows)


def generate(
    model: MTPModel,
    tokens: Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int,
    mode: str = "speculative",
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    eos: Collection[int] | None = None,
    stop: Stop | None = None,
    draft_length: int | None = None,
) -> Generation:
    """Continue a batch of prompts.

    Both modes give the same: the same tokens where `sampling` is None (in fp32 up to ties within rounding), the same
    distribution otherwise (docs/math.md (6)). A row's tokens do not depend on the rows beside it.
    Several threads may ask one model: they take turns, batch by batch.

    Args:
        tokens: prompts as ids, of any lengths; or `[B, T]`.
        sampling: None takes the likeliest token.
        seed: row r draws from the numbers of (seed, r).
        eos: ids that end a row; None takes the model's own, `()` none.
        stop: ends rows on their text, see `StopStrings`.
        draft_length: tokens to draft each time, at most K - 1; None adapts it to what is accepted, and
            for rows that draw supposes a large batch: a few of them gain from a number.

    Raises:
        UsageError: no prompt, an empty one, one that fills the model's context, ids it does not have, a number or mode
            that makes no sense.
        ModelError: an architecture whose caches or masks WMTP does not understand.
    """
    prompts: list[list[int]] = tokens.tolist() if isinstance(tokens, Tensor) else [list(prompt) for prompt in tokens]
    if not prompts:
        raise UsageError("there is no prompt to continue; give at least one")
    options = _options(model, max_new_tokens, mode, sampling, seed, eos, stop, draft_length)
    _check_prompts(model, prompts, options.context)
    check_cached(model)
    rows = decode_batch(model, prompts, [(i, i, 0) for i in range(len(prompts))], options)
    return Generation(tuple(map(_continuation, rows)))


def generate_many(
    model: MTPModel,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    max_new_tokens: int,
    mode: str = "speculative",
    sampling: Sampling | None = None,
    seed: int = 0,
    eos: Collection[int] | None = None,
    stop: Stop | None = None,
    batch_rows: int = 16,
    first: int = 0,
    names: Sequence[int] | None = None,
) -> Iterator[Generation]:
    """Continue any number of prompts, `samples` times each: one `Generation` per prompt, in the order of `prompts`.

    Prompts of similar length share a batch, and samples of a prompt share its first forward. Row s of prompt i draws
    from the numbers of (seed, i, s), however the batches are made. Bad input is told before the first result.

    Args:
        samples: rows of each prompt; more than 1 needs `sampling`.
        batch_rows: most rows of a batch.
        first: prompts before it are passed over, to go on where an earlier call was interrupted.
        names: numbers that take the place of i in the names of random numbers, one for each prompt.

    The other arguments and errors are those of `generate`.
    """
    if samples < 1 or batch_rows < 1:
        raise UsageError(f"samples and batch_rows must be at least 1, got {samples} and {batch_rows}")
    if samples > 1 and sampling is None:
        raise UsageError(f"{samples} samples without sampling would all be the same: give sampling, or ask for one")
    options = _options(model, max_new_tokens, mode, sampling, seed, eos, stop, None)
    _check_prompts(model, prompts, options.context)
    check_cached(model)
    return _many(model, prompts, samples, batch_rows, first, range(len(prompts)) if names is None else names, options)


def _many(
    model: MTPModel,
    prompts: Sequence[Sequence[int]],
    samples: int,
    batch_rows: int,
    first: int,
    names: Sequence[int],
    options: Options,
) -> Iterator[Generation]:
    together = max(1, SORTED_TOGETHER * batch_rows // samples)
    for start in range(first, len(prompts), together):
        window = range(start, min(start + together, len(prompts)))
        ordered = sorted(window, key=lambda i: len(prompts[i]))
        wanted = [(i, sample) for i in ordered for sample in range(samples)]
        done: dict[tuple[int, int], Continuation] = {}
        for at in range(0, len(wanted), batch_rows):
            batch = wanted[at : at + batch_rows]
            distinct = sorted({i for i, _ in batch}, key=ordered.index)
            members = [(distinct.index(i), names[i], sample) for i, sample in batch]
            rows = decode_batch(model, [prompts[i] for i in distinct], members, options)
            done |= dict(zip(batch, map(_continuation, rows), strict=True))
        for i in window:
            yield Generation(tuple(done[i, sample] for sample in range(samples)))


def _continuation(row: Row) -> Continuation:
    assert row.finish is not None, "decoding ends when every row has"
    return Continuation(row.tokens, row.finish, row.forwards, tuple(row.drafted), tuple(row.accepted))


def _options(
    model: MTPModel,
    max_new_tokens: int,
    mode: str,
    sampling: Sampling | None,
    seed: int,
    eos: Collection[int] | None,
    stop: Stop | None,
    draft_length: int | None,
) -> Options:
    """The checked options of both functions."""
    if mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if seed < 0:
        raise UsageError(f"seed must be at least 0, got {seed}")
    longest = model.num_heads - 1 if mode == "speculative" else 0
    if draft_length is not None and not 0 <= draft_length <= longest:
        raise UsageError(f"draft_length must be between 0 and {longest} (K - 1; 0 in plain mode), got {draft_length}")
    return Options(
        max_new_tokens=max_new_tokens,
        longest_draft=longest if draft_length is None else draft_length,
        adaptive=draft_length is None,
        sampling=sampling,
        seed=seed,
        eos=frozenset(eos_of(model) if eos is None else eos),
        stop=stop,
        context=context_of(model),
    )


def eos_of(model: MTPModel) -> list[int]:
    """Ids that end a text, as transformers' own `generate` takes them: from the generation config, else the config."""
    for config in (getattr(model.base, "generation_config", None), model.base.config):
        ids: Any = getattr(config, "eos_token_id", None)
        if ids is not None:
            return list(ids) if isinstance(ids, (list, tuple)) else [ids]
    return []


def context_of(model: MTPModel) -> int | None:
    """Positions that the model knows; None if its config does not say."""
    context: int | None = getattr(model.base.config.get_text_config(), "max_position_embeddings", None)
    return context


def _check_prompts(model: MTPModel, prompts: Sequence[Sequence[int]], context: int | None) -> None:
    vocabulary = model.unembedding().projection_VD.shape[0]
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise UsageError(f"prompt {i} has no token: give it at least one (BOS, say)")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            raise UsageError(
                f"prompt {i} has the id {wrong}, the model knows 0 to {vocabulary - 1}: use its own tokenizer"
            )
        if context is not None and len(prompt) >= context:
            raise UsageError(
                f"prompt {i} has {len(prompt):,} tokens, the model's context is {context:,}: no room for a new token; "
                "give a shorter one"
            )
