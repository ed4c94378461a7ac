"""The same numbers as `loss.py` without ever holding more than one chunk of logits.

The method, for a chunk of C rows of one head:

    logits_CV = hidden @ projection.T                               (compute dtype, into one reused buffer)
    e         = exp(softcap(logits) - row maximum)                  (fp32, over the logits)
    others    = sum of e but the target's;  total = others + e[target]
    nll       = log(total) - (softcap(logits)[target] - row maximum)
    g         = e with -others at the target                        (in place: total * d nll / d logits)
    r         = row_weight / total                                  (a number per row)
    dhidden   = r * (g @ projection)           dprojection += g.T @ (r * hidden)      (fp32 accumulator)

On a second visit (`seen`) the maximum and `others` are known: neither is looked for again.

The row weight is known when a chunk is visited, so loss and gradient come from one visit and the logits are
dropped before the next chunk. `backward` only multiplies the stored gradients, in place, by the incoming scalar. A row
without a target never meets the unembedding; a row with weight 0 is looked at (its nll is a metric) but does
no gradient work, in chunks of their own where weights are given. Peak extra memory: C*V (logits) + V*D (dprojection) +
N*D (dhidden).

Two things keep the time near that of the three products. All passes of the softmax run over a block of rows that stays
in the cache; and no pass multiplies by weights or divides by totals, since r does both on the D side. As a by-product
|g @ projection| / total is the norm of each row's gradient, there before its weight has to be known.

Chunks never mix heads, so a head's rows see the same matrix products whatever the other heads are: that is why
a reference equal to the policy has an excess of exactly 0, not of 1e-7.

The idea of computing the gradient while the logits are there: Hsu et al. 2024, Liger Kernel (arXiv 2410.10989)
and Wijmans et al. 2024, Cut Your Losses (arXiv 2411.09009). Arbitrary row weights and several heads are ours.

Not covered: double backward, forward-mode differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmtp.errors import ConfigError
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
    gradient_norm_N: Tensor | None = None
    """fp32 |d nll / d hidden| per row, before any weight; 0 for ignored rows. Only where asked for."""


CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20, "mps": 128 * 2**20}
"""How large one fp32 chunk of logits should be: a few cache loads on a CPU; enough rows to fill the device on a GPU."""
LOW_ON_CUDA = 8
"""How many times as many rows in a lower precision on CUDA, whose products are about ten times as fast."""


def default_chunk(vocabulary: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> int:
    """Rows per chunk: as many as fit `CHUNK_BYTES`, but 128 to 4096.

    Each chunk reads and writes the fp32 `[V, D]` gradient once (8*V*D bytes) and does 2*C*V*D operations on it: C/4 per
    byte whatever V and D are. Below about 128 rows that traffic shows on any device, so a large vocabulary may exceed
    the budget rather than starve the product. bf16 products of a GPU want more: at 800e12 operations and 3e12 bytes a
    second 512 rows wait for memory for two thirds of the time of all three products, 4096 rows for a twelfth.
    """
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    if device == "cuda" and dtype != accumulator(dtype):
        budget *= LOW_ON_CUDA
    return max(128, min(4096, budget // (4 * vocabulary)))


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
    gradient_norms: bool = False,
) -> RowLoss:
    """Weighted negative log-likelihood of a linear unembedding, without the `[N, V]` logits.

    Args:
        hidden_ND: final hidden states, any float dtype.
        projection_VD: the unembedding (`lm_head.weight`).
        target_N: int64 target ids; rows equal to `ignore_index` are skipped.
        row_weight_N: w >= 0 per row, used in fp32 (float64 if the hidden states are) and detached; None means 1.
        softcap: Gemma 2's final soft-capping.
        bias_V: the unembedding's bias.
        chunk: rows of logits held at once; by default `default_chunk`'s.
        gradient_norms: also return the norm of each row's gradient, a by-product of the gradient itself.

    Raises:
        ValueError: shapes that do not fit, a chunk below 1, or a target outside the vocabulary.
    """
    _check_rows(hidden_ND, projection_VD, target_N, row_weight_N, chunk)
    valid_N = target_N != ignore_index
    _check_targets(target_N[valid_N], projection_VD.shape[0])
    weight_N = torch.ones_like(target_N) if row_weight_N is None else row_weight_N.detach()
    weight_N = weight_N.to(accumulator(hidden_ND.dtype))
    index = _order(valid_N, weight_N)
    job = _Job([target_N[index]], [weight_N[index]], Unembedding(projection_VD, bias_V, softcap), chunk, gradient_norms)
    done = _rows_nll(job, [_rows_of(hidden_ND, index)])

    def spread(value_R: Tensor) -> Tensor:
        return value_R.new_zeros(target_N.shape).index_copy_(0, index, value_R)

    norm_N = spread(done.norm_R) if gradient_norms else None
    return RowLoss(done.weighted_sum, spread(done.nll_R), spread(done.correct_R), norm_N)


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
    gradient_norms: bool = False,
    compiled: bool = False,
) -> LossSum:
    """`reduce_loss(*plain_nll(...))`, fused: same arguments, same sums, one chunk of logits at a time.

    Args:
        weight_of: makes each row's weight from its own nll (and gradient norm), instead of `weight_BTK`: still one
            visit.
        seen: an earlier, unweighted result on the same hidden states. Its figures are passed on, and only rows of
            weight > 0 meet the unembedding again: a scheme that had to see the losses first and then drops 40 % of the
            rows costs less than uniform weights do.
        gradient_norms: also give `gradient_norm_BTK`, a by-product of the gradient itself.
        compiled: let torch.compile fuse the passes over logits of a lower precision, where weights are given and no
            norms are wanted. Other losses are what they are without.

    Raises:
        ConfigError: asked to compile where torch cannot.
    """
    scale_BTK = pair_scale(target_BTK, weight_BTK, coefficient_K, accumulator(hidden_K[0].dtype))
    valid_BTK = target_BTK != IGNORE
    if seen is not None and not torch.is_grad_enabled():
        return replace(seen, weighted_sum=(scale_BTK * seen.nll_BTK).sum(), weight_total=scale_BTK.sum())
    visited_BTK = valid_BTK if seen is None else scale_BTK != 0
    index_K = [_order(visited_BTK[:, :, k].flatten(), scale_BTK[:, :, k].flatten()) for k in range(len(hidden_K))]
    given: list[Weight] = [scale_BTK[:, :, k].flatten()[index] for k, index in enumerate(index_K)]
    made_R: list[Tensor] = []
    if weight_of is not None:
        given = [_on_the_way(weight_of, k, index, scale_BTK, made_R) for k, index in enumerate(index_K)]
    job = _Job(
        [target_BTK[:, :, k].flatten()[index] for k, index in enumerate(index_K)],
        given,
        unembedding,
        chunk,
        gradient_norms and seen is None,
        _picked(seen, index_K),
        compiled,
    )
    done = _rows_nll(job, [_rows_of(h.flatten(0, 1), index) for h, index in zip(hidden_K, index_K, strict=True)])
    made_BTK = None
    if weight_of is not None:
        made_BTK = _scatter(torch.cat(made_R) if made_R else done.nll_R.new_zeros(0), index_K, target_BTK)
        scale_BTK = scale_BTK * made_BTK
    if seen is not None:
        return replace(seen, weighted_sum=done.weighted_sum, weight_total=scale_BTK.sum())
    found_R2 = done.found_R2[:0] if torch.is_grad_enabled() else done.found_R2  # with a gradient none comes back
    nll_BTK = _scatter(done.nll_R, index_K, target_BTK)
    correct_BTK = _scatter(done.correct_R, index_K, target_BTK)
    return LossSum(
        weighted_sum=done.weighted_sum,
        weight_total=scale_BTK.sum(),
        nll_sum_K=nll_BTK.sum((0, 1)),
        count_K=valid_BTK.sum((0, 1)),
        correct_K=correct_BTK.sum((0, 1)),
        nll_BTK=nll_BTK,
        weight_BTK=made_BTK,
        gradient_norm_BTK=_scatter(done.norm_R, index_K, target_BTK) if gradient_norms else None,
        softmax_2BTK=torch.stack([_scatter(each, index_K, target_BTK) for each in found_R2.T])
        if len(found_R2)
        else None,
    )


Weight = Tensor | Callable[[slice, Tensor, Tensor | None], Tensor]
"""Row weights of one head: given, or made from rows' nll and gradient norms."""


