"""The fused loss is the plain one: in float64 to 1e-12, in fp32 as close to the truth, in bf16 with fp32 sums."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wmtp.loss import LossSum, Unembedding, plain_gradient_norms, plain_nll, reduce_loss, row_weights
from wmtp.loss_fused import RowLoss, default_chunk, fused_loss, linear_nll, slices
from wmtp.targets import IGNORE


@dataclass(frozen=True)
class Problem:
    """Everything a loss is computed from."""

    hidden_K: list[Tensor]
    projection_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None
    target_BTK: Tensor
    weight_BTK: Tensor | None
    coefficient_K: Tensor | None
    chunk: int

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem with other inputs' precision; weights and coefficients stay."""
        bias = None if self.bias_V is None else self.bias_V.to(dtype)
        hidden = [h.to(dtype) for h in self.hidden_K]
        return replace(self, hidden_K=hidden, projection_VD=self.projection_VD.to(dtype), bias_V=bias)


@st.composite
def problems(draw: st.DrawFn, scale: float = 2.0) -> Problem:
    """Any shape; weights with exact zeros; some rows, the first row or all rows without a target."""
    B, T, K = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    V, D = draw(st.integers(2, 19)), draw(st.integers(1, 7))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=random, dtype=torch.float64)

    def happens(probability: float) -> Tensor:
        return torch.rand(B, T, K, generator=random) < probability

    target = torch.randint(0, V, (B, T, K), generator=random)
    target[happens(draw(st.sampled_from([0.0, 0.4, 1.0])))] = IGNORE
    if draw(st.booleans()):
        target[:, 0] = IGNORE
    weight = None
    if draw(st.booleans()):
        weight = 3 * torch.rand(B, T, K, generator=random) * happens(draw(st.sampled_from([1.0, 0.5, 0.0])))
    coefficient = draw(st.none() | st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0]), min_size=K, max_size=K))
    return Problem(
        hidden_K=[normal(B, T, D) for _ in range(K)],
        projection_VD=normal(V, D),
        bias_V=normal(V) if draw(st.booleans()) else None,
        softcap=draw(st.sampled_from([None, None, 1.5, 30.0])),
        target_BTK=target,
        weight_BTK=weight,
        coefficient_K=None if coefficient is None else torch.tensor(coefficient),
        chunk=draw(st.integers(1, B * T)),
    )


@dataclass(frozen=True)
class Outcome:
    """A loss and its gradients."""

    loss: LossSum
    gradients: dict[str, Tensor]

    def numbers(self) -> dict[str, Tensor]:
        """All of it by name."""
        figures = {f.name: getattr(self.loss, f.name) for f in fields(self.loss)}
        return {name: value.detach() for name, value in figures.items() if value is not None} | self.gradients


def run(kind: str, p: Problem, frozen: tuple[str, ...] = ()) -> Outcome:
    """`plain` or `fused` loss, or `again` (fused, after a visit that saw the losses), and the gradients of what is not
    frozen (`hidden`, `projection`, `bias`)."""
    leaves = {f"hidden_{k}": h.detach().clone() for k, h in enumerate(p.hidden_K)}
    leaves["projection"] = p.projection_VD.detach().clone()
    if p.bias_V is not None:
        leaves["bias"] = p.bias_V.detach().clone()
    for name, leaf in leaves.items():
        leaf.requires_grad_(not name.startswith(frozen) if frozen else True)
    hidden_K = [leaves[f"hidden_{k}"] for k in range(len(p.hidden_K))]
    loss = loss_of(kind, hidden_K, Unembedding(leaves["projection"], leaves.get("bias"), p.softcap), p)
    if loss.weighted_sum.requires_grad:
        loss.weighted_sum.backward()
    return Outcome(loss, {f"d{n}": leaf.grad for n, leaf in leaves.items() if leaf.grad is not None})


