"""Weighting schemes: one file each, one line each in `SCHEMES`."""

from __future__ import annotations

from collections.abc import Callable

from wmtp.ranks import Reduce, alone
from wmtp.weighting.base import Scheme, SchemeInput, When, masked_moments
from wmtp.weighting.critic import Critic, gae
from wmtp.weighting.rho1 import Rho1, kth_largest
from wmtp.weighting.uniform import Uniform

SCHEMES: dict[str, Callable[..., Scheme]] = {
    "uniform": Uniform,
    "critic": Critic,
    "rho1": Rho1,
}

__all__ = [
    "SCHEMES",
    "Critic",
    "Reduce",
    "Rho1",
    "Scheme",
    "SchemeInput",
    "Uniform",
    "When",
    "alone",
    "gae",
    "kth_largest",
    "masked_moments",
]
