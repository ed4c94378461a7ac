"""Whether the process that left something behind is still there."""

from __future__ import annotations

import os


def is_gone(pid: int) -> bool:
    """Whether no process of this machine has that number; one of another user is there."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False
