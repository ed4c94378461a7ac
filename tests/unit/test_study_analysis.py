"""A study says no more than its figures allow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.statistics import bootstrap, holm, signed_rank
from wmtp.study.analysis import ALPHA, curve, figures, sentence
from wmtp.study.results import Result
from wmtp.study.settings import Arm, MetricConfig, Study, StudyConfig
from wmtp.study.tables import MISSING, markdown

LOWER = MetricConfig()
HIGHER = MetricConfig(name="embedded/base/pass_at_1", better="higher")
CLAIM = (" is better than ", " is worse than ")
DIFFERENCES = st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=1, max_size=9)


def said(differences: list[float], metric: MetricConfig = LOWER, tests: int = 1) -> str:
    p = min(1.0, tests * signed_rank(differences).p) if differences else None
    return sentence("rho1", "baseline", metric, differences, p, tests)


@settings(max_examples=30)
@given(DIFFERENCES, st.integers(1, 4))
def test_a_difference_is_claimed_only_if_interval_and_test_both_say_so(differences: list[float], tests: int) -> None:
    found, p = bootstrap(differences), min(1.0, tests * signed_rank(differences).p)
    claimed = any(claim in said(differences, tests=tests) for claim in CLAIM)
    assert claimed == (len(differences) > 1 and not found.low <= 0 <= found.high and p <= ALPHA)


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_five_seeds_or_fewer_never_make_a_claim(seeds: int) -> None:
    text = said([-1.0 - i / 10 for i in range(seeds)])
    assert "the test does not confirm it" in text
    assert f"with {seeds} seeds it cannot be below {2 / 2**seeds:.3g}" in text


def test_better_means_what_the_metric_says() -> None:
    down = [-1.0 - i / 10 for i in range(8)]
    assert "rho1 is better than baseline" in said(down)
    assert "rho1 is worse than baseline" in said(down, HIGHER)
    assert "rho1 is better than baseline" in said([-d for d in down], HIGHER)


def test_what_cannot_be_said_is_not_said() -> None:
    assert "nothing can be said" in said([])
    assert "may be chance" in said([0.5])
    assert "equal in all 3 seeds" in said([0.0, 0.0, 0.0])
    assert "equal in the one seed" in said([0.0])
    assert "not shown to differ from baseline, nor to equal it" in said([-1.0, 1.0, 0.5, -0.7])


def study(**more: Any) -> Study:
    """Three arms of which one is not compared; nothing is on the disk."""
    options = {"name": "s", "recipes": ["r.yaml"], "seeds": [0, 1, 2], "baseline": "baseline"}
    arms = {"baseline": {}, "critic": {"compare": False}, "rho1": {}, "late": {}}
    config = StudyConfig.model_validate({**options, "arms": arms, **more})
    made = {name: Arm(name, "", arm.compare, (), ()) for name, arm in config.arms.items()}
    return Study(config, Path("nowhere"), made, {name: frozenset() for name in made})


def result(arm: str, seed: int, value: float | None, data: str = "rows") -> Result:
    points = [(5, None if value is None else value + 1), (10, value)]
    curve = [{"step": step, "tokens": 100.0 * step, "loss/nll_head_1": at} for step, at in points]
    return Result(arm, seed, 10, 1000, 2.0, data, {"loss/nll_head_1": value}, curve, flops=7)


RESULTS = [result("baseline", seed, 3.0 + seed) for seed in (0, 1, 2)] + [
    *[result("rho1", seed, 2.5 + seed - seed / 10) for seed in (0, 1)],
    result("rho1", 2, None),
    result("late", 1, 3.0),
]


def test_arms_are_paired_by_seed_and_only_where_both_have_a_figure() -> None:
    found = {row["arm"]: row for row in figures(study(), RESULTS, {})["arms"]}
    assert list(found) == ["baseline", "rho1", "late"]
    assert found["rho1"]["difference"]["mean"] == pytest.approx(-0.55)
    assert found["rho1"]["difference"]["count"] == 2
    assert found["late"]["difference"]["mean"] == pytest.approx(-1.0)
    assert "difference" not in found["baseline"]
    assert found["rho1"]["mean"]["mean"] == pytest.approx(2.95)
    assert found["rho1"]["spent"] == {"steps": 10, "tokens": 1000, "flops": 7, "seconds": 2.0}


def test_p_values_are_corrected_over_the_arms_that_are_compared() -> None:
    found = [row for row in figures(study(), RESULTS, {})["arms"] if "p" in row]
    assert [row["p_holm"] for row in found] == holm([row["p"] for row in found])


def test_what_a_reader_must_know_is_noted() -> None:
    others = [result("late", 0, 3.0, data="other rows")]
    notes = " | ".join(figures(study(), [*RESULTS, *others], {})["notes"])
    assert "seed 0: late saw other rows" in notes
    assert "rho1: no finite loss/nll_head_1 with seed 2" in notes
    assert "with 3 seeds a 95 % bootstrap interval is too narrow" in notes


def test_runs_are_done_failed_or_open() -> None:
    found = figures(study(), RESULTS, {"late-seed0": "it broke"})
    states = {run["run"]: run["state"] for run in found["runs"]}
    assert (states["rho1-seed0"], states["late-seed0"], states["late-seed2"]) == ("done", "failed", "open")
    assert [run["reason"] for run in found["runs"] if run["run"] == "late-seed0"] == ["it broke"]


def test_a_curve_is_the_mean_over_seeds_at_each_evaluation() -> None:
    baseline = curve([one for one in RESULTS if one.arm == "baseline"], "loss/nll_head_1")
    assert [(point["step"], point["tokens"], point["mean"], point["count"]) for point in baseline] == [
        (5, 500, 5.0, 3),
        (10, 1000, 4.0, 3),
    ]
    assert all(point["low"] <= point["mean"] <= point["high"] for point in baseline)


def test_nothing_done_is_still_a_table_and_json() -> None:
    found = figures(study(), [], {})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(row["mean"] is None and row["spent"] is None for row in found["arms"])


@pytest.mark.parametrize(
    ("at", "better", "value"), [("mean", "lower", 3.5), ("best", "lower", 3.0), ("best", "higher", 4.0)]
)
def test_a_metric_can_be_the_mean_or_the_best_of_a_runs_evaluations(at: Any, better: Any, value: float) -> None:
    metric = {"name": "loss/nll_head_1", "at": at, "better": better}
    found = {row["arm"]: row["values"] for row in figures(study(metric=metric), RESULTS, {})["arms"]}
    assert found["baseline"] == {"0": value, "1": value + 1, "2": value + 2}
    assert list(found["rho1"]) == ["0", "1"]


def test_markdown_has_every_arm_and_every_sentence() -> None:
    found = figures(study(), RESULTS, {})
    lines = markdown(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == ["baseline", "rho1", "late"]
    assert {line.count("|") for line in lines if line.startswith("|")} == {8}
    assert all(f"- {row['sentence']}" in lines for row in found["arms"] if "sentence" in row)
    assert "| 2.9500 [2.5000, 3.4000] | -0.5500 [-0.6000, -0.5000] |" in "\n".join(lines)


def test_what_nobody_counted_of_an_arm_is_missing_in_the_table() -> None:
    found = figures(study(), RESULTS, {})
    found["arms"][0]["spent"]["flops"] = None
    assert markdown(found).splitlines()[4].endswith(f"| {MISSING} |")


def test_a_figure_that_is_no_number_is_left_out() -> None:
    found = figures(study(), [*RESULTS[:3], result("rho1", 0, math.nan)], {})
    assert [row["values"] for row in found["arms"] if row["arm"] == "rho1"] == [{}]
