"""The same numbers as `loss.py` without ever holding more than one chunk of logits.

The method, for a chunk of C rows of one head:

    logits_CV = hidden @ projection.T          (compute dtype; softcap applied)
    nll       = logsumexp(logits) - logits[target]                  (fp32)
    dlogits   = (softmax(logits) - onehot(target)) * row_weight     (written over the logits)
    dhidden   = dlogits @ projection           dprojection += dlogits.T @ hidden      (fp32 accumulator)

The row weight is known when a chunk is visited, so loss and gradient come from one visit and the logits are
dropped before the next chunk. `backward` only multiplies the stored gradients, in place, by the incoming scalar. A row
without a target never meets the unembedding; a row with weight 0 is looked at (its nll is a metric) but does
no gradient work. Peak extra memory: C*V (logits) + V*D (dprojection) + N*D (dhidden).

Chunks never mix heads, so a head's rows see the same matrix products whatever the other heads are: that is why
a reference equal to the policy has an excess of exactly 0, not of 1e-7.

The idea of computing the gradient while the logits are there: Hsu et al. 2024, Liger Kernel (arXiv 2410.10989)
and Wijmans et al. 2024, Cut Your Losses (arXiv 2411.09009). Arbitrary row weights and several heads are ours.

Not covered: double backward, forward-mode differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmtp.loss import LossSum, RowWeight, Unembedding, accumulator, pair_scale
from wmtp.targets import IGNORE


class RowLoss(NamedTuple):
    """What `linear_nll` returns; only `weighted_sum` carries a gradient."""

    weighted_sum: Tensor
    """sum row_weight * nll, a scalar."""
    nll_N: Tensor
    """fp32 nll per row; 0 for ignored rows."""
    correct_N: Tensor
    """bool: no token is more likely than the target; False for ignored rows."""


CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20, "mps": 128 * 2**20}
"""How large one fp32 chunk of logits should be. More buys nothing once the products are efficient: a few cache loads
on a CPU; enough rows to fill the device on a GPU."""


def default_chunk(vocabulary: int, device: str = "cpu") -> int:
    """Rows per chunk: as many as fit `CHUNK_BYTES`, but 128 to 4096.

    Each chunk reads and writes the `[V, D]` gradient once and does 2*C*V*D operations on it, C/4 per byte whatever V
    and D are: below about 128 rows that traffic shows, so a large vocabulary may exceed the budget rather than starve
    the product. Above a few thousand rows only memory grows.
    """
    return max(128, min(4096, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocabulary)))


def linear_nll(
    hidden_ND: Tensor,
    projection_VD: Tensor,
    target_N: Tensor,
    row_weight_N: Tensor | None = None,
    *,
    softcap: float | None = None,
    ignore_index: int = IGNORE,
    bias_V: Tensor | None = None,
    chunk: int | None = None,
) -> RowLoss:
    """Weighted negative log-likelihood of a linear unembedding, without the `[N, V]` logits.

    Args:
        hidden_ND: final hidden states, any float dtype.
        projection_VD: the unembedding (`lm_head.weight`).
        target_N: int64 target ids; rows equal to `ignore_index` are skipped.
        row_weight_N: w >= 0 per row, used in fp32 (float64 if the hidden states are) and detached; None means 1.
        softcap: Gemma 2's final soft-capping.
        bias_V: the unembedding's bias.
        chunk: rows of logits held at once; by default `default_chunk(V)`.

    Raises:
        ValueError: shapes that do not fit, a chunk below 1, or a target outside the vocabulary.
    """
    _check_rows(hidden_ND, projection_VD, target_N, row_weight_N, chunk)
    rows_N = (target_N != ignore_index).nonzero().squeeze(-1)
    _check_targets(target_N[rows_N], projection_VD.shape[0])
    weight_N = None if row_weight_N is None else row_weight_N.detach().to(accumulator(hidden_ND.dtype))[rows_N]
    unembedding = Unembedding(projection_VD, bias_V, softcap)
    total, nll_R, correct_R = _rows_nll([hidden_ND[rows_N]], unembedding, [target_N[rows_N]], [weight_N], chunk)
    nll_N = nll_R.new_zeros(target_N.shape).index_copy_(0, rows_N, nll_R)
    correct_N = torch.zeros_like(target_N, dtype=torch.bool).index_copy_(0, rows_N, correct_R)
    return RowLoss(total, nll_N, correct_N)


def fused_loss(
    hidden_K: Sequence[Tensor],
    unembedding: Unembedding,
    target_BTK: Tensor,
    weight_BTK: Tensor | None = None,
    coefficient_K: Tensor | None = None,
    *,
    weight_of: RowWeight | None = None,
    seen: LossSum | None = None,
    chunk: int | None = None,
) -> LossSum:
    """`reduce_loss(*plain_nll(...))`, fused: same arguments, same sums, one chunk of logits at a time.

    Args:
        weight_of: makes each row's weight from its own nll, instead of `weight_BTK`: still one visit.
        seen: an earlier, unweighted result on the same hidden states. Its figures are passed on, and only rows of
            weight > 0 meet the unembedding again: a scheme that had to see the losses first and then drops 40 % of the
            rows costs less than uniform weights do.
    """
    scale_BTK = pair_scale(target_BTK, weight_BTK, coefficient_K, accumulator(hidden_K[0].dtype))
    valid_BTK = target_BTK != IGNORE
    if seen is not None and not torch.is_grad_enabled():
        return replace(seen, weighted_sum=(scale_BTK * seen.nll_BTK).sum(), weight_total=scale_BTK.sum())
    visited_BTK = valid_BTK if seen is None else scale_BTK != 0
    index_K = [visited_BTK[:, :, k].flatten().nonzero().squeeze(-1) for k in range(len(hidden_K))]
    given: list[Weight] = [scale_BTK[:, :, k].flatten()[index] for k, index in enumerate(index_K)]
    made_R: list[Tensor] = []
    if weight_of is not None:
        given = [_on_the_way(weight_of, k, index, scale_BTK, made_R) for k, index in enumerate(index_K)]
    total, nll_R, correct_R = _rows_nll(
        [h.flatten(0, 1)[index] for h, index in zip(hidden_K, index_K, strict=True)],
        unembedding,
        [target_BTK[:, :, k].flatten()[index] for k, index in enumerate(index_K)],
        given,
        chunk,
    )
    made_BTK = None
    if weight_of is not None:
        made_BTK = _scatter(torch.cat(made_R) if made_R else nll_R.new_zeros(0), index_K, target_BTK)
        scale_BTK = scale_BTK * made_BTK
    if seen is not None:
        return replace(seen, weighted_sum=total, weight_total=scale_BTK.sum())
    nll_BTK = _scatter(nll_R, index_K, target_BTK)
    correct_BTK = _scatter(correct_R, index_K, target_BTK)
    return LossSum(
        weighted_sum=total,
        weight_total=scale_BTK.sum(),
        nll_sum_K=nll_BTK.sum((0, 1)),
        count_K=valid_BTK.sum((0, 1)),
        correct_K=correct_BTK.sum((0, 1)),
        nll_BTK=nll_BTK,
        weight_BTK=made_BTK,
    )


Weight = Tensor | Callable[[slice, Tensor], Tensor] | None
"""Row weights of one head: given, made from a chunk's nll, or 1."""


