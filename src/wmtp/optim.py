"""The optimiser and its schedule."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from wmtp.schedule import remaining


def build_adamw(model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> AdamW:
    """Fused AdamW over the trainable parameters; matrices decay, vectors (norms, biases) do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=True)


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
    """Give every group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