def _on_the_way(weight_of: RowWeight, k: int, index: Tensor, scale_BTK: Tensor, made_R: list[Tensor]) -> Weight:
    """Head k's weights as the kernel asks for them, some rows after others, times c_k; kept in `made_R`."""
    scale = scale_BTK[:, :, k].flatten()[index]

    def weight(rows: slice, nll_R: Tensor, norm_R: Tensor | None) -> Tensor:
        made_R.append(weight_of(k, index[rows], nll_R, norm_R).detach().to(nll_R.dtype))
        return made_R[-1] * scale[rows]

    return weight


def _order(visited_N: Tensor, weight_N: Tensor) -> Tensor:
    """Places of the rows to visit, those of weight 0 at the end: no chunk has both kinds."""
    trained_N = weight_N != 0
    return torch.cat([(visited_N & trained_N).nonzero(), (visited_N & ~trained_N).nonzero()]).squeeze(-1)


def _rows_of(value_ND: Tensor, index: Tensor) -> Tensor:
    """Those rows; all of them in their own order without a copy."""
    every = torch.arange(len(value_ND), device=index.device)
    return value_ND if index.equal(every) else value_ND[index]


def _picked(seen: LossSum | None, index_K: list[Tensor]) -> list[Tensor] | None:
    """What an earlier visit found of these rows."""
    if seen is None or seen.softmax_2BTK is None:
        return None
    return [seen.softmax_2BTK[..., k].flatten(1)[:, index].T for k, index in enumerate(index_K)]


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


