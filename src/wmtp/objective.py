"""What a run minimises. Two objectives share one trainer: multi-token prediction, and the critic's values.

An objective turns a micro-batch into sums; it never divides and never steps. `known_total` is the part of the
denominator that the data alone decides: the step scales by it before the backward pass and corrects by
`known_total / weight_total` afterwards, which is exactly 1 for uniform weights (with c_k = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.distributed import head_passes, release, synchronise
from wmtp.divergence import divergence
from wmtp.heads import TrunkOutput
from wmtp.loss import LossSum
from wmtp.metrics import Meter
from wmtp.model import MTPModel, batch_targets, coefficient_total, hidden_loss
from wmtp.ranks import Reduce, alone
from wmtp.reward import RunningScale
from wmtp.schedule import Scheduled, value_at
from wmtp.targets import IGNORE
from wmtp.value import LOSSES, ValueModel, following_loss, lambda_return_loss, pairwise_loss, with_state_before
from wmtp.value_stats import HeldOut, held_out_pairs, ratio, row_meter, value_meter, value_metrics
from wmtp.weight_stats import weight_meter, weight_metrics
from wmtp.weighting.base import Scheme, SchemeInput, When

Precision = Callable[[], AbstractContextManager[Any]]
"""Makes the context that forward passes run in (autocast, or nothing)."""


class Sums(NamedTuple):
    """One micro-batch: loss = weighted_sum / weight_total once all micro-batches and ranks are added."""

    weighted_sum: Tensor
    weight_total: Tensor
    meter: Meter


class Seen(NamedTuple):
    """What a scheme saw of a batch, and the weights that it gave."""

    scheme_input: SchemeInput
    """With the policy's nll."""
    weight_BTK: Tensor


