"""One suite for every loss that can be chosen by name: it gives the specification's numbers, or it says why it cannot.

`liger` and `cce` are the installed packages; they are skipped where these are missing or nothing can run their kernels
(CUDA, or Triton's interpreter: TRITON_INTERPRET=1). `liger-stand-in` and `cce-stand-in` are **not** these packages but
a few lines of plain torch with the signatures that the packages have: they test how the packages are called.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp import loss_backends
from wmtp.errors import ConfigError
from wmtp.loss import LossSum, RowWeight, Unembedding, plain_gradient_norms, plain_nll, reduce_loss, row_weights
from wmtp.loss_backends import BACKENDS, Backend, backend_loss, refusal
from wmtp.loss_fused import fused_loss
from wmtp.targets import IGNORE

# Stand-ins for packages


def nll_of_logits(logits_RV: Tensor, target_R: Tensor, softcap: float | None) -> Tensor:
    logits = logits_RV.to(torch.float64 if logits_RV.dtype == torch.float64 else torch.float32)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, target_R, reduction="none")


def liger_stand_in(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ce_weight: Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    chunk_mem_const: int = 1,
) -> Tensor:
    """The signature of `liger_kernel.transformers.functional.liger_fused_linear_cross_entropy` 0.8.5."""
    assert reduction == "none"
    assert accum_dtype == torch.float32
    return nll_of_logits(F.linear(input, weight, bias), target, softcap)


class _TimesTheFirst(torch.autograd.Function):
    """What Liger up to 0.8.1 does to a gradient: every row is multiplied by the first row's number."""

    @staticmethod
    def forward(ctx: Any, nll_R: Tensor) -> Tensor:
        return nll_R.clone()

    @staticmethod
    def backward(ctx: Any, gradient_R: Tensor) -> Tensor:
        return gradient_R[0].expand_as(gradient_R)


def liger_with_the_first_rows_weight(*args: Any, **kwargs: Any) -> Tensor:
    nll: Tensor = _TimesTheFirst.apply(liger_stand_in(*args, **kwargs))
    return nll


def cce_stand_in(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    reduction: str = "mean",
    shift: bool | int = 0,
    filter_eps: float | str | None = "auto",
    accum_e_fp32: bool = False,
    accum_c_fp32: bool = False,
    filter_e_grad: bool = True,
    filter_c_grad: bool = True,
    impl: str = "cce",
    vocab_parallel_options: object = None,
) -> Tensor:
    """The signature of `cut_cross_entropy.linear_cross_entropy` in apple/ml-cross-entropy since its exact mode."""
    assert (reduction, filter_eps, accum_e_fp32, accum_c_fp32, impl) == ("none", None, True, True, "cce")
    assert bias is None
    assert e.dtype == c.dtype == torch.bfloat16
    return nll_of_logits(e @ c.T, targets, softcap)


