"""Decoding with drafts gives what decoding without them gives, in every architecture that the tests know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.bench.trees import forwards, one_path, ranks_of
from wmtp.decoding import Generation, Sampling, StopStrings, compile_layers, generate, generate_many
from wmtp.decoding import batch as loop
from wmtp.decoding import sampling as rules
from wmtp.decoding.cost import FLAT, Cost, drafting_cost, weights_of
from wmtp.decoding.drafting import ParallelDrafter, drafter_of
from wmtp.decoding.pace import Adaptive
from wmtp.decoding.slots import SlotLayer
from wmtp.decoding.trunk import CachedTrunk
from wmtp.families import FAMILIES as HEADS
from wmtp.model import MTPModel
from wmtp.objective import MTPObjective
from wmtp.step import train_step
from wmtp.testing import EOS, FAMILIES, random_batch, tiny_base, tiny_model, tiny_tokenizer
from wmtp.weighting import Uniform

every_family = pytest.mark.parametrize("family", FAMILIES)
NEVER: tuple[int, ...] = ()
Learnt = dict[str, tuple[MTPModel, list[list[int]]]]


def prompts_of(count: int, seed: int = 0, longest: int = 14, vocabulary: int = 64) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens; the sliding windows of the tests' families are shorter."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=random).tolist()
    return [torch.randint(EOS + 1, vocabulary, (n,), generator=random).tolist() for n in lengths]


def of_transformers(family: str, prompts: Sequence[Sequence[int]], count: int, eos: int | None = None) -> list[Any]:
    """What transformers' own `generate` adds to each prompt by itself."""
    base = tiny_base(family).eval()
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    return [base.generate(torch.tensor([p]), **options)[0, len(p) :].tolist() for p in prompts]


STEPS = {"parallel": 24, "linear": 60, "chain": 32}
"""Until heads of a family know the rows."""


def learn(heads: str) -> tuple[MTPModel, list[list[int]]]:
    """A model that knows eight rows by heart, and the beginnings of these rows."""
    model, batch = tiny_model("llama", 4, heads=heads), random_batch(8, 40, seed=3)
    batch.trainable_BT[:, 1:] |= batch.tokens_BT[:, 1:] > EOS
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS[heads]):
        train_step(model, optimizer, MTPObjective(Uniform()), [batch])
    return model, [row[: 3 + i % 3].tolist() for i, row in enumerate(batch.tokens_BT)]


@pytest.fixture(scope="module")
def learnt() -> tuple[MTPModel, list[list[int]]]:
    """With parallel heads."""
    return learn("parallel")


