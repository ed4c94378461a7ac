"""A study from one file: paired runs, budgets, failures, and what is left of a study that was killed."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml
from tests_recipe import RECIPE

from wmtp.cli import run_command
from wmtp.errors import ConfigError, UsageError, WmtpError
from wmtp.storage import ObjectPath, copy, resolve
from wmtp.study.budget import spent, steps_in, steps_within, trial
from wmtp.study.command import run_all, run_only
from wmtp.study.results import read_result
from wmtp.study.running import in_child
from wmtp.study.settings import BudgetConfig, Study, read_study
from wmtp.supervisor import Options
from wmtp.testing import memory_storage

ROOT = Path(__file__).parents[2]
RHO1 = {"objective": {"weighting": {"scheme": "rho1", "reference": "study://baseline/final"}}}
SHORT = {"train": {"steps": 4, "eval_every": 2, "eval_batches": 1}, "checkpoint": {"every": 2}}
ARMS: dict[str, Any] = {"baseline": {}, "rho1": {"config": RHO1}}


def inside(arguments: Sequence[str], log: Path, progress: Callable[[], int], options: Options) -> int:
    """A command in this process, which is quicker than a process of its own."""
    code = run_command([*arguments, "--json"])
    log.write_text(f"ended with {code}")
    return code


def make(folder: Path, **parts: Any) -> Study:
    """A study of the small recipe, with few rows and two heads."""
    folder.mkdir(parents=True, exist_ok=True)
    for role in ("train", "validation"):
        lines = resolve(f"embedded://problems_{role}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{role}.jsonl").write_text("".join(lines[:60]))
    data = {role: {"path": str(folder / f"{role}.jsonl")} for role in ("train", "validation")}
    small = yaml.safe_load(RECIPE) | {"data": {**data, "max_length": 96}}
    small["model"]["heads"] = {"num_heads": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(small))
    given = {"name": "small", "recipes": [str(folder / "recipe.yaml")], "seeds": [0, 1], "baseline": "baseline"}
    (folder / "study.yaml").write_text(
        yaml.safe_dump({**given, "config": SHORT, "arms": ARMS, **parts}, sort_keys=False)
    )
    return read_study(folder / "study.yaml", str(folder / "out"))


def finish(study: Study, launch: Any = inside) -> dict[str, Any]:
    return run_all(study, Options(), lambda text: None, launch)


def without_clocks(value: Any) -> Any:
    """Everything but times."""
    if isinstance(value, dict):
        return {n: without_clocks(part) for n, part in value.items() if n != "seconds" and not n.startswith("time/")}
    return [without_clocks(part) for part in value] if isinstance(value, list) else value


def journal(study: Study, run: str) -> list[dict[str, Any]]:
    lines = (study.run_folder(run) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, Any]]:
    """A study of two arms and two seeds, not disturbed."""
    study = make(tmp_path_factory.mktemp("study"))
    return study, finish(study)


def test_arms_of_a_seed_see_the_same_rows_from_the_same_weights(done: tuple[Study, Any]) -> None:
    first = {run.name: journal(done[0], run.name)[0] for run in done[0].runs}
    same = [[line[f"loss/nll_head_{k}"] for k in (1, 2)] + [line["tokens"]] for line in first.values()]
    assert same[0] == same[1] != same[2] == same[3]
    data = {run.name: json.loads((done[0].file("results", run.name)).read_text())["data"] for run in done[0].runs}
    assert data["baseline-seed0"] == data["rho1-seed0"]


def test_the_table_holds_the_runs_last_evaluation(done: tuple[Study, Any]) -> None:
    study, found = done
    for row in found["arms"]:
        for seed, value in row["values"].items():
            last = [line for line in journal(study, f"{row['arm']}-seed{seed}") if line["split"] == "validation"][-1]
            assert value == last["loss/nll_head_1"]
    assert [run["state"] for run in found["runs"]] == ["done"] * 4
    assert json.loads((study.folder / "study.json").read_text()) == found


def test_a_figure_that_no_run_has_is_told_after_the_first_run_with_those_that_it_has(
    done: tuple[Study, Any], tmp_path: Path
) -> None:
    study = make(tmp_path, metric={"name": "loss/nll_hed_1"})
    ran: list[str] = []

    def launch(arguments: Sequence[str], log: Path, progress: Any, options: Any) -> int:
        out = Path(arguments[arguments.index("--out") + 1])
        ran.append(out.name)
        copytree(done[0].run_folder(out.name), out)
        return 0

    with pytest.raises(UsageError, match=r"loss/nll_hed_1.*did you mean loss/nll_head_1\. It has .*loss/weighted"):
        finish(study, launch)
    assert ran == ["baseline-seed0"]


def test_the_table_of_what_there_is_is_made_without_running(
    done: tuple[Study, Any], tmp_path: Path, wmtp_command: Callable[..., tuple[int, str, str]]
) -> None:
    study = make(tmp_path)
    arguments = ("study", "--study", tmp_path / "study.yaml", "--out", study.folder, "--table", "--json")
    assert "no run of the study" in wmtp_command(*arguments)[2]
    study.file("results", "x").parent.mkdir(parents=True)
    for run in ("baseline-seed0", "rho1-seed0"):
        study.file("results", run).write_text(done[0].file("results", run).read_text())
    code, out, _ = wmtp_command(*arguments)
    found = json.loads(out)
    assert [row["values"] for row in found["arms"]] == [{"0": row["values"]["0"]} for row in done[1]["arms"]]
    assert (code, [run["state"] for run in found["runs"]]) == (1, ["done", "done", "open", "open"])


def nothing(*_: Any) -> int:
    raise AssertionError("a process was started")


def test_a_finished_study_runs_nothing_again(done: tuple[Study, Any]) -> None:
    assert finish(done[0], nothing) == done[1]


def test_the_page_of_a_study_has_its_figures_and_the_runs_of_its_first_seed(
    done: tuple[Study, Any], wmtp_command: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = wmtp_command("report", done[0].folder, "--json")
    page = json.loads(out)
    assert (code, page["notes"]) == (0, [])
    found = re.search(r'id="data">(.*?)</script>', Path(page["page"]).read_text(), re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert [run["label"] for run in data["runs"]] == ["baseline-seed0", "rho1-seed0"]
    assert data["studies"][0]["arms"][1]["sentence"] == done[1]["arms"][1]["sentence"]


@pytest.fixture
def bucket() -> Iterator[ObjectPath]:
    with memory_storage() as made:
        yield made


def test_a_study_in_a_store_has_the_table_and_the_page_of_one_on_a_disk(
    done: tuple[Study, Any], bucket: ObjectPath, tmp_path: Path, wmtp_command: Callable[..., tuple[int, str, str]]
) -> None:
    there, folder = bucket / "studies" / "small", done[0].folder
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml") and path.name != "study.json":
            copy(path, there / path.relative_to(folder).as_posix())
    code, out, _ = wmtp_command("study", "--study", folder.parent / "study.yaml", "--out", there, "--table", "--json")
    assert (code, json.loads(out)) == (0, done[1])
    assert not (there / "study.json").exists()
    assert finish(read_study(folder.parent / "study.yaml", str(there)), nothing) == done[1]
    assert json.loads((there / "study.json").read_text()) == done[1]
    for place in (folder, there):
        assert wmtp_command("report", place, "--out", tmp_path / "page.html", "--json")[0] == 0
        assert done[1]["arms"][1]["sentence"] in (tmp_path / "page.html").read_text()


@pytest.mark.exhaustive
def test_a_study_that_runs_in_a_store_gives_the_figures_of_one_on_a_disk(
    done: tuple[Study, Any], bucket: ObjectPath
) -> None:
    study = read_study(done[0].folder.parent / "study.yaml", f"{bucket}/study")
    assert without_clocks(finish(study)) == without_clocks(done[1])
    assert study.file("logs", "baseline-seed0").read_text() == "ended with 0"


def test_what_writes_samples_is_refused_for_a_study_in_a_store(tmp_path: Path, bucket: ObjectPath) -> None:
    make(tmp_path, evaluate=[{"benchmark": "embedded"}])
    with pytest.raises(UsageError, match=r"evaluate needs the study's folder on a local disk.*got memory://"):
        finish(read_study(tmp_path / "study.yaml", f"{bucket}/study"))


class Died(BaseException):
    """The study's process is gone, whatever it was doing."""


