"""The parts of decoding: distributions, the rejection rule, draft lengths, stop strings, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import wmtp
from wmtp.decoding import Continuation, Generation, Sampling, StopStrings, eos_of, generate, generate_many
from wmtp.decoding.attention import GROUPED, grouped, grouped_attention
from wmtp.decoding.cost import FLAT, Weights, drafting_cost
from wmtp.decoding.drafting import ChainDrafter, LinearDrafter, ParallelDrafter
from wmtp.decoding.pace import ROWS_THAT_DRAW, Adaptive, Fixed
from wmtp.decoding.sampling import Drawn, Greedy, draw, uniform_numbers
from wmtp.decoding.slots import attention_windows, select_rows
from wmtp.decoding.trunk import check_cached
from wmtp.errors import ModelError, UsageError
from wmtp.testing import tiny_model, tiny_tokenizer

# Distributions.


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 7, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2])
@pytest.mark.parametrize("min_p", [0.0, 0.15])
def test_probabilities_are_those_of_transformers(
    temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    from transformers.generation import logits_process as theirs

    logits_NV = 3 * torch.randn(20, 40, generator=torch.Generator().manual_seed(1))
    expected = theirs.TemperatureLogitsWarper(temperature)(None, logits_NV)
    if top_k is not None:
        expected = theirs.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = theirs.TopPLogitsWarper(top_p)(None, expected)
    if min_p > 0:
        expected = theirs.MinPLogitsWarper(min_p)(None, expected)
    got = Sampling(temperature, top_p, top_k, min_p).probabilities(logits_NV)
    torch.testing.assert_close(got, expected.softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("inf")}, "temperature must be above 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "got 1.1"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"min_p": 1.0}, "min_p must be at least 0 and below 1"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_a_number_outside_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**options)


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 7.5]), min_size=1, max_size=9).filter(any))
def test_a_token_is_drawn_for_as_much_of_the_unit_interval_as_it_weighs(weights: list[float]) -> None:
    weight_V = torch.tensor(weights, dtype=torch.float64)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), weight_V.cumsum(0) / weight_V.sum()])
    inside = [(float(low + high) / 2, i) for i, (low, high) in enumerate(pairwise(edges)) if high > low]
    for uniform, index in [*inside, (0.0, inside[0][1]), (1 - 2**-53, inside[-1][1])]:
        drawn = int(draw(weight_V[None], torch.tensor([uniform], dtype=torch.float64)))
        assert weights[drawn] > 0
        if weights[index] > 1e-6:
            assert drawn == index


def test_random_numbers_belong_to_seed_row_and_place_alone() -> None:
    numbers = uniform_numbers(3, [(0, 0), (0, 1), (7, 0)], 5)
    assert numbers.shape == (3, 5, 3)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert len(numbers.flatten().unique()) == 45
    assert torch.equal(uniform_numbers(3, [(7, 0)], 9)[0, :5], numbers[2])
    assert not torch.equal(uniform_numbers(4, [(7, 0)], 5)[0], numbers[2])


# The rejection rule.


class Spread:
    """Stands for `Sampling`: the logits are the probabilities."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits


