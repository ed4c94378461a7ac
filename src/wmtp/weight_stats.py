"""What the weights of a step look like: sums that add up over micro-batches and ranks, figures, and two alarms.

docs/math.md (5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wmtp.metrics import Meter

SUMS = ("count", "sum", "squares", "log", "clipped")


def weight_meter(weight_BTK: Tensor | None, valid_BTK: Tensor, bounds: tuple[float, float] | None = None) -> Meter:
    """Sums that describe the weights of the valid pairs, per head; also where no pair is valid, since ranks add them up
    name by name.

    Args:
        weight_BTK: None means 1 everywhere.
        bounds: what the weights are clipped to, if they are.
    """
    weight_BTK = valid_BTK.float() if weight_BTK is None else torch.where(valid_BTK, weight_BTK.float(), 0.0)
    meter = Meter()
    meter.add(
        weight_count_K=valid_BTK.sum((0, 1)),
        weight_sum_K=weight_BTK.sum((0, 1)),
        weight_squares_K=weight_BTK.square().sum((0, 1)),
        weight_log_K=torch.xlogy(weight_BTK, weight_BTK).sum((0, 1)),
    )
    if bounds is not None:
        at_bound_BTK = (weight_BTK <= bounds[0]) | (weight_BTK >= bounds[1])
        meter.add(weight_clipped_K=(at_bound_BTK & valid_BTK).sum((0, 1)))
    none = torch.full((1,), math.inf, device=weight_BTK.device)
    weight_N = weight_BTK[valid_BTK]
    meter.extremes("weight", torch.cat([weight_N, none]).min(), torch.cat([weight_N, -none]).max())
    return meter


def weight_metrics(totals: Mapping[str, Tensor], meter: Meter) -> dict[str, float]:
    """`weight/{mean,std,min,max,ess,entropy}`, and `weight/clipped` where there is a clip. All but the extremes also
    per head (`weight/ess_head_1`)."""
    sums = {name: totals[f"weight_{name}_K"].tolist() for name in SUMS if f"weight_{name}_K" in totals}
    if not sum(sums["count"]):
        return {}
    out = _figures({name: sum(value_K) for name, value_K in sums.items()})
    out |= {"weight/min": float(meter.lows["weight"]), "weight/max": float(meter.highs["weight"])}
    for k in range(len(sums["count"])):
        of_head = _figures({name: value_K[k] for name, value_K in sums.items()})
        out |= {f"{name}_head_{k + 1}": value for name, value in of_head.items()}
    return out


def _figures(sums: Mapping[str, float]) -> dict[str, float]:
    """`ess`: effective sample size as a share of the pairs, (sum w)^2 / (n sum w^2); `entropy` of w / sum w as a share
    of log n. Both are 1 for equal weights; NaN where there is nothing to divide by."""
    count, total, squares, logs = (sums[name] for name in ("count", "sum", "squares", "log"))
    mean = total / count if count else math.nan
    entropy = math.log(total) - logs / total if total > 0 else 0.0
    out = {
        "weight/mean": mean,
        "weight/std": math.sqrt(max(0.0, squares / count - mean * mean)) if count else math.nan,
        "weight/ess": total * total / (count * squares) if count * squares else math.nan,
        "weight/entropy": entropy / math.log(count) if count > 1 else 1.0,
    }
    return out | ({"weight/clipped": sums["clipped"] / count if count else math.nan} if "clipped" in sums else {})


# Alarms

PATIENCE = 10
"""So many training steps in a row, and it is no accident."""

COLLAPSED = 0.05
"""Effective sample size, as a share of the pairs, below which a few pairs do all the training."""

UNIFORM = 0.01
"""Standard deviation of the weights, as a share of their mean, below which they might as well be equal."""

ALARMS = {
    "collapsed": f"the weights have collapsed: for {PATIENCE} steps their effective sample size has been below "
    f"{COLLAPSED:.0%} of the pairs, so that a few pairs do all the training",
    "uniform": f"the weights cannot be told from uniform: for {PATIENCE} steps their standard deviation has been below "
    f"{UNIFORM:.0%} of their mean, so that this run is a baseline at extra cost",
}
"""What is told, by what is the matter."""


def streaks_after(streaks: Mapping[str, int], figures: Mapping[str, Any]) -> dict[str, int]:
    """For how many training steps in a row each alarm's condition has held; stays at `PATIENCE` once it got there."""
    holds = {
        "collapsed": not figures["weight/ess"] >= COLLAPSED,
        "uniform": figures["weight/std"] <= UNIFORM * figures["weight/mean"] and figures["weight/mean"] > 0,
    }
    before = {name: streaks.get(name, 0) for name in holds}
    return {n: PATIENCE if before[n] >= PATIENCE else before[n] + 1 if holds[n] else 0 for n in holds}
