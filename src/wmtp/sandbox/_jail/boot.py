"""The first module of a zygote.

The standard library's hooks that run in a child after a fork put locks and threads in order that other threads have
left behind. A zygote has one thread, and the hooks would cost each program more than the fork itself: so the modules
loaded here do not get to register theirs.
"""

from __future__ import annotations

import os

_register = os.register_at_fork
os.register_at_fork = lambda **_: None

from .zygote import main  # noqa: E402

os.register_at_fork = _register

__all__ = ["main"]