@pytest.fixture(scope="module")
def all_learnt(learnt: tuple[MTPModel, list[list[int]]]) -> dict[str, tuple[MTPModel, list[list[int]]]]:
    """With heads of each family."""
    return {"parallel": learnt, "linear": learn("linear"), "chain": learn("chain")}


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts that cost as little as in a model of many layers, so that those of three layers are drafted for too."""
    monkeypatch.setattr(Cost, "of", lambda self, length, rows: 1 + 0.005 * length * rows)


drafting = pytest.mark.usefixtures("cheap")


# Greedy.


every_heads = pytest.mark.parametrize("heads", HEADS)


SOME = ("llama", "gemma3", "gpt2")
"""Architectures that heads of other families are always decoded with; the rest in the exhaustive run."""


@drafting
@pytest.mark.parametrize(
    ("family", "heads", "noise"),
    [
        *((family, "parallel", noise) for family in FAMILIES for noise in (0.0, 0.02)),
        *(
            pytest.param(family, heads, 0.02, marks=[] if family in SOME else pytest.mark.exhaustive)
            for family in FAMILIES
            for heads in ("linear", "chain")
        ),
    ],
)
def test_greedy_with_drafts_is_greedy_without_and_that_of_transformers(family: str, heads: str, noise: float) -> None:
    prompts = prompts_of(8)
    model = tiny_model(family, 4, heads=heads, noise=noise)
    plain = generate(model, prompts, 16, "plain", eos=NEVER)
    if noise == 0:
        assert plain.tokens[:4] == of_transformers(family, prompts[:4], 16)
    for length in (None, 3):
        drafted = generate(model, prompts, 16, eos=NEVER, draft_length=length)
        assert drafted.tokens == plain.tokens
    assert sum(drafted.drafted) > 0
    for prompt, expected in zip(prompts[:2], plain.tokens, strict=False):
        assert generate(model, [prompt], 16, eos=NEVER, draft_length=2).tokens == [expected]


@drafting
@pytest.mark.parametrize(
    ("heads", "num_heads"), [*(("parallel", n) for n in (1, 2, 3, 4)), ("linear", 2), ("chain", 2), ("chain", 5)]
)
def test_any_number_of_heads_gives_the_same(heads: str, num_heads: int) -> None:
    prompts = prompts_of(4, seed=num_heads)
    got = generate(tiny_model("llama", num_heads, heads=heads, noise=0.02), prompts, 16, eos=NEVER)
    assert got.tokens == of_transformers("llama", prompts, 16)
    assert len(got.accepted) == num_heads - 1


@every_heads
def test_heads_that_know_the_text_take_several_tokens_a_forward(heads: str, all_learnt: Learnt) -> None:
    model, prompts = all_learnt[heads]
    plain = generate(model, prompts, 30, "plain")
    drafted = generate(model, prompts, 30, draft_length=3)
    assert drafted.tokens == plain.tokens
    assert drafted.tokens_per_forward > 2
    assert plain.tokens_per_forward == 1
    assert drafted.accepted[0] > drafted.accepted[2] > 0


@every_heads
def test_rows_of_a_batch_accept_differently_and_each_gets_its_own(heads: str, all_learnt: Learnt) -> None:
    model, known = all_learnt[heads]
    prompts = [prompt for pair in zip(known, prompts_of(8, seed=5), strict=True) for prompt in pair]
    together = generate(model, prompts, 25, draft_length=3)
    assert len({row.forwards for row in together.rows}) > 3
    for prompt, row in zip(prompts, together.rows, strict=True):
        assert generate(model, [prompt], 25, "plain").tokens == [row.tokens]


@drafting
@pytest.mark.parametrize("count", [24, pytest.param(504, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("state", ["untrained", "trained"])
@every_heads
def test_greedy_is_greedy_on_many_prompts(heads: str, state: str, count: int, all_learnt: Learnt) -> None:
    untrained = tiny_model("llama", 4, heads=heads, noise=0.02)
    model, known = all_learnt[heads] if state == "trained" else (untrained, [])
    prompts = [*known, *prompts_of(504 - len(known), seed=11, longest=8)][:count]
    plain, eight, one = (
        list(generate_many(model, prompts, max_new_tokens=8, mode=mode, eos=NEVER, batch_rows=rows))
        for mode, rows in (("plain", 64), ("speculative", 8), ("speculative", 1))
    )
    assert [g.tokens for g in eight] == [g.tokens for g in plain]
    assert [g.tokens for g in one] == [g.tokens for g in plain]
    assert sum(sum(g.drafted) for g in one) >= count


# Sampling.


def exact(model: MTPModel, prompt: Sequence[int], length: int, sampling: Sampling) -> Tensor:
    """Probability of every continuation of `length` tokens, in the order of `product`, from forwards without caches."""
    vocabulary = model.base.config.vocab_size
    every = torch.tensor(list(product(range(vocabulary), repeat=length)))
    tokens = torch.cat([torch.tensor([prompt]).expand(len(every), -1), every], 1)
    with torch.no_grad():
        logits = model.project(model(tokens)[0])[:, len(prompt) - 1 : -1]
    each: Tensor = sampling.probabilities(logits).double().gather(-1, every[..., None])[..., 0]
    return each.prod(1)


def chi_square(generation: Generation, expected: Tensor, vocabulary: int) -> float:
    """Pearson's statistic in standard deviations above its mean; cells that expect fewer than 5 are one cell."""
    length = len(generation.tokens[0])
    place = torch.tensor([vocabulary**i for i in reversed(range(length))])
    count = torch.bincount((torch.tensor(generation.tokens) * place).sum(1), minlength=len(expected)).double()
    assert not count[expected == 0].any(), "a continuation that cannot be drawn was drawn"
    want = expected * count.sum()
    small = want < 5
    count, want = (torch.cat([x[~small], x[small].sum()[None]]) for x in (count, want))
    count, want = count[want > 0], want[want > 0]
    freedom = len(want) - 1
    return float(((count - want) ** 2 / want).sum() - freedom) / (2 * freedom) ** 0.5


