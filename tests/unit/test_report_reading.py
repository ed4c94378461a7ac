"""What the page takes from a run folder, whole, half-written or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.errors import UsageError
from wmtp.report.evaluations import MAX_TOKEN_BYTES
from wmtp.report.journal import MAX_FIGURES, rounded, thinned
from wmtp.report.reading import labels, read_run, read_runs
from wmtp.report.study import NEEDED, opened
from wmtp.storage import write_atomic
from wmtp.testing import MemoryStore, memory_storage


def point(step: int, split: str = "train", **figures: Any) -> dict[str, Any]:
    return {"step": step, "split": split, **figures}


def write_run(folder: Path, points: list[dict[str, Any]], **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in points))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def write_evaluation(run: Path, name: str, result: Any) -> None:
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / f"{name}.json").write_text(json.dumps(result))


def test_log_points_become_columns_with_gaps_where_a_point_has_no_such_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [point(1, lr=0.5), point(2, **{"loss/nll": 3.25}), point(2, "validation", lr=1)])
    series = read_run(run)["series"]
    assert series["train"] == {"logged": 2, "values": {"step": [1, 2], "lr": [0.5, None], "loss/nll": [None, 3.25]}}
    assert series["validation"] == {"logged": 1, "values": {"step": [2], "lr": [1]}}


def test_a_warning_in_the_journal_is_a_note_and_no_damage(tmp_path: Path) -> None:
    warning = point(2, "warning", **{"weight/collapsed": 1.0, "weight/ess": 0.03})
    run = write_run(tmp_path / "a", [point(1, lr=1.0), warning])
    assert "training warned at step 2: weight/collapsed = 1, weight/ess = 0.03" in read_run(run)["notes"]
    assert not any("no log point" in note for note in read_run(run)["notes"])


def test_lines_that_are_no_log_points_are_left_out_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [point(1, lr=1.0)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "spl\n[1]\n{"step": 3, "split": "train", "lr": NaN}\n{"step": 4, "split": "tr')
    read = read_run(run)
    assert read["series"]["train"]["values"] == {"step": [1, 3], "lr": [1.0, None]}
    assert "metrics.jsonl: 3 lines left out: no log point (line 2, 3, 5)" in read["notes"]


def test_a_long_run_keeps_its_first_and_last_point_and_says_how_many_there_were(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [point(step, lr=0.1, grad_norm=1.0) for step in range(1, 5001)])
    train = read_run(run)["series"]["train"]
    assert (len(train["values"]["step"]), train["logged"]) == (MAX_FIGURES // 3, 5000)
    assert (train["values"]["step"][0], train["values"]["step"][-1]) == (1, 5000)


def test_a_run_that_goes_on_in_a_store_is_read_as_it_was_at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks how long the journal is finds it replaced by a longer one."""
    status = MemoryStore.status

    def growing(self: MemoryStore, key: str) -> Any:
        found = status(self, key)
        if key.endswith("metrics.jsonl"):
            self.put(key, self.objects[key] + json.dumps(point(2, lr=0.25)).encode() + b"\n")
        return found

    with memory_storage() as bucket:
        run = bucket / "run"
        write_atomic(run / "metrics.jsonl", json.dumps(point(1, lr=0.5)) + "\n")
        monkeypatch.setattr(MemoryStore, "status", growing)
        read = read_run(run)
    assert read["series"]["train"]["values"]["lr"][:2] == [0.5, 0.25]
    assert not any("metrics.jsonl" in note for note in read["notes"])


@given(st.integers(0, 2000), st.integers(2, 500))
def test_thinning_keeps_rising_places_and_both_ends(count: int, most: int) -> None:
    places = thinned(count, most)
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    assert not count or (places[0], places[-1]) == (0, count - 1)


@given(st.floats())
def test_a_figure_keeps_six_digits_and_what_is_not_finite_becomes_missing(value: float) -> None:
    kept = rounded(value)
    if value != value or value in (float("inf"), float("-inf")):
        assert kept is None
    else:
        assert kept is not None
        assert abs(kept - value) <= 1e-5 * abs(value)


