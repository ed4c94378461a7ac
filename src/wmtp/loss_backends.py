"""Other libraries' kernels behind the function that `loss_fused.fused_loss` is: `torch`, `liger`, `cce`.

None of them takes a weight per row, but each gives a differentiable nll per row. So, a chunk of rows of one head at a
time: the library computes the nll; the rows' weights are made or looked up; its own backward, fed with these weights,
gives the chunk's gradients; they are added in fp32, and the graph is dropped. Products with the unembedding: 1 for the
nll, 1 where the library computes the logits again, 2 for the gradients, so 4 where `fused` needs 3. A row without a
target never meets the library; a row whose weight is known to be 0 gives its nll and does no gradient work.

A library that is wrong for this use is refused with the reason, never corrected and never used in silence: `refusal`
knows what each cannot do, and compares it once per process, dtype, device and kind of unembedding with the plain loss
on a small problem with unequal weights and exact zeros. What is known:

    torch   `torch.nn.functional.linear_cross_entropy`, torch >= 2.13. No soft cap. In bf16 it rounds nll and row weight
            to bf16 (0.2 % of each) and would add the unembedding's gradient over its own chunks in bf16: here each call
            is one chunk, and the sum over calls is fp32.
    liger   `liger_kernel`, >= 0.8.2. Up to 0.8.1 the gradient of every row is multiplied by the first row's weight
            (Liger-Kernel issue 968; the nll is right, so nothing shows). float64 is computed in fp32: refused. In bf16
            the row weight is rounded to bf16.
    cce     `cut_cross_entropy`. Needs `accum_e_fp32` and `accum_c_fp32`: version 25.1.1, the one on PyPI, adds
            gradients in bf16 over blocks of rows and vocabulary (dhidden off by 1 % at V = 8000 and by 7 % at 32000,
            where the plain loss is off by 0.2 %). Gradient filtering is off: it drops small entries. bf16 only.

These libraries do not say whether a prediction was correct: `correct_K` is None, and there is no accuracy to report.

Not tested: anything on CUDA. The kernels of Liger and CCE were run in Triton's interpreter on a CPU (CCE's with fp32
sums patched into 25.1.1), which shows their arithmetic, not their speed or how they compile. The comparison with the
plain loss runs on the device itself, before the first use.

Not covered: double backward, forward-mode differentiation.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp.errors import ConfigError
from wmtp.loss import LossSum, RowWeight, Unembedding, accumulator, pair_scale, plain_nll, reduce_loss
from wmtp.targets import IGNORE

INSTEAD = "choose loss 'fused', which has none of these limits"


class _NotThere(Exception):
    """A library, or the version of it that is needed, is not installed; the message is the reason."""


@dataclass(frozen=True)
class Backend:
    """One library's loss, and what it cannot do."""

    load: Callable[[], Callable[..., Tensor]]
    """The library's function; raises `_NotThere`."""
    nll: Callable[[Callable[..., Tensor], Tensor, Unembedding, Tensor], Tensor]
    """(that function, hidden_RD, unembedding, target_R) -> differentiable nll_R. At least one row; all tensors have one
    dtype; every row has a target; the unembedding's scale is 1."""
    dtypes: tuple[torch.dtype, ...]
    dtypes_why: str
    devices: tuple[str, ...] | None
    """None means any."""
    bias_why_not: str | None
    softcap_why_not: str | None
    holds_logits: bool
    """A call holds the logits of all its rows, so rows are limited by memory; else the library makes its own chunks."""


def _load_torch() -> Callable[..., Tensor]:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise _NotThere(f"torch {torch.__version__} has no chunked linear_cross_entropy, which came with torch 2.13")
    return F.linear_cross_entropy