def rule(p_QV: Tensor, q_JV: Tensor, count: int, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """`draws` independent uses of the rule: drafts, how many were accepted, what followed."""
    numbers = torch.rand(draws, len(p_QV), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = Drawn(Spread(), numbers)  # type: ignore[arg-type]
    place_B, count_B = torch.zeros(draws, dtype=torch.long), torch.full((draws,), count)
    drafts_BJ = drawn.draft(q_JV.expand(draws, -1, -1), place_B)
    return drafts_BJ, *drawn.verify(p_QV.expand(draws, -1, -1), drafts_BJ, count_B, place_B)


P = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
Q = torch.tensor([[0.2, 0.2, 0.2, 0.4], [0.4, 0.3, 0.2, 0.1]])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_whatever_is_drafted_each_token_comes_as_often_as_head_1_says(count: int) -> None:
    draws = 200_000
    drafts_BJ, accepted_B, next_B = rule(P, Q, count, draws)
    assert int(accepted_B.max()) == count
    first = torch.where(accepted_B > 0, drafts_BJ[:, 0], next_B)
    share = torch.bincount(first, minlength=4) / draws
    torch.testing.assert_close(share, P[0], rtol=0, atol=0.005)
    if count > 0:
        kept = float((accepted_B > 0).float().mean())
        assert kept == pytest.approx(float(torch.minimum(P[0], Q[0]).sum()), abs=0.005)  # the most any rule can keep
        second = torch.where(accepted_B > 1, drafts_BJ[:, 1], next_B)[accepted_B > 0]
        torch.testing.assert_close(torch.bincount(second, minlength=4) / len(second), P[1], rtol=0, atol=0.008)


def test_drafts_from_the_same_distribution_are_all_accepted() -> None:
    _, accepted_B, _ = rule(P, P[:2], 2, 10_000)
    assert int(accepted_B.min()) == 2


def test_distributions_that_are_equal_up_to_rounding_leave_head_1s_own() -> None:
    """A rejection by rounding alone, where nothing of p is left above q."""
    p_QV = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    q_JV = torch.tensor([[0.5 + 1e-7, 0.5 + 1e-7]])
    numbers = torch.full((1, 2, 3), 1 - 2**-53, dtype=torch.float64)
    drawn = Drawn(Spread(), numbers)  # type: ignore[arg-type]
    place_B = torch.zeros(1, dtype=torch.long)
    drafts_BJ = drawn.draft(q_JV[None], place_B)
    accepted_B, next_B = drawn.verify(p_QV[None], drafts_BJ, torch.tensor([1]), place_B)
    assert int(accepted_B) == 0
    assert int(next_B) == 1


def test_greedy_accepts_up_to_the_first_draft_that_is_not_the_likeliest() -> None:
    target = torch.tensor([[3, 1, 2, 0], [3, 1, 2, 0], [3, 1, 2, 0]])
    logits = torch.nn.functional.one_hot(target, 5).float()
    drafts = torch.tensor([[3, 1, 2], [3, 4, 2], [3, 1, 2]])
    accepted, following = Greedy().verify(logits, drafts, torch.tensor([3, 3, 1]), torch.zeros(3, dtype=torch.long))
    assert accepted.tolist() == [3, 1, 1]
    assert following.tolist() == [0, 1, 1]


# Draft length.


HEADS = {"parallel": (ParallelDrafter, 10), "linear": (LinearDrafter, 1), "chain": (ChainDrafter, 12)}
"""Families, and the weights of a head where a layer and the unembedding have 10 each."""
every_family = pytest.mark.parametrize("family", HEADS)


def adaptive(longest: int, layers: int = 12, family: str = "parallel") -> Adaptive:
    """Of a model on a CPU."""
    drafter, head = HEADS[family]
    return Adaptive(longest, drafting_cost(Weights(10 * layers, head, 10), drafter.passes, longest, FLAT["cpu"]))


def spent(
    accepts: list[float], forwards: int, layers: int = 12, rows: int = 1, family: str = "parallel"
) -> tuple[float, float]:
    """Tokens and cost, in plain forwards, of rows that share a pace and accept drafts with these chances."""
    random = torch.Generator().manual_seed(0)
    pace, tokens, cost = adaptive(len(accepts), layers, family), 0.0, 0.0
    for _ in range(forwards):
        length = pace.next(len(accepts), rows)
        taken = torch.rand(rows, length, generator=random) < torch.tensor(accepts)[:length]
        kept = taken.long().cumprod(1).sum(1).tolist()
        pace.learn([(length, n) for n in kept])
        tokens, cost = tokens + 1 + sum(kept) / rows, cost + pace.cost.of(length, rows)
    return tokens, cost


def spent_apart(chances: list[float], forwards: int, family: str) -> tuple[float, float]:
    """The same of rows that draw: each has a pace and a chance of its own, and the longest draft is what all pay."""
    random = torch.Generator().manual_seed(0)
    paces, tokens, cost = [adaptive(3, family=family) for _ in chances], 0.0, 0.0
    for _ in range(forwards):
        lengths = [pace.next(3, ROWS_THAT_DRAW) for pace in paces]
        taken = torch.rand(len(chances), 3, generator=random) < torch.tensor(chances)[:, None]
        right = taken.long().cumprod(1).sum(1).tolist()
        for pace, length, most in zip(paces, lengths, right, strict=True):
            kept = min(length, most)
            pace.learn([(length, kept)])
            tokens += (1 + kept) / len(chances)
        cost += paces[0].cost.of(max(lengths), len(chances))
    return tokens, cost


@every_family
@pytest.mark.parametrize("rows", [1, 16])
def test_hopeless_heads_cost_little(rows: int, family: str) -> None:
    for forwards, bound in ((64, 1.12), (256, 1.05), (2000, 1.02)):
        tokens, cost = spent([0.0, 0.0, 0.0], forwards, rows=rows, family=family)
        assert cost / tokens < bound


@every_family
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.35, 0.35), (0.5, 0.5), (0.2, 0.8), (0.9, 0.9)])
def test_rows_that_draw_do_not_pay_for_one_another(low: float, high: float, family: str) -> None:
    """16 rows, which accept with these chances and those between."""
    chances = [low + (high - low) * row / 15 for row in range(16)]
    tokens, cost = spent_apart(chances, 100, family)
    assert cost < 1.15 * tokens