SAMPLINGS = {
    "plain": Sampling(),
    "sharp": Sampling(temperature=0.7, top_p=0.9),
    "cut": Sampling(temperature=1.5, top_k=3, min_p=0.1),
}
DRAWS = 20_000


def draws(
    sampling: Sampling, mode: str, length: int, count: int = DRAWS, heads: str = "parallel"
) -> tuple[Generation, Tensor]:
    """As many continuations of one prompt, with as many drafts as there may be, and the probability of each that is
    possible; mode `adaptive` lets each row choose how many drafts."""
    model = tiny_model("llama", 4, heads=heads, noise=0.05, vocab_size=4)
    prompt, options = [1, 3, 0, 2, 1], {"sampling": sampling, "eos": NEVER}
    if mode == "adaptive":
        (generation,) = generate_many(
            model, [prompt], samples=count, max_new_tokens=length, batch_rows=count, **options
        )
    else:
        drafts = 3 if mode == "speculative" else 0
        generation = generate(model, [prompt] * count, length, mode, draft_length=drafts, **options)
    return generation, exact(model, prompt, length, sampling)


@drafting
@pytest.mark.parametrize(
    ("mode", "name", "heads"),
    [
        ("plain", "sharp", "parallel"),
        ("speculative", "plain", "parallel"),
        ("speculative", "cut", "chain"),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in product(["speculative", "adaptive"], SAMPLINGS, HEADS)
            if case not in [("speculative", "plain", "parallel"), ("speculative", "cut", "chain")]
        ),
    ],
)
def test_every_continuation_is_drawn_as_often_as_the_model_says(mode: str, name: str, heads: str) -> None:
    generation, expected = draws(SAMPLINGS[name], mode, 4, heads=heads)
    assert len(generation.rows) == DRAWS
    assert abs(chi_square(generation, expected, 4)) < 4
    if mode != "plain":
        assert 0.1 < generation.acceptance[0] < 0.95
    if mode == "speculative":
        assert generation.accepted[1] > 0


def test_rows_that_choose_how_many_drafts_draw_as_often_as_the_model_says(cheap: None) -> None:
    generation, expected = draws(SAMPLINGS["plain"], "adaptive", 4, count=4000)
    assert sum(generation.drafted) > 4000
    assert abs(chi_square(generation, expected, 4)) < 4


def test_the_statistic_notices_drafts_that_are_accepted_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "leading", lambda accepted_BJ: torch.full((len(accepted_BJ),), accepted_BJ.shape[1]))
    generation, expected = draws(Sampling(), "speculative", 4, count=4000)
    assert chi_square(generation, expected, 4) > 8


@drafting
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, top_p=0.95)])
@pytest.mark.parametrize(
    ("mode", "heads"),
    [("plain", "parallel"), ("speculative", "parallel"), ("speculative", "chain")],
)
def test_a_row_does_not_depend_on_its_batch_mates(sampling: Sampling | None, mode: str, heads: str) -> None:
    model, prompts = tiny_model("gemma3", 4, heads=heads, noise=0.02), prompts_of(6, seed=8)
    options: dict[str, Any] = {"mode": mode, "sampling": sampling, "eos": NEVER}
    together = generate(model, prompts, 24, **options)
    assert generate(model, prompts[:2], 24, **options).tokens == together.tokens[:2]
    other = [prompts[0], *prompts_of(9, seed=9, longest=30)]
    assert generate(model, other, 24, **options).tokens[0] == together.tokens[0]