def _torch_nll(function: Callable[..., Tensor], hidden: Tensor, unembedding: Unembedding, target: Tensor) -> Tensor:
    """One chunk per call: between chunks torch would add dprojection in the dtype of the hidden states."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=len(target), chunking_method=None)
    return function(
        hidden,
        unembedding.projection_VD,
        target,
        linear_bias=unembedding.bias_V,
        reduction="none",
        options=options,
    )


LIGER_NEEDED = (0, 8, 2)
"""The first release whose backward applies a weight per row (Liger-Kernel pull request 1298)."""


def _load_liger() -> Callable[..., Tensor]:
    needed = ".".join(map(str, LIGER_NEEDED))
    try:
        module = importlib.import_module("liger_kernel.transformers.functional")
    except ImportError as error:
        raise _NotThere(f"liger-kernel cannot be imported ({error}): pip install 'liger-kernel>={needed}'") from error
    version = _version("liger-kernel")
    if version is not None and _numbers(version) < LIGER_NEEDED:
        raise _NotThere(
            f"liger-kernel {version} multiplies every row's gradient by the first row's weight (its issue 968): "
            f"pip install 'liger-kernel>={needed}'"
        )
    function: Callable[..., Tensor] = module.liger_fused_linear_cross_entropy
    return function


def _liger_nll(function: Callable[..., Tensor], hidden: Tensor, unembedding: Unembedding, target: Tensor) -> Tensor:
    """`accum_dtype`: by default Liger adds dprojection over its chunks in the parameter's dtype."""
    return function(
        hidden,
        unembedding.projection_VD,
        target,
        bias=unembedding.bias_V,
        softcap=unembedding.softcap,
        reduction="none",
        accum_dtype=accumulator(hidden.dtype),
    )


CCE_NEEDED = ("accum_e_fp32", "accum_c_fp32", "filter_eps")
CCE_SOURCE = "pip install 'cut-cross-entropy @ git+https://github.com/apple/ml-cross-entropy.git'"


def _load_cce() -> Callable[..., Tensor]:
    try:
        module = importlib.import_module("cut_cross_entropy")
    except ImportError as error:
        raise _NotThere(f"cut-cross-entropy cannot be imported ({error}): {CCE_SOURCE}") from error
    function: Callable[..., Tensor] = module.linear_cross_entropy
    if not set(CCE_NEEDED) <= set(inspect.signature(function).parameters):
        raise _NotThere(
            f"cut-cross-entropy {_version('cut-cross-entropy') or 'of unknown version'} can only add gradients in "
            f"bf16 over blocks of the vocabulary, which is off by far more than rounding; one with {CCE_NEEDED[0]} and "
            f"{CCE_NEEDED[1]} is needed: {CCE_SOURCE}"
        )
    return function


def _cce_nll(function: Callable[..., Tensor], hidden: Tensor, unembedding: Unembedding, target: Tensor) -> Tensor:
    """What the library calls exact: nothing filtered, fp32 sums."""
    return function(
        hidden,
        unembedding.projection_VD,
        target,
        softcap=unembedding.softcap,
        reduction="none",
        filter_eps=None,
        accum_e_fp32=True,
        accum_c_fp32=True,
        impl="cce",
    )


BACKENDS = {
    "torch": Backend(
        load=_load_torch,
        nll=_torch_nll,
        dtypes=(torch.float64, torch.float32, torch.bfloat16),
        dtypes_why="others were never compared with the plain loss",
        devices=None,
        bias_why_not=None,
        softcap_why_not="linear_cross_entropy has nothing between product and softmax",
        holds_logits=True,
    ),
    "liger": Backend(
        load=_load_liger,
        nll=_liger_nll,
        dtypes=(torch.float32, torch.bfloat16),
        dtypes_why="the kernel computes in fp32 whatever it is given",
        devices=("cuda",),
        bias_why_not=None,
        softcap_why_not=None,
        holds_logits=False,
    ),
    "cce": Backend(
        load=_load_cce,
        nll=_cce_nll,
        dtypes=(torch.bfloat16,),
        dtypes_why="its backward takes half precision only",
        devices=("cuda",),
        bias_why_not="its losses with a bias were wrong (apple/ml-cross-entropy issue 52)",
        softcap_why_not=None,
        holds_logits=False,
    ),
}