class Objective(Protocol):
    """What the step needs to know of an objective."""

    def known_total(self, model: Any, batches: Sequence[Batch]) -> Tensor:
        """Denominator as far as the data decides it."""
        ...

    def plan(self, model: Any, batches: Sequence[Batch], reduce: Reduce, training: bool) -> list[Any]:
        """What can be prepared for each micro-batch before any backward pass."""
        ...

    def sums(self, model: Any, batch: Batch, plan: Any, reduce: Reduce, training: bool) -> Sums:
        """Loss of one micro-batch, with its graph."""
        ...

    def backward(
        self,
        model: Any,
        batch: Batch,
        plan: Any,
        scale: Tensor,
        reduce: Reduce,
        precision: Precision,
        *,
        last: bool = True,
    ) -> Meter:
        """Forward and backward of `weighted_sum / scale` of one micro-batch, the step's last or not."""
        ...

    def metrics(self, totals: dict[str, Tensor], meter: Meter) -> dict[str, float]:
        """Readable figures from added-up sums."""
        ...

    def begin(self, step: int) -> None:
        """The optimiser's step (counted from 1) that what follows belongs to."""
        ...

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """Told once after every training step that was done: its sums over all ranks."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Plan:
    """A micro-batch whose frozen scores are there, and its weights if they are known already."""

    scheme_input: SchemeInput
    seen: LossSum | None = None
    """The unweighted loss, where the scheme had to see it first."""
    weighted: bool = False
    weight_BTK: Tensor | None = None
    kl_scale: Tensor | None = None
    """What multiplies the divergence from the reference; None where there is none."""

    def of_another_pass(self) -> Plan:
        """For hidden states that dropout may draw anew: what was seen of logits does not hold for theirs."""
        return replace(self, seen=None if self.seen is None else replace(self.seen, softmax_2BTK=None))

    def head(self, k: int) -> Plan:
        """The part of head k (counted from 0), as a plan for one head."""
        return replace(
            self,
            scheme_input=self.scheme_input.head(k),
            seen=None if self.seen is None else self.seen.head(k),
            weight_BTK=None if self.weight_BTK is None else self.weight_BTK[:, :, k : k + 1],
        )


Score = Callable[[Batch], dict[str, Tensor]]
"""Frozen scores of a batch: any of `values_BT`, `reference_nll_BTK`."""

HeadCoefficients = Tensor | Callable[[int], Tensor]
"""c_k per head, or what they are at a step."""


def no_scores(batch: Batch) -> dict[str, Tensor]:
    """For schemes that need none."""
    return {}


class MTPObjective:
    """Weighted multi-token prediction.

    Args:
        scheme: gives the weights.
        score: frozen scores that the scheme needs.
        coefficient_K: c_k per head, or a function of the step that gives them; None means 1.
        denominator: `weights` or `tokens`, see docs/math.md (2).
        kind: `fused`, `compiled` (the same, compiled for lower precisions), `plain`, or a library of
            `loss_backends.BACKENDS`.
        chunk: rows of logits held at once.
        aux_value: coefficient of the loss of the policy's value head; None where it has none.
        kl: coefficient of head 1's divergence from the reference that `score` asks, docs/math.md (4.9); more than 0
            needs `denominator` `tokens`, which the data alone decides.
    """

    def __init__(
        self,
        scheme: Scheme,
        *,
        score: Score = no_scores,
        coefficient_K: HeadCoefficients | None = None,
        denominator: str = "weights",
        kind: str = "fused",
        chunk: int | None = None,
        aux_value: float | None = None,
        kl: float = 0.0,
    ) -> None:
        if kl and denominator != "tokens":
            raise ValueError(f"kl needs the denominator 'tokens', got {denominator!r}")
        self.scheme, self.score, self.aux_value = scheme, score, aux_value
        self.coefficient_K, self.denominator = coefficient_K, denominator
        self.kind, self.chunk, self.kl = kind, chunk, kl
        self.norms = "gradient_norm_BTK" in scheme.needs
        self.step = 1

    def begin(self, step: int) -> None:
        """What is scheduled takes the values of this step."""
        self.step = step

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """Passed on to the scheme."""
        self.scheme.observe(totals)

    @property
    def head_by_head(self) -> bool:
        """Whether one head's loss and gradient can be had without looking at the others."""
        return self.scheme.per_head or self.scheme.when is When.BEFORE_FORWARD

    def known_total(self, model: MTPModel, batches: Sequence[Batch]) -> Tensor:
        """sum c_k over all valid pairs."""
        counts = [(batch_targets(b, model.num_heads) != IGNORE).sum((0, 1)) for b in batches]
        return coefficient_total(torch.stack(counts).sum(0), self._coefficients(batches[0]))

    def plan(self, model: MTPModel, batches: Sequence[Batch], reduce: Reduce, training: bool) -> list[Plan]:
        """Weights of the whole step where they can be known before a backward pass.

        A scheme that looks at the whole step's nll costs one more forward pass, without gradients, over all
        micro-batches; with one micro-batch it does not. With dropout that pass draws its own mask: selection and logged
        nll are those of another draw than the gradient's.
        """
        kl_scale = self._kl_scale(model, batches, reduce) if self.kl and training else None
        plans = [Plan(self._scheme_input(model, batch), kl_scale=kl_scale) for batch in batches]
        when = self.scheme.when
        if when in (When.ROW, When.MICRO_BATCH) or (when is When.WHOLE_STEP and len(batches) == 1):
            return plans
        if when is When.WHOLE_STEP:
            with torch.no_grad():
                plans = [
                    self._with_nll(plan, model, model(b.tokens_BT)).of_another_pass()
                    for plan, b in zip(plans, batches, strict=True)
                ]
        weights = self.scheme.weights([plan.scheme_input for plan in plans], reduce, training)
        return [replace(p, weighted=True, weight_BTK=w) for p, w in zip(plans, weights, strict=True)]

    def _kl_scale(self, model: MTPModel, batches: Sequence[Batch], reduce: Reduce) -> Tensor:
        """The step divides by the total of all heads' pairs, the divergence is a mean over head 1's: kl times their
        ratio, over all ranks."""
        first = torch.stack([(batch_targets(b, 1) != IGNORE).sum() for b in batches]).sum()
        total, count = reduce(torch.stack([self.known_total(model, batches), first.float()])).unbind()
        return self.kl * total / count

    def sums(self, model: MTPModel, batch: Batch, plan: Plan, reduce: Reduce, training: bool) -> Sums:
        """Forward, weights if they had to wait, loss."""
        hidden_K = model(batch.tokens_BT)
        if not plan.weighted:
            plan = self._weighted(plan, model, hidden_K, reduce, training)
        return self._sums(model, hidden_K, plan, self._coefficients(batch))

    def backward(
        self,
        model: MTPModel,
        batch: Batch,
        plan: Plan,
        scale: Tensor,
        reduce: Reduce,
        precision: Precision,
        *,
        last: bool = True,
    ) -> Meter:
        """Trunk once, then head by head: forward, loss, backward into the trunk's output, so that one head's
        activations live at a time; then one backward pass through the trunk (Gloeckle et al. 2024, figure 2).
        """
        with precision():
            trunk = model.trunk(batch.tokens_BT)
        cut = trunk.detached() if model.heads_apart and self.head_by_head else None
        if cut is None:
            return self._backward_together(model, trunk, batch, plan, scale, reduce, precision)
        meter = Meter()
        with head_passes(model, model.passes(), last) as begin:
            for k in range(model.num_heads):
                begin(k)
                if k == model.num_heads - 1 and not cut.hidden_BTD.requires_grad:
                    synchronise(model, last)  # no backward pass of the trunk follows
                with precision():
                    hidden_BTD = model.head(k, cut)
                    of_head = plan.head(k)
                    if not of_head.weighted:
                        of_head = self._weighted(of_head, model, [hidden_BTD], reduce, True)
                    sums = self._sums(model, [hidden_BTD], of_head, self._coefficients(batch, k))
                if sums.weighted_sum.requires_grad:
                    (sums.weighted_sum / scale).backward()  # type: ignore[no-untyped-call]
                meter.merge_heads(sums.meter)
                del hidden_BTD, sums
        if cut.hidden_BTD.grad is not None:
            trunk.hidden_BTD.backward(cut.hidden_BTD.grad)  # type: ignore[no-untyped-call]
        else:
            release(model)
        return meter

    def _backward_together(
        self,
        model: MTPModel,
        trunk: TrunkOutput,
        batch: Batch,
        plan: Plan,
        scale: Tensor,
        reduce: Reduce,
        precision: Precision,
    ) -> Meter:
        """All heads at once: a scheme must see them all, they read one another, or the trunk cannot be cut off."""
        with precision():
            hidden_K = list(model.each_head(trunk))
            if not plan.weighted:
                plan = self._weighted(plan, model, hidden_K, reduce, True)
            sums = self._sums(model, hidden_K, plan, self._coefficients(batch))
        (sums.weighted_sum / scale).backward()  # type: ignore[no-untyped-call]
        return sums.meter

    def _weighted(self, plan: Plan, model: MTPModel, hidden_K: list[Tensor], reduce: Reduce, training: bool) -> Plan:
        """The plan with weights that had to wait for these losses; a scheme by row is asked during the loss instead."""
        if self.scheme.when is When.ROW:
            return plan
        plan = self._with_nll(plan, model, hidden_K)
        (weight_BTK,) = self.scheme.weights([plan.scheme_input], reduce, training)
        return replace(plan, weighted=True, weight_BTK=weight_BTK)

    @torch.no_grad()
    def look(self, model: MTPModel, batch: Batch) -> Seen:
        """Losses and weights of a batch as if it were a whole step on one rank; no memory changes."""
        (plan,) = self.plan(model, [batch], alone, False)
        hidden_K = model(batch.tokens_BT)
        if not plan.weighted:
            plan = self._weighted(plan, model, hidden_K, alone, False)
        loss, weight_BTK = self._loss(model, hidden_K, plan, self._coefficients(batch))
        ones_BTK = torch.ones_like(loss.nll_BTK)
        return Seen(
            replace(plan.scheme_input, nll_BTK=loss.nll_BTK), ones_BTK if weight_BTK is None else weight_BTK.float()
        )

    def _loss(
        self, model: MTPModel, hidden_K: list[Tensor], plan: Plan, coefficient_K: Tensor | None
    ) -> tuple[LossSum, Tensor | None]:
        """The loss, and the weights it was made with; None for 1 everywhere."""
        loss = hidden_loss(
            hidden_K,
            model.unembedding(),
            plan.scheme_input.target_BTK,
            plan.weight_BTK,
            coefficient_K,
            self.denominator,
            self.kind,
            self.chunk,
            plan.seen,
            None if plan.weighted else partial(self._row_weights, plan.scheme_input),
            self.norms and not plan.weighted,
        )
        return loss, plan.weight_BTK if plan.weighted else loss.weight_BTK

    def _sums(self, model: MTPModel, hidden_K: list[Tensor], plan: Plan, coefficient_K: Tensor | None) -> Sums:
        loss, weight_BTK = self._loss(model, hidden_K, plan, coefficient_K)
        meter = weight_meter(weight_BTK, plan.scheme_input.valid_BTK, self.scheme.bounds)
        meter.add(
            weighted_sum=loss.weighted_sum.detach(),
            weight_total=loss.weight_total,
            nll_sum_K=loss.nll_sum_K,
            count_K=loss.count_K,
        )
        if loss.correct_K is not None:
            meter.add(correct_K=loss.correct_K)
        norm_BTK = plan.scheme_input.gradient_norm_BTK if plan.weighted else loss.gradient_norm_BTK
        if norm_BTK is not None:
            meter.add(gradient_norm_sum_K=norm_BTK.sum((0, 1)))
        weighted_sum, first = loss.weighted_sum, plan.scheme_input.first_head == 0
        if self.aux_value is not None and first:
            following = self._following(model, hidden_K[0], plan.scheme_input, meter)
            weighted_sum = weighted_sum + self.aux_value * following
        if plan.kl_scale is not None and first:
            weighted_sum = weighted_sum + plan.kl_scale * self._divergence(model, hidden_K[0], plan.scheme_input, meter)
        return Sums(weighted_sum, loss.weight_total, meter)

    def _following(self, model: MTPModel, hidden_BTD: Tensor, known: SchemeInput, meter: Meter) -> Tensor:
        """How far the policy's value head is from the critic's values, summed over tokens; told to the meter."""
        if model.value_head is None or known.values_BT is None:
            raise ValueError("an auxiliary value loss needs a policy with a value head, and a critic's values")
        following = following_loss(model.value_head(hidden_BTD), known.values_BT, known.response_BT)
        meter.add(value_sum=following.detach(), value_count=with_state_before(known.response_BT).sum())
        return following

    def _divergence(self, model: MTPModel, hidden_BTD: Tensor, known: SchemeInput, meter: Meter) -> Tensor:
        """What pulls head 1 to the reference."""
        if known.reference_nll_BTK is None:
            raise ValueError("kl needs a reference: `score` gave no reference_nll_BTK")
        first = known.target_BTK[:, :, 0], known.reference_nll_BTK[:, :, 0]
        found = divergence(hidden_BTD, model.unembedding(), *first, kind=self.kind, chunk=self.chunk)
        meter.add(kl_sum=found.total)
        return found.pull

    def _row_weights(
        self, known: SchemeInput, k: int, places_R: Tensor, nll_R: Tensor, norm_R: Tensor | None
    ) -> Tensor:
        """Weights of some pairs of head k, given as places in the flattened [B, T], their nll and gradient norms."""

        def as_row(value_BTK: Tensor | None) -> Tensor | None:
            return None if value_BTK is None else value_BTK[:, :, k].flatten()[places_R].view(1, -1, 1)

        target = known.target_BTK[:, :, k].flatten()[places_R].view(1, -1, 1)
        pairs = SchemeInput(
            target_BTK=target,
            response_BT=torch.ones_like(target[:, :, 0], dtype=torch.bool),
            reward_B=torch.full_like(nll_R[:1], math.nan),
            reference_nll_BTK=as_row(known.reference_nll_BTK),
            nll_BTK=nll_R.view(1, -1, 1),
            gradient_norm_BTK=None if norm_R is None else norm_R.view(1, -1, 1),
            step=known.step,
            first_head=known.first_head + k,
        )
        (weight,) = self.scheme.weights([pairs], alone, False)
        return torch.ones_like(nll_R) if weight is None else weight.view(-1)

    def metrics(self, totals: dict[str, Tensor], meter: Meter) -> dict[str, float]:
        """`loss/*`, `acc/*` (where the loss tells), `weight/*`. nll is always unweighted; `loss/weighted` is without
        `loss/kl`, the mean divergence."""
        nll_K, count_K = (totals[n].tolist() for n in ("nll_sum_K", "count_K"))
        out = {
            "loss/weighted": ratio(float(totals["weighted_sum"]), float(totals["weight_total"])),
            "loss/nll": ratio(sum(nll_K), sum(count_K)),
        }
        for k, (nll, count) in enumerate(zip(nll_K, count_K, strict=True), 1):
            out[f"loss/nll_head_{k}"] = ratio(nll, count)
        if "kl_sum" in totals:
            out["loss/kl"] = ratio(float(totals["kl_sum"]), count_K[0])
        if "correct_K" in totals:
            pairs = enumerate(zip(totals["correct_K"].tolist(), count_K, strict=True), 1)
            out |= {f"acc/head_{k}": ratio(correct, count) for k, (correct, count) in pairs}
        if "value_sum" in totals:
            out["loss/value"] = ratio(float(totals["value_sum"]), float(totals["value_count"]))
        return out | weight_metrics(totals, meter)

    def _coefficients(self, batch: Batch, head: int | None = None) -> Tensor | None:
        if self.coefficient_K is None:
            return None
        given_K = self.coefficient_K if isinstance(self.coefficient_K, Tensor) else self.coefficient_K(self.step)
        coefficient_K = given_K.to(batch.tokens_BT.device)
        return coefficient_K if head is None else coefficient_K[head : head + 1]

    def _scheme_input(self, model: MTPModel, batch: Batch) -> SchemeInput:
        scores: dict[str, Any] = dict(self.score(batch))
        return SchemeInput(
            target_BTK=batch_targets(batch, model.num_heads),
            response_BT=batch.trainable_BT,
            reward_B=batch.reward_B,
            row_B=torch.tensor(batch.row_B or [-1] * len(batch.reward_B), device=batch.tokens_BT.device),
            group_B2=batch.group_B2,
            step=self.step,
            **scores,
        )

    def _with_nll(self, plan: Plan, model: MTPModel, hidden_K: list[Tensor]) -> Plan:
        """The plan with this step's unweighted losses."""
        with torch.no_grad():
            detached = [hidden.detach() for hidden in hidden_K]
            target_BTK = plan.scheme_input.target_BTK
            loss = hidden_loss(
                detached,
                model.unembedding(),
                target_BTK,
                kind=self.kind,
                chunk=self.chunk,
                gradient_norms=self.norms,
            )
        seen = replace(plan.scheme_input, nll_BTK=loss.nll_BTK, gradient_norm_BTK=loss.gradient_norm_BTK)
        return replace(plan, seen=loss, scheme_input=seen)

    def state_dict(self) -> dict[str, Any]:
        """The scheme's memory."""
        return self.scheme.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scheme's memory."""
        self.scheme.load_state_dict(state)