def test_threads_that_ask_one_model_each_get_what_they_would_get_alone(all_learnt: Learnt) -> None:
    model, known = all_learnt["chain"]
    asked = [(known[i : i + 4], 10 + i, Sampling() if i % 2 else None) for i in range(4)]

    def answer(asked: tuple[list[list[int]], int, Sampling | None]) -> list[list[int]]:
        prompts, count, sampling = asked
        return generate(model, prompts, count, sampling=sampling, eos=NEVER, draft_length=3).tokens

    alone = [answer(each) for each in asked]
    model.train()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(answer, asked * 3)) == alone * 3
    assert model.training
    assert model.base.config._attn_implementation == "sdpa"


def test_seeds_rows_and_samples_draw_differently_and_the_same_seed_the_same() -> None:
    model, prompt = tiny_model("llama", 3), [5, 6, 7]
    options: dict[str, Any] = {"max_new_tokens": 12, "sampling": Sampling(), "eos": NEVER}
    (samples,) = generate_many(model, [prompt], samples=6, **options)
    (again,) = generate_many(model, [prompt], samples=6, **options)
    (other,) = generate_many(model, [prompt], samples=6, seed=1, **options)
    assert again.tokens == samples.tokens
    assert len({tuple(row) for row in samples.tokens + other.tokens}) == 12


# Many prompts.


@drafting
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("mode", "heads"),
    [("plain", "parallel"), ("speculative", "parallel"), ("speculative", "chain")],
)
def test_results_come_in_order_and_are_the_same_whatever_the_batches(samples: int, mode: str, heads: str) -> None:
    model, prompts = tiny_model("qwen3", 3, heads=heads, noise=0.02), prompts_of(7, seed=2)
    options: dict[str, Any] = {
        "samples": samples, "max_new_tokens": 9, "mode": mode, "eos": NEVER, "sampling": Sampling(temperature=0.8)
    }  # fmt: skip
    expected = [g.tokens for g in generate_many(model, prompts, batch_rows=64, **options)]
    assert [len(rows) for rows in expected] == [samples] * 7
    for batch_rows in (1, 4):
        assert [g.tokens for g in generate_many(model, prompts, batch_rows=batch_rows, **options)] == expected
    if samples == 1:
        assert generate(model, prompts, 9, mode, eos=NEVER, sampling=Sampling(temperature=0.8)).tokens == [
            rows[0] for rows in expected
        ]


@contextmanager
def recorded_forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes `[rows, width]` of the trunk's forwards."""
    shapes: list[tuple[int, ...]] = []
    run = CachedTrunk.run

    def recorded(self: CachedTrunk, tokens_BQ: Tensor, start: Sequence[int]) -> Tensor:
        shapes.append(tuple(tokens_BQ.shape))
        return run(self, tokens_BQ, start)

    with monkeypatch.context() as patch:
        patch.setattr(CachedTrunk, "run", recorded)
        yield shapes


def test_samples_of_a_prompt_share_its_first_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model("llama", 3), [[5] * 9, [6] * 7]
    list(generate_many(model, prompts, samples=4, max_new_tokens=1, sampling=Sampling()))
    with recorded_forwards(monkeypatch) as shapes:
        list(generate_many(model, prompts, samples=4, max_new_tokens=3, sampling=Sampling(), eos=NEVER))
    assert shapes[0] == (2, 9)
    assert {rows for rows, _ in shapes[1:]} == {8}


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", 2)
    prompts = prompts_of(8, seed=4)
    free = generate(model, prompts, 12, "plain", eos=NEVER)
    ends = {row[2] for row in free.tokens[:6]} - {token for row in free.tokens[6:] for token in row}
    with recorded_forwards(monkeypatch) as shapes:
        stopped = generate(model, prompts, 12, "plain", eos=ends)
    assert [row.finish for row in stopped.rows[6:]] == ["length", "length"]
    assert shapes[0][0] == 8
    assert shapes[-1][0] < 8
    for got, whole in zip(stopped.tokens, free.tokens, strict=True):
        assert got == whole[: len(got)]