def _on_the_way(weight_of: RowWeight, k: int, index: Tensor, scale_BTK: Tensor, made_R: list[Tensor]) -> Weight:
    """Head k's weights as the kernel asks for them: chunk by chunk, times c_k; the weights are kept in `made_R`."""
    scale = scale_BTK[:, :, k].flatten()[index]

    def weight(rows: slice, nll_C: Tensor) -> Tensor:
        made_R.append(weight_of(k, index[rows], nll_C).detach().to(nll_C.dtype))
        return made_R[-1] * scale[rows]

    return weight


def _scatter(value_R: Tensor, index_K: list[Tensor], like_BTK: Tensor) -> Tensor:
    """Rows of all heads, one head after another, back to `[B, T, K]`; 0 elsewhere."""
    B, T, K = like_BTK.shape
    out_KN = value_R.new_zeros((K, B * T))
    sizes = [len(index) for index in index_K]
    for k, part in enumerate(torch.split(value_R, sizes)):
        out_KN[k].index_copy_(0, index_K[k], part)
    return out_KN.T.reshape(B, T, K)


def _check_rows(
    hidden_ND: Tensor, projection_VD: Tensor, target_N: Tensor, row_weight_N: Tensor | None, chunk: int | None
) -> None:
    if hidden_ND.ndim != 2 or projection_VD.ndim != 2 or hidden_ND.shape[1] != projection_VD.shape[1]:
        raise ValueError(
            f"expected hidden [N, D] and projection [V, D], got {tuple(hidden_ND.shape)} and "
            f"{tuple(projection_VD.shape)}"
        )
    for name, rows in (("target_N", target_N), ("row_weight_N", row_weight_N)):
        if rows is not None and rows.shape != hidden_ND.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(rows.shape)}, expected ({hidden_ND.shape[0]},)")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")


def _check_targets(target_R: Tensor, vocabulary: int) -> None:
    if bool(((target_R < 0) | (target_R >= vocabulary)).any()):
        low, high = int(target_R.min()), int(target_R.max())
        raise ValueError(f"target_N holds {low} to {high}, some outside the vocabulary of {vocabulary}")