class _SumsInHalf(torch.autograd.Function):
    """What CCE 25.1.1 does to dhidden: the shares of the vocabulary's blocks are added in bf16."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, projection_VD: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_RD, projection_VD)
        return hidden_RD @ projection_VD.T

    @staticmethod
    def backward(ctx: Any, gradient_RV: Tensor) -> tuple[Tensor, Tensor]:
        hidden_RD, projection_VD = ctx.saved_tensors
        dhidden = torch.zeros_like(hidden_RD)
        for block in torch.arange(len(projection_VD)).split(128):
            dhidden += gradient_RV[:, block] @ projection_VD[block]
        return dhidden, gradient_RV.T @ hidden_RD


def cce_with_sums_in_bf16(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    *,
    softcap: float | None,
    reduction: str,
    filter_eps: float | None,
    accum_e_fp32: bool,
    accum_c_fp32: bool,
    impl: str,
) -> Tensor:
    return nll_of_logits(_SumsInHalf.apply(e, c), targets, softcap)


def cce_25_1_1(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    softcap: float | None = None,
    reduction: str = "mean",
    shift: bool = False,
    filter_eps: float | str | None = "high",
    impl: str = "cce",
) -> Tensor:
    """The signature of the release on PyPI."""
    raise AssertionError("not to be called")


def install(monkeypatch: pytest.MonkeyPatch, package: str, function: Callable[..., Tensor]) -> None:
    """Make `function` what the package exports, and let the backend run on any device."""
    names = {"liger": "liger_kernel.transformers.functional", "cce": "cut_cross_entropy"}
    path = names[package].split(".")
    for end in range(1, len(path) + 1):
        monkeypatch.setitem(sys.modules, ".".join(path[:end]), ModuleType(".".join(path[:end])))
    exported = {"liger": "liger_fused_linear_cross_entropy", "cce": "linear_cross_entropy"}[package]
    setattr(sys.modules[names[package]], exported, function)
    monkeypatch.setattr(loss_backends, "_version", lambda distribution: None)
    allow_every_device(monkeypatch, package)


def allow_every_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], devices=None))


# The losses


@dataclass(frozen=True)
class Loss:
    """One loss as the suite runs it."""

    kind: str
    device: str
    refuses: frozenset[str]
    """Features that it must refuse, and no others."""

    def __call__(
        self,
        hidden_K: list[Tensor],
        unembedding: Unembedding,
        target_BTK: Tensor,
        weight_BTK: Tensor | None = None,
        coefficient_K: Tensor | None = None,
        *,
        weight_of: RowWeight | None = None,
        seen: LossSum | None = None,
        chunk: int | None = None,
        gradient_norms: bool = False,
    ) -> LossSum:
        options: dict[str, Any] = {"weight_of": weight_of, "seen": seen, "chunk": chunk}
        options["gradient_norms"] = gradient_norms
        if self.kind == "fused":
            return fused_loss(hidden_K, unembedding, target_BTK, weight_BTK, coefficient_K, **options)
        if self.kind != "plain":
            return backend_loss(self.kind, hidden_K, unembedding, target_BTK, weight_BTK, coefficient_K, **options)
        norms = plain_gradient_norms(hidden_K, unembedding, target_BTK) if gradient_norms else None
        nll, correct = plain_nll(hidden_K, unembedding, target_BTK)
        made = None if weight_of is None else row_weights(weight_of, nll, norms)
        given = weight_BTK if made is None else made
        loss = reduce_loss(nll, correct, target_BTK, given, coefficient_K)
        return replace(
            loss, weight_BTK=None if made is None else made * (target_BTK != IGNORE), gradient_norm_BTK=norms
        )


REFUSES = {
    "plain": frozenset[str](),
    "fused": frozenset[str](),
    "torch": frozenset({"softcap"}),
    "liger": frozenset({"float64"}),
    "cce": frozenset({"float64", "float32", "bias"}),
}
"""The whole list. What is not in it must give the right numbers."""

MODULES = {"liger": "liger_kernel", "cce": "cut_cross_entropy"}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def why_not_here(kind: str) -> str | None:
    """Why a package's kernels cannot be run here; None if they can."""
    if kind == "torch":
        there = hasattr(torch.nn, "LinearCrossEntropyOptions")
        return None if there else f"torch {torch.__version__} has no chunked linear_cross_entropy"
    if importlib.util.find_spec(MODULES[kind]) is None:
        return f"{MODULES[kind]} is not installed"
    if not (INTERPRETED or torch.cuda.is_available()):
        return f"nothing here runs the kernels of {MODULES[kind]}: no CUDA, no TRITON_INTERPRET=1"
    try:
        BACKENDS[kind].load()
    except loss_backends._NotThere as reason:
        return str(reason)
    return None


PACKAGES = [kind for kind in BACKENDS if why_not_here(kind) is None]
STAND_INS = {"liger-stand-in": liger_stand_in, "cce-stand-in": cce_stand_in}


def set_up(name: str, monkeypatch: pytest.MonkeyPatch) -> Loss:
    kind = name.removesuffix("-stand-in")
    if name in STAND_INS:
        install(monkeypatch, kind, STAND_INS[name])
    elif kind in MODULES and INTERPRETED:
        allow_every_device(monkeypatch, kind)
    return Loss(kind, "cuda" if name in MODULES and not INTERPRETED else "cpu", REFUSES[kind])


