"""Every fault point of a training, reached through the command line: what was saved is never lost, the run is the same.

One process imports what training needs and forks for each attempt, so that a kill costs no imports.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wmtp import faults
from wmtp.faults import POINTS

TRAINER = Path(faults.__file__).with_name("trainer.py")
pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif("fault(" not in TRAINER.read_text(), reason="the trainer does not come to the fault points yet"),
]

ZYGOTE = """
import json, os, sys
import torch
torch.set_num_threads(1)
import transformers.models.llama.modeling_llama
from wmtp import cli, faults, trainer

for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faults._unread = wanted["fault"]
        try:
            code = cli.run_command(wanted["arguments"])
        except Exception as problem:
            sys.stderr.write(f"{problem!r}\\n")
            code = 1
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Trainings:
    """`wmtp train` in processes that are forked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text((Path(__file__).parents[1] / "e2e" / "small_recipe.yaml").read_text())
        command = [sys.executable, "-c", ZYGOTE]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def train(self, name: str, fault: str = "") -> tuple[int, str]:
        """Exit code, and what was printed, of one attempt that resumes if it can."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        log = self.folder / f"{name}.log"
        files = ["--recipe", str(self.recipe), "--out", str(self.folder / name), "--resume", "auto"]
        arguments = ["train", *files, "checkpoint.every=2"]
        self.process.stdin.write(json.dumps({"arguments": arguments, "fault": fault, "log": str(log)}) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, log.read_text()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def journal(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.startswith(("time/", "mem/"))} for line in lines]

    def weights(self, name: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / name / "final").glob("*.safetensors")}

    def saved(self, name: str) -> list[str]:
        """Everything in the folder of checkpoints."""
        return sorted(path.name for path in (self.folder / name / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    made = Trainings(tmp_path_factory.mktemp("points"))
    code, said = made.train("whole")
    assert code == 0, said
    yield made
    made.close()


NTH = {"eval": 1, "prune": 1}
"""Which time of a point to take, where it is not the second."""


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_is_killed_there_and_goes_on_is_the_same_run(point: str, trainings: Trainings) -> None:
    name = f"killed-{point}"
    code, said = trainings.train(name, f"{point}:{NTH.get(point, 2)}:kill9")
    assert code == -signal.SIGKILL, said
    code, said = trainings.train(name)
    assert code == 0, said
    assert trainings.journal(name) == trainings.journal("whole")
    assert trainings.weights(name) == trainings.weights("whole")
    assert trainings.saved(name) == trainings.saved("whole")


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith(("ckpt_", "prune"))])
def test_a_full_disk_there_costs_a_checkpoint_and_not_the_run(point: str, trainings: Trainings) -> None:
    name = f"full-{point}"
    code, said = trainings.train(name, f"{point}:1:enospc")
    assert code == 0, said
    assert "training goes on" in said
    assert trainings.weights(name) == trainings.weights("whole")
    assert trainings.saved(name) == trainings.saved("whole")


@pytest.mark.parametrize("point", ["step_begin:5", "after_backward:5", "eval:1"])
def test_an_allocation_that_fails_there_is_told_and_the_run_goes_on_when_resumed(
    point: str, trainings: Trainings
) -> None:
    name = f"memory-{point.replace(':', '-')}"
    code, said = trainings.train(name, f"{point}:memory")
    assert code == 1
    assert "out of memory" in said
    assert "lower train.micro_batch_size" in said
    assert "Traceback" not in said
    code, said = trainings.train(name)
    assert code == 0, said
    assert trainings.weights(name) == trainings.weights("whole")


def test_a_gradient_that_is_not_finite_costs_a_step_and_spoils_nothing(trainings: Trainings) -> None:
    code, said = trainings.train("spoiled", "after_backward:3:nan")
    assert code == 0
    assert "step 3: the gradient norm is nan; step skipped" in said
    untouched = [line for line in trainings.journal("whole") if line["step"] < 3]
    assert [line for line in trainings.journal("spoiled") if line["step"] < 3] == untouched
    later = [line["grad_norm"] for line in trainings.journal("spoiled") if line["step"] > 3 and "grad_norm" in line]
    assert None not in later


def test_gradients_that_are_never_finite_end_the_run_with_1(trainings: Trainings) -> None:
    spoil = ",".join(f"after_backward:{nth}:nan" for nth in range(5, 10))
    code, said = trainings.train("diverged", spoil)
    assert code == 1
    assert "Last good checkpoint" in said
    assert trainings.saved("diverged") == ["step_00000002", "step_00000004"]
