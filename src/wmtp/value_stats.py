"""What is said of a critic's values: sums over rows, made into figures once all ranks have added theirs.

docs/math.md (4.2.1). All figures are over response tokens. A figure that does not exist (no pair, no label, no spread)
is NaN, or left out; it is never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wmtp.devices import widest_float
from wmtp.metrics import Meter
from wmtp.value import PairLoss, margin_loss, mean_response_value

BINS = 10
"""Of the reliability curve: equal parts of [0, 1]; values outside count to the outermost."""


def value_meter(values_BT: Tensor, response_BT: Tensor, reward_B: Tensor, aim_B: Tensor) -> Meter:
    """Sums over the rows.

    Args:
        values_BT: detached.
        reward_B: 1 correct, 0 incorrect, NaN unknown.
        aim_B: what the values should foresee: `reward_B`, or a reward model's score.
    """
    values, mask = values_BT.to(widest_float(values_BT.device)), response_BT.bool()
    count_B = mask.sum(1)
    mean_B = mean_response_value(values, mask)
    meter = Meter()
    meter.add(
        value_sum=(values * mask).sum(),
        value_squares=(values.square() * mask).sum(),
        value_count=count_B.sum(),
        value_row_sum=mean_B.sum(),
        value_rows=torch.tensor(len(values), device=values.device),
        value_row_variance=_row_covariance(values, values, mask).sum(),
        length_moments=_moments(count_B.to(values), mean_B),
        aim_moments=_moments(aim_B[~aim_B.isnan()].to(values), mean_B[~aim_B.isnan()]),
    )
    for name, value_B in (("position", _position_correlation(values, mask)), ("spikiness", _spikiness(values, mask))):
        known = ~value_B.isnan()
        meter.add(**{f"{name}_sum": value_B[known].sum(), f"{name}_rows": known.sum()})
    meter.add(reliability=_reliability(values, mask, reward_B))
    return meter


class HeldOut(NamedTuple):
    """The held-out rows of a critic, each of which is evaluated once, and the pairs among them."""

    rows: int
    pair_P2: Tensor
    """int64: places of a correct and an incorrect row of one problem."""


def row_meter(values_BT: Tensor, response_BT: Tensor, row_B: Sequence[int], rows: int) -> Meter:
    """The mean value of each of these rows, at its place among all; what pairs are made of once all are there."""
    values = values_BT.to(widest_float(values_BT.device))
    mean_R, seen_R = values.new_zeros(rows), values.new_zeros(rows)
    places_B = torch.tensor(row_B, dtype=torch.int64, device=values.device)
    mean_R[places_B], seen_R[places_B] = mean_response_value(values, response_BT), 1.0
    meter = Meter()
    meter.add(row_mean_R=mean_R, row_seen_R=seen_R)
    return meter


def held_out_pairs(totals: Mapping[str, Tensor], held_out: HeldOut) -> tuple[PairLoss, Tensor]:
    """The sums over the pairs whose rows were both evaluated, and how many there are."""
    mean_R, seen_R = totals["row_mean_R"].cpu(), totals["row_seen_R"].cpu()
    pair_P2 = held_out.pair_P2[(seen_R[held_out.pair_P2] > 0).all(1)]
    return margin_loss(mean_R[pair_P2[:, 0]] - mean_R[pair_P2[:, 1]]), torch.tensor(len(pair_P2))


def value_metrics(totals: Mapping[str, Tensor], *, calibrated: bool) -> dict[str, float]:
    """`value/*` and `reliability/*`.

    Args:
        calibrated: whether the values are meant as probabilities; else there is no calibration to speak of.
    """
    figure = {name: float(value) for name, value in totals.items() if value.ndim == 0}
    mean = ratio(figure["value_sum"], figure["value_count"])
    variance = ratio(figure["value_squares"], figure["value_count"]) - mean * mean
    out = {
        "value/mean": mean,
        "value/std": math.nan if math.isnan(variance) else math.sqrt(max(0.0, variance)),
        "value/response_mean": ratio(figure["value_row_sum"], figure["value_rows"]),
        "value/token_variance": ratio(figure["value_row_variance"], figure["value_rows"]),
        "value/spikiness": ratio(figure["spikiness_sum"], figure["spikiness_rows"]),
        "value/position_correlation": ratio(figure["position_sum"], figure["position_rows"]),
        "value/length_correlation": _correlation(totals["length_moments"]),
        "value/reward_correlation": _correlation(totals["aim_moments"]),
    }
    if figure["pair_count"]:
        out["value/pair_accuracy"] = ratio(figure["pair_correct"], figure["pair_count"])
        out["value/margin"] = ratio(figure["pair_margin"], figure["pair_count"])
    return out | (_calibration(totals["reliability"]) if calibrated else {})


def ratio(numerator: float, denominator: float) -> float:
    """NaN where there is nothing to divide by: a figure that does not exist is not 0."""
    return numerator / denominator if denominator else math.nan


# Within a row


def _centred(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return (values_BT - mean_response_value(values_BT, mask_BT).unsqueeze(1)) * mask_BT


def _row_covariance(one_BT: Tensor, other_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Population covariance over each row's response tokens, `[B]`."""
    return (_centred(one_BT, mask_BT) * _centred(other_BT, mask_BT)).sum(1) / mask_BT.sum(1).clamp(min=1)