class ValueObjective:
    """Training of a critic.

    Args:
        loss: one of `wmtp.value.LOSSES`; `pairwise` and `combined` need batches of pairs.
        gamma, lam: of the lambda-return; lam may be scheduled. `monte_carlo` is lam = 1.
        huber_delta: None for the squared error.
        returns_share: of `combined`: `(1 - share) * pairwise + share * lambda_return`.
        reward: a reward model's `reward_B` of a batch, learned in the place of its labels; None for these.
        held_out: the rows that an evaluation sees, one by one in any batches, and their pairs; None: it sees batches
            like those of training.
    """

    def __init__(
        self,
        loss: str = "pairwise",
        *,
        gamma: float = 1.0,
        lam: Scheduled = 0.95,
        huber_delta: float | None = 0.5,
        returns_share: float = 0.5,
        reward: Callable[[Batch], Tensor] | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"value loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        self.loss, self.gamma, self.huber_delta = loss, gamma, huber_delta
        self.lam: Scheduled = 1.0 if loss == "monte_carlo" else lam
        self.share = {"pairwise": 0.0, "combined": returns_share}.get(loss, 1.0)
        self.reward, self.scale = reward, RunningScale()
        self.held_out = held_out
        self.step = 1

    @property
    def needs_pairs(self) -> bool:
        """Whether the loss compares a correct with an incorrect response."""
        return self.loss in ("pairwise", "combined")

    def known_total(self, model: ValueModel, batches: Sequence[Batch]) -> Tensor:
        """Number of pairs or rows."""
        rows = sum(len(batch.row_B) for batch in batches)
        device = batches[0].tokens_BT.device
        return torch.tensor(float(rows // 2 if self.needs_pairs else rows), device=device)

    def plan(self, model: ValueModel, batches: Sequence[Batch], reduce: Reduce, training: bool) -> list[Tensor]:
        """What every row's values should foresee: its label, or its reward on the scale of all rows so far."""
        if self.reward is None:
            return [batch.reward_B[: len(batch.row_B)] for batch in batches]
        rewards = [self.reward(batch)[: len(batch.row_B)] for batch in batches]  # a filler has no rows
        return self.scale.scaled(rewards, reduce, training)

    def sums(self, model: ValueModel, batch: Batch, plan: Tensor, reduce: Reduce, training: bool) -> Sums:
        """Loss over pairs or rows; pair figures wherever the rows come as pairs, or are held-out ones."""
        rows = len(batch.row_B)  # none in a filler
        values_BT = model(batch.tokens_BT)[:rows]
        response = batch.trainable_BT[:rows]
        meter = value_meter(values_BT.detach(), response, batch.reward_B[:rows], plan)
        if self.held_out is not None and not training:
            return self._held_out_sums(self.held_out, values_BT, batch, plan, meter)
        paired = batch.paired
        if self.needs_pairs and not paired:
            raise ValueError(f"the {self.loss} loss needs batches of pairs: a correct row, then an incorrect one")
        pairs = pairwise_loss(values_BT if paired else values_BT[:0], response if paired else response[:0])
        count = torch.tensor(rows // 2 if paired else 0, device=values_BT.device)
        meter.add(pair_correct=pairs.correct_sum, pair_margin=pairs.margin_sum, pair_count=count)
        terms = [(1 - self.share) * pairs.loss_sum] if self.share < 1 else []
        if self.share > 0:
            returns = self._returns_loss(values_BT, response, plan)
            terms.append(self.share * returns / (2 if self.needs_pairs else 1))
        loss_sum = torch.stack(terms).sum()
        total = self.known_total(model, [batch])
        meter.add(weighted_sum=loss_sum.detach(), weight_total=total)
        return Sums(loss_sum, total, meter)

    def _held_out_sums(self, held_out: HeldOut, values_BT: Tensor, batch: Batch, plan: Tensor, meter: Meter) -> Sums:
        """What the rows add: the loss of those that have something to foresee, and each one's mean value."""
        rows = len(batch.row_B)
        response, known = batch.trainable_BT[:rows], ~plan.isnan()
        meter.merge(row_meter(values_BT, response, batch.row_B, held_out.rows))
        loss_sum = self._returns_loss(values_BT[known], response[known], plan[known])
        meter.add(weighted_sum=loss_sum.detach(), weight_total=known.sum())
        return Sums(loss_sum, known.sum(), meter)

    def _returns_loss(self, values_BT: Tensor, response_BT: Tensor, aim_B: Tensor) -> Tensor:
        lam = value_at(self.lam, self.step)
        return lambda_return_loss(
            values_BT, response_BT, aim_B, gamma=self.gamma, lam=lam, huber_delta=self.huber_delta
        )

    def backward(
        self,
        model: ValueModel,
        batch: Batch,
        plan: Tensor,
        scale: Tensor,
        reduce: Reduce,
        precision: Precision,
        *,
        last: bool = True,
    ) -> Meter:
        """Forward and backward in one piece."""
        with precision():
            sums = self.sums(model, batch, plan, reduce, True)
        (sums.weighted_sum / scale).backward()  # type: ignore[no-untyped-call]
        return sums.meter

    def metrics(self, totals: dict[str, Tensor], meter: Meter) -> dict[str, float]:
        """`loss/weighted` (the loss that is trained), and what `value_metrics` says of the values."""
        loss = ratio(float(totals["weighted_sum"]), float(totals["weight_total"]))
        if self.held_out is not None and "row_mean_R" in totals:
            pairs, count = held_out_pairs(totals, self.held_out)
            totals = {**totals, "pair_correct": pairs.correct_sum, "pair_margin": pairs.margin_sum, "pair_count": count}
            loss = self._of_both(ratio(float(pairs.loss_sum), float(count)), loss)
        calibrated = self.share > 0 and self.reward is None
        figures = {"loss/weighted": loss, **value_metrics(totals, calibrated=calibrated)}
        if self.reward is not None:
            figures |= {"reward/mean": self.scale.mean, "reward/std": self.scale.deviation}
        return figures

    def _of_both(self, of_pairs: float, of_rows: float) -> float:
        """Mean losses over pairs and over rows as the loss that is trained; a part that it lacks may not exist."""
        parts = [(1 - self.share, of_pairs), (self.share, of_rows)]
        return sum(share * mean for share, mean in parts if share)

    def begin(self, step: int) -> None:
        """A scheduled lam takes the value of this step."""
        self.step = step

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """No memory."""

    def state_dict(self) -> dict[str, Any]:
        """The scale of the rewards; nothing where labels are learned."""
        return {} if self.reward is None else {"rewards": self.scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self.reward is not None:
            self.scale.load_state_dict(state["rewards"])
