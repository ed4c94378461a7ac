"""Every scheme of ours keeps what `check_scheme` asks of any. A new line in SCHEMES needs one here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.schedule import Schedule
from wmtp.testing import check_scheme
from wmtp.weighting import (
    GRPO,
    SCHEMES,
    Critic,
    Gradient,
    Hybrid,
    Rho1,
    Scheme,
    Uniform,
    inverted,
    random_matched,
    shuffled,
)

Make = Callable[[], Scheme]
EVERY_KIND: list[Make] = [
    Uniform,
    Critic,
    partial(Critic, whiten="ema"),
    partial(Rho1, "soft"),
    Rho1,
    partial(Rho1, scope="micro"),
    Gradient,
    GRPO,
    lambda: Hybrid([Critic(), Rho1("soft")]),
]
"""What a control may wrap. Not rho1's running threshold: it moves with each micro-batch, so over the whole step it
depends on their number."""

MAKERS: dict[str, list[Make]] = {
    "uniform": [Uniform],
    "critic": [
        Critic,
        partial(Critic, terminal="reward", gamma=0.9, lam=1.0),
        partial(Critic, whiten="ema", ema_decay=0.5, beta=0.2),
        partial(Critic, clip=(0.0, 10.0), lam=0.0, beta=Schedule(2.0, 0.5, 10)),
    ],
    "rho1": [
        Rho1,
        partial(Rho1, "skip"),
        partial(Rho1, "soft", temperature=0.1),
        partial(Rho1, scope="micro", ratio=0.2),
        partial(Rho1, scope="running", ema_decay=0.5),
        partial(Rho1, "skip", scope="running", ratio=0.9),
        partial(Rho1, ratio=Schedule(0.9, 0.3, 10, "cosine")),
    ],
    "gradient": [Gradient, partial(Gradient, alpha=2.0, clip=(0.0, 5.0), ema_decay=0.5)],
    "grpo": [GRPO, partial(GRPO, beta=0.2), partial(GRPO, "positive"), partial(GRPO, "positive", neutral=0.0)],
    "hybrid": [
        lambda: Hybrid([Critic(), GRPO()]),
        lambda: Hybrid([Rho1("soft"), Gradient()]),
        lambda: Hybrid([Critic(whiten="ema"), Rho1(), Uniform()], "mixture", [0.5, 0.25, 0.25]),
        lambda: Hybrid([Critic(whiten="ema"), Rho1("skip")]),
    ],
    "shuffled": [partial(lambda of: shuffled(of(), seed=3), of) for of in EVERY_KIND],
    "random_matched": [partial(lambda of: random_matched(of(), seed=3), of) for of in EVERY_KIND],
    "inverted": [partial(lambda of: inverted(of(), seed=3), of) for of in EVERY_KIND],
}
ALL = [pytest.param(make, id=f"{name}-{i}") for name, several in MAKERS.items() for i, make in enumerate(several)]


def test_every_scheme_is_held_to_this() -> None:
    assert set(MAKERS) == set(SCHEMES)


@pytest.mark.parametrize("make", ALL)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=2)
def test_it_keeps_what_a_scheme_promises(make: Make, seed: int) -> None:
    check_scheme(make, [seed])


def test_a_scheme_without_memory_refuses_a_state() -> None:
    with pytest.raises(ValueError, match="no memory"):
        Uniform().load_state_dict({"moments": [0.0, 1.0]})
