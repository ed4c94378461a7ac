"""Every fault point of a training, through the command line: what was saved is not lost, the run is the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from forked import Zygote
from tests_recipe import with_few_rows

from wmtp import faults
from wmtp.faults import POINTS

TRAINER = Path(faults.__file__).with_name("trainer.py")
pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif("fault(" not in TRAINER.read_text(), reason="the trainer does not come to the fault points yet"),
]

TRAINING = "from wmtp.cli import main; main()"


class Trainings:
    """`wmtp train` in processes that are forked, so that a kill costs no imports."""

    def __init__(self, forks: Zygote, folder: Path) -> None:
        self.forks, self.folder, self.recipe = forks, folder, with_few_rows(folder)

    def train(self, name: str, fault: str = "") -> tuple[int, str]:
        """Exit code, and what was printed, of one attempt that resumes if it can."""
        files = ["--recipe", str(self.recipe), "--out", str(self.folder / name), "--resume", "auto"]
        log, fault_here = self.folder / f"{name}.log", {faults.VARIABLE: fault}
        process = self.forks.start(TRAINING, "train", *files, "checkpoint.every=2", environment=fault_here, log=log)
        return process.wait(), process.said()

    def journal(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.startswith(("time/", "mem/"))} for line in lines]

    def weights(self, name: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / name / "final").glob("*.safetensors")}

    def saved(self, name: str) -> list[str]:
        """Everything in the folder of checkpoints."""
        return sorted(path.name for path in (self.folder / name / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def trainings(forks: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    made = Trainings(forks, tmp_path_factory.mktemp("points"))
    code, said = made.train("whole")
    assert code == 0, said
    return made


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
