"""Real programs of students and contestants load, pair, are judged as their labels say, and get wrong variants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wmtp.curation.label import label
from wmtp.curation.mutate import mutate
from wmtp.curation.prepare import Plan, prepare
from wmtp.data.batches import pair_items
from wmtp.data.sources import read_records
from wmtp.data.text import encode
from wmtp.sandbox import Limits
from wmtp.testing import tiny_tokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"
REFACTORY, CONDEFECTS = DATA / "refactory", DATA / "condefects" / "condefects_python_60.jsonl.gz"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")
QUICK = Limits(cpu_s=1.0)


def prepared(out: Path, source: Path, plan: Plan) -> Path:
    prepare([source], out, plan)
    return out


def some(path: Path, out: Path, count: int) -> Path:
    """Lines from all over a file."""
    lines = path.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:: max(1, len(lines) // count)][:count]))
    return out


def judged(tmp_path: Path, count: int) -> int:
    """The number of students' programs that were judged as their labels say.

    Programs of one assignment that have `.sort(` in them and give the right output are labelled wrong: docs/data.md.
    """
    plan = Plan(problems=REFACTORY / "tests.json")
    whole = prepared(tmp_path / "all.jsonl", REFACTORY / "refactory.jsonl.gz", plan)
    report = label(some(whole, tmp_path / "some.jsonl", count), tmp_path / "out.jsonl", limits=QUICK)
    records, _ = read_records(tmp_path / "out.jsonl")
    differ = [record for record in records if "label_before" in record.about["verdict"]]
    assert report["verdict_differs_from_label"] == len(differ)
    assert all(record.problem_id == "refactory/4" and ".sort(" in record.response for record in differ)
    assert all(record.is_correct for record in differ)
    return len(records)


def test_some_students_programs_are_judged_as_their_labels_say(tmp_path: Path) -> None:
    assert judged(tmp_path, 12) == 12


@pytest.mark.exhaustive
def test_all_students_programs_are_judged_as_their_labels_say(tmp_path: Path) -> None:
    assert judged(tmp_path, 10_000) == 2763


def test_programs_before_and_after_their_fault_was_found_pair(tmp_path: Path) -> None:
    """Every task has both: a pair is two programs of one task."""
    path = prepared(tmp_path / "out.jsonl", CONDEFECTS, Plan(max_solutions=1))
    records, _ = read_records(path)
    rows, _ = encode(records[:200], tiny_tokenizer(), template="{prompt}\n", max_length=100_000)
    pairs = pair_items(rows)
    assert len(pairs) == 100
    assert all(rows[good].problem == rows[bad].problem for good, bad in pairs)
    assert all(rows[good].reward > rows[bad].reward for good, bad in pairs)
    assert {record.problem_id for record in records if record.about["fault_line"] == "84"}


def mutated(tmp_path: Path, count: int) -> tuple[int, int]:
    """Problems of MBPP, and those with five wrong variants; a second judge agrees about all of them."""
    whole = prepared(tmp_path / "all.jsonl", DATA / "mbpp" / "mbpp.jsonl", Plan())
    report = mutate(some(whole, tmp_path / "some.jsonl", count), tmp_path / "pairs.jsonl", limits=QUICK)
    again = label(tmp_path / "pairs.jsonl", tmp_path / "again.jsonl", limits=QUICK)
    assert again["verdict_differs_from_label"] == 0
    assert json.loads((tmp_path / "pairs.jsonl.report.json").read_text())["operators"]
    return report["input_rows"], report["solutions_with_all_variants"]


def test_some_of_mbpps_problems_get_five_wrong_variants_each(tmp_path: Path) -> None:
    problems, full = mutated(tmp_path, 3)
    assert (problems, full) == (3, 3)


@pytest.mark.exhaustive
def test_nine_of_ten_of_mbpps_problems_get_five_wrong_variants_each(tmp_path: Path) -> None:
    problems, full = mutated(tmp_path, 10_000)
    assert problems == 974
    assert full / problems >= 0.9
