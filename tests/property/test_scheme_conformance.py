"""What every weighting scheme promises, whatever it computes. A new line in SCHEMES needs a line here."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp.ranks import alone
from wmtp.targets import future_targets
from wmtp.weighting import SCHEMES, SchemeInput, When

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "uniform": [{}],
    "critic": [
        {},
        {"terminal": "reward", "gamma": 0.9, "lam": 1.0},
        {"whiten": "ema", "ema_decay": 0.5, "beta": 0.2},
        {"clip": (0.0, 10.0), "lam": 0.0},
    ],
    "rho1": [
        {},
        {"mode": "skip"},
        {"mode": "soft", "temperature": 0.1},
        {"scope": "micro", "ratio": 0.2},
        {"scope": "running", "ema_decay": 0.5},
        {"mode": "skip", "scope": "running", "ratio": 0.9},
    ],
}
ALL = [pytest.param(name, o, id=f"{name}-{i}") for name, several in OPTIONS.items() for i, o in enumerate(several)]


def test_every_scheme_is_held_to_this() -> None:
    assert set(OPTIONS) == set(SCHEMES)


def draw_step(seed: int, batches: int = 2, heads: int = 3) -> list[SchemeInput]:
    """A step with everything a scheme may ask for; prompt, padding and heads past the end have no target."""
    random = torch.Generator().manual_seed(seed)
    step = []
    for i in range(batches):
        rows, length = 2 + i, 6 + 3 * i
        response = torch.zeros(rows, length, dtype=torch.bool)
        for b in range(rows):
            start = int(torch.randint(1, length - 1, (), generator=random))
            response[b, start : int(torch.randint(start + 1, length + 1, (), generator=random))] = True
        target = future_targets(
            torch.randint(0, 64, (rows, length), generator=random, dtype=torch.int64), response, None, heads
        )
        valid = target != -100
        step.append(
            SchemeInput(
                target_BTK=target,
                response_BT=response,
                reward_B=torch.randint(0, 2, (rows,), generator=random).float(),
                values_BT=torch.randn(rows, length, generator=random),
                reference_nll_BTK=4 * torch.rand(rows, length, heads, generator=random) * valid,
                nll_BTK=4 * torch.rand(rows, length, heads, generator=random) * valid,
            )
        )
    return step


def rows(batch: SchemeInput, order: list[int]) -> SchemeInput:
    """The same micro-batch with its rows in another order."""
    fields = ("target_BTK", "response_BT", "reward_B", "values_BT", "reference_nll_BTK", "nll_BTK")
    return SchemeInput(**{name: getattr(batch, name)[order] for name in fields})


def groups(scheme: Any, step: list[SchemeInput]) -> list[list[SchemeInput]]:
    """How the trainer hands micro-batches over."""
    return [[batch] for batch in step] if scheme.when is When.MICRO_BATCH else [step]


def weights(scheme: Any, step: list[SchemeInput], training: bool = True) -> list[Tensor]:
    """Per micro-batch, None spelt out as ones."""
    given = [w for group in groups(scheme, step) for w in scheme.weights(group, alone, training)]
    return [torch.ones(b.target_BTK.shape) if w is None else w for w, b in zip(given, step, strict=True)]


@pytest.mark.parametrize(("name", "options"), ALL)
@given(seed=st.integers(0, 10**6), heads=st.integers(1, 4), large=st.sampled_from([1.0, 1e-4, 1e4]))
@settings(max_examples=7)
def test_weights_are_finite_not_negative_fp32_detached_and_one_per_pair(
    name: str, options: dict[str, Any], seed: int, heads: int, large: float
) -> None:
    scheme = SCHEMES[name](**options)
    for training in (True, False):
        step = draw_step(seed, heads=heads)
        for batch in step:
            for tensor in (batch.values_BT, batch.nll_BTK, batch.reference_nll_BTK):
                assert tensor is not None
                tensor.mul_(large).requires_grad_()
        given = [w for group in groups(scheme, step) for w in scheme.weights(group, alone, training)]
        assert len(given) == len(step)
        for weight, batch in zip(given, step, strict=True):
            if weight is None:
                continue
            assert weight.shape == batch.target_BTK.shape
            assert weight.dtype == torch.float32
            assert not weight.requires_grad
            assert bool((weight.isfinite() & (weight >= 0)).all())


@pytest.mark.parametrize(("name", "options"), ALL)
@given(seed=st.integers(0, 10**6), random=st.randoms(use_true_random=False))
@settings(max_examples=7)
def test_schemes_commute_with_batch_order(name: str, options: dict[str, Any], seed: int, random: Any) -> None:
    step = draw_step(seed)
    orders = [random.sample(range(len(b.reward_B)), len(b.reward_B)) for b in step]
    plain = weights(SCHEMES[name](**options), step)
    moved = weights(SCHEMES[name](**options), [rows(b, order) for b, order in zip(step, orders, strict=True)])
    for a, b, order in zip(plain, moved, orders, strict=True):
        torch.testing.assert_close(b, a[order], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("name", "options"), ALL)
@given(seed=st.integers(0, 10**6), steps=st.integers(0, 3))
@settings(max_examples=4)
def test_state_that_went_through_json_continues_to_the_last_bit(
    name: str, options: dict[str, Any], seed: int, steps: int
) -> None:
    scheme, other = SCHEMES[name](**options), SCHEMES[name](**options)
    for i in range(steps):
        weights(scheme, draw_step(seed + i))
    other.load_state_dict(json.loads(json.dumps(scheme.state_dict())))
    for i in range(steps, steps + 2):
        for training in (False, True):
            a, b = (weights(s, draw_step(seed + i), training) for s in (scheme, other))
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert scheme.state_dict() == other.state_dict()


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_saved_state_does_not_change_afterwards(name: str, options: dict[str, Any]) -> None:
    scheme = SCHEMES[name](**options)
    weights(scheme, draw_step(0))
    saved = scheme.state_dict()
    as_it_was = copy.deepcopy(saved)
    weights(scheme, draw_step(1))
    assert saved == as_it_was


@pytest.mark.parametrize(("name", "options"), ALL)
def test_validation_changes_no_state(name: str, options: dict[str, Any]) -> None:
    scheme = SCHEMES[name](**options)
    for seed in (0, 1):
        before = copy.deepcopy(scheme.state_dict())
        weights(scheme, draw_step(seed + 10), training=False)
        assert scheme.state_dict() == before
        weights(scheme, draw_step(seed))


@pytest.mark.parametrize(("name", "options"), ALL)
def test_inputs_are_left_as_they_were(name: str, options: dict[str, Any]) -> None:
    step, copies = draw_step(0), draw_step(0)
    weights(SCHEMES[name](**options), step)
    for batch, as_it_was in zip(step, copies, strict=True):
        for field in ("target_BTK", "response_BT", "reward_B", "values_BT", "reference_nll_BTK", "nll_BTK"):
            assert torch.equal(getattr(batch, field), getattr(as_it_was, field))


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_scheme_needs_no_more_than_it_says(name: str, options: dict[str, Any]) -> None:
    scheme = SCHEMES[name](**options)
    assert scheme.needs <= {"values_BT", "reference_nll_BTK"}
    wanted = {"target_BTK", "response_BT", "reward_B", *scheme.needs}
    if scheme.when is not When.BEFORE_FORWARD:
        wanted.add("nll_BTK")
    step = draw_step(3)
    lean = [SchemeInput(**{field: getattr(b, field) for field in wanted}) for b in step]
    same = zip(weights(SCHEMES[name](**options), lean), weights(scheme, step), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_a_scheme_without_memory_refuses_a_state() -> None:
    with pytest.raises(ValueError, match="no memory"):
        SCHEMES["uniform"]().load_state_dict({"moments": [0.0, 1.0]})