def test_perfect_heads_are_used_in_full() -> None:
    tokens, _ = spent([1.0, 1.0, 1.0], 100)
    assert tokens > 395


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
    st.integers(2, 40),
    st.sampled_from([1, 3, 16]),
    st.sampled_from([*HEADS]),
)
def test_no_acceptance_makes_it_much_slower_than_plain_decoding(
    accepts: list[float], layers: int, rows: int, family: str
) -> None:
    tokens, cost = spent(accepts, 300, layers, rows, family)
    assert cost < 1.15 * tokens


def test_a_batch_drafts_less_than_a_row_where_its_drafts_cost_more() -> None:
    lengths = []
    for rows in (1, 16, 256):
        pace = adaptive(3)
        pace.accepted, pace.tested = [0.75, 0.75, 0.75], [1.0, 1.0, 1.0]
        lengths.append(pace.next(3, rows))
    assert lengths == [3, 1, 0]


@pytest.mark.parametrize("rows", [1, 16])
def test_heads_that_get_better_are_noticed(rows: int) -> None:
    pace = adaptive(3)
    for _ in range(200):
        pace.learn([(pace.next(3, rows), 0)] * rows)
    assert pace.next(3, rows) <= 1
    lengths = []
    for _ in range(1500):
        lengths.append(pace.next(3, rows))
        pace.learn([(lengths[-1], lengths[-1])] * rows)
    assert lengths[-1] == 3


def test_a_draft_is_never_longer_than_what_may_still_come() -> None:
    assert [Fixed(3).next(most, 1) for most in range(5)] == [0, 1, 2, 3, 3]
    pace = adaptive(3)
    for most in (0, 1, 2) * 30:
        length = pace.next(most, 1)
        assert length <= most
        pace.learn([(length, length)])


# Rows and attention.


@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=8))
def test_rows_that_are_kept_are_those_that_were_named(count: int, rows: list[int]) -> None:
    rows = [row % count for row in rows]
    held = torch.arange(3 * count).view(count, 3)
    assert select_rows(held.clone(), rows).tolist() == [held[row].tolist() for row in rows]


