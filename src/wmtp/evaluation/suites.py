"""What a model's heads know, how surprised it is, and how fast it writes: figures that need no tests to be run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.batches import collate
from wmtp.data.records import Record
from wmtp.data.text import Row, bos, encode, render
from wmtp.decoding import Generation, context_of, generate
from wmtp.errors import UsageError
from wmtp.evaluation.token_classes import CLASSES, token_classes
from wmtp.model import MTPModel
from wmtp.statistics import bootstrap
from wmtp.targets import IGNORE, future_targets

POSITIONS = (0, 16, 64, 256, 1024)
"""Where the buckets of positions in a response begin."""
BUCKETS = ("0-15", "16-63", "64-255", "256-1023", "1024+")
BATCH_TOKENS = 8192
CHUNK_ROWS = 512


@dataclass(frozen=True)
class Corpus:
    """Records as a model reads them."""

    rows: tuple[Row, ...]
    class_T: tuple[NDArray[np.int64], ...]
    """Per row and token, an index of `CLASSES`; -1 before the response."""
    response_bytes: int
    """Of what the rows have of the responses."""
    pad_id: int

    @classmethod
    def of(cls, records: Sequence[Record], tokenizer: Any, template: str, max_length: int) -> Corpus:
        """Encoded as training encodes them; rows that are too long are cut.

        Raises:
            DataError: as `wmtp.data.text.encode`.
        """
        rows, _ = encode(records, tokenizer, template=template, max_length=max_length)
        read = [_read(record, row, tokenizer, template) for record, row in zip(records, rows, strict=True)]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return cls(tuple(rows), tuple(class_T for class_T, _ in read), sum(size for _, size in read), pad)


def _read(record: Record, row: Row, tokenizer: Any, template: str) -> tuple[NDArray[np.int64], int]:
    """The classes of a row's tokens, and the bytes that it has of the response.

    What a chat template puts around an answer is `other`, and no byte.
    """
    prompt, answer = render(record, tokenizer, template)
    response = record.response if record.response in answer else record.response.strip()
    start = len(prompt) + answer.index(response)
    offsets = tokenizer(prompt + answer, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    spans = [(begin - start, end - start) for begin, end in offsets]
    ids = [CLASSES.index(name) for name in token_classes(response, spans)]
    before = len(bos(tokenizer))
    class_T = np.array([*([-1] * before), *ids, CLASSES.index("end")][: len(row.tokens)])
    class_T[: row.response_start] = -1
    kept = spans[: len(row.tokens) - before]
    is_whole = len(row.tokens) == before + len(spans) + 1
    return class_T, len((response if is_whole else response[: max(kept[-1][1], 0)]).encode())


def heads(model: MTPModel, corpus: Corpus) -> dict[str, Any]:
    """Accuracy, perplexity and confidence of every head, over all, by position in the response and by token class.

    The position is that of the predicted token. Confidence is the mean of the largest probability: above the accuracy,
    a head is too sure of itself. A tie is correct, as in training.
    """
    found = [_Table() for _ in range(model.num_heads)]
    for k, scored in _scores(model, corpus):
        found[k].add(scored)
    return {"rows": len(corpus.rows), "heads": [{"head": k + 1, **table.figures()} for k, table in enumerate(found)]}


def perplexity(model: MTPModel, corpus: Corpus) -> dict[str, Any]:
    """exp of the mean nll of response tokens under head 1, with a bootstrap interval over rows, and bits per byte.

    Perplexities of models with different tokenizers cannot be compared; bits per byte can. The end of a response is a
    token, but no byte; of a row that is cut, the bytes count that are left.
    """
    nll_R, count_R = np.zeros(len(corpus.rows)), np.zeros(len(corpus.rows))
    for _, scored in _scores(model, corpus, num_heads=1):
        np.add.at(nll_R, scored.row, scored.nll)
        np.add.at(count_R, scored.row, 1.0)
    used = count_R > 0
    mean = bootstrap(nll_R[used], count_R[used])
    return {
        "rows": len(corpus.rows),
        "tokens": int(count_R.sum()),
        "nll": mean.mean,
        "perplexity": {"mean": math.exp(mean.mean), "low": math.exp(mean.low), "high": math.exp(mean.high)},
        "bits_per_byte": float(nll_R.sum()) / math.log(2) / corpus.response_bytes,
    }


def speed(
    model: MTPModel,
    prompts: Sequence[Sequence[int]],
    *,
    batches: Sequence[int],
    lengths: Sequence[int],
    new_tokens: int,
    rounds: int = 3,
) -> list[dict[str, Any]]:
    """Tokens per second of plain and self-speculative greedy decoding, for each batch size and prompt length.

    Both in turn, `rounds` times after a first one that does not count. Ends of text are passed over, so that both write
    `new_tokens` in every row. Prompts of a length are cut from the given ones put one after another.

    Raises:
        UsageError: no prompt, or no room in the model's context for it and what is to be written.
    """
    if not any(prompts):
        raise UsageError("speed needs at least one prompt with a token in it; give other --data")
    context = context_of(model)
    if context is not None and max(lengths) + new_tokens > context:
        raise UsageError(
            f"speed writes {new_tokens} tokens after prompts of {max(lengths):,}, which the model's context of "
            f"{context:,} does not hold: give --lengths of at most {context - new_tokens:,}"
        )
    rows = []
    for length in lengths:
        for size in batches:
            endless = cycle(chain.from_iterable(prompts))
            given = [list(islice(endless, length)) for _ in range(size)]
            rows.append({"batch": size, "prompt_tokens": length, **_timed(model, given, new_tokens, rounds)})
    return rows


def _timed(model: MTPModel, given: list[list[int]], new_tokens: int, rounds: int) -> dict[str, Any]:
    modes: tuple[str, ...] = ("plain", "speculative") if model.num_heads > 1 else ("plain",)
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    last: dict[str, Generation] = {}
    for _ in range(rounds + 1):
        for mode in modes:
            start = time.perf_counter()
            last[mode] = generate(model, given, new_tokens, mode, eos=())
            seconds[mode].append(time.perf_counter() - start)
    total = len(given) * new_tokens
    figures: dict[str, Any] = {
        f"{mode}_tokens_per_s": total / statistics.median(times[1:]) for mode, times in seconds.items()
    }
    if len(modes) == 2:
        ratios = [plain / fast for plain, fast in zip(seconds["plain"][1:], seconds["speculative"][1:], strict=True)]
        figures |= {
            "speedup": statistics.median(ratios),
            "speedup_lowest": min(ratios),
            "speedup_highest": max(ratios),
            "tokens_per_forward": last["speculative"].tokens_per_forward,
            "acceptance": [None if math.isnan(share) else share for share in last["speculative"].acceptance],
            "same_tokens": last["plain"].tokens == last["speculative"].tokens,
        }
    return figures


# --- One visit to all predictions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scored:
    """Some predictions of one head; arrays of one length."""

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    """Of the predicted token in its response."""
    kind: NDArray[np.int64]
    nll: NDArray[np.float64]
    correct: NDArray[np.float64]
    confidence: NDArray[np.float64]


@torch.no_grad()
def _scores(model: MTPModel, corpus: Corpus, num_heads: int | None = None) -> Iterator[tuple[int, _Scored]]:
    """Every prediction of the first `num_heads` heads, with the head's number from 0."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        for chosen in _batches(corpus.rows):
            batch = collate(corpus.rows, chosen, corpus.pad_id)
            trunk = model.trunk(batch.tokens_BT.to(device))
            count = num_heads or model.num_heads
            target_BTK = future_targets(batch.tokens_BT, batch.trainable_BT, None, count)
            for k, hidden_BTD in enumerate(islice(model.each_head(trunk), count)):
                for scored in _chunks(model, corpus, chosen, hidden_BTD, target_BTK[:, :, k], k + 1):
                    yield k, scored
    finally:
        model.train(was_training)


