"""A study's file: what it means, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from wmtp.errors import ConfigError, UsageError
from wmtp.study.command import commands, run_all, table_of, waves
from wmtp.study.given import give, given_before
from wmtp.study.results import Result, write_result
from wmtp.study.running import asked_of
from wmtp.study.settings import EvaluationConfig, Study, read_study
from wmtp.supervisor import Options

RECIPE = """
model: {architecture: embedded://tiny-llama}
data: {train: {path: "embedded://problems_train.jsonl"}}
objective: {kind: mtp}
train: {epochs: 2}
"""
RHO1 = {"objective": {"weighting": {"scheme": "rho1", "reference": "study://baseline/final"}}}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """A study from the parts that a test changes."""

    def made(**parts: Any) -> Study:
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        given = {"name": "s", "recipes": [str(tmp_path / "recipe.yaml")], "seeds": [3, 4], "baseline": "baseline"}
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**given, "arms": {"baseline": {}, "rho1": {"config": RHO1}}, **parts}))
        return read_study(file, str(tmp_path / "out"))

    return made


def test_every_arm_runs_with_every_seed_seed_by_seed(write: Any) -> None:
    assert [run.name for run in write().runs] == ["baseline-seed3", "rho1-seed3", "baseline-seed4", "rho1-seed4"]


def test_an_arm_changes_the_shared_recipe_and_the_seed_is_the_studys(write: Any) -> None:
    study = write(config={"optim": {"lr": 0.5}})
    config = study.run_config(study.runs[3])
    assert (config.arm, config.optim.lr, config.train.seed, config.train.epochs) == ("rho1", 0.5, 4, 2)
    assert config.name == "rho1-seed4"


def test_a_pointer_is_the_run_of_the_same_seed(write: Any) -> None:
    study = write()
    weighting: Any = study.run_config(study.runs[3]).objective
    assert weighting.weighting.reference == str(study.folder / "runs" / "baseline-seed4" / "final")


def test_an_arm_comes_after_those_that_it_needs(write: Any) -> None:
    study = write(arms={"rho1": {"config": RHO1}, "baseline": {}})
    assert list(study.arms) == ["baseline", "rho1"]
    assert waves(study) == [[1, 3], [2, 4]]


def test_a_grid_makes_an_arm_of_every_point(write: Any) -> None:
    grid = {"optim.lr": [0.1, 0.2], "train.batch_size": [4, 8]}
    study = write(arms={"baseline": {}, "tuned": {"grid": grid}})
    assert list(study.arms) == ["baseline", "tuned-1", "tuned-2", "tuned-3", "tuned-4"]
    assert study.arms["tuned-3"].about == "optim.lr=0.2, train.batch_size=4"
    config = study.run_config(study.runs[3])
    assert (config.optim.lr, config.train.batch_size) == (0.2, 4)


def test_a_budget_takes_the_place_of_the_recipes_length_where_arms_are_compared(write: Any) -> None:
    arms = {"baseline": {}, "critic": {"compare": False}}
    study = write(budget={"tokens": 1000}, arms=arms)
    baseline, critic = (study.run_config(run, 17 if run.arm.compare else None) for run in study.runs[:2])
    assert (baseline.train.steps, baseline.train.epochs) == (17, None)
    assert (critic.train.steps, critic.train.epochs) == (None, 2)


def test_a_job_array_gets_one_command_a_run(write: Any) -> None:
    study = write()
    assert len(commands(study, "a study.yaml")) == 4
    assert commands(study, "a study.yaml")[2] == f"wmtp study --study 'a study.yaml' --out {study.folder} --only 3"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"seeds": [1, 1]}, "seeds holds a seed twice"),
        ({"baseline": "rho2"}, "must be one of the arms"),
        ({"arms": {"baseline": {"compare": False}}}, "must be one of the arms"),
        ({"budget": {"tokens": 1, "flops": 1.0}}, "exactly one of tokens, flops and seconds"),
        ({"arms": {"baseline": {"config": {"optim": {"lrr": 1}}}}}, "arm baseline"),
        ({"arms": {"baseline": {"config": {"model": {"path": "study://nobody/final"}}}}}, "arm baseline"),
        ({"arms": {"baseline": {}, "rho1": {"config": RHO1, "recipe": "x"}}}, "did you mean 'recipes'"),
        ({"arms": {"baseline": {}, "a": {"grid": {"optim.lr": [1e-3]}}, "a-1": {}}}, "two arms have the same name"),
        ({"evaluate": [{"benchmark": "embedded"}, {"benchmark": "embedded"}]}, "names a benchmark twice"),
    ],
)
def test_a_mistake_is_told_with_its_place(parts: dict[str, Any], said: str, write: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        write(**parts)


def test_arms_that_need_one_another_are_refused(write: Any) -> None:
    circle = {"objective": {"weighting": {"scheme": "rho1", "reference": "study://rho1/final"}}}
    with pytest.raises(ConfigError, match="rho1 need one another in a circle"):
        write(arms={"baseline": {}, "rho1": {"config": circle}})


def test_a_pointer_to_no_arm_is_refused(write: Any) -> None:
    other = {"objective": {"weighting": {"scheme": "rho1", "reference": "study://bseline/final"}}}
    with pytest.raises(UsageError, match="study://bseline, which is no arm"):
        write(arms={"baseline": {}, "rho1": {"config": other}})


def finished(study: Study, steps: int | None = None) -> Study:
    """A study whose runs were given their configs, and have results."""
    for run in study.runs:
        give(study, run, study.run_config(run, steps))
        found = Result(run.arm.name, run.seed, 3, 60, 1.0, "rows", {study.config.metric.name: 2.0}, [])
        write_result(study.file("results", run.name), found)
    return study


def arms_with_values(found: Any) -> list[str]:
    return [row["arm"] for row in found["arms"] if row["values"]]


@pytest.mark.parametrize("other", [{"tokens": 2000}, {"flops": 1000.0}, None])
def test_runs_of_another_budget_are_refused_and_in_no_figure(other: Any, write: Any) -> None:
    study = finished(write(budget={"tokens": 1000}), 3)
    assert arms_with_values(table_of(study)) == ["baseline", "rho1"]
    changed = write(budget=other, config={"train": {"steps": 3, "epochs": None}})
    with pytest.raises(UsageError, match=r'says otherwise now \(budget \{"tokens": 1000\}, now'):
        given_before(changed, changed.runs[0])
    found = table_of(changed)
    assert arms_with_values(found) == []
    assert {run["state"] for run in found["runs"]} == {"failed"}
    assert "left out, since they had another config or budget" in found["notes"][-1]


def test_a_run_that_needs_a_refused_one_is_refused_too(write: Any) -> None:
    finished(write())
    others = {"slower": {"config": {"optim": {"lr": 0.5}}}}
    changed = write(arms={"baseline": {"config": {"optim": {"lr": 0.5}}}, "rho1": {"config": RHO1}, **others})
    found = table_of(changed)
    assert [run["state"] for run in found["runs"]] == ["failed", "failed", "open"] * 2
    assert "baseline-seed3.yaml" in found["runs"][1]["reason"]


def test_a_copy_of_a_study_has_its_figures_and_does_not_go_on(write: Any, tmp_path: Path) -> None:
    study = finished(write())
    copy = replace(study, folder=Path(shutil.copytree(study.folder, tmp_path / "elsewhere")))
    assert arms_with_values(table_of(copy)) == ["baseline", "rho1"]
    with pytest.raises(UsageError, match="says otherwise now"):
        given_before(copy, copy.runs[0])


def paths(machine: str, data: str = "train.jsonl") -> dict[str, Any]:
    """A config with files of one machine."""
    return {"data": {"train": {"path": f"/{machine}/{data}"}, "cache": f"/{machine}/cache-{machine}"}}


def test_a_copy_from_a_machine_with_other_folders_has_its_figures_and_not_those_of_other_files(
    write: Any, tmp_path: Path
) -> None:
    def of_rho1(reference: str) -> Any:
        return {
            "baseline": {},
            "rho1": {"config": {"objective": {"weighting": {"scheme": "rho1", "reference": reference}}}},
        }

    arms = of_rho1("/there/runs/one/final")
    folder = shutil.copytree(finished(write(config=paths("there"), arms=arms)).folder, tmp_path / "elsewhere")

    def values(study: Study, **change: Any) -> list[str]:
        return arms_with_values(table_of(replace(study, **change)))

    assert values(write(config=paths("here"), arms=of_rho1("/here/one/final")), folder=folder) == ["baseline", "rho1"]
    assert values(write(config=paths("here", "other.jsonl"), arms=arms), folder=folder) == []
    assert values(write(config=paths("there"), arms=of_rho1("/there/runs/two/final")), folder=folder) == ["baseline"]
    assert values(write(config=paths("here"), arms=arms)) == []  # no copy: other files are other files


def test_a_model_folder_that_is_not_on_this_machine_is_the_one_of_the_copy(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"model": {"architecture": None, "path": "models/base"}}
    (tmp_path / "models" / "base").mkdir(parents=True)
    study = finished(write(config=base))
    (tmp_path / "models" / "base").rmdir()  # from now on models/base is taken for a hub id
    study = replace(study, folder=Path(shutil.copytree(study.folder, tmp_path / "elsewhere")))
    assert study.run_config(study.runs[0]).model.path == "models/base"
    assert arms_with_values(table_of(study)) == ["baseline", "rho1"]


def test_a_copy_whose_runs_are_done_is_a_study_that_is_done_and_one_that_lacks_a_run_does_not_make_it(
    write: Any, tmp_path: Path
) -> None:
    study = finished(write())
    copy = replace(study, folder=Path(shutil.copytree(study.folder, tmp_path / "elsewhere")))

    def nothing(*_: Any) -> int:
        raise AssertionError("a process was started")

    found = run_all(copy, Options(), lambda text: None, nothing)
    assert found == table_of(study) == json.loads((copy.folder / "study.json").read_text())
    copy.file("results", "rho1-seed4").unlink()
    found = run_all(copy, Options(), lambda text: None, nothing)
    assert [run["state"] for run in found["runs"]] == ["done", "done", "done", "failed"]
    assert "says otherwise now" in found["runs"][3]["reason"]


def test_an_evaluation_is_told_by_the_content_of_its_data_and_by_the_path_where_there_is_none(tmp_path: Path) -> None:
    def asked(data: Path, **more: Any) -> dict[str, Any]:
        return asked_of(EvaluationConfig(benchmark="mbpp", data=str(data), **more))

    file, moved, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    for path, text in ((file, "one"), (moved, "one"), (other, "two")):
        path.write_text(text)
    result = Result("baseline", 3, 1, 1, 1.0, "rows", {}, [], evaluated=[asked(file)])
    assert result.has(asked(moved))
    assert not result.has(asked(other))
    assert not result.has(asked(file, n=2))
    file.unlink()
    assert result.has(asked(file))
    assert not result.has(asked(tmp_path / "none.jsonl"))
    before = {name: value for name, value in asked(moved).items() if name != "sha256"}  # of an earlier version
    assert replace(result, evaluated=[before]).has(asked(moved))


def test_a_table_writes_nothing(write: Any) -> None:
    study = finished(write())
    before = sorted(study.folder.rglob("*"))
    table_of(study)
    assert sorted(study.folder.rglob("*")) == before


def test_a_damaged_budget_is_told_by_its_file(write: Any) -> None:
    study = finished(write())
    study.file("budgets", "rho1-seed3").write_text("{")
    assert "rho1-seed3.json is damaged" in table_of(study)["runs"][1]["reason"]
