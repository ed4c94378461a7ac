"""Rows tokenised once: the same rows, in processes or not, found again by their key, and never half there."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmtp import dataset
from wmtp.config import Config, load
from wmtp.data import cache as cache_module
from wmtp.data import tokenising
from wmtp.data.cache import cached_rows
from wmtp.data.columns import ColumnWriter
from wmtp.data.records import Record
from wmtp.data.sources import read_records
from wmtp.data.stored import StoredRows
from wmtp.data.text import Encoder, Row
from wmtp.data.tokenising import with_tokens
from wmtp.dataset import build_data
from wmtp.errors import ConfigError, DataError, ModelError, UsageError, WmtpError
from wmtp.formats.hf import load_tokenizer
from wmtp.storage import resolve
from wmtp.testing import tiny_tokenizer

RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"
TOKENIZER = load_tokenizer("embedded://tiny-llama")


def config(*overrides: str) -> Config:
    return load([RECIPE], list(overrides))


def same(one: Row, other: Row) -> bool:
    facts = [
        [str(value) for value in (row.response_start, row.problem, row.reward, row.difficulty, row.name, row.group)]
        for row in (one, other)
    ]
    return facts[0] == facts[1] and one.tokens.dtype == other.tokens.dtype and np.array_equal(one.tokens, other.tokens)


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Nothing that a test started goes on after it."""
    threads = threading.active_count()
    yield
    deadline = time.monotonic() + 20
    while (multiprocessing.active_children() or threading.active_count() > threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()
    assert threading.active_count() == threads


SETTINGS = [
    pytest.param([], marks=pytest.mark.exhaustive),
    ["data.solutions=all", "data.max_length=100", "data.on_long_row=drop"],
    ["data.validation=null", "data.validation_fraction=0.3"],
    pytest.param(["objective={kind: value, loss: pairwise}"], marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("overrides", SETTINGS)
def test_stored_rows_are_the_rows_in_memory_and_train_in_the_same_batches(
    overrides: list[str], tmp_path: Path, no_process_left: None
) -> None:
    plain = build_data(config(*overrides), TOKENIZER)
    stored = build_data(config(*overrides, f"data.cache={tmp_path}/cache"), TOKENIZER)
    assert stored.fingerprint == plain.fingerprint
    assert [note for note in stored.notes if "data.cache" not in note] == plain.notes
    for ours, theirs in ((stored.train, plain.train), (stored.validation, plain.validation)):
        assert ours is not None
        assert theirs is not None
        assert isinstance(ours.rows, StoredRows)
        assert len(ours.rows) == len(theirs.rows)
        assert all(same(a, b) for a, b in zip(ours.rows, theirs.rows, strict=True))
        assert [ours.rows_of(n) for n in range(30)] == [theirs.rows_of(n) for n in range(30)]


def test_a_second_run_reads_no_record_and_encodes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(f"data.cache={tmp_path}/cache")
    first = build_data(wanted, TOKENIZER)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the rows were there")

    monkeypatch.setattr(dataset, "stream_records", never)
    monkeypatch.setattr(Encoder, "tokens", never)
    second = build_data(wanted, TOKENIZER)
    assert second.fingerprint == first.fingerprint
    assert second.notes == [note.replace("written to", "found in") for note in first.notes]


def test_whatever_decides_what_a_row_is_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folders(*overrides: str, tokenizer: Any = TOKENIZER) -> set[str]:
        build_data(config(f"data.cache={tmp_path}/cache", *overrides), tokenizer)
        return {path.name for path in (tmp_path / "cache").glob("rows-*")}

    records = tmp_path / "records.jsonl"
    lines = resolve("embedded://problems_train.jsonl").read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(lines[:12]))
    own = [f"data.train.path={records}", "data.validation=null", "train.eval_every=null"]
    made = [folders(*own)]
    assert folders(*own, "train.seed=3", "data.workers=0", "train.batch_size=4") == made[0], "these decide nothing"
    changed = json.loads(TOKENIZER.backend_tokenizer.to_str())
    changed["model"]["merges"] = changed["model"]["merges"][:-1]
    other = load_tokenizer("embedded://tiny-llama")
    other._tokenizer = type(TOKENIZER.backend_tokenizer).from_str(json.dumps(changed))
    for overrides in (["data.template='# {prompt}\\n'"], ["data.max_length=120"], ["data.on_long_row=drop"],
                      ["data.solutions=all"], ["data.on_bad_row=skip"]):  # fmt: skip
        made.append(folders(*own, *overrides))
    made.append(folders(*own, tokenizer=other))
    records.write_bytes(records.read_bytes().replace(b"Write", b"Wrote"))
    made.append(folders(*own))
    monkeypatch.setattr(dataset, "code_version", lambda: "another")
    made.append(folders(*own))
    assert [len(found) for found in made] == list(range(1, len(made) + 1))


def test_several_that_want_the_same_rows_make_them_once_and_wait_without_asking_one_another(tmp_path: Path) -> None:
    made = []

    def write(writer: ColumnWriter) -> dict[str, Any]:
        made.append(1)
        time.sleep(0.2)
        writer.append("x", np.arange(5, dtype=np.int64))
        return {}

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(cached_rows(tmp_path, {"a": 1}, write))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(is_new for _, is_new in found) == [False, False, False, True]
    assert all(columns.arrays["x"].tolist() == [0, 1, 2, 3, 4] for columns, _ in found)


def test_rows_that_fail_to_be_made_leave_nothing_and_can_be_made_later(tmp_path: Path) -> None:
    def fails(writer: ColumnWriter) -> dict[str, Any]:
        writer.append("x", np.arange(5, dtype=np.int64))
        raise DataError("row 6 is bad")

    with pytest.raises(DataError, match="row 6 is bad"):
        cached_rows(tmp_path, {}, fails)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    (tmp_path / "other").mkdir()
    killed = tmp_path / f".{name_of({})}.making-1-ab"
    killed.mkdir()
    assert cached_rows(tmp_path, {}, lambda writer: {})[1] is True
    assert not killed.exists(), "what a killed process left is cleared away"
    assert (tmp_path / "other").exists()


def name_of(key: dict[str, Any]) -> str:
    import hashlib

    return f"rows-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"


def test_damaged_rows_are_told(tmp_path: Path) -> None:
    wanted = config(f"data.cache={tmp_path}")
    build_data(wanted, TOKENIZER)
    (folder,) = tmp_path.glob("rows-*")
    token = folder / "train.token.bin"
    token.write_bytes(token.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"rows-\w+ is damaged .*remove it, and it is made anew"):
        build_data(wanted, TOKENIZER)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"data.cache = .*cannot be made or written"):
        build_data(config(f"data.cache={tmp_path}/file/cache"), TOKENIZER)


def test_a_data_file_that_is_not_there_is_wrong_input_with_a_cache_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*no.jsonl: No such file"):
        build_data(config(f"data.cache={tmp_path}", f"data.train.path={tmp_path}/no.jsonl"), TOKENIZER)


# processes


def records(count: int = 700) -> list[Record]:
    found, _ = read_records(resolve("embedded://problems_train.jsonl"))
    return [found[i % len(found)] for i in range(count)]


def test_processes_give_what_one_gives_in_order(no_process_left: None) -> None:
    encoder = Encoder(TOKENIZER, template="{prompt}\n", max_length=500)
    assert list(with_tokens(records(), encoder, 2)) == list(with_tokens(records(), encoder, 0))


def test_processes_end_when_nobody_listens_any_more(no_process_left: None) -> None:
    encoder = Encoder(TOKENIZER, template="{prompt}\n", max_length=500)
    first = next(with_tokens(records(), encoder, 1))
    assert first[0] == records()[0]


def test_a_process_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch, no_process_left: None) -> None:
    monkeypatch.setattr(tokenising, "_serve", len)  # takes one argument, is given two
    encoder = Encoder(TOKENIZER, template="{prompt}\n", max_length=500)
    with pytest.raises(WmtpError, match="a process that tokenises has ended"):
        list(with_tokens(records(), encoder, 1))