def _batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Rows of similar length, at most `BATCH_TOKENS` positions together."""
    group: list[int] = []
    for row in sorted(range(len(rows)), key=lambda at: len(rows[at].tokens)):
        if group and (len(group) + 1) * len(rows[row].tokens) > BATCH_TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _chunks(
    model: MTPModel, corpus: Corpus, chosen: Sequence[int], hidden_BTD: Tensor, target_BT: Tensor, ahead: int
) -> Iterator[_Scored]:
    place_N, time_N = torch.nonzero(target_BT != IGNORE, as_tuple=True)
    device = hidden_BTD.device
    target_N, hidden_ND = target_BT[place_N, time_N], hidden_BTD[place_N.to(device), time_N.to(device)]

    for start in range(0, len(target_N), CHUNK_ROWS):
        part = torch.arange(start, min(start + CHUNK_ROWS, len(target_N)))
        logits_NV = model.project(hidden_ND[part.to(device)]).float().cpu()
        normal_N, most_N = logits_NV.logsumexp(-1), logits_NV.amax(-1)
        at_target_N = logits_NV.gather(-1, target_N[part, None]).squeeze(-1)
        row_N = np.array([chosen[b] for b in place_N[part].tolist()], dtype=np.int64)
        token_N = time_N[part].numpy() + ahead
        yield _Scored(
            row_N,
            token_N - np.array([corpus.rows[row].response_start for row in row_N], dtype=np.int64),
            np.array([corpus.class_T[row][t] for row, t in zip(row_N, token_N, strict=True)], dtype=np.int64),
            (normal_N - at_target_N).double().numpy(),
            (at_target_N >= most_N).double().numpy(),
            (most_N - normal_N).exp().double().numpy(),
        )


class _Table:
    """Sums of one head's predictions, over all and by group."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], NDArray[np.float64]] = {}

    def add(self, scored: _Scored) -> None:
        """Take in some predictions."""
        values_N4 = np.stack([np.ones_like(scored.nll), scored.nll, scored.correct, scored.confidence], 1)
        bucket_N = np.searchsorted(POSITIONS, scored.position, side="right") - 1
        self._into("all", ["all"], np.zeros_like(bucket_N), values_N4)
        self._into("by_position", BUCKETS, bucket_N, values_N4)
        self._into("by_class", CLASSES, scored.kind, values_N4)

    def _into(
        self, group: str, names: Sequence[str], which_N: NDArray[np.int64], values_N4: NDArray[np.float64]
    ) -> None:
        for at in np.unique(which_N):
            key = (group, names[at])
            self._sums[key] = self._sums.get(key, np.zeros(4)) + values_N4[which_N == at].sum(0)

    def figures(self) -> dict[str, Any]:
        """The figures over all, then by position and by class, where there is any token."""
        if not self._sums:
            return {"tokens": 0, "by_position": {}, "by_class": {}}
        return _means(self._sums["all", "all"]) | {
            group: {name: _means(self._sums[group, name]) for name in order if (group, name) in self._sums}
            for group, order in (("by_position", BUCKETS), ("by_class", CLASSES))
        }


def _means(sums: NDArray[np.float64]) -> dict[str, Any]:
    count, nll, correct, confidence = sums.tolist()
    return {
        "tokens": int(count),
        "accuracy": correct / count,
        "nll": nll / count,
        "perplexity": math.exp(nll / count),
        "confidence": confidence / count,
    }
