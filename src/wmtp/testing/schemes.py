"""What a weighting scheme promises, whatever it computes: `check_scheme`, for ours and for yours."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from wmtp.ranks import Reduce, alone
from wmtp.targets import future_targets
from wmtp.testing.ranks import Ranks
from wmtp.weighting.base import Scheme, SchemeInput, When, ask

Make = Callable[[], Scheme]
"""Makes a fresh scheme; always the same one."""

COSTLY = frozenset({"values_BT", "reference_nll_BTK", "gradient_norm_BTK"})
"""What `needs` may name."""


def check_scheme(make: Make, seeds: Iterable[int] = range(5)) -> None:
    """Hold a scheme to what it promises, on random steps.

    Weights are one per pair, fp32, detached, finite, >= 0, and 0 where there is no target; what stands there moves
    nothing. Rows may come in any order; inputs are left alone; nothing is read that is not asked for. Memory goes
    through JSON and goes on to the last bit; a saved memory does not change any more; validation changes none. Two
    ranks give what one process gives. Heads one by one (`per_head`) and pairs one by one (`When.ROW`) give what all
    together give.

    Args:
        make: gives a fresh scheme at each call.
        seeds: of the random steps.

    Raises:
        AssertionError: which promise is broken, and how.
    """
    for seed in seeds:
        for promise in PROMISES:
            try:
                promise(make, seed)
            except AssertionError as problem:
                raise AssertionError(f"{type(make()).__name__}, seed {seed}: {problem}") from None


def draw_step(seed: int, batches: int = 2, heads: int = 3, scale: float = 1.0) -> list[SchemeInput]:
    """A step with everything that a scheme may ask for; prompt, padding and heads past the end have no target.

    Args:
        scale: of values, losses and gradient norms.
    """
    random = torch.Generator().manual_seed(seed)
    step: list[SchemeInput] = []
    seen = 0
    for i in range(batches):
        rows, length = 2 + i, 6 + 3 * i
        response_BT = torch.zeros(rows, length, dtype=torch.bool)
        for b in range(rows):
            start = int(torch.randint(1, length - 1, (), generator=random))
            response_BT[b, start : int(torch.randint(start + 1, length + 1, (), generator=random))] = True
        tokens_BT = torch.randint(0, 64, (rows, length), generator=random)
        target_BTK = future_targets(tokens_BT, response_BT, None, heads)
        share_B = torch.randint(1, 4, (rows,), generator=random) / 4

        def figures(valid_BTK: Tensor) -> Tensor:
            return 4 * scale * torch.rand(valid_BTK.shape, generator=random) * valid_BTK

        step.append(
            SchemeInput(
                target_BTK=target_BTK,
                response_BT=response_BT,
                reward_B=torch.randint(0, 2, (rows,), generator=random).float(),
                row_B=torch.arange(rows) + seen,
                group_B2=torch.stack([share_B, (share_B * (1 - share_B)).sqrt()], 1),
                values_BT=scale * torch.randn(rows, length, generator=random),
                reference_nll_BTK=figures(target_BTK != -100),
                nll_BTK=figures(target_BTK != -100),
                gradient_norm_BTK=figures(target_BTK != -100),
            )
        )
        seen += rows
    return step


def observe(scheme: Scheme, step: Sequence[SchemeInput]) -> None:
    """Tell a scheme of a finished step, as the trainer does."""

    def summed(name: str) -> Tensor:
        return torch.stack([getattr(batch, name).detach().sum((0, 1)) for batch in step]).sum(0)

    totals = {"nll_sum_K": summed("nll_BTK"), "gradient_norm_sum_K": summed("gradient_norm_BTK")}
    scheme.observe(totals | {"count_K": torch.stack([batch.valid_BTK.sum((0, 1)) for batch in step]).sum(0)})


def train(scheme: Scheme, step: Sequence[SchemeInput], reduce: Reduce = alone) -> list[Tensor]:
    """The weights of a training step that was done."""
    given = ask(scheme, step, reduce, True)
    observe(scheme, step)
    return given


def used(make: Make, seed: int, steps: int = 1) -> Scheme:
    """A scheme that has trained for a while."""
    scheme = make()
    for i in range(steps):
        train(scheme, draw_step(1000 + seed + i))
    return scheme


def reordered(batch: SchemeInput, order: Tensor) -> SchemeInput:
    """The same rows in another order."""
    tensors: dict[str, Any] = {name: v[order] for name, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **tensors)


def _require(holds: object, promise: str) -> None:
    if not bool(holds):
        raise AssertionError(promise)


def _same(one: Sequence[Tensor], other: Sequence[Tensor], promise: str, tolerance: float = 1e-4) -> None:
    for a, b in zip(one, other, strict=True):
        close = torch.isclose(a, b, rtol=tolerance, atol=0.0) if tolerance else a == b
        _require(close.all(), promise)


def _weights_are_usable(make: Make, seed: int) -> None:
    for scale in (1.0, 1e-4, 1e4):
        for steps in (0, 2):
            scheme, step = used(make, seed, steps), draw_step(seed, scale=scale)
            for batch in step:
                for value in vars(batch).values():
                    if isinstance(value, Tensor) and value.is_floating_point():
                        value.requires_grad_()
            groups = [[batch] for batch in step] if scheme.when is When.MICRO_BATCH else [step]
            given = [weight for group in groups for weight in scheme.weights(group, alone, True)]
            _require(len(given) == len(step), f"{len(given)} weights for {len(step)} micro-batches")
            for weight, batch in zip(given, step, strict=True):
                if weight is not None:
                    _usable(weight, batch)


def _usable(weight: Tensor, batch: SchemeInput) -> None:
    shape = tuple(batch.target_BTK.shape)
    _require(tuple(weight.shape) == shape, f"weights have the shape {tuple(weight.shape)}, expected {shape}")
    _require(weight.dtype == torch.float32, f"weights are {weight.dtype}, expected torch.float32")
    _require(not weight.requires_grad, "weights are not detached: they carry a gradient")
    _require(weight.isfinite().all(), "a weight is not finite")
    _require((weight >= 0).all(), "a weight is negative")
    _require((weight[~batch.valid_BTK] == 0).all(), "a weight is not 0 where there is no target")


def _nothing_outside_the_mask_counts(make: Make, seed: int) -> None:
    step = draw_step(seed)
    for odd in (1e6, -1e6):
        moved = []
        for batch in step:
            figures: dict[str, Any] = {
                name: torch.where(batch.valid_BTK, getattr(batch, name), odd)
                for name in ("nll_BTK", "reference_nll_BTK", "gradient_norm_BTK")
            }
            moved.append(replace(batch, **figures))
        promise = "what stands where there is no target moves a weight"
        _same(ask(used(make, seed), moved, alone, True), ask(used(make, seed), step, alone, True), promise)


def _rows_come_in_any_order(make: Make, seed: int) -> None:
    step = draw_step(seed)
    random = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(batch.reward_B), generator=random) for batch in step]
    moved = [reordered(batch, order) for batch, order in zip(step, orders, strict=True)]
    plain = [w[order] for w, order in zip(ask(used(make, seed), step, alone, True), orders, strict=True)]
    _same(ask(used(make, seed), moved, alone, True), plain, "the order of the rows changes a row's weights")


def _inputs_are_left_alone(make: Make, seed: int) -> None:
    scheme, step, as_it_was = used(make, seed), draw_step(seed), draw_step(seed)
    train(scheme, step)
    for batch, before in zip(step, as_it_was, strict=True):
        for field in fields(batch):
            now, then = getattr(batch, field.name), getattr(before, field.name)
            same = torch.equal(now, then) if isinstance(now, Tensor) else now == then
            _require(same, f"the input {field.name} was changed")


def _nothing_is_read_that_is_not_asked_for(make: Make, seed: int) -> None:
    scheme, step = used(make, seed), draw_step(seed)
    _require(scheme.needs <= COSTLY, f"needs may name {', '.join(sorted(COSTLY))}; got {', '.join(scheme.needs)}")
    hidden: dict[str, Any] = dict.fromkeys(COSTLY - scheme.needs)
    if scheme.when is When.BEFORE_FORWARD:
        hidden["nll_BTK"] = None
    lean = [replace(batch, **hidden) for batch in step]
    full = ask(used(make, seed), step, alone, True)
    try:
        given = ask(scheme, lean, alone, True)
    except (TypeError, AttributeError, ValueError, AssertionError) as problem:
        raise AssertionError(f"it reads something that `needs` and `when` do not ask for: {problem}") from problem
    _same(given, full, "it reads something that `needs` and `when` do not ask for", 0.0)


def _memory_goes_through_json(make: Make, seed: int) -> None:
    for steps in (0, 2):
        scheme, other = used(make, seed, steps), make()
        saved = scheme.state_dict()
        as_it_was = copy.deepcopy(saved)
        other.load_state_dict(json.loads(json.dumps(saved)))
        for i in range(2):
            step = draw_step(seed + i)
            promise = "after its state was saved and loaded it gives other weights"
            _same(ask(scheme, step, alone, False), ask(other, step, alone, False), promise, 0.0)
            _same(train(scheme, step), train(other, step), promise, 0.0)
        _require(
            scheme.state_dict() == other.state_dict(), "after its state was saved and loaded it remembers otherwise"
        )
        _require(saved == as_it_was, "a saved state changes when training goes on")


def _validation_changes_nothing(make: Make, seed: int) -> None:
    for scheme in (make(), used(make, seed)):
        before = copy.deepcopy(scheme.state_dict())
        ask(scheme, draw_step(seed), alone, False)
        _require(scheme.state_dict() == before, "validation changes the state")


def _ranks_are_one_process(make: Make, seed: int) -> None:
    """For `When.MICRO_BATCH` the weights may depend on the split, by name; the memories must agree all the same."""
    one, several = make(), [make(), make()]
    for i in range(3):
        step = draw_step(seed + i)

        def of_rank(rank: int, reduce: Reduce, step: list[SchemeInput] = step) -> list[Tensor]:
            return ask(several[rank], [step[rank]], reduce, True)

        try:
            parts = Ranks(2).run(of_rank)
        except RuntimeError as problem:
            raise AssertionError(f"ranks do not keep step: {problem}") from problem
        whole = ask(one, step, alone, True)
        for scheme in (one, *several):
            observe(scheme, step)
        if one.when is not When.MICRO_BATCH:
            _same([w for part in parts for w in part], whole, "two ranks give other weights than one process")
        _require(several[0].state_dict() == several[1].state_dict(), "two ranks remember different things")


def _heads_one_by_one_are_all_together(make: Make, seed: int) -> None:
    one_by_one, together = used(make, seed), used(make, seed)
    if not together.per_head:
        return
    step = draw_step(seed)
    heads = range(step[0].target_BTK.shape[2])
    apart = zip(*(ask(one_by_one, [batch.head(k) for batch in step], alone, True) for k in heads), strict=True)
    whole = ask(together, step, alone, True)
    promise = "per_head is True, but heads asked one by one give other weights"
    _same([torch.cat(of_heads, 2) for of_heads in apart], whole, promise)
    promise = "per_head is True, but after heads were asked one by one it remembers otherwise"
    _require(one_by_one.state_dict() == together.state_dict(), promise)


def _pairs_one_by_one_are_all_together(make: Make, seed: int) -> None:
    scheme = used(make, seed)
    if scheme.when is not When.ROW:
        return
    step = draw_step(seed)
    whole = ask(scheme, step, alone, False)
    for batch, weight_BTK in zip(step, whole, strict=True):
        for b, t, k in batch.valid_BTK.nonzero().tolist():
            pair: dict[str, Any] = {
                name: None if (v := getattr(batch, name)) is None else v[b : b + 1, t : t + 1, k : k + 1]
                for name in ("target_BTK", "reference_nll_BTK", "nll_BTK", "gradient_norm_BTK")
            }
            alone_in_a_row = SchemeInput(
                **pair,
                response_BT=torch.ones(1, 1, dtype=torch.bool),
                reward_B=torch.full((1,), torch.nan),
                first_head=k,
            )
            (single,) = ask(scheme, [alone_in_a_row], alone, False)
            _same([single.flatten()], [weight_BTK[b, t, k].view(1)], "a pair by itself gets another weight")


PROMISES: tuple[Callable[[Make, int], None], ...] = (
    _weights_are_usable,
    _nothing_outside_the_mask_counts,
    _rows_come_in_any_order,
    _inputs_are_left_alone,
    _nothing_is_read_that_is_not_asked_for,
    _memory_goes_through_json,
    _validation_changes_nothing,
    _ranks_are_one_process,
    _heads_one_by_one_are_all_together,
    _pairs_one_by_one_are_all_together,
)
"""What a scheme promises; each raises `AssertionError`."""