def dying_in_the_third_step() -> Callable[[str], str | None]:
    """In place of `wmtp.faults.fault`."""
    left = iter((None, None))

    def fault(point: str) -> str | None:
        if point == "step_begin" and next(left, Died) is Died:
            raise Died
        return None

    return fault


def test_a_study_that_dies_anywhere_and_goes_on_gives_the_same_figures(done: tuple[Study, Any], tmp_path: Path) -> None:
    """It dies before, within and after a command in turn, and gets one command further now and then."""
    study, calls = make(tmp_path, seeds=[0]), count()

    def dying(arguments: Sequence[str], *rest: Any) -> int:
        when = next(calls) % 4
        if when == 0:
            raise Died
        with pytest.MonkeyPatch.context() as patch:
            if when == 1:
                patch.setattr("wmtp.trainer.fault", dying_in_the_third_step())
            code = inside(arguments, *rest)
        if when == 2:
            raise Died
        return code

    found = None
    while found is None:
        with suppress(Died):
            found = finish(study, dying)
    assert next(calls) > 4
    for run in study.runs:
        before, after = (one.file("results", run.name).read_text() for one in (done[0], study))
        assert without_clocks(json.loads(before)) == without_clocks(json.loads(after))


@pytest.mark.fault
@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(3))
def test_a_study_killed_at_random_and_resumed_gives_the_same_table(
    seed: int, done: tuple[Study, Any], tmp_path: Path
) -> None:
    """With real processes and SIGKILL; a killed study leaves no child behind that writes on."""
    study, lots, code = make(tmp_path), random.Random(seed), None
    command = [sys.executable, "-m", "wmtp", "study", "--study", str(tmp_path / "study.yaml")]
    for wait in [*(lots.uniform(3, 25) for _ in range(4)), 600.0]:
        process = subprocess.Popen([*command, "--out", str(study.folder), "--json"], stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert code == 0
    assert without_clocks(json.loads((study.folder / "study.json").read_text())) == without_clocks(done[1])


def test_a_run_is_a_process_of_its_own_with_a_log(tmp_path: Path) -> None:
    assert in_child(["train"], tmp_path / "log", lambda: -1, Options()) == 2
    assert "nothing to train: give --recipe" in (tmp_path / "log").read_text()


@pytest.mark.exhaustive
def test_a_failed_process_ends_the_study_with_1(
    tmp_path: Path, wmtp_command: Callable[..., tuple[int, str, str]]
) -> None:
    make(tmp_path, arms={"baseline": {"config": {"optim": {"lr": 1e30}, "train": {"max_nonfinite": 1}}}}, seeds=[0])
    code, out, err = wmtp_command("study", "--study", tmp_path / "study.yaml", "--out", tmp_path / "out", "--json")
    found = json.loads(out)
    assert (code, [run["state"] for run in found["runs"]]) == (1, ["failed"])
    assert "non-finite gradient norm" in (tmp_path / "out" / "logs" / "baseline-seed0.log").read_text()
    assert "baseline-seed0 failed" in err


def test_a_failed_run_is_told_and_stops_no_other(tmp_path: Path) -> None:
    broken = {"config": {"data": {"train": {"path": str(tmp_path / "nowhere.jsonl")}}}}
    needs = {"config": {"objective": {"weighting": {"scheme": "rho1", "reference": "study://broken/final"}}}}
    study = make(tmp_path, arms={"broken": broken, "baseline": {}, "late": needs}, seeds=[0])
    lines: list[str] = []
    found = run_all(study, Options(), lines.append, inside)
    assert [run["state"] for run in found["runs"]] == ["failed", "done", "failed"]
    reasons = [run["reason"] for run in found["runs"]]
    assert "wmtp train ended with exit code 2" in reasons[0]
    assert reasons[2] == "late-seed0 needs broken-seed0, which has no result; run that first"
    assert any("broken-seed0 failed" in line for line in lines)


def test_a_run_that_was_given_something_else_before_is_not_passed_off(done: tuple[Study, Any]) -> None:
    file = done[0].folder.parent / "study.yaml"
    other = yaml.safe_load(file.read_text()) | {"config": {**SHORT, "optim": {"lr": 0.5}}}
    changed = file.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(other))
    found = finish(read_study(changed, str(done[0].folder)))
    assert [run["state"] for run in found["runs"]] == ["failed"] * 4
    assert "the study says otherwise now" in found["runs"][0]["reason"]
    assert [row["values"] for row in found["arms"]] == [{}, {}]