def loss_of(kind: str, hidden_K: list[Tensor], unembedding: Unembedding, p: Problem) -> LossSum:
    if kind != "plain":
        seen = None
        if kind == "again":
            with torch.no_grad():
                seen = fused_loss(hidden_K, unembedding, p.target_BTK, chunk=p.chunk)
        return fused_loss(hidden_K, unembedding, p.target_BTK, p.weight_BTK, p.coefficient_K, seen=seen, chunk=p.chunk)
    nll, correct = plain_nll(hidden_K, unembedding, p.target_BTK)
    return reduce_loss(nll, correct, p.target_BTK, p.weight_BTK, p.coefficient_K)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# The same numbers


@settings(max_examples=200)
@given(problems())
def test_fused_is_plain_in_float64(p: Problem) -> None:
    assert_same(run("fused", p).numbers(), run("plain", p).numbers(), 1e-12)


@settings(max_examples=40)
@given(problems())
def test_every_chunk_size_gives_the_same_numbers(p: Problem) -> None:
    expected = run("fused", p).numbers()
    rows = p.target_BTK[:, :, 0].numel()
    for chunk in range(1, rows + 2):
        assert_same(run("fused", replace(p, chunk=chunk)).numbers(), expected, 1e-12)


@given(st.integers(0, 50), st.integers(0, 200), st.integers(1, 60))
def test_slices_are_all_rows_once_in_as_few_and_as_equal_pieces_as_can_be(first: int, count: int, most: int) -> None:
    pieces = slices(first, first + count, most)
    sizes = [piece.stop - piece.start for piece in pieces]
    assert [row for piece in pieces for row in range(piece.start, piece.stop)] == list(range(first, first + count))
    assert len(sizes) == -(-count // most)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@settings(max_examples=50)
@given(problems())
def test_a_tied_projection_gets_both_of_its_gradients(p: Problem) -> None:
    gradient = {}
    for kind in ("fused", "plain"):
        embedding = p.projection_VD.clone().requires_grad_()
        ids = p.target_BTK[:, :, 0].clamp(min=0)
        hidden_K = [torch.tanh(embedding[ids] * (k + 1)) for k in range(len(p.hidden_K))]
        loss_of(kind, hidden_K, Unembedding(embedding, p.bias_V, p.softcap), p).weighted_sum.backward()
        assert embedding.grad is not None
        gradient[kind] = embedding.grad
    torch.testing.assert_close(gradient["fused"], gradient["plain"], rtol=1e-12, atol=1e-12)


@settings(max_examples=60)
@given(problems(), st.sets(st.sampled_from(["hidden", "projection", "bias", "hidden_0"]), min_size=1))
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same_one(p: Problem, frozen: set[str]) -> None:
    names = tuple(frozen)
    got, everything = run("fused", p, names).gradients, run("fused", p).gradients
    assert got.keys() == {name for name in everything if not name[1:].startswith(names)}
    assert_same(got, {name: everything[name] for name in got}, 0.0)


@settings(max_examples=60)
@given(problems())
def test_what_a_pair_without_target_holds_does_not_matter(p: Problem) -> None:
    ignored = p.target_BTK == IGNORE
    weight = torch.ones(p.target_BTK.shape) if p.weight_BTK is None else p.weight_BTK
    spoiled = replace(
        p,
        weight_BTK=weight.masked_fill(ignored, torch.nan),
        hidden_K=[h.masked_fill(ignored[:, :, k, None], torch.inf) for k, h in enumerate(p.hidden_K)],
    )
    assert_same(run("fused", spoiled).numbers(), run("fused", replace(p, weight_BTK=weight)).numbers(), 0.0)


# Gradients against finite differences


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_is_that_of_finite_differences(softcap: float | None, bias: bool) -> None:
    torch.manual_seed(0)
    target = torch.tensor([3, IGNORE, 0, 4, 4])
    weight = torch.tensor([0.5, 1.0, 0.0, 2.0, 1.0])
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    projection = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    bias_V = torch.randn(6, dtype=torch.float64, requires_grad=bias)

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_nll(h, w, target, weight, softcap=softcap, bias_V=b if bias else None, chunk=2).weighted_sum

    inputs = (hidden, projection, bias_V)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = torch.autograd.grad(loss(*inputs), wanted)
    for _ in range(8):
        along = [torch.randn_like(tensor) for tensor in inputs]
        ahead, behind = (
            loss(*(tensor.detach() + side * direction for tensor, direction in zip(inputs, along, strict=True)))
            for side in (1e-6, -1e-6)
        )
        expected = sum((g * d).sum() for g, d in zip(gradients, along, strict=False))
        torch.testing.assert_close((ahead - behind) / 2e-6, expected, rtol=1e-7, atol=1e-8)


def test_a_second_backward_is_refused_because_the_gradients_were_given_away() -> None:
    hidden = torch.randn(5, 3, requires_grad=True)
    loss = linear_nll(hidden, torch.randn(6, 3), torch.arange(5)).weighted_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="cannot run twice"):
        loss.backward()