@pytest.fixture(params=["plain", "fused", *PACKAGES, *STAND_INS])
def loss(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loss:
    """Every loss that can run here."""
    return set_up(request.param, monkeypatch)


@pytest.fixture(params=["fused", *PACKAGES, *STAND_INS])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loss:
    """All but the specification, which looks at every row."""
    return set_up(request.param, monkeypatch)


@pytest.fixture(params=[*PACKAGES, *STAND_INS])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loss:
    """Other libraries' losses."""
    return set_up(request.param, monkeypatch)


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_package_itself_takes_part(kind: str) -> None:
    if kind not in PACKAGES:
        pytest.skip(str(why_not_here(kind)))


# The cases


@dataclass(frozen=True)
class Problem:
    """Everything a loss is computed from, in float64."""

    hidden_K: list[Tensor]
    projection_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None
    scale: float
    target_BTK: Tensor
    weight_BTK: Tensor | None
    coefficient_K: Tensor | None
    chunk: int | None

    def rounded(self, dtype: torch.dtype) -> Problem:
        """With inputs that this dtype holds exactly."""
        bias = None if self.bias_V is None else self.bias_V.to(dtype).double()
        hidden_K = [hidden.to(dtype).double() for hidden in self.hidden_K]
        return replace(self, hidden_K=hidden_K, projection_VD=self.projection_VD.to(dtype).double(), bias_V=bias)

    def features(self, dtype: torch.dtype) -> set[str]:
        """What a loss may have to refuse."""
        found = {str(dtype).removeprefix("torch.")}
        return found | {n for n, v in (("bias", self.bias_V), ("softcap", self.softcap)) if v is not None}


def make(
    K: int = 2,
    *,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    weights: str = "some zero",
    ignored: str = "first row",
    coefficients: list[float] | None = None,
    chunk: int | None = 48,
    seed: int = 0,
) -> Problem:
    B, T, V, D = 2, 40, 200, 32
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    target = torch.randint(V, (B, T, K), generator=random)
    target[torch.rand(B, T, K, generator=random) < 0.2] = IGNORE
    target[:, 0] = IGNORE
    if ignored == "all rows":
        target[:] = IGNORE
    weight = 3 * torch.rand(B, T, K, generator=random) * (torch.rand(B, T, K, generator=random) < 0.6)
    return Problem(
        hidden_K=[0.4 * normal(B, T, D) for _ in range(K)],
        projection_VD=normal(V, D),
        bias_V=normal(V) if bias else None,
        softcap=softcap,
        scale=scale,
        target_BTK=target,
        weight_BTK={"some zero": weight, "all zero": torch.zeros_like(weight), "none": None}[weights],
        coefficient_K=None if coefficients is None else torch.tensor(coefficients),
        chunk=chunk,
    )


CASES = {
    "weights with exact zeros": make(),
    "one head": make(1),
    "three heads": make(3, coefficients=[1.0, 0.0, 0.5]),
    "no weights": make(weights="none"),
    "all weights zero": make(weights="all zero"),
    "all rows ignored": make(ignored="all rows"),
    "one call per head": make(chunk=None),
    "many calls": make(chunk=7),
    "bias": make(bias=True),
    "softcap": make(softcap=3.0),
    "scale": make(scale=0.3),
    "bias and scale": make(bias=True, scale=0.3),
    "softcap and scale": make(softcap=3.0, scale=0.3),
    "bias, softcap and scale": make(bias=True, softcap=3.0, scale=0.3),
}
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-7, torch.bfloat16: 2**-8}
"""Allowed on top of the plain loss' own error, relative to the figure's norm. In bf16 this is what `torch` needs, which
rounds nll and row weight to bf16 (0.2 % of each), and `liger`, which rounds the weight."""
ONE_NUMBER = 4e-7
"""Allowed for a single fp32 number, whose last digits are a matter of luck."""
SMALL_CALLS = {("torch", "many calls"): 3e-7}
"""torch's products of few rows add up in another order than plain's one product of all rows: measured 1.7e-7 on top."""


@dataclass(frozen=True)
class Outcome:
    loss: LossSum
    gradients: dict[str, Tensor]

    def numbers(self) -> dict[str, Tensor]:
        """All figures and gradients by name, on the CPU; no `correct_K`, which libraries do not tell."""
        names = ("weighted_sum", "weight_total", "nll_sum_K", "count_K", "nll_BTK", "weight_BTK", "gradient_norm_BTK")
        figures = {name: getattr(self.loss, name) for name in names}
        return {n: v.detach().cpu() for n, v in (figures | self.gradients).items() if v is not None}


