"""Weighting schemes: one file each, one line each in `SCHEMES`."""

from __future__ import annotations

from collections.abc import Callable

from wmtp.ranks import Reduce, alone
from wmtp.weighting.base import Scheme, SchemeDefaults, SchemeInput, Stateless, When, ask, masked_moments
from wmtp.weighting.controls import Control, inverted, random_matched, shuffled
from wmtp.weighting.critic import Critic, gae
from wmtp.weighting.gradient import Gradient
from wmtp.weighting.grpo import GRPO
from wmtp.weighting.hybrid import Hybrid
from wmtp.weighting.rho1 import Rho1, kth_largest
from wmtp.weighting.uniform import Uniform

SCHEMES: dict[str, Callable[..., Scheme]] = {
    "uniform": Uniform,
    "critic": Critic,
    "rho1": Rho1,
    "gradient": Gradient,
    "grpo": GRPO,
    "hybrid": Hybrid,
    "shuffled": shuffled,
    "random_matched": random_matched,
    "inverted": inverted,
}

__all__ = [
    "GRPO",
    "SCHEMES",
    "Control",
    "Critic",
    "Gradient",
    "Hybrid",
    "Reduce",
    "Rho1",
    "Scheme",
    "SchemeDefaults",
    "SchemeInput",
    "Stateless",
    "Uniform",
    "When",
    "alone",
    "ask",
    "gae",
    "inverted",
    "kth_largest",
    "masked_moments",
    "random_matched",
    "shuffled",
]
