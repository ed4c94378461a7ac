"""`check_scheme` catches every kind of broken scheme, and tells which promise it breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.ranks import Reduce
from wmtp.testing import check_scheme
from wmtp.weighting import SchemeDefaults, SchemeInput, Stateless, When, masked_moments


class Token(Stateless):
    """A sound scheme by token, and the base of broken ones: weights from `of`."""

    when = When.BEFORE_FORWARD
    per_head = True
    needs = frozenset({"values_BT"})

    def __init__(self, of: Callable[[SchemeInput], Any] | None = None, **changed: Any) -> None:
        self.of = of or (lambda batch: batch.of_targets(values(batch).exp().clamp(0.1, 3.0)))
        for name, value in changed.items():
            setattr(self, name, value)

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        return [self.of(batch) for batch in step]


class Average(SchemeDefaults):
    """A sound scheme with memory, and the base of broken ones: how many tokens a step has, on average."""

    when = When.BEFORE_FORWARD
    per_head = False
    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.mean = [8.0]

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        count = float(self.total(torch.stack([b.response_BT.sum() for b in step]).sum(), reduce))
        if self.learns(training):
            self.mean[0] = 0.5 * self.mean[0] + 0.5 * count
        return [b.masked(torch.full(b.target_BTK.shape, self.mean[0])) for b in step]

    def total(self, count: Tensor, reduce: Reduce) -> Tensor:
        return reduce(count)

    def learns(self, training: bool) -> bool:
        return training

    def state_dict(self) -> dict[str, Any]:
        return {"mean": list(self.mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = list(state["mean"])


class Forgetful(Average):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Aliased(Average):
    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}


class Peeking(Average):
    def learns(self, training: bool) -> bool:
        return True


class Alone(Average):
    def total(self, count: Tensor, reduce: Reduce) -> Tensor:
        return count


class OutOfStep(Average):
    def total(self, count: Tensor, reduce: Reduce) -> Tensor:
        return reduce(count) if int(count) % 3 else count


class Watching(Average):
    """Learns from what no rank but its own has seen, and tells nobody."""

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        self.seen = getattr(self, "seen", 0.0) + float(totals["nll_sum_K"].sum())

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        return [b.masked(torch.full(b.target_BTK.shape, 1 + getattr(self, "seen", 0.0))) for b in step]


class TooFew(Token):
    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        return super().weights(step[:1], reduce, training)


class OwnMicroBatch(Token):
    """Whitens each micro-batch by itself while it says that it looks at the step."""

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        mean, _ = masked_moments([values(b) for b in step], [b.response_BT for b in step], lambda x: x)  # type: ignore[arg-type]
        return [b.of_targets((values(b) - mean).detach().exp().clamp(0.1, 3.0)) for b in step]


def values(batch: SchemeInput) -> Tensor:
    assert batch.values_BT is not None
    return batch.values_BT.detach()


def nll(batch: SchemeInput) -> Tensor:
    assert batch.nll_BTK is not None
    return batch.nll_BTK.detach()


def ones(batch: SchemeInput) -> Tensor:
    return batch.valid_BTK.float()


def by_place(batch: SchemeInput) -> Tensor:
    return batch.masked((1.0 + torch.arange(len(batch.reward_B))).view(-1, 1, 1).expand(batch.target_BTK.shape))


def tampered(batch: SchemeInput) -> Tensor:
    values(batch).clamp_(-0.5, 0.5)
    return ones(batch)


def over_heads(batch: SchemeInput) -> Tensor:
    return batch.masked(nll(batch) / (nll(batch) * batch.valid_BTK).sum().clamp(min=1.0))


def over_padding(batch: SchemeInput) -> Tensor:
    return batch.masked((nll(batch) > nll(batch).mean()).float())


def relative(batch: SchemeInput) -> Tensor:
    return batch.masked(nll(batch) / (nll(batch) * batch.valid_BTK).amax((0, 1), keepdim=True).clamp(min=1e-9))


MICRO: dict[str, Any] = {"when": When.MICRO_BATCH, "needs": frozenset()}
BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "negative": (lambda: Token(lambda b: -ones(b)), "negative"),
    "not a number": (lambda: Token(lambda b: ones(b) * torch.nan), "not finite"),
    "too large": (lambda: Token(lambda b: b.of_targets(values(b).exp())), "not finite"),
    "with a gradient": (lambda: Token(lambda b: b.of_targets(b.values_BT.square().clamp(0, 9))), "not detached"),
    "another shape": (lambda: Token(lambda b: values(b).exp().clamp(0.1, 3.0)), "shape"),
    "another dtype": (lambda: Token(lambda b: ones(b).double()), "expected torch.float32"),
    "fewer than micro-batches": (TooFew, "1 weights for 2 micro-batches"),
    "outside the mask": (lambda: Token(lambda b: torch.ones(b.target_BTK.shape)), "not 0 where there is no target"),
    "by place in the batch": (lambda: Token(by_place), "order of the rows"),
    "tampered inputs": (lambda: Token(tampered), "input values_BT was changed"),
    "not asked for": (lambda: Token(needs=frozenset()), "do not ask for"),
    "an unknown need": (lambda: Token(needs=frozenset({"values_BT", "logits"})), "needs may name"),
    "statistics over padding": (lambda: Token(over_padding, **MICRO), "no target moves a weight"),
    "heads mixed": (lambda: Token(over_heads, **MICRO), "heads asked one by one"),
    "rows mixed": (lambda: Token(relative, when=When.ROW, needs=frozenset()), "pair by itself"),
    "forgetful": (Forgetful, "saved and loaded"),
    "a state that changes": (Aliased, "a saved state changes"),
    "learning from validation": (Peeking, "validation changes the state"),
    "deaf to other ranks": (Alone, "two ranks give other weights"),
    "statistics of its own rank": (OwnMicroBatch, "two ranks give other weights"),
    "out of step": (OutOfStep, "ranks do not keep step"),
    "an unsaved observation": (Watching, "saved and loaded"),
}


@pytest.mark.parametrize("sound", [Token, Average])
def test_a_sound_scheme_passes(sound: Callable[[], Any]) -> None:
    check_scheme(sound)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_scheme_is_caught_and_its_broken_promise_is_named(name: str) -> None:
    make, told = BROKEN[name]
    with pytest.raises(AssertionError, match=told):
        check_scheme(make)


def test_it_needs_no_test_framework() -> None:
    import subprocess
    import sys

    code = "import sys, wmtp.testing; assert not {'pytest', 'hypothesis', '_pytest'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