@pytest.mark.parametrize("coefficient", [None, [0.5, 2.0]])
def test_weights_made_from_a_rows_own_loss_cost_one_visit_and_equal_weights_given(
    coefficient: list[float] | None,
) -> None:
    torch.manual_seed(0)
    hidden_K = [torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    unembedding = Unembedding(torch.randn(9, 4, dtype=torch.float64, requires_grad=True))
    target = torch.randint(0, 9, (2, 6, 2))
    target[0, 0] = IGNORE
    reference = torch.rand(2, 6, 2, dtype=torch.float64) * 4
    coefficient_K = None if coefficient is None else torch.tensor(coefficient)

    def weight_of(k: int, places: Tensor, nll: Tensor, norm: Tensor | None) -> Tensor:
        assert norm is None
        return (nll - reference[:, :, k].flatten()[places]).exp().clamp(0.5, 2.0)

    with Products() as products:
        made = fused_loss(hidden_K, unembedding, target, None, coefficient_K, weight_of=weight_of, chunk=3)
    assert products.size == 3 * int((target != IGNORE).sum()) * 4 * 9
    weight = (made.nll_BTK - reference).exp().clamp(0.5, 2.0)
    given = fused_loss(hidden_K, unembedding, target, weight, coefficient_K, chunk=3)
    torch.testing.assert_close(made.weight_BTK, weight * (target != IGNORE))
    for name in ("weighted_sum", "weight_total", "nll_sum_K"):
        torch.testing.assert_close(getattr(made, name), getattr(given, name), rtol=1e-12, atol=1e-12)
    leaves = [unembedding.projection_VD, *hidden_K]
    got, expected = (torch.autograd.grad(loss.weighted_sum, leaves) for loss in (made, given))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_rows_that_were_seen_and_dropped_are_not_visited_again(softcap: float | None) -> None:
    torch.manual_seed(0)
    hidden_K = [torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    unembedding = Unembedding(torch.randn(9, 4, dtype=torch.float64, requires_grad=True), None, softcap, 0.5)
    target = torch.randint(0, 9, (2, 6, 2))
    target[0, 0] = IGNORE
    weight = (torch.rand(2, 6, 2) > 0.4).double()
    whole = fused_loss(hidden_K, unembedding, target, weight, chunk=3)
    expected = torch.autograd.grad(whole.weighted_sum, [unembedding.projection_VD, *hidden_K])
    with torch.no_grad():
        seen = fused_loss(hidden_K, unembedding, target, chunk=3)
    with Products() as products:
        again = fused_loss(hidden_K, unembedding, target, weight, seen=seen, chunk=3)
    rows = int((weight[target != IGNORE] != 0).sum())
    assert products.size == 3 * rows * 4 * 9
    for name in ("weighted_sum", "weight_total", "nll_sum_K", "count_K", "correct_K", "nll_BTK"):
        torch.testing.assert_close(getattr(again, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(again.weighted_sum, [unembedding.projection_VD, *hidden_K])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# Gradient norms


@settings(max_examples=80)
@given(problems())
def test_gradient_norms_are_those_of_the_rows_own_unweighted_gradients(p: Problem) -> None:
    unembedding = Unembedding(p.projection_VD, p.bias_V, p.softcap, 0.5)
    expected = plain_gradient_norms(p.hidden_K, unembedding, p.target_BTK)
    got = fused_loss(
        p.hidden_K, unembedding, p.target_BTK, p.weight_BTK, p.coefficient_K, chunk=p.chunk, gradient_norms=True
    )
    assert got.gradient_norm_BTK is not None
    torch.testing.assert_close(got.gradient_norm_BTK, expected, rtol=1e-11, atol=1e-12)


@settings(max_examples=80)
@given(problems(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_asking_for_norms_changes_nothing_else(p: Problem, dtype: torch.dtype) -> None:
    p = p.to(dtype)
    without = run("fused", p)
    hidden_K = [h.detach().clone().requires_grad_() for h in p.hidden_K]
    projection = p.projection_VD.detach().clone().requires_grad_()
    unembedding = Unembedding(projection, p.bias_V, p.softcap)
    loss = fused_loss(
        hidden_K, unembedding, p.target_BTK, p.weight_BTK, p.coefficient_K, chunk=p.chunk, gradient_norms=True
    )
    loss.weighted_sum.backward()
    expected = without.numbers() | {"gradient_norm_BTK": loss.gradient_norm_BTK}
    got = Outcome(loss, {"dprojection": projection.grad} | {f"dhidden_{k}": h.grad for k, h in enumerate(hidden_K)})
    expected.pop("dbias", None)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-5}[dtype]
    size = max(1.0, *(float(v.abs().max()) for v in expected.values() if v.numel()))
    assert_same(got.numbers(), expected, tolerance * size)


def test_a_weight_may_depend_on_the_norm_in_the_same_visit() -> None:
    torch.manual_seed(0)
    hidden_K = [torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    unembedding = Unembedding(torch.randn(9, 4, dtype=torch.float64, requires_grad=True))
    target = torch.randint(0, 9, (2, 6, 2))
    target[0, 0] = IGNORE

    def weight_of(k: int, places: Tensor, nll: Tensor, norm: Tensor | None) -> Tensor:
        assert norm is not None
        return (norm - 1.5).clamp(min=0)  # some rows end with weight 0

    with Products() as products:
        made = fused_loss(hidden_K, unembedding, target, weight_of=weight_of, chunk=3, gradient_norms=True)
    rows, kept = int((target != IGNORE).sum()), int((made.weight_BTK > 0).sum())
    assert 0 < kept < rows
    assert products.size == (2 * rows + kept) * 4 * 9, "logits and dX of all rows, dW of those that count"
    nll, correct = plain_nll(hidden_K, unembedding, target)
    weight = row_weights(weight_of, nll, plain_gradient_norms(hidden_K, unembedding, target))
    plain = reduce_loss(nll, correct, target, weight)
    leaves = [unembedding.projection_VD, *hidden_K]
    got, expected = (torch.autograd.grad(loss.weighted_sum, leaves) for loss in (made, plain))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_without_grad_mode_norms_cost_one_more_product() -> None:
    h, w, target = rows_to_train()
    with torch.no_grad(), Products() as products:
        got = linear_nll(h, w, target, chunk=5, gradient_norms=True)
    assert products.size == 2 * one_product(h, w)
    assert got.gradient_norm_N is not None
    assert not got.weighted_sum.requires_grad
    expected = plain_gradient_norms([h.unsqueeze(0)], Unembedding(w), target.view(1, -1, 1)).flatten()
    torch.testing.assert_close(got.gradient_norm_N, expected)


# How much work is done


class Products(TorchDispatchMode):
    """Adds up rows x columns x depth of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.size += left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def one_product(hidden: Tensor, projection: Tensor) -> int:
    return hidden.shape[0] * hidden.shape[1] * projection.shape[0]


ROWS = 12


def rows_to_train(hidden: bool = True, projection: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(ROWS, 4, requires_grad=hidden),
        torch.randn(9, 4, requires_grad=projection),
        torch.randint(0, 9, (ROWS,)),
    )


@pytest.mark.parametrize(("hidden", "projection"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_gradient_that_nobody_needs_costs_no_matrix_product(hidden: bool, projection: bool) -> None:
    h, w, target = rows_to_train(hidden, projection)
    with Products() as products:
        linear_nll(h, w, target, chunk=5)
    assert products.size == (1 + hidden + projection) * one_product(h, w)


def test_without_grad_mode_only_the_logits_are_computed() -> None:
    h, w, target = rows_to_train()
    with torch.no_grad(), Products() as products:
        got = linear_nll(h, w, target, chunk=5)
    assert products.size == one_product(h, w)
    assert not got.weighted_sum.requires_grad


def test_a_row_without_target_meets_no_projection_and_a_row_of_weight_zero_no_gradient_work() -> None:
    h, w, target = rows_to_train()
    target[:3] = IGNORE
    weight = torch.ones(ROWS)
    weight[5:9] = 0.0
    with Products() as products:
        linear_nll(h, w, target, weight, chunk=5)
    per_row = one_product(h, w) // ROWS
    assert products.size == (ROWS - 3) * per_row + 2 * (ROWS - 3 - 4) * per_row


# Precision


either_visit = pytest.mark.parametrize("kind", ["fused", "again"])


@either_visit
@settings(max_examples=60)
@given(p=problems())
def test_in_fp32_fused_is_as_close_to_the_truth_as_plain(kind: str, p: Problem) -> None:
    p = p.to(torch.float32)
    truth = run("plain", p.to(torch.float64)).numbers()
    fused, plain = run(kind, p).numbers(), run("plain", p).numbers()
    for name, exact in truth.items():
        size = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
        ours, theirs = ((x[name].double() - exact.double()).abs().max() for x in (fused, plain))
        assert float(ours) <= float(theirs) + 1e-6 * size, name


@dataclass(frozen=True)
class Size:
    """Of a problem so large that the rounding of its sums averages out."""

    T: int
    K: int
    V: int
    D: int
    scale: float
    softcap: float | None
    bias: bool
    certain: bool
    chunk: int
    seed: int

    def problem(self) -> Problem:
        """With exact zeros, an ignored first row and, if `certain`, targets that the model is sure of."""
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        hidden_K = [self.scale * normal(1, self.T, self.D) for _ in range(self.K)]
        projection = normal(self.V, self.D)
        target = torch.randint(self.V, (1, self.T, self.K), generator=random)
        if self.certain:
            target = torch.stack([(h @ projection.T).argmax(-1) for h in hidden_K], -1)
        target[:, 0] = IGNORE
        weight = 3 * torch.rand(target.shape, generator=random) * (torch.rand(target.shape, generator=random) < 0.7)
        return Problem(
            hidden_K,
            projection,
            normal(self.V) if self.bias else None,
            self.softcap,
            target,
            weight,
            None,
            self.chunk,
        )


@either_visit
@settings(max_examples=100, derandomize=True)  # the last digit of a sum is a matter of luck: the same luck every time
@given(
    size=st.builds(
        Size,
        T=st.sampled_from([64, 100]),
        K=st.sampled_from([1, 2]),
        V=st.sampled_from([64, 300, 2000]),
        D=st.sampled_from([32, 64]),
        scale=st.sampled_from([0.3, 1.0, 2.0, 4.0]),
        softcap=st.sampled_from([None, 5.0, 30.0]),
        bias=st.booleans(),
        certain=st.booleans(),
        chunk=st.sampled_from([16, 64, 1000]),
        seed=st.integers(0, 2**20),
    )
)
def test_no_fp32_gradient_is_further_from_the_truth_than_the_plain_one_by_more_than_1e_7(kind: str, size: Size) -> None:
    p = size.problem()
    truth = run("plain", p.to(torch.float64)).gradients
    fused, plain = run(kind, p).gradients, run("plain", p).gradients
    for name, exact in truth.items():
        ours, theirs = (float((x[name].double() - exact).norm() / exact.norm()) for x in (fused, plain))
        assert ours <= theirs + 1e-7, f"{name}: {ours:.2e} against {theirs:.2e}"


def test_the_loss_of_an_almost_certain_token_and_its_gradient_keep_their_digits() -> None:
    # p = 1 - 4.5e-9: in fp32, log p would be 0 and p - 1 too.
    hidden = torch.tensor([[20.0, 0.8]], requires_grad=True)
    projection = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    got = linear_nll(hidden, projection, torch.tensor([0]))
    got.weighted_sum.backward()
    truth = torch.log1p(torch.exp(torch.tensor(-19.2, dtype=torch.float64)))
    assert got.nll_N.tolist() == pytest.approx([float(truth)], rel=1e-5)
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([-float(truth), float(truth)], rel=1e-5)


@settings(max_examples=40)
@given(problems())
def test_in_bf16_fused_is_about_as_close_to_the_truth_as_plain(p: Problem) -> None:
    p = p.to(torch.bfloat16)
    truth = run("plain", p.to(torch.float64))
    fused, plain = run("fused", p), run("plain", p)
    assert fused.loss.nll_BTK.dtype == fused.loss.weighted_sum.dtype == torch.float32
    assert all(g.dtype == torch.bfloat16 for g in fused.gradients.values())
    for name, exact in truth.gradients.items() | {"nll": truth.loss.nll_BTK}.items():
        ours, theirs = (
            ((o.gradients | {"nll": o.loss.nll_BTK})[name].double() - exact).abs().max() for o in (fused, plain)
        )
        assert float(ours) <= 1.5 * float(theirs) + 2**-7 * max(1.0, float(exact.abs().max())), name


def test_a_thousand_bf16_chunks_are_summed_in_fp32() -> None:
    # Summed in bf16, 1024 equal terms would stop growing at 256 of them.
    hidden = torch.full((1024, 1), 1.0, dtype=torch.bfloat16)
    projection = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    target = torch.zeros(1024, dtype=torch.int64)
    got = linear_nll(hidden, projection, target, bias_V=bias, chunk=1)
    got.weighted_sum.backward()
    assert projection.grad is not None
    assert bias.grad is not None
    assert projection.grad.flatten().tolist() == bias.grad.tolist() == [-512.0, 512.0]
    assert float(got.weighted_sum.detach()) == pytest.approx(1024 * 0.6931472, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_logits_do_not_overflow(dtype: torch.dtype, sign: float) -> None:
    hidden = torch.full((3, 1), sign, dtype=dtype, requires_grad=True)
    projection = torch.tensor([[1e4], [0.0], [-1e4]], dtype=dtype, requires_grad=True)
    got = linear_nll(hidden, projection, torch.tensor([0, 1, 2]), chunk=2)
    got.weighted_sum.backward()
    spread = float(projection.detach()[0])
    expected = [0.0, spread, 2 * spread] if sign > 0 else [2 * spread, spread, 0.0]
    assert got.nll_N.tolist() == pytest.approx(expected)
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert got.correct_N.tolist() == ([True, False, False] if sign > 0 else [False, False, True])


@settings(max_examples=30)
@given(problems(scale=1.0))
def test_under_autocast_fused_is_plain_to_bf16_tolerance(p: Problem) -> None:
    p = p.to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        fused, plain = run("fused", p), run("plain", p)
    assert fused.loss.nll_BTK.dtype == torch.float32
    assert {n: g.dtype for n, g in fused.gradients.items()} == {n: g.dtype for n, g in plain.gradients.items()}
    for name, expected in plain.numbers().items():
        if name == "correct_K":
            continue  # bf16 logits tie
        size = max(1.0, float(expected.abs().max()))
        difference = (fused.numbers()[name] - expected).abs().max()
        assert float(difference) <= 2**-6 * size, name


# linear_nll, as outsiders may rely on it


def test_linear_nll_has_the_promised_signature() -> None:
    parameters = inspect.signature(linear_nll).parameters
    positional = [n for n, q in parameters.items() if q.kind is q.POSITIONAL_OR_KEYWORD]
    assert positional == ["hidden_ND", "projection_VD", "target_N", "row_weight_N"]
    assert {n: parameters[n].default for n in ("row_weight_N", "softcap", "ignore_index")} == {
        "row_weight_N": None,
        "softcap": None,
        "ignore_index": -100,
    }
    assert RowLoss._fields[:3] == ("weighted_sum", "nll_N", "correct_N")


@settings(max_examples=40)
@given(st.integers(0, 20), st.sampled_from([-100, -1, 0, 3]), st.integers(0, 2**31))
def test_linear_nll_is_cross_entropy_of_the_logits(rows: int, ignore_index: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 3, generator=random, dtype=torch.float64)
    projection = torch.randn(5, 3, generator=random, dtype=torch.float64)
    target = torch.randint(0, 5, (rows,), generator=random)
    target[torch.rand(rows, generator=random) < 0.3] = ignore_index
    weight = torch.rand(rows, generator=random)
    got = linear_nll(hidden, projection, target, weight, ignore_index=ignore_index)
    logits = hidden @ projection.T
    expected = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    torch.testing.assert_close(got.nll_N, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.weighted_sum, (weight * expected).sum(), rtol=1e-12, atol=1e-12)
    assert torch.equal(got.correct_N, (logits.argmax(1) == target) & (target != ignore_index))


def test_only_the_weighted_sum_carries_a_gradient() -> None:
    h, w, target = rows_to_train()
    weight = torch.ones(ROWS, requires_grad=True)
    got = linear_nll(h, w, target, weight)
    assert got.weighted_sum.requires_grad
    assert not got.nll_N.requires_grad
    got.weighted_sum.backward()
    assert weight.grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_ND": torch.zeros(ROWS, 3)}, "hidden"),
        ({"hidden_ND": torch.zeros(2, ROWS, 4)}, "hidden"),
        ({"target_N": torch.zeros(ROWS + 1, dtype=torch.int64)}, "target_N has shape"),
        ({"row_weight_N": torch.zeros(ROWS, 2)}, "row_weight_N has shape"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"target_N": torch.full((ROWS,), 9)}, "outside the vocabulary"),
        ({"target_N": torch.full((ROWS,), -1)}, "outside the vocabulary"),
    ],
)
def test_what_does_not_fit_is_a_value_error(change: dict[str, Any], message: str) -> None:
    h, w, target = rows_to_train()
    with pytest.raises(ValueError, match=message):
        linear_nll(**({"hidden_ND": h, "projection_VD": w, "target_N": target} | change))


def test_the_default_chunk_takes_its_share_of_memory_within_bounds() -> None:
    assert default_chunk(2**15) * 2**15 * 4 == 64 * 2**20
    assert default_chunk(2**17, "cuda") * 2**17 * 4 == 256 * 2**20
    assert default_chunk(2**17, "cuda", torch.bfloat16) == default_chunk(2**15, "cuda", torch.bfloat16) == 4096
    assert default_chunk(2**15, "cpu", torch.bfloat16) == default_chunk(2**15)
    assert default_chunk(100) == 4096
    assert default_chunk(10**9) == 128