def _position_correlation(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Correlation of value and position in each row; NaN where either does not vary."""
    places = torch.arange(values_BT.shape[1], device=values_BT.device).to(values_BT).expand_as(values_BT)
    spread = _row_covariance(values_BT, values_BT, mask_BT) * _row_covariance(places, places, mask_BT)
    return torch.where(spread > 0, _row_covariance(values_BT, places, mask_BT) / spread.sqrt(), math.nan)


def _spikiness(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Largest over mean absolute change from token to token of each row's response; NaN without any change."""
    both = mask_BT[:, 1:] & mask_BT[:, :-1]
    change = (values_BT[:, 1:] - values_BT[:, :-1]).abs() * both
    if not change.shape[1]:
        return values_BT.new_full((len(values_BT),), math.nan)
    mean = change.sum(1) / both.sum(1).clamp(min=1)
    return torch.where(mean > 0, change.amax(1) / mean, math.nan)


# Over rows


def _moments(one: Tensor, other: Tensor) -> Tensor:
    """Number, sums, sums of squares and of products: what a correlation needs."""
    count = torch.tensor(float(len(one)), dtype=one.dtype, device=one.device)
    return torch.stack([count, one.sum(), other.sum(), one @ one, other @ other, one @ other])


def _correlation(moments: Tensor) -> float:
    count, one, other, ones, others, products = moments.tolist()
    if not count:
        return math.nan
    spread = (ones / count - (one / count) ** 2) * (others / count - (other / count) ** 2)
    return (products / count - one * other / count**2) / math.sqrt(spread) if spread > 1e-24 else math.nan


def _reliability(values_BT: Tensor, mask_BT: Tensor, reward_B: Tensor) -> Tensor:
    """`[3, BINS]`: tokens of labelled rows, their values, and how many of them are in correct responses."""
    known = mask_BT & ~reward_B.isnan().unsqueeze(1)
    value = values_BT[known].clamp(0, 1)
    reward = reward_B.to(value).unsqueeze(1).expand_as(values_BT)[known]
    place = (value * BINS).long().clamp(max=BINS - 1)
    sums = [
        torch.zeros(BINS, dtype=value.dtype, device=value.device).index_add_(0, place, what)
        for what in (torch.ones_like(value), value, reward)
    ]
    return torch.stack(sums)


def _calibration(reliability: Tensor) -> dict[str, float]:
    """Expected calibration error (Naeini et al. 2015), and the curve: mean value, share correct and tokens by bin."""
    bins = [(place, *column) for place, column in enumerate(reliability.T.tolist(), 1)]
    filled = [(place, count, value / count, correct / count) for place, count, value, correct in bins if count]
    total = sum(count for _, count, _, _ in filled)
    error = sum(count * abs(value - correct) for _, count, value, correct in filled)
    out = {"value/calibration_error": ratio(error, total)}
    for place, count, value, correct in filled:
        out |= {
            f"reliability/value_{place}": value,
            f"reliability/correct_{place}": correct,
            f"reliability/tokens_{place}": int(count),
        }
    return out