def _rows_nll(
    hidden_K: list[Tensor],
    unembedding: Unembedding,
    target_K: list[Tensor],
    weight_K: Sequence[Weight],
    chunk: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    device = unembedding.projection_VD.device.type
    chunk = chunk or default_chunk(unembedding.projection_VD.shape[0], device)
    if not torch.is_grad_enabled():  # autograd's needs_input_grad tells of the inputs, not of the mode
        unembedding = unembedding._replace(
            projection_VD=unembedding.projection_VD.detach(),
            bias_V=None if unembedding.bias_V is None else unembedding.bias_V.detach(),
        )
        hidden_K = [hidden.detach() for hidden in hidden_K]
    if torch.is_autocast_enabled(device):
        hidden_K = [hidden.to(torch.get_autocast_dtype(device)) for hidden in hidden_K]
    with torch.autocast(device, enabled=False):
        result: tuple[Tensor, Tensor, Tensor] = _LinearNLL.apply(  # type: ignore[no-untyped-call]
            unembedding.projection_VD, unembedding.bias_V, unembedding, chunk, target_K, weight_K, *hidden_K
        )
    return result


class _LinearNLL(torch.autograd.Function):
    """One visit per chunk; gradients are ready when forward returns."""

    @staticmethod
    def forward(
        ctx: Any,
        projection_VD: Tensor,
        bias_V: Tensor | None,
        unembedding: Unembedding,
        chunk: int,
        target_K: list[Tensor],
        weight_K: list[Weight],
        *hidden_K: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute = hidden_K[0].dtype
        accumulate = accumulator(compute)
        unembedding = unembedding._replace(
            projection_VD=projection_VD.to(compute), bias_V=None if bias_V is None else bias_V.to(compute)
        )
        gradients = _Gradients(projection_VD, bias_V, hidden_K, ctx.needs_input_grad, accumulate)
        most = min(chunk, max((len(target) for target in target_K), default=0))
        buffer_CV = projection_VD.new_empty((most, projection_VD.shape[0]), dtype=compute)
        total = torch.zeros((), dtype=accumulate, device=projection_VD.device)
        nll_R, correct_R = [total.new_zeros(0)], [torch.zeros(0, dtype=torch.bool, device=total.device)]
        for k, (hidden, target, weight) in enumerate(zip(hidden_K, target_K, weight_K, strict=True)):
            for start in range(0, len(target), chunk):
                rows = slice(start, min(start + chunk, len(target)))
                seen = _visit(hidden[rows], target[rows], unembedding, buffer_CV, gradients.wanted(k))
                row_weight = _weights_of(weight, rows, seen.nll_C)
                nll_R.append(seen.nll_C)
                correct_R.append(seen.correct_C)
                total += (row_weight * seen.nll_C).sum()
                if gradients.wanted(k):
                    gradients.add(k, rows, hidden, target[rows], row_weight, seen, unembedding, buffer_CV)
        ctx.gradients = gradients.finished()
        ctx.dtypes = (projection_VD.dtype, None if bias_V is None else bias_V.dtype)
        nll_all, correct_all = torch.cat(nll_R), torch.cat(correct_R)
        ctx.mark_non_differentiable(nll_all, correct_all)
        return total, nll_all, correct_all

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused loss gives its gradients away in backward; it cannot run twice")
        scaled = [None if gradient is None else gradient.mul_(grad_total) for gradient in ctx.gradients]
        ctx.gradients = None
        dprojection, dbias, *dhidden_K = scaled
        projection_dtype, bias_dtype = ctx.dtypes
        return (
            None if dprojection is None else dprojection.to(projection_dtype),
            None if dbias is None else dbias.to(bias_dtype),
            None,
            None,
            None,
            None,
            *dhidden_K,
        )


def _weights_of(weight: Weight, rows: slice, nll_C: Tensor) -> Tensor:
    """The weights of a chunk's rows."""
    if weight is None:
        return torch.ones_like(nll_C)
    return weight[rows] if isinstance(weight, Tensor) else weight(rows, nll_C)


class _Visited(NamedTuple):
    """What one look at a chunk of logits leaves behind."""

    nll_C: Tensor
    correct_C: Tensor
    exponential_CV: Tensor
    """exp(logits - row maximum), written over the logits."""
    total_C: Tensor
    """Row sums of `exponential_CV`: softmax = exponential / total."""
    slope_CV: Tensor | None
    """d(capped logits)/d(logits), where there is a softcap and a gradient is wanted."""


def _visit(
    hidden_CD: Tensor, target_C: Tensor, unembedding: Unembedding, buffer_CV: Tensor, gradient: bool
) -> _Visited:
    """Losses of a chunk by the shifted log-sum-exp, in the accumulation dtype; one exponential serves the gradient too.

    The logits go into `buffer_CV`, which every chunk uses again: fresh pages for each would cost more than the softmax.
    """
    projection_VD, bias_V, softcap, scale = unembedding
    logits = torch.mm(hidden_CD, projection_VD.T, out=buffer_CV[: len(target_C)])
    if bias_V is not None:
        logits += bias_V
    logits = logits.to(accumulator(logits.dtype))
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    slope = (logits / softcap).square_().neg_().add_(1) if softcap is not None and gradient else None
    shifted = logits.sub_(logits.amax(1, keepdim=True))
    at_target_C = shifted.gather(1, target_C.unsqueeze(1)).squeeze(1)
    exponential = shifted.exp_()
    total_C = exponential.sum(1)
    return _Visited(total_C.log() - at_target_C, at_target_C == 0, exponential, total_C, slope)


class _Gradients:
    """The gradients that a loss has collected so far; None for inputs that need none."""

    def __init__(
        self,
        projection_VD: Tensor,
        bias_V: Tensor | None,
        hidden_K: tuple[Tensor, ...],
        needed: tuple[bool, ...],
        accumulate: torch.dtype,
    ) -> None:
        self.needs_projection, self.accumulate = needed[0], accumulate
        self.like_VD = projection_VD
        self.dprojection: Tensor | None = None
        self.dbias = None
        if needed[1] and bias_V is not None:
            self.dbias = torch.zeros_like(bias_V, dtype=accumulate)
        pairs = zip(hidden_K, needed[6:], strict=True)
        self.dhidden_K = [torch.zeros_like(hidden) if needs else None for hidden, needs in pairs]

    def wanted(self, k: int) -> bool:
        """Whether head k's rows have gradient work."""
        return self.needs_projection or self.dbias is not None or self.dhidden_K[k] is not None

    def add(
        self,
        k: int,
        rows: slice,
        hidden_ND: Tensor,
        target_C: Tensor,
        weight_C: Tensor,
        seen: _Visited,
        unembedding: Unembedding,
        buffer_CV: Tensor,
    ) -> None:
        """Add one visited chunk; rows of weight 0 do no work."""
        kept = (weight_C != 0).nonzero().squeeze(-1)
        everything = len(kept) == len(weight_C)
        place = rows if everything else kept + rows.start
        dlogits = _logits_gradient(seen, target_C, weight_C * unembedding.scale, None if everything else kept)
        if dlogits.dtype != buffer_CV.dtype:
            dlogits = buffer_CV[: len(dlogits)].copy_(dlogits)
        dhidden = self.dhidden_K[k]
        if dhidden is not None and everything:
            torch.mm(dlogits, unembedding.projection_VD, out=dhidden[rows])
        elif dhidden is not None:
            dhidden[place] = dlogits @ unembedding.projection_VD
        if self.needs_projection:
            self._add_product(dlogits, hidden_ND[place])
        if self.dbias is not None:
            self.dbias += dlogits.sum(0, dtype=self.accumulate)

    def _add_product(self, dlogits_CV: Tensor, hidden_CD: Tensor) -> None:
        """dprojection += dlogits.T @ hidden, added over chunks in the accumulation dtype."""
        if self.dprojection is None:
            self.dprojection = torch.mm(dlogits_CV.T, hidden_CD).to(self.accumulate)
        elif dlogits_CV.dtype == self.accumulate:
            self.dprojection.addmm_(dlogits_CV.T, hidden_CD)
        else:
            self.dprojection += dlogits_CV.T @ hidden_CD

    def finished(self) -> tuple[Tensor | None, ...]:
        """Gradients of projection, bias and every head's hidden rows."""
        if self.needs_projection and self.dprojection is None:
            self.dprojection = torch.zeros_like(self.like_VD, dtype=self.accumulate)
        return (self.dprojection, self.dbias, *self.dhidden_K)


def _logits_gradient(seen: _Visited, target_C: Tensor, weight_C: Tensor, kept: Tensor | None) -> Tensor:
    """d(weight * nll)/d(logits before capping) of the kept rows; in place where no row was dropped."""
    exponential, total_C, slope = seen.exponential_CV, seen.total_C, seen.slope_CV
    if kept is not None:
        exponential, total_C, target_C, weight_C = exponential[kept], total_C[kept], target_C[kept], weight_C[kept]
        slope = None if slope is None else slope[kept]
    gradient = exponential.mul_((weight_C / total_C).unsqueeze(1))
    gradient.scatter_add_(1, target_C.unsqueeze(1), -weight_C.unsqueeze(1))
    return gradient if slope is None else gradient.mul_(slope)