def test_a_tokenizer_that_does_more_than_its_backend_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    kind = type(tokenizer)
    tokenizer.__class__ = type("Upper", (kind,), {"__call__": lambda self, text, **o: kind.__call__(
        self, [t.upper() for t in text] if isinstance(text, list) else text, **o)})  # fmt: skip
    encoder = Encoder(tokenizer, template="{prompt}\n", max_length=500)
    with pytest.raises(ModelError, match=r"set data.workers=0"):
        list(with_tokens(records(), encoder, 1))


# indexed


@pytest.fixture
def indexed(tmp_path: Path) -> str:
    """Overrides for the embedded problems, copied and indexed."""
    from wmtp.data.index import build_index

    path = tmp_path / "records.jsonl"
    path.write_bytes(resolve("embedded://problems_train.jsonl").read_bytes())
    build_index(path, tmp_path / "index")
    return str(tmp_path)


PAIRS = ["objective={kind: value, loss: pairwise}", "data.sampling={pairs: unique, max_per_problem: 1}"]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], marks=pytest.mark.exhaustive),
        pytest.param(
            ["data.solutions=all", "data.validation=null", "train.eval_every=null"], marks=pytest.mark.exhaustive
        ),
        ["data.validation=null", "data.validation_fraction=0.3"],
        PAIRS,
    ],
)
def test_an_index_reads_what_the_run_trains_on_and_every_problem_keeps_its_group(
    overrides: list[str], indexed: str
) -> None:
    own = [f"data.train.path={indexed}/records.jsonl", "train.steps=3", "data.max_length=256", *overrides]
    whole = build_data(config(*own), TOKENIZER)
    part = build_data(config(*own, f"data.index={indexed}/index"), TOKENIZER)
    used = {row for number in range(3) for row in part.train.rows_of(number)}
    assert used == set(range(len(part.train.rows))), "no row is read in vain"
    assert len(used) < len(whole.train.rows)
    assert any(note.startswith("data.sampling: ") for note in part.notes) == ("sampling" in "".join(overrides))
    known = {(row.name, row.tokens.tobytes()): row for row in whole.train.rows}
    for row in part.train.rows:
        other = known[row.name, row.tokens.tobytes()]
        assert str(row.group) == str(other.group)
        assert (str(row.reward), row.difficulty) == (str(other.reward), other.difficulty)
    if part.validation is not None:
        assert whole.validation is not None
        assert [row.tokens.tolist() for row in part.validation.rows] == [
            row.tokens.tolist() for row in whole.validation.rows
        ]


