"""Weighted multi-token prediction.

The names below are loaded when they are first used, so that `import wmtp` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from wmtp.decoding import Generation, Sampling, generate
    from wmtp.formats.code import remote_code
    from wmtp.formats.native import load_model, load_value_model, save_model
    from wmtp.loss_fused import linear_nll
    from wmtp.model import MTPModel, mtp_loss
    from wmtp.targets import future_targets
    from wmtp.trainer import train

_HOME = {
    "Generation": "wmtp.decoding",
    "MTPModel": "wmtp.model",
    "Sampling": "wmtp.decoding",
    "future_targets": "wmtp.targets",
    "generate": "wmtp.decoding",
    "linear_nll": "wmtp.loss_fused",
    "load_model": "wmtp.formats.native",
    "load_value_model": "wmtp.formats.native",
    "mtp_loss": "wmtp.model",
    "remote_code": "wmtp.formats.code",
    "save_model": "wmtp.formats.native",
    "train": "wmtp.trainer",
}
_MODULES = ("testing", "weighting")

__all__ = [
    "Generation",
    "MTPModel",
    "Sampling",
    "future_targets",
    "generate",
    "linear_nll",
    "load_model",
    "load_value_model",
    "mtp_loss",
    "remote_code",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"wmtp.{name}")
    raise AttributeError(f"module 'wmtp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])