def test_one_run_of_a_job_array_waits_for_what_it_needs(done: tuple[Study, Any], tmp_path: Path) -> None:
    with pytest.raises(WmtpError, match="rho1-seed0 needs baseline-seed0"):
        run_only(make(tmp_path, seeds=[0]), 2, Options(), lambda text: None, inside)
    with pytest.raises(UsageError, match="--only must be from 1 to 4"):
        run_only(done[0], 5, Options(), lambda text: None, inside)
    assert run_only(done[0], 4, Options(), lambda text: None, inside) == read_result(
        done[0].file("results", "rho1-seed1")
    )


@pytest.mark.exhaustive
def test_a_budget_of_flops_is_spent_and_not_exceeded(done: tuple[Study, Any]) -> None:
    """The same FLOPs are fewer steps where a reference is asked; one step more would exceed them."""
    baseline, rho1 = (done[0].run_config(run) for run in done[0].runs[:2])
    limit = 2.0 * spent(baseline, 4).flops
    steps = steps_within(rho1, BudgetConfig(flops=limit))
    assert spent(rho1, steps).flops <= limit < spent(rho1, steps + 1).flops
    assert 1 < steps < steps_within(baseline, BudgetConfig(flops=limit))


@pytest.mark.exhaustive
def test_a_budget_of_tokens_is_that_of_the_journal(tmp_path: Path) -> None:
    study = make(tmp_path, budget={"tokens": 3000}, seeds=[0], arms={"baseline": {}})
    (row,) = finish(study)["arms"]
    with pytest.raises(ConfigError, match=r"less than the .+ of the first step"):
        steps_within(study.run_config(study.runs[0]), BudgetConfig(tokens=1))
    tokens = [line["tokens"] for line in journal(study, "baseline-seed0") if line["split"] == "train"]
    assert row["spent"]["steps"] == len(tokens) > 1
    assert row["spent"]["tokens"] == tokens[-1] <= 3000 < tokens[-1] + 8 * 96