def leaf(tensor: Tensor, loss: Loss, dtype: torch.dtype) -> Tensor:
    """A copy for a loss to differentiate."""
    return tensor.detach().to(loss.device, dtype, copy=True).requires_grad_()


def run(loss: Loss, p: Problem, dtype: torch.dtype, frozen: tuple[str, ...] = (), **options: Any) -> Outcome:
    """The loss and the gradients of what is not frozen, times 0.5 to see the incoming gradient used."""
    leaves = {f"dhidden_{k}": hidden for k, hidden in enumerate(p.hidden_K)} | {"dprojection": p.projection_VD}
    leaves |= {} if p.bias_V is None else {"dbias": p.bias_V}
    leaves = {n: leaf(t, loss, dtype).requires_grad_(not n.startswith(frozen or "-")) for n, t in leaves.items()}
    there = [t if t is None else t.to(loss.device) for t in (p.target_BTK, p.weight_BTK, p.coefficient_K)]
    unembedding = Unembedding(leaves["dprojection"], leaves.get("dbias"), p.softcap, p.scale)
    if "weight_of" in options:
        there[1] = None
    got = loss(
        [leaves[f"dhidden_{k}"] for k in range(len(p.hidden_K))],
        unembedding,
        *there,
        **({"chunk": p.chunk} if loss.kind != "plain" else {}),
        **options,
    )
    if got.weighted_sum.requires_grad:
        (0.5 * got.weighted_sum).backward()
    return Outcome(got, {name: each.grad for name, each in leaves.items() if each.grad is not None})


PLAIN = Loss("plain", "cpu", REFUSES["plain"])


def must_refuse(loss: Loss, p: Problem, dtype: torch.dtype) -> bool:
    """Whether this loss has to refuse this problem; if so, that it does and says why."""
    features = sorted(p.features(dtype) & loss.refuses)
    if not features:
        return False
    with pytest.raises(ConfigError) as caught:
        run(loss, p, dtype)
    message = str(caught.value)
    assert repr(loss.kind) in message
    assert "loss 'fused'" in message
    words = {"softcap": "caps its logits at 3", "bias": "has a bias"}
    for feature in features:
        assert words.get(feature, f"not in {feature}") in message
    return True


def assert_as_close(
    loss: Loss, p: Problem, dtype: torch.dtype, rounding: float | None = None, **options: Any
) -> dict[str, Tensor]:
    """The loss' figures, no further from float64 than the plain loss' own, give or take `ROUNDING`."""
    p = p.rounded(dtype)
    truth, plain = run(PLAIN, p, torch.float64, **options).numbers(), run(PLAIN, p, dtype, **options).numbers()
    got = run(loss, p, dtype, **options)
    numbers = got.numbers()
    assert numbers.keys() == truth.keys()
    for name, exact in truth.items():
        assert numbers[name].shape == exact.shape, name
        assert numbers[name].dtype == plain[name].dtype, name
        size = float(exact.double().norm())
        ours, theirs = (float((each[name].double() - exact.double()).norm()) for each in (numbers, plain))
        allowed = ROUNDING[dtype] if rounding is None else rounding
        if exact.ndim == 0 or exact.numel() == len(p.hidden_K):
            allowed = max(allowed, ONE_NUMBER)
        assert ours <= theirs + allowed * size, f"{name}: off by {ours / size:.2e}, plain by {theirs / size:.2e}"
    assert (got.loss.correct_K is None) == (loss.kind in BACKENDS)
    return numbers


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])


# The suite


@DTYPES
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_specifications_or_refused(loss: Loss, case: str, dtype: torch.dtype) -> None:
    p = CASES[case]
    if not must_refuse(loss, p, dtype):
        more = SMALL_CALLS.get((loss.kind, case)) if dtype == torch.float32 else None
        assert_as_close(loss, p, dtype, more)


