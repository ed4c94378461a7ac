"""Run folders made by hand, with figures that are easy to recognise on a page, and a browser to look at it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HOSTILE = "<img src=x onerror=alert(1)></script><!--"

HEADS = 3

GOOD, BAD = (
    ["def", " f", "(", "x", "):", "\n", "    return", " x", "<|eos|>"],
    ["def", " f", "(", "x", "):", "\n", "    return", " -", "x", "<|eos|>"],
)


def training(arm: int) -> list[dict[str, Any]]:
    """A journal whose figures differ by arm and head."""
    lines = []
    for step in range(2, 41, 2):
        nll = {
            f"loss/nll_head_{k}": round(2 + 3 * math.exp(-step / 15) + 0.4 * k + 0.1 * arm, 3)
            for k in range(1, HEADS + 1)
        }
        common = {"tokens": step * 1000, "loss/nll": sum(nll.values()) / HEADS, "loss/weighted": 1.5 + arm, **nll}
        common |= {f"acc/head_{k}": 0.5 - 0.1 * k - 0.01 * arm for k in range(1, HEADS + 1)}
        common |= {"weight/mean": 1 + 0.1 * arm, "weight/std": 0.2 * arm, "weight/ess": 1 - 0.1 * arm}
        more = {"lr": 1e-3, "grad_norm": 1.0, "time/tokens_per_s": 1000 + step, "mem/peak_bytes": 2**30}
        lines.append({"step": step, "split": "train", **common, **more})
        if step % 20 == 0:
            lines.append({"step": step, "split": "validation", **common})
    return lines


def tokens(arm: int) -> dict[str, Any]:
    """A token view of one problem; head k of token j weighs (10 k + j + arm) / 10."""

    def variant(texts: list[str], other: list[str], correct: bool) -> dict[str, Any]:
        places = range(len(texts))
        per_head = {
            "weight": [[(10 * k + j + arm) / 10 for j in places] for k in range(1, HEADS + 1)],
            "nll": [[None if j < k else k + j for j in places] for k in range(1, HEADS + 1)],
        }
        values = {"value": [0.1 * j for j in places], "advantage": [0.05 * (j - 4) for j in places]} if arm else {}
        marks = [text not in other for text in texts]
        return {"correct": correct, "ends": True, "tokens": texts, "changed": marks, **per_head, **values}

    pair = [variant(GOOD, BAD, True), variant(BAD, GOOD, False)]
    problem = {"problem": "double-" + HOSTILE, "prompt": f"Return x. {HOSTILE}", "variants": pair}
    scheme = "critic" if arm else "uniform"
    means = {"keyword": {"tokens": 4, "weight": [0.5, 1.5, None]}, "other": {"tokens": 15, "weight": [2.0, 1.0, 0.25]}}
    weights = {"by_class": means, "by_position": {"0-15": {"tokens": 19, "weight": [1.0, 1.0, 1.0]}}}
    return {
        "weights": weights,
        "suite": "tokens",
        "scheme": scheme,
        "heads": HEADS,
        "about": "Made by hand.",
        "problems": [problem],
    }


def write_runs(folder: Path) -> list[Path]:
    """Two whole runs, the second with everything that can be there, and a broken one."""
    runs = []
    for arm, name in enumerate(("baseline", "verifiable")):
        run = folder / name
        (run / "final").mkdir(parents=True)
        (run / "eval").mkdir()
        (run / "config.yaml").write_text(f"objective: {name}\ntrain: {{seed: 3}}  # {HOSTILE}\n")
        start = {"seed": 3, "started": "2026-01-02T03:04:05+00:00", "argv": ["wmtp", "train", HOSTILE], "device": "cpu"}
        start |= {"git": {"commit": "c0ffee", "clean": True}, "versions": {"torch": "2"}}
        (run / "provenance.json").write_text(json.dumps({"run_id": "r", "starts": [start]}))
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in training(arm)))
        (run / "eval" / "tokens.json").write_text(json.dumps(tokens(arm)))
        runs.append(run)
    for name, result in evaluations().items():
        (runs[1] / "eval" / f"{name}.json").write_text(json.dumps(result))
    broken = folder / "broken"
    broken.mkdir()
    (broken / "metrics.jsonl").write_text('{"step": 1, "spl')
    return [*runs, broken]


def reliability(arm: int) -> dict[str, float]:
    """A critic's curve; the first one has no values in most of the tenths."""
    curve: dict[str, float] = {"value/calibration_error": 0.125 + arm / 4}
    for place in range(1, 11) if arm else (1, 5, 10):
        value = (place - 0.5) / 10
        curve |= {f"reliability/value_{place}": value, f"reliability/correct_{place}": value**2}
        curve |= {f"reliability/tokens_{place}": 1000 * place}
    return curve


