"""Every scheme runs through `wmtp train` with its shipped recipe; so does one of a user's own, as the docs show it."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wmtp.config import load
from wmtp.errors import Interrupted
from wmtp.trainer import Silent, run
from wmtp.weighting import SCHEMES

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
SHORT = ["train={epochs: null, steps: 3, batch_size: 4, log_every: 1, eval_every: 3, eval_batches: 1}", "num_threads=1"]
RECIPES = {
    "gradient": "gradient",
    "grpo": "grpo",
    "rho1": "rho1",
    "rho1_annealed": "rho1",
    "self_reference": "rho1",
    "hybrid": "hybrid",
    "shuffled_rho1": "shuffled_rho1",
    "random_matched_rho1": "random_matched_rho1",
    "inverted_rho1": "inverted_rho1",
    "heads_stripped": "baseline",
}
"""Shipped recipe -> the arm that it is. `baseline` and `verifiable` run in test_arms.py."""


def journal(run: Path, split: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short baseline run's final model."""
    from wmtp.cli import run_command

    out = tmp_path_factory.mktemp("reference") / "run"
    recipe = ROOT / "recipes" / "baseline_embedded_cpu.yaml"
    assert run_command(["train", "--recipe", str(recipe), "--out", str(out), *SHORT]) == 0
    return out / "final"


@pytest.fixture(scope="module")
def runs(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recipe's run, three steps each, the way a user starts it."""
    from wmtp.cli import run_command

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WMTP_REFERENCE", "WMTP_START"):
            patch.setenv(name, str(reference))
        for name in RECIPES:
            recipe = ROOT / "recipes" / f"{name}_embedded_cpu.yaml"
            assert run_command(["train", "--recipe", str(recipe), "--out", str(folder / name), *SHORT]) == 0, name
    return folder


def test_every_scheme_has_a_shipped_recipe() -> None:
    shipped = "\n".join(path.read_text() for path in (ROOT / "recipes").glob("*_embedded_cpu.yaml"))
    assert {name for name in SCHEMES if f"scheme: {name}" not in shipped} == set()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_trains_the_arm_that_it_says(name: str, runs: Path) -> None:
    lines = journal(runs / name)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(line["loss/weighted"]) and line["weight/mean"] > 0 for line in lines)
    assert len(journal(runs / name, "validation")) == 1
    assert load([runs / name / "config.yaml"]).arm == RECIPES[name]


def test_a_control_has_the_weights_of_its_scheme_and_not_its_loss(runs: Path) -> None:
    scheme = journal(runs / "rho1")[0]
    for name in ("shuffled_rho1", "random_matched_rho1", "inverted_rho1"):
        control = journal(runs / name)[0]
        for figure in ("mean", "std", "min", "max", "ess", "entropy"):
            assert control[f"weight/{figure}"] == pytest.approx(scheme[f"weight/{figure}"], rel=1e-5), name
        assert control["loss/nll"] == scheme["loss/nll"]
        assert control["loss/weighted"] < scheme["loss/weighted"]


def test_a_self_reference_starts_with_an_excess_of_0_so_that_every_pair_is_kept(runs: Path) -> None:
    kept = [line["weight/mean"] for line in journal(runs / "self_reference")]
    assert kept[0] == 1
    assert kept[-1] == pytest.approx(0.7, abs=0.03)


def test_an_annealed_ratio_and_scheduled_coefficients_follow_the_step(runs: Path) -> None:
    first, second, third = journal(runs / "rho1_annealed")
    assert [line["weight/mean"] for line in (first, second, third)] == pytest.approx([0.95, 0.775, 0.6], abs=0.02)
    # heads 2 to 4 have a coefficient of 0 at first: with denominator "weights" the loss is head 1's alone
    assert first["loss/weighted"] > first["loss/nll_head_1"]
    assert first["weight/mean_head_1"] == pytest.approx(0.95, abs=0.02)