def best_dtype(loss: Loss) -> torch.dtype:
    """The widest dtype that this loss takes."""
    names = ("float64", "float32", "bfloat16")
    name = next(name for name in names if name not in loss.refuses)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@pytest.mark.parametrize("frozen", [("dprojection",), ("dhidden",), ("dhidden_0",), ("dbias",), ("d",)])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same_one(loss: Loss, frozen: tuple[str, ...]) -> None:
    dtype, p = best_dtype(loss), make(bias="bias" not in loss.refuses)
    everything, some = run(loss, p, dtype).gradients, run(loss, p, dtype, frozen).gradients
    assert some.keys() == {name for name in everything if not name.startswith(frozen)}
    for name, gradient in some.items():
        torch.testing.assert_close(gradient, everything[name], rtol=0, atol=0)


def test_without_grad_mode_the_figures_are_the_same_and_carry_no_gradient(loss: Loss) -> None:
    dtype, p = best_dtype(loss), make()
    expected = run(loss, p, dtype).numbers()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = run(loss, p, dtype)
        assert not got.loss.weighted_sum.requires_grad
        for name, figure in got.numbers().items():
            rounding = 1e-12 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(figure, expected[name], rtol=rounding, atol=rounding)


def test_a_tied_unembedding_gets_both_of_its_gradients(loss: Loss) -> None:
    dtype, p = best_dtype(loss), make().rounded(torch.bfloat16)
    assert p.weight_BTK is not None

    def gradient(loss: Loss, dtype: torch.dtype) -> Tensor:
        embedding = leaf(p.projection_VD, loss, dtype)
        target, weight = p.target_BTK.to(loss.device), p.weight_BTK.to(loss.device)
        hidden_K = [torch.tanh(embedding[target[:, :, k].clamp(min=0)]) for k in range(2)]
        loss(hidden_K, Unembedding(embedding), target, weight).weighted_sum.backward()
        assert embedding.grad is not None
        return embedding.grad.cpu().double()

    truth = gradient(PLAIN, torch.float64)
    ours, theirs = ((gradient(each, dtype) - truth).norm() for each in (loss, PLAIN))
    assert float(ours) <= 1.5 * float(theirs) + ROUNDING[dtype] * float(truth.norm())


def excess(k: int, places: Tensor, nll: Tensor, norm: Tensor | None) -> Tensor:
    """A rule by row that gives weight 0 to some."""
    assert nll.dtype in (torch.float32, torch.float64)
    assert not nll.requires_grad
    return (nll - 4.5 - 0.01 * places - k).clamp(0, 2)


def pull(k: int, places: Tensor, nll: Tensor, norm: Tensor | None) -> Tensor:
    """A rule that looks at the gradient's norm."""
    assert norm is not None
    assert norm.shape == nll.shape
    return 1 / (1 + norm)


@DTYPES
@pytest.mark.parametrize("case", ["weights with exact zeros", "bias and scale", "softcap", "many calls"])
def test_weights_made_from_the_rows_own_loss(loss: Loss, case: str, dtype: torch.dtype) -> None:
    p = CASES[case]
    if must_refuse(loss, p, dtype):
        return
    # In bf16 a weight that is made of an nll is as wrong as the nll, and the sums of weights with it.
    rounding = {torch.float64: 1e-12, torch.float32: 5e-7, torch.bfloat16: 2**-6}[dtype]
    numbers = assert_as_close(loss, p, dtype, rounding, weight_of=excess)
    made = numbers["weight_BTK"][p.target_BTK != IGNORE]
    assert bool((made == 0).any())
    assert bool((made > 0).any())


@DTYPES
def test_norms_of_the_rows_gradients_and_weights_made_from_them(loss: Loss, dtype: torch.dtype) -> None:
    p = make(scale=0.7)
    if not must_refuse(loss, p, dtype):
        rounding = {torch.float64: 1e-12, torch.float32: 5e-7, torch.bfloat16: 2**-6}[dtype]
        assert_as_close(loss, p, dtype, rounding, gradient_norms=True)
        assert_as_close(loss, p, dtype, rounding, gradient_norms=True, weight_of=pull)