# Where a row ends.


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_as_many_tokens_as_asked_for_and_no_more(count: int, learnt: tuple[MTPModel, list[list[int]]]) -> None:
    model, prompts = learnt
    plain = generate(model, prompts, count, "plain", eos=NEVER)
    drafted = generate(model, prompts, count, eos=NEVER, draft_length=3)
    assert drafted.tokens == plain.tokens
    assert {len(row) for row in drafted.tokens} == {count}
    assert {row.finish for row in drafted.rows} == {"length"}


def test_a_draft_that_runs_over_the_end_is_cut(learnt: tuple[MTPModel, list[list[int]]]) -> None:
    """Every token of the text is the EOS once, so drafts run over it at every place of a draft."""
    model, prompts = learnt
    (free,) = generate(model, prompts[:1], 16, "plain", eos=NEVER).tokens
    for eos in sorted(set(free)):
        row = generate(model, prompts[:1], 16, eos=[eos], draft_length=3).rows[0]
        assert row.tokens == free[: free.index(eos) + 1]
        assert row.finish == "eos"


def test_the_models_own_eos_is_that_of_transformers() -> None:
    model, prompts = tiny_model("llama", 3), prompts_of(60, seed=21)
    ends = generate(model, prompts, 30)
    ended = [i for i, row in enumerate(ends.rows) if row.finish == "eos"]
    assert ended
    for i in ended[:3]:
        assert of_transformers("llama", [prompts[i]], 30, eos=EOS) == [ends.tokens[i]]


def test_a_stop_string_ends_the_row_at_the_token_that_completes_it() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", 4, vocab_size=len(tokenizer))
    prompts = prompts_of(4, seed=3, vocabulary=len(tokenizer))
    for free in generate(model, prompts, 24, "plain", eos=NEVER).tokens:
        text = tokenizer.decode(free, skip_special_tokens=True)
        for start in (0, 5, 11):
            string = text[start : start + 3]
            if "\ufffd" in string or not string:
                continue
            stop = StopStrings(tokenizer, ["never", string])
            n = stop.end(free, 0)
            assert n is not None
            assert string in tokenizer.decode(free[:n], skip_special_tokens=True)
            assert string not in tokenizer.decode(free[: n - 1], skip_special_tokens=True)
            assert stop.text(free) == text[: text.index(string)]


@pytest.mark.parametrize("mode", ["plain", "speculative"])
def test_both_modes_stop_at_the_same_place(mode: str, learnt: tuple[MTPModel, list[list[int]]]) -> None:
    model, prompts = learnt

    class Third:
        """Stops at the third token, and says so late."""

        def end(self, tokens: Sequence[int], since: int) -> int | None:
            assert since < len(tokens)
            return 3 if len(tokens) >= 3 else None

    options: dict[str, Any] = {"draft_length": 3} if mode == "speculative" else {}
    got = generate(model, prompts, 20, mode, stop=Third(), eos=NEVER, **options)
    assert got.tokens == [row[:3] for row in generate(model, prompts, 20, "plain", eos=NEVER).tokens]
    assert {row.finish for row in got.rows} == {"stop"}


@pytest.mark.parametrize(("family", "heads"), [("llama", "parallel"), ("gpt2", "parallel"), ("gpt2", "chain")])
def test_a_row_ends_where_the_context_does(family: str, heads: str) -> None:
    model, context = tiny_model(family, 4, heads=heads, noise=0.02), 64
    prompts = [[5] * 60, [7] * 63, [9] * 10]
    plain = generate(model, prompts, 20, "plain", eos=NEVER)
    assert [len(row) for row in plain.tokens] == [context - 60, context - 63, 20]
    assert [row.finish for row in plain.rows] == ["context", "context", "length"]
    assert generate(model, prompts, 20, eos=NEVER, draft_length=3).tokens == plain.tokens