class StopAfter(Silent):
    """Sends this process SIGTERM after a step."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        if step == self.last:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_scheme_with_memory_and_schedules_goes_on_after_a_stop_as_if_there_had_been_none(
    recipe: Path, tmp_path: Path
) -> None:
    weighting = "{scheme: gradient, ema_decay: 0.5, alpha: {start: 0.5, end: 2, shape: cosine}}"
    scheduled = f"objective={{weighting: {weighting}, head_decay: {{start: 0.5, end: 1}}}}"
    config = load([recipe], ["train.steps=4", "train.eval_every=2", "train.eval_batches=1", scheduled])
    run(config, out=tmp_path / "a")
    with pytest.raises(Interrupted):
        run(config, out=tmp_path / "b", reporter=StopAfter(2))
    run(config, out=tmp_path / "b", resume="auto")
    for split in ("train", "validation"):
        whole, resumed = (
            [{k: v for k, v in line.items() if not k.startswith(("time/", "mem/"))} for line in journal(out, split)]
            for out in (tmp_path / "a", tmp_path / "b")
        )
        assert whole == resumed
    assert len(whole) == 2
    assert journal(tmp_path / "a")[1]["weight/std"] > 0


# A scheme of the user's own: what docs/schemes/own.md says, done


def page() -> dict[str, str]:
    """The code blocks of the page, by the mark before each."""
    text = (ROOT / "docs" / "schemes" / "own.md").read_text()
    return dict(re.findall(r"<!-- (\w+)[^>]*-->\n```\w+\n(.*?)```", text, re.DOTALL))


@pytest.fixture
def my_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the page's scheme."""
    (tmp_path / "my_schemes.py").write_text(page()["scheme"])
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("my_schemes")
def test_the_pages_scheme_is_ten_lines_and_passes_its_check() -> None:
    assert len([line for line in page()["scheme"].splitlines() if line.strip()]) <= 10
    exec(page()["check"], {})  # noqa: S102


def test_the_pages_recipe_trains_with_it(my_schemes: Path, wmtp_command: Command) -> None:
    baseline = (ROOT / "recipes" / "baseline_embedded_cpu.yaml").read_text()
    kept = [line for line in baseline.splitlines() if not line.startswith("objective")]
    recipe = my_schemes / "own.yaml"
    recipe.write_text("\n".join([*kept, page()["recipe"]]))
    code, _, told = wmtp_command("train", "--recipe", recipe, "--out", my_schemes / "run", *SHORT)
    assert code == 0, told
    assert journal(my_schemes / "run")[-1]["weight/std"] > 0


@pytest.mark.usefixtures("my_schemes")
@pytest.mark.parametrize(
    ("weighting", "told"),
    [
        ("builder: 'nowhere:Hard'", "No module named 'nowhere'; install its package"),
        ("builder: 'my_schemes:Soft'", "has no attribute 'Soft'"),
        ("builder: 'my_schemes:Hard', options: {strength: 2}", "unexpected keyword argument 'strength'"),
        ("builder: 'collections:Counter'", "makes Counter, which is no scheme: it must have when, per_head, needs"),
        ("builder: 'wmtp.weighting:Critic'", "the scheme needs values_BT, but what is given provides nothing"),
    ],
)
def test_what_is_no_scheme_is_refused_with_its_reason(
    weighting: str, told: str, tmp_path: Path, wmtp_command: Command
) -> None:
    recipe = ROOT / "recipes" / "baseline_embedded_cpu.yaml"
    objective = f"objective={{weighting: {{scheme: own, {weighting}}}}}"
    code, _, message = wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "run", objective, "--dry-run")
    assert code == 2
    assert told in message


def test_a_scheme_that_goes_wrong_while_it_trains_ends_the_run_with_one_message_and_saves_nothing(
    my_schemes: Path, recipe: Path, wmtp_command: Command
) -> None:
    (my_schemes / "wrong.py").write_text(page()["scheme"].replace("** self.power", "* -self.power"))
    objective = "objective={weighting: {scheme: own, builder: 'wrong:Hard'}}"
    code, _, told = wmtp_command("train", "--recipe", recipe, "--out", my_schemes / "run", objective)
    assert code == 1
    assert "objective.weighting.builder = 'wrong:Hard': weights() returned weights from -" in told
    assert not list(my_schemes.glob("run/checkpoints/*"))


# Alarms

SMALL = ["train.steps=12", "train.batch_size=1", "train.eval_every=null", "data.validation=null"]
SMALL += ["data.max_length=100", "data.on_long_row=drop"]


def test_weights_that_cannot_be_told_from_uniform_are_told_once_in_the_terminal_and_the_journal(
    tmp_path: Path, wmtp_command: Command
) -> None:
    recipe = ROOT / "recipes" / "gradient_embedded_cpu.yaml"
    flat = "objective.weighting.clip=[1, 1]"
    code, _, told = wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "run", *SHORT, *SMALL, flat)
    assert code == 0, told
    assert told.count("cannot be told from uniform") == 1
    (warning,) = journal(tmp_path / "run", "warning")
    assert warning.pop("time/unix_s") > 0
    assert warning == {"step": 10, "split": "warning", "weight/uniform": 1.0, "weight/ess": pytest.approx(1.0)}


def test_a_baseline_is_uniform_on_purpose(tmp_path: Path, wmtp_command: Command) -> None:
    recipe = ROOT / "recipes" / "baseline_embedded_cpu.yaml"
    assert wmtp_command("train", "--recipe", recipe, "--out", tmp_path / "run", *SHORT, *SMALL)[0] == 0
    assert journal(tmp_path / "run", "warning") == []