def test_what_was_seen_is_passed_on_and_only_rows_that_count_are_visited_again(fast: Loss) -> None:
    dtype, p = best_dtype(fast), make()
    assert p.weight_BTK is not None
    target, weight = p.target_BTK.to(fast.device), p.weight_BTK.to(fast.device)
    hidden_K = [leaf(hidden, fast, dtype) for hidden in p.hidden_K]
    unembedding = Unembedding(leaf(p.projection_VD, fast, dtype))
    leaves = [unembedding.projection_VD, *hidden_K]
    whole = fast(hidden_K, unembedding, target, weight)
    expected = torch.autograd.grad(whole.weighted_sum, leaves)
    with torch.no_grad():
        seen = fast(hidden_K, unembedding, target)
        unvisited = fast(hidden_K, unembedding, target, weight, seen=seen)
    poisoned = [hidden.detach().clone() for hidden in hidden_K]
    for k, hidden in enumerate(poisoned):
        hidden[weight[:, :, k] == 0] = torch.nan
        hidden.requires_grad_()
    again = fast(poisoned, unembedding, target, weight, seen=seen)
    got = torch.autograd.grad(again.weighted_sum, [unembedding.projection_VD, *poisoned])
    rounding = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    for ours, theirs in zip(got, expected, strict=True):
        assert float((ours - theirs).norm()) <= rounding * float(theirs.norm())
    for figure in ("weighted_sum", "weight_total"):
        torch.testing.assert_close(getattr(again, figure), getattr(whole, figure), rtol=rounding, atol=0)
        torch.testing.assert_close(getattr(unvisited, figure), getattr(whole, figure), rtol=rounding, atol=0)
    assert again.nll_BTK is seen.nll_BTK


def test_what_a_row_without_target_holds_does_not_matter(fast: Loss) -> None:
    dtype, p = best_dtype(fast), make()
    assert p.weight_BTK is not None
    ignored = p.target_BTK == IGNORE
    spoiled = replace(
        p,
        hidden_K=[h.masked_fill(ignored[:, :, k, None], torch.inf) for k, h in enumerate(p.hidden_K)],
        weight_BTK=p.weight_BTK.masked_fill(ignored, torch.nan),
    )
    got, expected = run(fast, spoiled, dtype).numbers(), run(fast, p, dtype).numbers()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0)


def test_five_hundred_calls_in_bf16_are_summed_in_fp32(loss: Loss) -> None:
    # Summed in bf16, 512 equal terms would stop growing at 256 of them.
    hidden = torch.ones(1, 512, 16, dtype=torch.bfloat16, device=loss.device)
    projection = torch.zeros(16, 16, dtype=torch.bfloat16, device=loss.device, requires_grad=True)
    target = torch.zeros(1, 512, 1, dtype=torch.int64, device=loss.device)
    got = loss([hidden], Unembedding(projection), target, chunk=None if INTERPRETED else 1)
    got.weighted_sum.backward()
    assert projection.grad is not None
    assert projection.grad[:2, 0].tolist() == [-480.0, 32.0]


def test_autocast_reaches_the_products(loss: Loss) -> None:
    p = make().rounded(torch.bfloat16)
    assert p.weight_BTK is not None
    hidden_K = [leaf(hidden, loss, torch.float32) for hidden in p.hidden_K]
    projection = leaf(p.projection_VD, loss, torch.float32)
    target, weight = p.target_BTK.to(loss.device), p.weight_BTK.to(loss.device)
    with torch.autocast(loss.device, torch.bfloat16):
        got = loss(hidden_K, Unembedding(projection), target, weight)
    got.weighted_sum.backward()
    assert got.nll_BTK.dtype == got.weighted_sum.dtype == torch.float32
    expected = run(loss, p, torch.bfloat16)
    for name, each in {"dprojection": projection, "dhidden_0": hidden_K[0]}.items():
        assert each.grad is not None
        assert each.grad.dtype == torch.float32
        difference = float((0.5 * each.grad - expected.gradients[name]).norm())
        assert difference <= 2**-7 * float(expected.gradients[name].norm())


def test_weights_of_another_shape_are_an_error(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"weights have shape \(2, 40\), targets \(2, 40, 2\)"):
        run(loss, replace(make(), weight_BTK=torch.ones(2, 40)), best_dtype(loss))


# What only libraries' losses do


def test_a_second_backward_is_refused_because_the_gradients_were_given_away(library: Loss) -> None:
    total = run_forward(library).weighted_sum
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="cannot run twice"):
        total.backward()