def test_a_run_with_nothing_but_a_config_is_shown_with_notes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    read = read_run(tmp_path)
    assert read["config"] == "seed: 1\n"
    assert read["facts"] is None
    assert read["series"]["train"] == {"logged": 0, "values": {}}
    notes = " ".join(read["notes"])
    assert all(word in notes for word in ("metrics.jsonl", "provenance.json", "final/"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run_id": "x", "starts": []}', '{"run_id": "x", "starts": [3]}'])
def test_damaged_provenance_is_a_note(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "a", [], provenance__json=text)
    read = read_run(run)
    assert read["facts"] is None
    assert any("provenance.json is damaged" in note for note in read["notes"])


def test_facts_are_those_of_the_last_start_and_environment_variables_are_not_among_them(tmp_path: Path) -> None:
    starts = [{"seed": 1}, {"seed": 2, "environ": {"KEY": "x"}}]
    run = write_run(tmp_path / "a", [], provenance__json=json.dumps({"run_id": "r", "starts": starts}))
    facts = read_run(run)["facts"]
    assert (facts["seed"], facts["starts"], facts["run_id"]) == (2, 2, "r")
    assert "environ" not in facts


def test_what_eval_left_is_recognised_by_what_it_says_and_the_rest_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [])
    write_evaluation(run, "any", {"suite": "perplexity", "perplexity": {"mean": 3.0}, "model": {"source": "secret"}})
    write_evaluation(run, "b", {"benchmark": "mbpp", "results": [{"pass_at_k": {"1": {"mean": 0.5}}}]})
    write_evaluation(run, "c", {"suite": "heads", "heads": "none"})
    write_evaluation(run, "d", {"suite": "unheard of"})
    (run / "eval" / "e.json").write_text('{"half')
    read = read_run(run)
    assert read["evaluations"]["perplexity"] == {"suite": "perplexity", "perplexity": {"mean": 3.0}}
    assert [one["benchmark"] for one in read["evaluations"]["benchmarks"]] == ["mbpp"]
    assert "heads" not in read["evaluations"]
    for name in ("c.json", "d.json", "e.json"):
        assert sum(f"eval/{name} " in note for note in read["notes"]) == 1


def test_a_token_view_that_is_too_long_is_cut_by_whole_problems_with_a_note(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [])
    big = {"problem": "p", "variants": [{"tokens": ["x" * (MAX_TOKEN_BYTES // 3)]}]}
    write_evaluation(run, "tokens", {"suite": "tokens", "problems": [big] * 5})
    read = read_run(run)
    assert len(read["tokens"]["problems"]) == 2
    assert any("3 of 5 problems left out: too long" in note for note in read["notes"])


def test_runs_are_named_by_as_much_of_their_path_as_tells_them_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "a", tmp_path / "y" / "a", tmp_path / "b"]
    assert labels(folders) == ["x/a", "y/a", "b"]


@pytest.mark.parametrize("kind", ["absent", "file", "empty", "holds runs", "twice"])
def test_what_is_no_run_is_refused_with_what_to_name_instead(tmp_path: Path, kind: str) -> None:
    run = write_run(tmp_path / "runs" / "a", [])
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    given_, said = {
        "absent": ([tmp_path / "absent"], "there is no run folder"),
        "file": ([tmp_path / "file"], "is a file"),
        "empty": ([tmp_path / "empty"], "is no run folder"),
        "holds runs": ([tmp_path / "runs"], str(run)),
        "twice": ([run, tmp_path / "runs" / "." / "a"], "named twice"),
    }[kind]
    with pytest.raises(UsageError, match=said.replace("\\", ".")):
        read_runs(given_)


def test_a_study_is_its_first_seeds_runs_and_its_figures(tmp_path: Path) -> None:
    runs = [{"run": f"{arm}-seed{seed}", "seed": seed, "state": "done"} for seed in (7, 8) for arm in "ab"]
    runs[1]["state"] = "failed"
    study = {name: [] for name in NEEDED} | {"seeds": [7, 8], "runs": runs, "curves": {"a": [{"mean": 1 / 3}]}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    folders, (shown,) = opened([tmp_path / "other", tmp_path])
    assert folders == [tmp_path / "other", tmp_path / "runs" / "a-seed7"]
    assert (shown["curves"], shown["shown"]) == ({"a": [{"mean": 0.333333}]}, 1)


@pytest.mark.parametrize("text", ["{", "[]", '{"study": "s"}', "null"])
def test_a_study_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(UsageError, match="wmtp study"):
        opened([tmp_path])