def test_an_index_and_a_cache_go_together(indexed: str) -> None:
    own = [f"data.train.path={indexed}/records.jsonl", f"data.index={indexed}/index", "train.steps=3", *PAIRS]
    plain = build_data(config(*own), TOKENIZER)
    stored = build_data(config(*own, f"data.cache={indexed}/cache"), TOKENIZER)
    assert stored.fingerprint == plain.fingerprint
    assert [stored.train.rows_of(n) for n in range(3)] == [plain.train.rows_of(n) for n in range(3)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.index=x", "data.train.fields={prompt: text}"], "of records in our own schema"),
        (["data.sampling.pairs=unique"], "is for objective.loss = pairwise"),
        (["data.sampling.difficulty=[{levels: [0, 3]}]"], "0 means unknown, not easy"),
        (["data.sampling.difficulty=[{levels: [3, 1]}]"], "above the highest"),
        (["data.sampling.difficulty=[{levels: [1, 3]}, {levels: [3, 4]}]"], "overlap"),
        (["data.sampling.difficulty=[{levels: [1, 3], weight: 0}]"], "weight 0"),
        (["data.sampling.difficulty=[{levels: [1, 3], weight: {start: 1, end: 0}}]"], "weight 0 at one end"),
        (["data.sampling.difficulty=[]"], "at least 1"),
        (["data.sampling.max_per_problem=0"], "greater than or equal to 1"),
        (["data.workers=-1"], "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


def test_reading_and_sampling_need_no_torch() -> None:
    code = (
        "import sys, wmtp.data.index, wmtp.data.tokenising, wmtp.data.cache;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nan_groups_stay_nan(tmp_path: Path) -> None:
    rows = build_data(config(f"data.cache={tmp_path}", "data.train.fields={prompt: prompt, response: response}"),
                      TOKENIZER).train.rows  # fmt: skip
    assert all(math.isnan(row.group[0]) and math.isnan(row.reward) for row in rows)
    assert cache_module.code_version() == cache_module.code_version()