def write_critics(folder: Path) -> list[Path]:
    """Two runs of critics with reliability curves, the second without held-out rows, and one whose values are none."""
    runs = []
    for arm, name in enumerate(("combined", "monte-carlo", "pairwise")):
        lines: list[dict[str, Any]] = []
        for step in (10, 20):
            curve = reliability(arm) if arm < 2 and step == 20 else {}
            values = {"value/mean": 0.5, "value/std": 0.25, "value/pair_accuracy": 0.75, "loss/weighted": 1.0}
            lines.append({"step": step, "tokens": 10 * step, "split": "train", **values, **(curve if arm == 1 else {})})
            if arm != 1:
                lines.append({"step": step, "tokens": 10 * step, "split": "validation", **values, **curve})
        run = folder / name
        (run / "final").mkdir(parents=True)
        (run / "config.yaml").write_text(f"objective: {name}\n")
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(run)
    return runs


def write_study(folder: Path) -> Path:
    """A study of two arms, whose runs of the first seed are `write_runs`' and whose other run failed."""
    write_runs(folder / "runs")
    for name in ("baseline", "verifiable"):
        (folder / "runs" / name).rename(folder / "runs" / f"{name}-seed3")

    def row(arm: str, mean: float, **more: Any) -> dict[str, Any]:
        interval = {"mean": mean, "low": mean - 0.25, "high": mean + 0.25, "count": 2}
        spent = {"steps": 40, "tokens": 40000, "flops": 1.5e12, "seconds": 12.5}
        return {"arm": arm, "about": "", "values": {"3": mean, "4": mean}, "mean": interval, "spent": spent, **more}

    apart = {"mean": -0.5, "low": -0.75, "high": -0.25, "count": 2}
    other = {"difference": apart, "p": 0.5, "p_holm": 1.0, "smallest_p": 0.5, "effect": -1.0, "sentence": HOSTILE}
    points = [{"step": step, "tokens": 1000 * step, "mean": 3, "low": 2, "high": 4, "count": 2} for step in (20, 40)]
    study = {
        "study": "two",
        "baseline": "baseline",
        "metric": {"name": "loss/nll_head_1", "better": "lower"},
        "budget": None,
        "seeds": [3, 4],
        "arms": [row("baseline", 3.5), row("verifiable", 3.0, **other)],
        "curves": {"baseline": points, "verifiable": points},
        "runs": [
            {"run": f"{arm}-seed{seed}", "arm": arm, "seed": seed, "state": "done" if seed == 3 else "failed"}
            for seed in (3, 4)
            for arm in ("baseline", "verifiable")
        ],
        "notes": ["two seeds are few"],
    }
    (folder / "study.json").write_text(json.dumps(study))
    return folder


def evaluations() -> dict[str, Any]:
    """One of each kind that `wmtp eval` writes."""
    share = {"mean": 0.25, "low": 0.125, "high": 0.5, "problems": 8}
    part = {"tokens": 10, "accuracy": 0.5, "nll": 1.25, "perplexity": 3.5, "confidence": 0.4}
    heads = [part | {"head": k, "by_class": {"keyword": part}, "by_position": {"0-15": part}} for k in (1, 2, 3)]
    speed = {"batch": 1, "prompt_tokens": 32, "plain_tokens_per_s": 100.0, "speculative_tokens_per_s": 150.0}
    speed |= {"speedup": 1.5, "speedup_lowest": 1.25, "speedup_highest": 1.75, "tokens_per_forward": 2.0}
    speed |= {"acceptance": [0.75, None], "same_tokens": True}
    row = {"suite": "base", "samples": 8, "temperature": 0.0, "statuses": {"passed": 2, HOSTILE: 6}}
    row |= {"pass_at_k": {"1": share, "10": share}, "exact_match": share}
    return {
        "bench": {"benchmark": "mbpp", "problems": 8, "results": [row]},
        "heads": {"suite": "heads", "rows": 4, "heads": heads},
        "perplexity": {
            "suite": "perplexity",
            "tokens": 9,
            "rows": 4,
            "bits_per_byte": 1.1,
            "perplexity": share | {"mean": 3.5, "low": 3.0, "high": 4.0},
        },
        "speed": {"suite": "speed", "new_tokens": 64, "rows": [speed]},
    }