@pytest.mark.parametrize("wrong", [200, -1])
def test_a_target_outside_the_vocabulary_is_an_error_on_every_device(library: Loss, wrong: int) -> None:
    target = make().target_BTK.clone()
    target[1, 3, 1] = wrong
    with pytest.raises(ValueError, match="outside the vocabulary of 200"):
        run(library, replace(make(), target_BTK=target), best_dtype(library))


def test_a_chunk_below_one_is_an_error(library: Loss) -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        run_forward(library, chunk=0)


def run_forward(loss: Loss, **options: Any) -> LossSum:
    p, dtype = make(), best_dtype(loss)
    assert p.weight_BTK is not None
    hidden_K = [leaf(hidden, loss, dtype) for hidden in p.hidden_K]
    unembedding = Unembedding(p.projection_VD.to(loss.device, dtype))
    return loss(hidden_K, unembedding, p.target_BTK.to(loss.device), p.weight_BTK.to(loss.device), **options)


def test_a_row_of_weight_zero_does_no_gradient_work_and_one_without_target_none_at_all(
    library: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_forward(library)  # compares the library with the plain loss
    rows = {True: 0, False: 0}
    backend: Backend = BACKENDS[library.kind]

    def counted(function: Callable[..., Tensor], hidden: Tensor, unembedding: Unembedding, target: Tensor) -> Tensor:
        rows[hidden.requires_grad and torch.is_grad_enabled()] += len(target)
        return backend.nll(function, hidden, unembedding, target)

    monkeypatch.setitem(BACKENDS, library.kind, replace(backend, nll=counted))
    monkeypatch.setattr(loss_backends, "_measured", lambda *case: None)
    run_forward(library, chunk=7)
    p = make()
    assert p.weight_BTK is not None
    weight = p.weight_BTK[p.target_BTK != IGNORE]
    assert rows == {True: int((weight != 0).sum()), False: int((weight == 0).sum())}


def test_norms_ask_for_no_gradient_of_the_unembedding(library: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    run_forward(library)  # compares the library with the plain loss
    asked = []
    backend: Backend = BACKENDS[library.kind]

    def watched(function: Callable[..., Tensor], hidden: Tensor, unembedding: Unembedding, target: Tensor) -> Tensor:
        asked.append((hidden.requires_grad, unembedding.projection_VD.requires_grad, torch.is_grad_enabled()))
        return backend.nll(function, hidden, unembedding, target)

    monkeypatch.setitem(BACKENDS, library.kind, replace(backend, nll=watched))
    monkeypatch.setattr(loss_backends, "_measured", lambda *case: None)
    with torch.no_grad():
        run_forward(library, gradient_norms=True, chunk=1000)
    assert asked == 2 * [(False, False, False), (True, False, True)]


# Refusals

CPU = torch.device("cpu")


def unembedding(*, bias: bool = False, softcap: float | None = None) -> Unembedding:
    return Unembedding(torch.zeros(5, 3), torch.zeros(5) if bias else None, softcap)


@pytest.mark.parametrize("name", ["fused", "plain", "nonsense"])
def test_a_name_that_is_no_library_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"must be one of torch, liger, cce, got '{name}'"):
        refusal(name, unembedding(), torch.float32, CPU)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        (
            "liger",
            [
                "it runs on cuda, the model is on cpu",
                "it computes in float32, bfloat16, not in float64 (the kernel computes in fp32 whatever it is given)",
                "liger-kernel cannot be imported",
            ],
        ),
        (
            "cce",
            [
                "it runs on cuda, the model is on cpu",
                "it computes in bfloat16, not in float64 (its backward takes half precision only)",
                "the model's unembedding has a bias",
                "cut-cross-entropy cannot be imported",
            ],
        ),
    ],
)
def test_what_is_not_installed_is_refused_with_every_other_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, reasons: list[str]
) -> None:
    without(monkeypatch, MODULES[name])
    why = refusal(name, unembedding(bias=True, softcap=30.0), torch.float64, CPU)
    assert why is not None
    assert why.startswith(f"loss backend '{name}' cannot be used here: ")
    assert why.endswith("Instead, choose loss 'fused', which has none of these limits")
    for reason in reasons:
        assert reason in why
    assert "caps its logits" not in why