def test_a_budget_of_seconds_is_measured_by_a_short_run(done: tuple[Study, Any], tmp_path: Path) -> None:
    config = trial(done[0].run_config(done[0].runs[0]))
    assert (config.train.steps, config.train.log_every, config.checkpoint.every) == (12, 1, None)
    assert config.tracking is None
    times = [9.0, 9.0, 2.0, 1.0, 2.0, 3.0]
    lines = [{"step": step, "split": "train", "time/step_s": time} for step, time in enumerate(times, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert steps_in(21.0, tmp_path) == 10
    with pytest.raises(ConfigError, match="less than the 2 s of a step"):
        steps_in(1.0, tmp_path)


def test_the_shipped_study_and_the_one_in_the_docs_can_be_run(
    tmp_path: Path, wmtp_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for file, runs in ((SHIPPED, 20), (in_the_docs(tmp_path), 8)):
        code, out, _ = wmtp_command("study", "--study", file, "--out", tmp_path / "out", "--dry-run")
        assert code == 0
        assert f"= {runs} runs" in out
        code, out, err = wmtp_command("study", "--study", file, "--out", tmp_path / "out", "--list")
        assert len(out.splitlines()) == runs
        assert "wave 2" in err
        code, out, _ = wmtp_command("study", "--study", file, "--out", tmp_path / "out", "--dry-run", "--json")
        assert sorted(number for wave in json.loads(out)["waves"] for number in wave) == [*range(1, runs + 1)]
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_the_study_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = finish(read_study(in_the_docs(tmp_path), str(tmp_path / "out")))
    assert [row["arm"] for row in found["arms"]] == ["baseline", "rho1", "slower-1", "slower-2"]
    assert {run["state"] for run in found["runs"]} == {"done"}
    assert {row["spent"]["tokens"] <= 8000 for row in found["arms"]} == {True}


@pytest.mark.exhaustive
def test_a_benchmark_can_be_the_metric(tmp_path: Path) -> None:
    asked = {"benchmark": "embedded", "max_new_tokens": 4, "require": "none"}
    metric = {"name": "embedded/base/pass_at_1", "better": "higher"}
    found = finish(make(tmp_path, evaluate=[asked], metric=metric, seeds=[0], arms={"baseline": {}}))
    assert found["arms"][0]["mean"]["mean"] == 0.0


SHIPPED = ROOT / "recipes" / "study_embedded_cpu.yaml"


def in_the_docs(folder: Path) -> Path:
    """The study of docs/studies.md as a file."""
    text = (ROOT / "docs" / "studies.md").read_text()
    match = re.search(r"<!-- study -->\n```yaml\n(.*?)```", text, re.DOTALL)
    assert match is not None
    (folder / "docs.yaml").write_text(match[1])
    return folder / "docs.yaml"
