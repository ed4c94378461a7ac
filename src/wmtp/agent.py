"""torchrun, for a supervisor: also writes down how every rank ended, which torchrun itself only prints.

    python -m wmtp.agent FOLDER RANKS COMMAND...        COMMAND: of one rank, as it would be typed

`torchrun` is `torch.distributed.run.main`; it raises `ChildFailedError`, which has the exit code or signal of every
rank that failed. See `wmtp.supervisor`, the only user.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from wmtp import outcome
from wmtp.supervisor import FAILURES, tied


def run(folder: Path, ranks: int, command: Sequence[str]) -> int:
    """Run the ranks; 0, 1, or 128 + the signal that was passed on."""
    os.environ[outcome.TORCHRUN_FILE] = str(folder / "torchrun.json")  # else it complains that it has none
    logging.disable(logging.ERROR)  # the supervisor says in one line what torchrun logs in thirty
    try:
        torchrun(
            [
                *("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks), "--max-restarts", "0"),
                *("--monitor-interval", "0.1", "--log-dir", str(folder / "torchrun")),
                *("--no-python", *tied(command, os.getpid())),
            ]
        )
    except ChildFailedError as problem:
        failures = [
            {"rank": rank, "exitcode": failure.exitcode, "timestamp": failure.timestamp}
            for rank, failure in problem.failures.items()
        ]
        (folder / FAILURES).write_text(json.dumps(failures))
        return 1
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