def refusal(name: str, unembedding: Unembedding, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why this backend cannot be used for such a loss; None if it can.

    Asked before a run, it spares the run: the first answer per case costs a small loss and its gradient.

    Args:
        dtype: that the products are computed in: of the hidden states, or autocast's.

    Raises:
        ConfigError: no backend has this name.
    """
    if name not in BACKENDS:
        raise ConfigError(f"loss backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    backend = BACKENDS[name]
    reasons = []
    if backend.devices is not None and device.type not in backend.devices:
        reasons.append(f"it runs on {' and '.join(backend.devices)}, the model is on {device.type}")
    if dtype not in backend.dtypes:
        can = ", ".join(str(each).removeprefix("torch.") for each in backend.dtypes)
        reasons.append(f"it computes in {can}, not in {str(dtype).removeprefix('torch.')} ({backend.dtypes_why})")
    if unembedding.softcap is not None and backend.softcap_why_not is not None:
        reasons.append(f"the model caps its logits at {unembedding.softcap:g} ({backend.softcap_why_not})")
    if unembedding.bias_V is not None and backend.bias_why_not is not None:
        reasons.append(f"the model's unembedding has a bias ({backend.bias_why_not})")
    try:
        function = backend.load()
    except _NotThere as reason:
        reasons.append(str(reason))
    else:
        if not reasons:
            measured = _measured(backend, function, dtype, device, unembedding.bias_V is not None, unembedding.softcap)
            reasons += [] if measured is None else [measured]
    return f"loss backend {name!r} cannot be used here: {'; '.join(reasons)}. Instead, {INSTEAD}" if reasons else None


def backend_loss(
    name: str,
    hidden_K: Sequence[Tensor],
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
    """`loss_fused.fused_loss` by another library: the same arguments and sums, `correct_K` is None.

    Args:
        name: a key of `BACKENDS`.
        weight_of: makes each row's weight from its own nll; then all rows do gradient work, whatever their weight.
        seen: an earlier, unweighted result on the same hidden states; only rows of weight > 0 are visited again.
        chunk: rows per call of the library.
        gradient_norms: also give `gradient_norm_BTK`; costs up to 3 products more.

    Raises:
        ConfigError: this backend is unknown, not installed, or wrong for this loss.
        ValueError: weights whose shape is not the targets', a chunk below 1, or a target outside the vocabulary.
    """
    device = unembedding.projection_VD.device
    if torch.is_autocast_enabled(device.type):
        hidden_K = [hidden.to(torch.get_autocast_dtype(device.type)) for hidden in hidden_K]
    why_not = refusal(name, unembedding, hidden_K[0].dtype, device)
    if why_not is not None:
        raise ConfigError(why_not)
    backend = BACKENDS[name]
    return _loss(
        backend,
        backend.load(),
        hidden_K,
        unembedding,
        target_BTK,
        pair_scale(target_BTK, weight_BTK, coefficient_K, accumulator(hidden_K[0].dtype)),
        weight_of,
        seen,
        chunk,
        gradient_norms,
    )


def _loss(
    backend: Backend,
    function: Callable[..., Tensor],
    hidden_K: Sequence[Tensor],
    unembedding: Unembedding,
    target_BTK: Tensor,
    scale_BTK: Tensor,
    weight_of: RowWeight | None = None,
    seen: LossSum | None = None,
    chunk: int | None = None,
    gradient_norms: bool = False,
) -> LossSum:
    if seen is not None and not torch.is_grad_enabled():
        return replace(seen, weighted_sum=(scale_BTK * seen.nll_BTK).sum(), weight_total=scale_BTK.sum())
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    valid_BTK = target_BTK != IGNORE
    _check_targets(target_BTK[valid_BTK], unembedding.projection_VD.shape[0])
    job = _Job(
        backend,
        function,
        unembedding,
        target_NK=target_BTK.flatten(0, 1),
        scale_NK=scale_BTK.flatten(0, 1),
        visited_NK=(valid_BTK if seen is None else scale_BTK != 0).flatten(0, 1),
        weight_of=weight_of,
        norms=gradient_norms and seen is None,
        chunk=chunk or rows_per_call(backend, unembedding.projection_VD),
        gradients=torch.is_grad_enabled(),
    )
    with torch.autocast(unembedding.projection_VD.device.type, enabled=False):
        total, *tables = _WeightedNLL.apply(  # type: ignore[no-untyped-call]
            job, unembedding.projection_VD, unembedding.bias_V, *[hidden.flatten(0, 1) for hidden in hidden_K]
        )
    nll_BTK, made_BTK, norm_BTK = (table_NK.view(target_BTK.shape) for table_NK in tables)
    if weight_of is not None:
        scale_BTK = scale_BTK * made_BTK
    if seen is not None:
        return replace(seen, weighted_sum=total, weight_total=scale_BTK.sum())
    return LossSum(
        weighted_sum=total,
        weight_total=scale_BTK.sum(),
        nll_sum_K=nll_BTK.sum((0, 1)),
        count_K=valid_BTK.sum((0, 1)),
        correct_K=None,
        nll_BTK=nll_BTK,
        weight_BTK=None if weight_of is None else made_BTK,
        gradient_norm_BTK=norm_BTK if gradient_norms else None,
    )


LOGIT_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
"""How large the fp32 logits of one call may be, where a call holds them all."""


def rows_per_call(backend: Backend, projection_VD: Tensor) -> int:
    """Rows that are given to the library at once: each call writes one `[V, D]` gradient that is then added up."""
    if not backend.holds_logits:
        return 4096
    budget = LOGIT_BYTES.get(projection_VD.device.type, LOGIT_BYTES["cpu"])
    return max(128, min(4096, budget // (4 * projection_VD.shape[0])))


def _check_targets(target_R: Tensor, vocabulary: int) -> None:
    """On a GPU the libraries read outside the logits for a target outside the vocabulary, and do not notice."""
    if bool(((target_R < 0) | (target_R >= vocabulary)).any()):
        low, high = int(target_R.min()), int(target_R.max())
        raise ValueError(f"targets are {low} to {high}, some outside the vocabulary of {vocabulary}")


@dataclass(frozen=True)
class _Job:
    """What is to be computed, with N = B * T rows per head."""

    backend: Backend
    function: Callable[..., Tensor]
    unembedding: Unembedding
    target_NK: Tensor
    scale_NK: Tensor
    visited_NK: Tensor
    weight_of: RowWeight | None
    norms: bool
    chunk: int
    gradients: bool
    """Whether grad mode is on: autograd's `needs_input_grad` tells of the inputs, not of the mode."""

    def visits(self, k: int, wanted: bool) -> Iterator[tuple[Tensor, bool]]:
        """Places of the rows of each call, and whether they do gradient work."""
        rows_N = self.visited_NK[:, k].nonzero().squeeze(-1)
        parts = [(rows_N, wanted)]
        if wanted and self.weight_of is None:
            counts = self.scale_NK[rows_N, k] != 0
            parts = [(rows_N[counts], True), (rows_N[~counts], False)]
        for rows, trained in parts:
            if len(rows):
                yield from ((rows_R, trained) for rows_R in torch.split(rows, self.chunk))

    def nll(self, inputs: _Inputs, target_R: Tensor) -> Tensor:
        """The library's nll; a scale of the logits goes into what they are made of."""
        projection_VD, bias_V, hidden_RD = inputs
        scale = self.unembedding.scale
        if scale != 1.0:
            hidden_RD, bias_V = hidden_RD * scale, None if bias_V is None else bias_V * scale
        unembedding = Unembedding(projection_VD, bias_V, self.unembedding.softcap)
        return self.backend.nll(self.function, hidden_RD, unembedding, target_R)

    def norm(self, inputs: _Inputs, target_R: Tensor) -> Tensor:
        """|d nll / d hidden| per row."""
        inputs = inputs.detached((False, False, True))
        with torch.enable_grad():
            nll_R = self.nll(inputs, target_R)
            (gradient_RD,) = torch.autograd.grad(nll_R, inputs.hidden_RD, torch.ones_like(nll_R))
        norm_R: Tensor = torch.linalg.vector_norm(gradient_RD, dim=-1, dtype=accumulator(gradient_RD.dtype))
        return norm_R


class _Inputs(NamedTuple):
    """What the logits of one call are made of."""

    projection_VD: Tensor
    bias_V: Tensor | None
    hidden_RD: Tensor

    def detached(self, trained: Sequence[bool]) -> _Inputs:
        """Leaves of a new graph; `trained` says which of the three get a gradient."""
        return _Inputs(
            self.projection_VD.detach().requires_grad_(trained[0]),
            None if self.bias_V is None else self.bias_V.detach().requires_grad_(trained[1]),
            self.hidden_RD.detach().requires_grad_(trained[2]),
        )


class _WeightedNLL(torch.autograd.Function):
    """sum scale * weight * nll; its gradients are ready when forward returns."""

    @staticmethod
    def forward(
        ctx: Any, job: _Job, projection_VD: Tensor, bias_V: Tensor | None, *hidden_K: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gradients = _Gradients(job, (projection_VD, bias_V, *hidden_K), ctx.needs_input_grad[1:])
        compute = hidden_K[0].dtype
        shared = projection_VD.to(compute), None if bias_V is None else bias_V.to(compute)
        total = job.scale_NK.new_zeros(())
        nll_NK, made_NK, norm_NK = (torch.zeros_like(job.scale_NK) for _ in range(3))
        for k, hidden_ND in enumerate(hidden_K):
            wanted = gradients.wanted(k)
            for rows_R, trained in job.visits(k, any(wanted)):
                target_R, weight_R = job.target_NK[rows_R, k], job.scale_NK[rows_R, k]
                inputs = _Inputs(*shared, hidden_ND[rows_R]).detached(wanted if trained else (False, False, False))
                with torch.set_grad_enabled(trained):
                    graph_R = job.nll(inputs, target_R)
                nll_R = graph_R.detach().to(total.dtype)
                nll_NK[rows_R, k] = nll_R
                norm_R = job.norm(inputs, target_R) if job.norms else None
                if norm_R is not None:
                    norm_NK[rows_R, k] = norm_R
                if job.weight_of is not None:
                    made_NK[rows_R, k] = job.weight_of(k, rows_R, nll_R, norm_R).detach().to(total.dtype)
                    weight_R = weight_R * made_NK[rows_R, k]
                total += (weight_R * nll_R).sum()
                if trained:
                    gradients.add(k, rows_R, inputs, graph_R, weight_R)
        ctx.gradients = gradients.of_inputs
        ctx.dtypes = [None if each is None else each.dtype for each in (projection_VD, bias_V, *hidden_K)]
        ctx.mark_non_differentiable(nll_NK, made_NK, norm_NK)
        return total, nll_NK, made_NK, norm_NK

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("this loss gives its gradients away in backward; it cannot run twice")
        found = [
            None if gradient is None else gradient.mul_(grad_total).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (None, *found)


class _Gradients:
    """Gradients of projection, bias and every head's rows, None where none is needed; the first two are sums."""

    def __init__(self, job: _Job, inputs: Sequence[Tensor | None], needed: Sequence[bool]) -> None:
        self.of_inputs = [
            torch.zeros_like(each, dtype=job.scale_NK.dtype if place < 2 else each.dtype)
            if job.gradients and needed[place] and each is not None
            else None
            for place, each in enumerate(inputs)
        ]

    def wanted(self, k: int) -> list[bool]:
        """Which of projection, bias and head k's rows get a gradient."""
        return [self.of_inputs[place] is not None for place in (0, 1, 2 + k)]

    def add(self, k: int, rows_R: Tensor, inputs: _Inputs, nll_R: Tensor, weight_R: Tensor) -> None:
        """Add those of sum weight * nll, by the library's own backward."""
        places = [place for place, wanted in zip((0, 1, 2 + k), self.wanted(k), strict=True) if wanted]
        leaves = [leaf for leaf in inputs if leaf is not None and leaf.requires_grad]
        found = torch.autograd.grad(nll_R, leaves, weight_R.to(nll_R.dtype))
        for place, value in zip(places, found, strict=True):
            gradient = self.of_inputs[place]
            if gradient is not None and place < 2:
                gradient += value
            elif gradient is not None:
                gradient[rows_R] = value


CHECK_ROWS, CHECK_VOCABULARY, CHECK_WIDTH = 64, 8192, 64
CHECK_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-6, torch.bfloat16: 2**-9}
"""What is allowed on top of twice the plain loss' own error: in bf16, one more rounding."""


@cache
def _measured(
    backend: Backend,
    function: Callable[..., Tensor],
    dtype: torch.dtype,
    device: torch.device,
    bias: bool,
    softcap: float | None,
) -> str | None:
    """How this library is wrong on a small problem with unequal weights and exact zeros; None where it is right."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        inputs, target, weight = _small_problem(dtype, bias)

        def figures(plain: bool, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
            leaves = [each.to(device, dtype, copy=True).requires_grad_() for each in inputs]
            unembedding = Unembedding(leaves[0], leaves[2] if bias else None, softcap)
            there, given = target.to(device), weight.to(device)
            if plain:
                loss = reduce_loss(*plain_nll([leaves[1]], unembedding, there), there, given)
            else:
                scale_BTK = pair_scale(there, given, None, accumulator(dtype))
                loss = _loss(backend, function, [leaves[1]], unembedding, there, scale_BTK)
            found = torch.autograd.grad(loss.weighted_sum, leaves)
            names = ["gradient of the unembedding", "gradient of the hidden states", "gradient of the bias"]
            return {"nll": loss.nll_BTK} | dict(zip(names, found, strict=False))

        exact = figures(True, torch.float64, torch.device("cpu"))
        usual, theirs = figures(True, dtype, device), figures(False, dtype, device)
    for name, truth in exact.items():
        errors = ((of[name].detach().cpu().double() - truth).norm() / truth.norm() for of in (theirs, usual))
        off, normal = map(float, errors)
        if not off <= 2 * normal + CHECK_ROUNDING[dtype]:
            return (
                f"with unequal row weights its {name} is off by {off:.2%}, that of the plain loss by {normal:.2%} "
                f"(measured in {str(dtype).removeprefix('torch.')} on {device})"
            )
    return None


def _small_problem(dtype: torch.dtype, bias: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Projection, hidden states and perhaps a bias; `target_BTK` with an ignored first row; `weight_BTK` with zeros."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64, device="cpu").to(dtype)

    inputs = [normal(CHECK_VOCABULARY, CHECK_WIDTH) / 8, normal(1, CHECK_ROWS, CHECK_WIDTH)]
    inputs += [normal(CHECK_VOCABULARY)] if bias else []
    target_BTK = torch.randint(CHECK_VOCABULARY, (1, CHECK_ROWS, 1), generator=random, device="cpu")
    target_BTK[:, 0] = IGNORE
    weight_BTK = 3 * torch.rand(1, CHECK_ROWS, 1, generator=random, device="cpu")
    weight_BTK[:, 1::3] = 0.0
    return inputs, target_BTK, weight_BTK


@cache
def _version(distribution: str) -> str | None:
    """Of an installed distribution; None where it is known under another name."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