class _Job(NamedTuple):
    """What is to be made of some heads' hidden rows."""

    target_K: list[Tensor]
    weight_K: Sequence[Weight]
    """Given ones have their zeros at the end."""
    unembedding: Unembedding
    chunk: int | None
    norms: bool
    seen_K: list[Tensor] | None = None
    """Of each row, what an earlier visit found (`_Softmax.found_R2`)."""
    compiled: bool = False

    def chunks(self, k: int, dtype: torch.dtype) -> list[tuple[slice, bool]]:
        """Head k's rows as they are visited together, and whether they do gradient work."""
        weight, count = self.weight_K[k], len(self.target_K[k])
        trained = int(torch.count_nonzero(weight)) if isinstance(weight, Tensor) else count
        projection_VD = self.unembedding.projection_VD
        most = self.chunk or default_chunk(projection_VD.shape[0], projection_VD.device.type, dtype)
        parts = [(slices(0, trained, most), True), (slices(trained, count, most), False)]
        return [(rows, works) for part, works in parts for rows in part]


def slices(first: int, end: int, most: int) -> list[slice]:
    """The fewest pieces of at most `most`, which differ in size by as little as can be."""
    pieces = -(-(end - first) // most)
    bounds = [first + (end - first) * i // pieces for i in range(pieces)]
    return [slice(start, stop) for start, stop in pairwise([*bounds, end])]


class _Rows(NamedTuple):
    """What a pass over all rows of all heads gives, one head after another."""

    weighted_sum: Tensor
    nll_R: Tensor
    correct_R: Tensor
    norm_R: Tensor
    """Empty unless norms were asked for."""
    found_R2: Tensor
    """Empty in a lower precision: rows meet other rows in a second visit, and their logits may be rounded otherwise."""


def _rows_nll(job: _Job, hidden_K: list[Tensor]) -> _Rows:
    projection_VD, bias_V = job.unembedding.projection_VD, job.unembedding.bias_V
    device = projection_VD.device.type
    if not torch.is_grad_enabled():  # autograd's needs_input_grad tells of the inputs, not of the mode
        projection_VD, bias_V = projection_VD.detach(), None if bias_V is None else bias_V.detach()
        hidden_K = [hidden.detach() for hidden in hidden_K]
    if torch.is_autocast_enabled(device):
        hidden_K = [hidden.to(torch.get_autocast_dtype(device)) for hidden in hidden_K]
    with torch.autocast(device, enabled=False):
        return _Rows(*_LinearNLL.apply(job, projection_VD, bias_V, *hidden_K))  # type: ignore[no-untyped-call]


class _LinearNLL(torch.autograd.Function):
    """One visit per chunk; gradients are ready when forward returns."""

    @staticmethod
    def forward(
        ctx: Any, job: _Job, projection_VD: Tensor, bias_V: Tensor | None, *hidden_K: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        compute = hidden_K[0].dtype
        accumulate = accumulator(compute)
        unembedding = job.unembedding._replace(
            projection_VD=projection_VD.to(compute), bias_V=None if bias_V is None else bias_V.to(accumulate)
        )
        gradients = _Gradients(projection_VD, bias_V, hidden_K, ctx.needs_input_grad[1:], accumulate)
        chunks_K = [job.chunks(k, compute) for k in range(len(hidden_K))]
        most = max((rows.stop - rows.start for chunks in chunks_K for rows, _ in chunks), default=0)
        buffer_CV = projection_VD.new_empty((most, projection_VD.shape[0]), dtype=compute)
        total = torch.zeros((), dtype=accumulate, device=projection_VD.device)
        seen: list[_Visited] = []
        for k, (hidden, target, weight) in enumerate(zip(hidden_K, job.target_K, job.weight_K, strict=True)):
            for rows, works in chunks_K[k]:
                # Into one buffer: fresh pages for each chunk would cost more than the softmax.
                logits_CV = torch.mm(hidden[rows], unembedding.projection_VD.T, out=buffer_CV[: rows.stop - rows.start])
                wanted = works and gradients.wanted(k)
                before = None if job.seen_K is None else job.seen_K[k][rows]
                if job.compiled and compute != accumulate and isinstance(weight, Tensor) and wanted and not job.norms:
                    visited = _compiled_visit(logits_CV, target[rows], unembedding, weight[rows])
                else:
                    visited = _visit(
                        logits_CV, target[rows], unembedding, weight, rows.start, wanted, job.norms, before
                    )
                total += (visited.weight_C * visited.nll_C).sum()
                if wanted:
                    kept = None if isinstance(weight, Tensor) else (visited.weight_C != 0).nonzero().squeeze(-1)
                    gradients.add(k, rows, hidden[rows], logits_CV, visited, unembedding.projection_VD, kept)
                seen.append(visited._replace(product_CD=None))
        ctx.gradients = gradients.finished()
        ctx.dtypes = [None if each is None else each.dtype for each in (projection_VD, bias_V, *hidden_K)]
        none = total.new_zeros(0)
        nll_R = torch.cat([none, *(v.nll_C for v in seen)])
        correct_R = torch.cat([none.bool(), *(v.correct_C for v in seen)])
        norm_R = torch.cat([none, *(v.norm_C for v in seen if v.norm_C is not None)])
        found_R2 = torch.cat([none.new_zeros(0, 2), *(v.found_C2 for v in seen if v.found_C2 is not None)])
        ctx.mark_non_differentiable(nll_R, correct_R, norm_R, found_R2)
        return total, nll_R, correct_R, norm_R, found_R2

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused loss gives its gradients away in backward; it cannot run twice")
        scaled = [
            None if gradient is None else gradient.mul_(grad_total).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (None, *scaled)


class _Visited(NamedTuple):
    """What one look at a chunk of logits leaves behind. Where they were is now their gradient, but for a factor."""

    nll_C: Tensor
    correct_C: Tensor
    weight_C: Tensor
    factor_C: Tensor | None
    """factor * (what is in the buffer) = d(weight * nll)/d(logits before scale and cap); None means 1."""
    found_C2: Tensor | None
    """Of `_Softmax`."""
    norm_C: Tensor | None = None
    product_CD: Tensor | None = None
    """(what is in the buffer) @ projection, where the norms needed it already."""


def _visit(
    logits_CV: Tensor,
    target_C: Tensor,
    unembedding: Unembedding,
    weight: Weight,
    start: int,
    gradient: bool,
    norms: bool,
    seen_C2: Tensor | None,
) -> _Visited:
    """Losses, weights and, in place, the gradient of a chunk of logits.

    Rows are visited in blocks that stay in the cache from the row maximum to the last pass. The weight and 1/total are
    left to the `[C, D]` side of the two products, where they cost nothing: in fp32 no pass over the logits is spent on
    them. In a lower precision there is such a pass anyway, and they are best applied before its rounding.
    """
    in_place = logits_CV.dtype == accumulator(logits_CV.dtype)
    parts: list[_Visited] = []
    for rows in _blocks(len(target_C), logits_CV):
        if in_place:
            seen = None if seen_C2 is None else seen_C2[rows]
            done = _softmax(logits_CV[rows], target_C[rows], unembedding, gradient or norms, seen)
        else:
            done = _low_softmax(logits_CV[rows], target_C[rows], unembedding, gradient or norms)
        place = slice(start + rows.start, start + rows.stop)
        made = torch.ones_like(done.nll_R) if norms else _weights_of(weight, place, done.nll_R, None)
        factor = done.factor_R * made
        if not in_place and (gradient or norms):
            torch.mul(done.block_RV, factor.unsqueeze(1), out=logits_CV[rows])
        parts.append(_Visited(done.nll_R, done.correct_R, made, factor, done.found_R2))
    nll_C, correct_C, weight_C, factor_C = (torch.cat(part) for part in list(zip(*parts, strict=True))[:4])
    found = [part.found_C2 for part in parts if part.found_C2 is not None]
    found_C2 = torch.cat(found) if found else None
    visited = _Visited(nll_C, correct_C, weight_C, factor_C if in_place else None, found_C2)
    return _normed(visited, logits_CV, unembedding, weight, start) if norms else visited


def _normed(visited: _Visited, logits_CV: Tensor, unembedding: Unembedding, weight: Weight, start: int) -> _Visited:
    """The unweighted gradient's norm in front of the unembedding, and then the weights, which may depend on it."""
    product_CD = logits_CV @ unembedding.projection_VD
    norm_C = torch.linalg.vector_norm(product_CD, dim=1, dtype=visited.nll_C.dtype)
    if visited.factor_C is not None:
        norm_C = norm_C * visited.factor_C.abs()
    weight_C = _weights_of(weight, slice(start, start + len(norm_C)), visited.nll_C, norm_C)
    factor_C = weight_C if visited.factor_C is None else visited.factor_C * weight_C
    return visited._replace(weight_C=weight_C, factor_C=factor_C, norm_C=norm_C, product_CD=product_CD)


def _capped(logits_RV: Tensor, unembedding: Unembedding, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Bias, scale and soft cap, and the cap's slope where a gradient wants it.

    In the accumulation dtype, over the logits if that is theirs; the logits themselves if there is nothing to do.
    """
    softcap = unembedding.softcap
    if unembedding.bias_V is None and unembedding.scale == 1.0 and softcap is None:
        return logits_RV, None
    block_RV = logits_RV.to(accumulator(logits_RV.dtype))
    if unembedding.bias_V is not None:
        block_RV += unembedding.bias_V
    if unembedding.scale != 1.0:
        block_RV.mul_(unembedding.scale)
    if softcap is None:
        return block_RV, None
    slope_RV = None
    tanh_RV = block_RV.div_(softcap).tanh_()
    if gradient:  # (1 - tanh)(1 + tanh): 1 - tanh^2 would round before it subtracts
        slope_RV = 1 - tanh_RV
        slope_RV.addcmul_(slope_RV, tanh_RV)
    return tanh_RV.mul_(softcap), slope_RV


class _Softmax(NamedTuple):
    """What the passes over a block of logits give."""

    nll_R: Tensor
    correct_R: Tensor
    factor_R: Tensor
    """factor * block = d(nll)/d(hidden @ projection.T + bias)."""
    block_RV: Tensor
    found_R2: Tensor | None
    """The maximum, and the sum of the exponentials but the target's: what another visit need not find again."""


def _softmax(
    logits_RV: Tensor, target_R: Tensor, unembedding: Unembedding, gradient: bool, seen_R2: Tensor | None
) -> _Softmax:
    """The shifted log-sum-exp, over the logits; its exponentials serve the gradient too.

    The target's own is left out of the sum: p - 1 of a target that is almost certain would be the rounding error of p,
    -others / total is not.
    """
    block_RV, slope_RV = _capped(logits_RV, unembedding, gradient)
    top_R1 = block_RV.amax(1, keepdim=True) if seen_R2 is None else seen_R2[:, :1]
    block_RV.sub_(top_R1)
    column_R1 = target_R.unsqueeze(1)
    at_target_R1 = block_RV.gather(1, column_R1)
    block_RV.exp_().scatter_(1, column_R1, 0.0)
    others_R1 = block_RV.sum(1, keepdim=True) if seen_R2 is None else seen_R2[:, 1:]
    total_R1 = others_R1 + at_target_R1.exp()
    if gradient:
        block_RV.scatter_(1, column_R1, -others_R1)
    if slope_RV is not None:
        block_RV.mul_(slope_RV)
    correct_R1 = at_target_R1 == 0
    nll_R1 = torch.where(correct_R1, others_R1.log1p(), total_R1.log() - at_target_R1)
    factor_R1 = unembedding.scale / total_R1
    found_R2 = torch.cat([top_R1, others_R1], 1)
    return _Softmax(nll_R1.squeeze(1), correct_R1.squeeze(1), factor_R1.squeeze(1), block_RV, found_R2)


def _low_softmax(logits_RV: Tensor, target_R: Tensor, unembedding: Unembedding, gradient: bool) -> _Softmax:
    """`_softmax` of logits of a lower precision: torch's log-softmax reads them and writes fp32 in one pass.

    What it loses of an almost certain target is far below what the rounding of its logit lost before.
    """
    block_RV, slope_RV = _capped(logits_RV, unembedding, gradient)
    column_R1 = target_R.unsqueeze(1)
    correct_R1 = block_RV.gather(1, column_R1) >= block_RV.amax(1, keepdim=True)
    block_RV = torch.log_softmax(block_RV, 1, dtype=accumulator(logits_RV.dtype))
    nll_R1 = -block_RV.gather(1, column_R1)
    if gradient:
        block_RV.exp_().scatter_(1, column_R1, torch.expm1(-nll_R1))
    if slope_RV is not None:
        block_RV.mul_(slope_RV)
    nll_R = nll_R1.squeeze(1)
    return _Softmax(nll_R, correct_R1.squeeze(1), torch.full_like(nll_R, unembedding.scale), block_RV, None)


def _low_chunk(
    logits_CV: Tensor, target_C: Tensor, weight_C: Tensor, unembedding: Unembedding
) -> tuple[Tensor, Tensor]:
    """nll and correct of a chunk of lower precision; the logits become weight * d(nll)/d(logits before scale and cap).

    The same numbers as `_low_softmax`, written so that a compiler makes two passes of it: one for the row's maximum and
    sum, one for the gradient.
    """
    block_CV, slope_CV = _capped(logits_CV, unembedding, gradient=True)
    column_C1 = target_C.unsqueeze(1)
    correct_C1 = block_CV.gather(1, column_C1) >= block_CV.amax(1, keepdim=True)
    log_CV = torch.log_softmax(block_CV, 1, dtype=weight_C.dtype)
    nll_C1 = -log_CV.gather(1, column_C1)
    at_target_CV = torch.arange(logits_CV.shape[1], device=logits_CV.device) == column_C1
    gradient_CV = torch.where(at_target_CV, torch.expm1(-nll_C1), log_CV.exp())
    if slope_CV is not None:
        gradient_CV = gradient_CV * slope_CV
    logits_CV.copy_(gradient_CV * (weight_C * unembedding.scale).unsqueeze(1))
    return nll_C1.squeeze(1), correct_C1.squeeze(1)


@cache
def _compiled_low_chunk() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_low_chunk)


def _compiled_visit(logits_CV: Tensor, target_C: Tensor, unembedding: Unembedding, weight_C: Tensor) -> _Visited:
    from torch._dynamo.exc import TorchDynamoException  # a second's import

    try:
        nll_C, correct_C = _compiled_low_chunk()(logits_CV, target_C, weight_C, unembedding)
    except TorchDynamoException as problem:
        reason = str(problem).strip().splitlines()[0]
        raise ConfigError(f"torch.compile does not work here ({reason}): choose loss 'fused'") from problem
    return _Visited(nll_C, correct_C, weight_C, None, None)


BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20, "mps": 128 * 2**20}
"""Of one block of fp32 logits: on a CPU small enough to stay in a shared cache from the first pass to the last, large
enough that starting the threads for each pass does not show; elsewhere what a fp32 copy of bf16 logits may take."""


def _blocks(count: int, like_CV: Tensor) -> list[slice]:
    """Rows that the passes of the softmax visit together."""
    most = BLOCK_BYTES.get(like_CV.device.type, BLOCK_BYTES["cpu"]) // (4 * like_CV.shape[1])
    return slices(0, count, max(1, most))


def _weights_of(weight: Weight, rows: slice, nll_R: Tensor, norm_R: Tensor | None) -> Tensor:
    """The weights of some rows."""
    return weight[rows] if isinstance(weight, Tensor) else weight(rows, nll_R, norm_R)


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
        pairs = zip(hidden_K, needed[2:], strict=True)
        self.dhidden_K = [torch.zeros_like(hidden) if needs else None for hidden, needs in pairs]

    def wanted(self, k: int) -> bool:
        """Whether head k's rows have gradient work."""
        return self.needs_projection or self.dbias is not None or self.dhidden_K[k] is not None

    def add(
        self,
        k: int,
        rows: slice,
        hidden_CD: Tensor,
        dlogits_CV: Tensor,
        visited: _Visited,
        projection_VD: Tensor,
        kept: Tensor | None,
    ) -> None:
        """Add one visited chunk, or the rows of it that are `kept`: the others have weight 0 and do no work."""
        factor_C, product_CD, dhidden = visited.factor_C, visited.product_CD, self.dhidden_K[k]
        place: slice | Tensor = rows
        if kept is not None and len(kept) < len(hidden_CD):
            place = kept + rows.start
            hidden_CD, dlogits_CV = hidden_CD[kept], dlogits_CV[kept]
            factor_C = None if factor_C is None else factor_C[kept]
            product_CD = None if product_CD is None else product_CD[kept]
        if dhidden is not None and product_CD is not None:
            dhidden[place] = _scaled(product_CD, factor_C)
        elif dhidden is not None and isinstance(place, slice):
            _scaled(torch.mm(dlogits_CV, projection_VD, out=dhidden[place]), factor_C)
        elif dhidden is not None:
            dhidden[place] = _scaled(dlogits_CV @ projection_VD, factor_C)
        if self.dbias is not None:
            self._add_bias(dlogits_CV, factor_C)
        if self.needs_projection:
            self._add_product(dlogits_CV, hidden_CD if factor_C is None else _scaled(hidden_CD.clone(), factor_C))

    def _add_product(self, dlogits_CV: Tensor, hidden_CD: Tensor) -> None:
        """dprojection += dlogits.T @ hidden, added over chunks in the accumulation dtype."""
        if self.dprojection is None:
            self.dprojection = _product(dlogits_CV.T, hidden_CD, self.accumulate)
        elif dlogits_CV.dtype == self.accumulate:
            self.dprojection.addmm_(dlogits_CV.T, hidden_CD)
        elif dlogits_CV.is_cuda:  # the product itself adds in fp32; on a CPU torch has none that does
            torch.addmm(self.dprojection, dlogits_CV.T, hidden_CD, self.accumulate, out=self.dprojection)
        else:
            self.dprojection += dlogits_CV.T @ hidden_CD

    def _add_bias(self, dlogits_CV: Tensor, factor_C: Tensor | None) -> None:
        assert self.dbias is not None
        for rows in _blocks(len(dlogits_CV), dlogits_CV):
            block = dlogits_CV[rows].to(self.accumulate)
            self.dbias += (block if factor_C is None else block * factor_C[rows].unsqueeze(1)).sum(0)

    def finished(self) -> tuple[Tensor | None, ...]:
        """Gradients of projection, bias and every head's hidden rows."""
        if self.needs_projection and self.dprojection is None:
            self.dprojection = torch.zeros_like(self.like_VD, dtype=self.accumulate)
        return (self.dprojection, self.dbias, *self.dhidden_K)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right in `dtype`, rounded once where the device can: torch has such products on CUDA alone."""
    if left.is_cuda and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return torch.mm(left, right).to(dtype)


def _scaled(value_CD: Tensor, factor_C: Tensor | None) -> Tensor:
    """Every row times its factor, in place."""
    return value_CD if factor_C is None else value_CD.mul_(factor_C.unsqueeze(1))