@given(st.integers(1, 3), st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.integers(1, 5) | st.just(40), st.booleans())
def test_heads_of_a_group_read_what_they_read_with_a_copy_each(
    rows: int, heads: tuple[int, int], width: int, masked: bool
) -> None:
    random, (many, groups), slots = torch.Generator().manual_seed(width), heads, width + 3

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    query, key, value = drawn(rows, many, width, 8), drawn(rows, groups, slots, 8), drawn(rows, groups, slots, 8)
    mask = drawn(rows, 1, width, slots) if masked else None
    layer = nn.Module()
    layer.num_key_value_groups, layer.is_causal = many // groups, False
    got, _ = grouped_attention(layer, query, key, value, mask, scaling=0.3, dropout=0.0)
    copied = [x.repeat_interleave(many // groups, 1) for x in (key, value)]
    expected = nn.functional.scaled_dot_product_attention(query, *copied, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(got, expected.transpose(1, 2), rtol=1e-10, atol=1e-10)


def test_a_config_says_again_what_it_said_after_decoding() -> None:
    config = tiny_model("llama", 1).base.config

    def interrupted() -> None:
        with grouped(config):
            assert config._attn_implementation == GROUPED
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert config._attn_implementation == "sdpa"


# Stop strings.


def test_a_stop_string_inside_a_token_ends_at_that_token() -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("x = 1\n  return y")["input_ids"]
    stop = StopStrings(tokenizer, ["tur", "\n "])
    end = stop.end(tokens, 0)
    assert end is not None
    assert tokenizer.decode(tokens[:end]) in ("x = 1\n ", "x = 1\n  ")
    assert stop.text(tokens) == "x = 1"
    assert StopStrings(tokenizer, ["turning"]).end(tokens, 0) is None
    assert StopStrings(tokenizer, []).text([*tokens, tokenizer.eos_token_id]) == "x = 1\n  return y"


class Tidy:
    """A tokenizer of four letters that takes the space before a full stop back, as some do."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join("ab ."[token] for token in tokens).replace(" .", ".")


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.text("ab .", min_size=1, max_size=3), min_size=1, max_size=2),
    st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_a_text_stops_at_the_same_token_however_many_come_at_once(
    tokens: list[int], strings: list[str], sizes: list[int]
) -> None:
    def first_end(sizes: list[int]) -> int | None:
        stop, since = StopStrings(Tidy(), strings), 0
        for size in sizes:
            if (end := stop.end(tokens[: since + size], since)) is not None or since + size >= len(tokens):
                return end
            since += size
        raise AssertionError("there are tokens left")

    assert first_end(sizes) == first_end([1] * 12)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one character"):
        StopStrings(tiny_tokenizer(), ["\n", ""])


# What is asked for.


def test_the_figures_of_a_generation_are_sums_over_its_rows() -> None:
    rows = (
        Continuation([1, 2, 3, 4, 5], "length", 2, (1, 1, 0), (1, 1, 0)),
        Continuation([1], "eos", 1, (1, 1, 0), (0, 0, 0)),
    )
    generation = Generation(rows)
    assert generation.tokens == [[1, 2, 3, 4, 5], [1]]
    assert (generation.forwards, generation.drafted, generation.accepted) == (2, (2, 2, 0), (1, 1, 0))
    assert generation.acceptance[:2] == (0.5, 0.5)
    assert generation.acceptance[2] != generation.acceptance[2]
    assert generation.tokens_per_forward == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": []}, "no prompt"),
        ({"tokens": [[5], []]}, "prompt 1 has no token"),
        ({"tokens": [[5, 64]]}, "prompt 0 has the id 64, the model knows 0 to 63"),
        ({"tokens": [[5] * 64]}, "prompt 0 has 64 tokens, the model's context is 64"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"mode": "fast"}, "mode must be one of speculative, plain; got 'fast'"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"draft_length": 3}, "draft_length must be between 0 and 2"),
        ({"draft_length": 1, "mode": "plain"}, "between 0 and 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(tiny_model("llama", 3), **{"tokens": [[5, 6]], "max_new_tokens": 4, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 2}, "2 samples without sampling would all be the same"),
        ({"samples": 0}, "samples and batch_rows must be at least 1"),
        ({"batch_rows": 0}, "samples and batch_rows must be at least 1"),
        ({"mode": "fast"}, "mode must be one of"),
    ],
)
def test_what_makes_no_sense_for_many_prompts_is_refused_at_once(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate_many(tiny_model("llama", 3), [[5]], **{"max_new_tokens": 4, **changed})


def test_a_tensor_is_a_batch_of_prompts_and_no_prompts_are_no_results() -> None:
    model = tiny_model("llama", 2)
    tokens_BT = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert wmtp.generate(model, tokens_BT, 5).tokens == generate(model, tokens_BT.tolist(), 5).tokens
    assert list(generate_many(model, [], max_new_tokens=3)) == []


def test_modes_and_gradients_are_as_they_were_between_results() -> None:
    model = tiny_model("llama", 2).train()
    model.base.model.norm.eval()
    for _ in generate_many(model, [[5], [6]], max_new_tokens=2, batch_rows=1):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert model.training
        assert not model.base.model.norm.training
    model.project(model(torch.tensor([[5, 6]]))[1]).sum().backward()


def test_the_end_of_a_text_is_what_the_generation_config_says_else_the_config() -> None:
    model = tiny_model("llama", 1)
    model.base.generation_config.eos_token_id = [4, 9]
    assert eos_of(model) == [4, 9]
    model.base.generation_config.eos_token_id = None
    assert eos_of(model) == [2]
    model.base.config.eos_token_id = None
    assert eos_of(model) == []


# Architectures that are not understood.


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"sliding_window": 8}, 8),
        (
            {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            {"full_attention": None, "sliding_attention": 8},
        ),
    ],
)
def test_windows_are_those_of_the_config(config: dict[str, Any], expected: Any) -> None:
    assert attention_windows(SimpleNamespace(model_type="some", **config)) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "some has linear_attention layers"),
        ({"attention_chunk_size": 8}, "some attends in chunks"),
    ],
)
def test_other_kinds_of_attention_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        attention_windows(SimpleNamespace(model_type="some", **config))


def test_attention_that_takes_no_mask_is_refused() -> None:
    model = tiny_model("llama", 2)
    model.base.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match=r"'sdpa' or 'eager', got 'flex_attention'"):
        generate(model, [[5]], 2)


class Forgetful(nn.Module):
    """An attention that leaves the cache alone."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *arguments: Any, past_key_values: Any = None, attention_mask: Any = None, **keywords: Any) -> Any:
        return self.attention(*arguments, attention_mask=None, past_key_values=None, **keywords)


def test_a_layer_that_leaves_its_cache_alone_is_refused() -> None:
    model = tiny_model("llama", 2)
    layer: Any = model.trunk_layers()[0]
    layer.self_attn = Forgetful(layer.self_attn)
    with pytest.raises(ModelError, match="leave the cache alone"):
        check_cached(model)


def test_a_model_that_is_another_with_a_cache_is_refused() -> None:
    model = tiny_model("llama", 2)
    layer: Any = model.trunk_layers()[1]
    run = layer.forward
    layer.forward = lambda hidden, **keywords: run(hidden * hidden.shape[1], **keywords)
    with pytest.raises(ModelError, match="away from itself without"):
        generate(model, [[5]], 2)