class Letters:
    """A tokenizer of two letters a token, which takes the space before a full stop back."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join("ab ."[token % 4] + "ab ."[token // 4 % 4] for token in tokens).replace(" .", ".")


@drafting
@given(
    heads=st.sampled_from(HEADS),
    chosen=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    others=st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=9), max_size=2),
    count=st.integers(1, 20),
    draft_length=st.sampled_from([None, 1, 2, 3]),
    eos=st.sets(st.integers(0, 63), max_size=5),
    strings=st.lists(st.text("ab .", min_size=2, max_size=4), max_size=2),
)
@settings(max_examples=20)
def test_drafts_change_how_many_forwards_a_text_takes_and_nothing_else(
    heads: str,
    chosen: list[int],
    others: list[list[int]],
    count: int,
    draft_length: int | None,
    eos: set[int],
    strings: list[str],
    all_learnt: Learnt,
) -> None:
    model, known = all_learnt[heads]
    prompts = [*(known[i] for i in chosen), *others]
    options: dict[str, Any] = {"eos": eos, "stop": StopStrings(Letters(), strings)}
    plain = generate(model, prompts, count, "plain", **options).rows
    drafted = generate(model, prompts, count, draft_length=draft_length, **options).rows
    assert [(row.tokens, row.finish) for row in drafted] == [(row.tokens, row.finish) for row in plain]
    assert all(row.forwards <= len(row.tokens) for row in drafted)


@every_heads
def test_the_forwards_of_drafts_are_those_that_are_counted_without_decoding_them(
    heads: str, all_learnt: Learnt
) -> None:
    model, known = all_learnt[heads]
    prompts = [*known, *prompts_of(4, seed=6)]
    drafted = generate(model, prompts, 25, draft_length=3)
    for prompt, row in zip(prompts, drafted.rows, strict=True):
        assert forwards(ranks_of(model, prompt, row.tokens), one_path(3)) == row.forwards


# What it costs.


def test_memory_is_reserved_once_and_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = tiny_model("llama", 3, noise=0.02), []
    reserve = SlotLayer.lazy_initialization

    def noted(self: SlotLayer, keys: Tensor, values: Tensor) -> None:
        reserve(self, keys, values)
        made.append((self, self.keys.data_ptr(), self.keys.shape))

    monkeypatch.setattr(SlotLayer, "lazy_initialization", noted)
    generate(model, [[5, 6, 7]], 40, eos=NEVER, draft_length=2)
    made = made[-5:]  # after the question that each model is asked once
    assert len({id(layer) for layer, _, _ in made}) == 3 + 2  # every layer, and heads 2 and 3
    for layer, address, shape in made:
        assert shape[2] == 3 + 40 + 1
        assert layer.keys.data_ptr() == address
        assert layer.keys.shape == shape


def test_a_forward_is_as_wide_as_the_drafts_and_each_head_runs_on_what_it_has_not_seen(
    monkeypatch: pytest.MonkeyPatch, learnt: tuple[MTPModel, list[list[int]]]
) -> None:
    model, prompts = learnt
    seen: list[int] = []
    handle = model.extra_heads[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[1]), with_kwargs=True
    )
    with recorded_forwards(monkeypatch) as shapes:
        generate(model, prompts[:1], 20, eos=NEVER, draft_length=3)
    handle.remove()
    assert shapes[0] == (1, len(prompts[0]))
    assert {width for _, width in shapes[1:-1]} == {4}
    assert seen[0] == len(prompts[0])
    assert set(seen[1:]) == {4}


class Draft:
    """A drafter, the tokens that are certain, and what it says next."""

    def __init__(self, model: MTPModel, tokens_BT: Tensor, limit: int) -> None:
        self.trunk = CachedTrunk(model, len(tokens_BT), limit, keep_output=True)
        self.drafter = drafter_of(model, self.trunk, len(tokens_BT))
        self.tokens_BT = tokens_BT

    def ask(self, length: list[int], count: int) -> tuple[Tensor, Tensor]:
        """Logits `[B, J, V]` and drafts `[B, J]`: the likeliest but one, so that drafts differ from what follows."""
        logits: list[Tensor] = []

        def choose(given: Tensor) -> Tensor:
            logits.append(given)
            return given.topk(2, dim=-1).indices[..., 1]

        certain_B = self.tokens_BT.gather(1, torch.tensor(length)[:, None])[:, 0]
        drafts_BJ = self.drafter.draft(length, certain_B, count, choose)
        return torch.cat(logits, 1), drafts_BJ


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@every_heads
def test_drafts_are_what_the_heads_say_of_all_that_is_known_and_drafted(family: str, heads: str) -> None:
    """Through rejected drafts, rows at different places, and heads that are asked now and then: each draft is that of
    a forward without caches over the row's tokens, the certain one and the drafts before it."""
    model = tiny_model(family, 4, heads=heads, noise=0.05).eval()
    tokens_BT = torch.randint(EOS + 1, 64, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        draft, length = Draft(model, tokens_BT, 40), [6, 4]
        draft.trunk.run(tokens_BT[:, :6], [0, 0])
        draft.drafter.fill(length)
        for count, accepted in [
            (3, [0, 0]),
            (3, [2, 1]),
            (0, [0, 0]),
            (0, [0, 0]),
            (1, [1, 0]),
            (3, [0, 3]),
            (2, [1, 2]),
        ]:
            drafts_BJ = torch.zeros(2, 0, dtype=torch.long)
            if count:
                logits_BJV, drafts_BJ = draft.ask(length, count)
                for b, n in enumerate(length):
                    row = torch.cat([tokens_BT[b, : n + 1], drafts_BJ[b]])[None]
                    expected = [model.project(h)[0, n - 1] for h in model(row)[1 : count + 1]]
                    torch.testing.assert_close(logits_BJV[b], torch.stack(expected), rtol=1e-4, atol=1e-4)
            certain_B1 = tokens_BT.gather(1, torch.tensor(length)[:, None])
            accepted_first = torch.cat([certain_B1, drafts_BJ], 1)
            for b, n in enumerate(length):  # the row goes on as if head 1 had agreed to so many drafts
                taken = min(accepted[b], count)
                tokens_BT[b, n + 1 : n + 1 + taken] = drafts_BJ[b, :taken]
            draft.trunk.run(accepted_first, length)
            length = [n + 1 + min(a, count) for n, a in zip(length, accepted, strict=True)]


@pytest.mark.parametrize(("rows", "count"), [(1, 256), (16, 96)])
def test_heads_that_are_always_wrong_are_left_alone(rows: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rule for what a wide forward costs, the whole stays within 15 % of plain decoding."""
    model = tiny_model("llama", 4, max_position_embeddings=512)
    with torch.no_grad():
        for head in model.extra_heads:
            head.mlp.down_proj.weight.fill_(1.0)
    with recorded_forwards(monkeypatch) as shapes:
        got = generate(model, prompts_of(rows, seed=7), count, eos=NEVER)
    assert sum(got.accepted) <= rows * count / 100  # 64 tokens: some are right by luck
    assert got.forwards == count
    cost = drafting_cost(weights_of(model), ParallelDrafter.passes, 3, FLAT["cpu"])
    assert sum(cost.of(width - 1, rows) for _, width in shapes[-count + 1 :]) < 1.15 * count


def test_greedy_rows_share_a_draft_length_and_rows_that_draw_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, made = tiny_model("llama", 3, noise=0.02), prompts_of(3), []

    class Noted(Adaptive):
        def __init__(self, longest: int, cost: Cost) -> None:
            super().__init__(longest, cost)
            made.append(self)

    monkeypatch.setattr(loop, "Adaptive", Noted)
    for sampling, paces in ((None, 1), (Sampling(), 3)):
        generate(model, prompts, 3, eos=NEVER, sampling=sampling)
        assert len(made) == paces
        made.clear()


def everything(model: MTPModel, learnt_prompts: list[list[int]]) -> list[Any]:
    """What decoding can ask of layers: one row and several, prompts of one token and more, plain forwards and drafts
    that are kept and not, rows that leave, the last slot of a cache, samples that share a prompt."""
    uneven = [[*range(3, 30)], [5, 6], *learnt_prompts]
    asked = [([[5]], 6, None), (uneven, 24, None), (uneven[:3], 9, 2), ([[7, 8, 9]], 20, 1), ([[5], [6]], 8, 2)]
    found: list[Any] = [generate(model, rows, n, eos=NEVER, draft_length=drafts).tokens for rows, n, drafts in asked]
    found.append(generate(model, uneven, 20, eos=range(3, 20)).tokens)
    options: dict[str, Any] = {"samples": 3, "sampling": Sampling(), "eos": NEVER, "max_new_tokens": 6}
    return [*found, *(each.tokens for each in generate_many(model, uneven[:2], batch_rows=2, **options))]


def kinds_of_forwards(model: MTPModel, run: Callable[[], Any]) -> set[tuple[Any, ...]]:
    """Which layers and heads ran over one row or more, one token or more, one slot or more: all that a program asks."""
    kinds: set[tuple[Any, ...]] = set()

    def note(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        sizes = [arguments[0].shape[:2]]
        if (mask_BHQS := keywords.get("attention_mask")) is not None:
            sizes.append(mask_BHQS.shape[-1:])
        kinds.add((type(layer), *(size == 1 for shape in sizes for size in shape)))

    layers = {*model.trunk_layers(), *model.heads()}
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    run()
    for handle in handles:
        handle.remove()
    return kinds


@drafting
@every_heads
def test_the_forwards_that_make_the_programs_are_of_every_kind_that_decoding_has(
    heads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_model("llama", 3, heads=heads, noise=0.02, vocab_size=32), prompts_of(3, 17, vocabulary=32)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    made = kinds_of_forwards(model, lambda: compile_layers(model))
    asked = kinds_of_forwards(model, lambda: everything(model, prompts))
    assert {type(layer) for layer in (*model.trunk_layers(), *model.heads())} == {kind[0] for kind in asked}
    assert asked <= made


@drafting
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("family", "heads"),
    [*(("llama", heads) for heads in HEADS), ("gemma3", "chain"), ("gpt2", "chain")],
)
def test_a_model_compiled_for_decoding_says_the_same_and_compiles_nothing_more(family: str, heads: str) -> None:
    """Traced, not generated: it is programs, and attempts to make one, that are counted."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = tiny_model(family, 3, heads=heads, noise=0.02, vocab_size=32)
    prompts = prompts_of(3, seed=17, vocabulary=32)
    expected = everything(model, prompts)
    compile_layers(model, backend="eager")
    made = counters["stats"]["unique_graphs"], counters["frames"]["total"]
    assert 0 < made[0] <= 48
    assert everything(model, prompts) == expected
    assert (counters["stats"]["unique_graphs"], counters["frames"]["total"]) == made
    torch._dynamo.reset()


def test_a_model_compiled_for_training_is_decoded_without_compiling_anything() -> None:
    model, prompts = tiny_model("llama", 2, noise=0.02), prompts_of(3, seed=17)
    expected = generate(model, prompts, 12, eos=NEVER, draft_length=1).tokens

    def never(*_: Any) -> Any:
        raise AssertionError("nothing is compiled while decoding")

    for layer in (*model.trunk_layers(), *model.heads()):
        layer.compile(fullgraph=True, dynamic=True, backend=never)
    assert generate(model, prompts, 12, eos=NEVER, draft_length=1).tokens == expected
