"""The optimiser and its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW

from wmtp.schedule import remaining


def build_adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
) -> AdamW:
    """Fused AdamW over the trainable parameters; matrices decay, vectors (norms, biases) do not.

    Args:
        lr_factor: of a parameter, by its name: its learning rate is so many times `lr`.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for factor in sorted({lr_factor(name) for name, _ in named}):
        for decays in (True, False):
            own = [p for name, p in named if lr_factor(name) == factor and (p.ndim >= 2) == decays]
            groups |= {(decays, factor): own} if own else {}
    made = [_group(own, weight_decay if decays else 0.0, factor) for (decays, factor), own in groups.items()]
    return AdamW(made, lr=lr, betas=betas, eps=eps, fused=True)


def _group(parameters: list[nn.Parameter], weight_decay: float, factor: float) -> dict[str, Any]:
    group: dict[str, Any] = {"params": parameters, "weight_decay": weight_decay}
    return group if factor == 1 else group | {"lr_factor": factor}


def learning_rate(step: int, *, peak: float, total: int, warmup: int, schedule: str, floor: float) -> float:
    """Learning rate of step `step`, counted from 1: a pure function, so there is no schedule state to lose.

    Args:
        total: steps of the run.
        warmup: steps of linear warm-up; the peak is reached at step `warmup`.
        schedule: `constant`, `linear` or `cosine` after the warm-up.
        floor: share of the peak that the last step has.
    """
    if schedule not in ("constant", "linear", "cosine"):
        raise ValueError(f"schedule must be 'constant', 'linear' or 'cosine', got {schedule!r}")
    if step <= warmup:
        return peak * step / warmup
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * remaining(schedule, progress))


def set_learning_rate(optimizer: AdamW, lr: float) -> None:
    """Give every group this rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