def test_a_torch_without_the_chunked_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    why = refusal("torch", unembedding(), torch.float32, CPU)
    assert why is not None
    assert "has no chunked linear_cross_entropy, which came with torch 2.13" in why


@pytest.mark.parametrize(
    ("version", "refused"), [("0.7.0", True), ("0.8.1", True), ("0.8.2", False), ("0.10.0", False)]
)
def test_a_liger_that_drops_row_weights_is_refused_by_its_version(
    monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    install(monkeypatch, "liger", liger_stand_in)
    monkeypatch.setattr(loss_backends, "_version", lambda distribution: version)
    why = refusal("liger", unembedding(), torch.float32, CPU)
    if refused:
        assert why is not None
        assert f"liger-kernel {version} multiplies every row's gradient by the first row's weight" in why
    else:
        assert why is None


def test_the_cce_on_pypi_is_refused_because_it_sums_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cce", cce_25_1_1)
    monkeypatch.setattr(loss_backends, "_version", lambda distribution: "25.1.1")
    why = refusal("cce", unembedding(), torch.bfloat16, CPU)
    assert why is not None
    assert "cut-cross-entropy 25.1.1 can only add gradients in bf16" in why


def liger_without_bias(*args: Any, **kwargs: Any) -> Tensor:
    return liger_stand_in(*args, **(kwargs | {"bias": 0 * kwargs["bias"]}))


def liger_without_cap(*args: Any, **kwargs: Any) -> Tensor:
    return liger_stand_in(*args, **(kwargs | {"softcap": None}))


def liger_without_numbers(*args: Any, **kwargs: Any) -> Tensor:
    return liger_stand_in(*args, **kwargs) * torch.nan


@pytest.mark.parametrize(
    ("name", "function", "figure"),
    [
        ("liger", liger_with_the_first_rows_weight, "gradient of the unembedding is off by"),
        ("liger", liger_without_bias, "nll is off by"),
        ("liger", liger_without_cap, "nll is off by"),
        ("liger", liger_without_numbers, "nll is off by nan%"),
        ("cce", cce_with_sums_in_bf16, "gradient of the hidden states is off by"),
    ],
)
def test_a_library_that_is_wrong_is_found_out_before_its_first_use(
    monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Tensor], figure: str
) -> None:
    install(monkeypatch, name, function)
    how = unembedding(bias=name == "liger", softcap=1.5 if name == "liger" else None)
    why = refusal(name, how, torch.bfloat16, CPU)
    assert why is not None
    assert "with unequal row weights its " + figure in why
    assert "that of the plain loss by" in why
    hidden = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="with unequal row weights"):
        backend_loss(name, [hidden], how, torch.zeros(1, 2, 1, dtype=torch.int64))


def test_the_comparison_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return liger_stand_in(*args, **kwargs)

    install(monkeypatch, "liger", counted)
    state = torch.get_rng_state()
    assert refusal("liger", unembedding(), torch.float32, CPU) is None
    once = len(calls)
    assert once > 0
    assert refusal("liger", unembedding(), torch.float32, CPU) is None
    assert len(calls) == once
    assert torch.equal(torch.get_rng_state(), state)


def test_the_comparison_can_be_made_in_the_middle_of_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh(*args: Any, **kwargs: Any) -> Tensor:
        return liger_stand_in(*args, **kwargs)

    install(monkeypatch, "liger", fresh)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert refusal("liger", unembedding(), torch.float32, CPU) is None


@pytest.mark.parametrize(
    ("module", "name", "stand_in"),
    [
        ("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy", liger_stand_in),
        ("cut_cross_entropy", "linear_cross_entropy", cce_stand_in),
    ],
)
def test_a_stand_in_has_the_signature_of_what_it_stands_for(
    module: str, name: str, stand_in: Callable[..., Tensor]
) -> None:
    real = inspect.signature(getattr(pytest.importorskip(module), name)).parameters
    if module == "cut_cross_entropy" and "accum_e_fp32" not in real:
        stand_in = cce_25_1_1
    assert list(real) == list(inspect.signature(stand_in).parameters)
