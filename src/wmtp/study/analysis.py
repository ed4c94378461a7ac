"""What may be said of the arms: `study.json`. docs/math.md (8).

Arms are compared with the baseline by differences within a seed, where both saw the same rows in the same order from
the same initial weights. A sentence says that an arm differs only if both the interval and the corrected test do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from wmtp.statistics import Interval, bootstrap, holm, rank_biserial, signed_rank
from wmtp.study.results import Result
from wmtp.study.settings import Arm, MetricConfig, Study

Values = Mapping[int, float]
"""By seed."""
ALPHA = 0.05
SPENT = ("steps", "tokens", "flops", "seconds")


def figures(study: Study, results: Sequence[Result], failed: Mapping[str, str]) -> dict[str, Any]:
    """All that a study says, as JSON values.

    Args:
        failed: run -> why.
    """
    config = study.config
    compared = [arm for arm in study.arms.values() if arm.compare]
    by_arm = {arm.name: [one for one in results if one.arm == arm.name] for arm in compared}
    values = {name: _values(found, config.metric.name) for name, found in by_arm.items()}
    differences = {
        name: [mine[seed] - values[config.baseline][seed] for seed in mine if seed in values[config.baseline]]
        for name, mine in values.items()
        if name != config.baseline
    }
    tested = [name for name, given in differences.items() if given]
    corrected = dict(zip(tested, holm([signed_rank(differences[name]).p for name in tested]), strict=True))
    rows = []
    for arm in compared:
        row = _row(arm, by_arm[arm.name], values[arm.name])
        if arm.name in corrected:
            row |= comparison(differences[arm.name], corrected[arm.name])
        if arm.name != config.baseline:
            row["sentence"] = sentence(
                arm.name, config.baseline, config.metric, differences[arm.name], corrected.get(arm.name), len(tested)
            )
        rows.append(row)
    done = {f"{one.arm}-seed{one.seed}" for one in results}
    return {
        "study": config.name,
        "baseline": config.baseline,
        "metric": config.metric.model_dump(),
        "budget": None if config.budget is None else config.budget.model_dump(exclude_none=True),
        "seeds": config.seeds,
        "arms": rows,
        "curves": {arm.name: curve(by_arm[arm.name], config.metric.name) for arm in compared},
        "runs": [_run(run.name, run.arm.name, run.seed, done, failed) for run in study.runs],
        "notes": list(_notes(study, by_arm, values)),
    }


def _values(results: Sequence[Result], metric: str) -> dict[int, float]:
    """The metric by seed, where there is a finite one."""
    found = {one.seed: one.metrics.get(metric) for one in results}
    return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


def _row(arm: Arm, results: Sequence[Result], values: Values) -> dict[str, Any]:
    spent = [{name: getattr(one, name) for name in SPENT} for one in results]
    return {
        "arm": arm.name,
        "about": arm.about,
        "values": {str(seed): value for seed, value in values.items()},
        "mean": asdict(bootstrap(list(values.values()))) if values else None,
        "spent": {name: _mean_known([one[name] for one in spent]) for name in SPENT} if spent else None,
    }


def _mean_known(values: Sequence[float | None]) -> float | None:
    """None where a value is not known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def comparison(differences: Sequence[float], p_holm: float) -> dict[str, Any]:
    """An arm's differences from the baseline, one per seed, as figures."""
    test = signed_rank(differences)
    return {
        "difference": asdict(bootstrap(differences)),
        "p": test.p,
        "p_holm": p_holm,
        "smallest_p": test.smallest_p,
        "effect": rank_biserial(differences),
    }


def sentence(
    arm: str, baseline: str, metric: MetricConfig, differences: Sequence[float], p_holm: float | None, tests: int
) -> str:
    """What the differences allow to say, in plain words.

    Args:
        p_holm: corrected p of the signed-rank test; None without a difference.
        tests: comparisons that it was corrected for.
    """
    if p_holm is None:
        return f"{arm}: no seed has a figure for both it and {baseline}, so nothing can be said."
    if len(differences) == 1:
        return f"{arm} differs from {baseline} by {differences[0]:+.4g} in one seed, which may be chance."
    if not any(differences):
        return f"{arm} and {baseline} are equal in all {len(differences)} seeds."
    found, count = bootstrap(differences), len(differences)
    seen = f"mean difference {found.mean:+.4g}, 95 % interval {found.low:+.4g} to {found.high:+.4g}, {count} seeds"
    if found.low <= 0 <= found.high:
        return f"{arm} is not shown to differ from {baseline}, nor to equal it ({seen}; the interval holds 0)."
    word = "better" if (found.mean < 0) == (metric.better == "lower") else "worse"
    p = f"p = {p_holm:.3g}, corrected for {tests} comparison{'s' if tests > 1 else ''}"
    if p_holm <= ALPHA:
        return f"{arm} is {word} than {baseline} ({seen}; {p})."
    least = min(1.0, tests * signed_rank(differences).smallest_p)
    few = f"; with {count} seeds it cannot be below {least:.3g}" if least > ALPHA else ""
    return f"{arm} was {word} than {baseline} in these seeds ({seen}), but the test does not confirm it ({p}{few})."


def curve(results: Sequence[Result], metric: str) -> list[dict[str, Any]]:
    """The metric at every evaluation, over the seeds that have it there: mean and interval."""
    points: dict[float, list[tuple[float, float]]] = {}
    for one in results:
        for point in one.curve:
            step, tokens, value = point["step"], point["tokens"], point.get(metric)
            if step is not None and tokens is not None and value is not None:
                points.setdefault(step, []).append((tokens, value))
    return [
        {"step": step, "tokens": fmean(tokens for tokens, _ in found), **asdict(_interval(found))}
        for step, found in sorted(points.items())
    ]


def _interval(points: Sequence[tuple[float, float]]) -> Interval:
    return bootstrap([value for _, value in points])


def _run(name: str, arm: str, seed: int, done: set[str], failed: Mapping[str, str]) -> dict[str, Any]:
    state = "failed" if name in failed else "done" if name in done else "open"
    return {"run": name, "arm": arm, "seed": seed, "state": state, "reason": failed.get(name)}


def _notes(study: Study, by_arm: Mapping[str, Sequence[Result]], values: Mapping[str, Values]) -> Iterator[str]:
    """What a reader must know to read the table right."""
    for seed in study.config.seeds:
        rows = {name: one.data for name, found in by_arm.items() for one in found if one.seed == seed}
        others = [name for name, data in rows.items() if data != rows.get(study.config.baseline, data)]
        if others:
            yield f"seed {seed}: {', '.join(others)} saw other rows than the baseline; pairs differ by them too"
    for name, found in by_arm.items():
        lost = [one.seed for one in found if one.seed not in values[name]]
        if lost:
            metric = study.config.metric.name
            yield f"{name}: no finite {metric} with seed {', '.join(map(str, lost))}; these seeds are left out"
    count = max(map(len, values.values()), default=0)
    if 1 < count < 10:
        yield (
            f"with {count} seeds a 95 % bootstrap interval is too narrow (docs/studies.md), and Wilcoxon's p cannot be "
            f"below {2 / 2**count:.3g}"
        )
