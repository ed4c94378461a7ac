"""Stored scores: what is written is what is read, found by content, and refused where it is another's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wmtp.data.batches import collate, filler
from wmtp.data.text import Row
from wmtp.errors import DataError, UsageError, WmtpError
from wmtp.formats.identity import model_fingerprint
from wmtp.formats.native import save_model
from wmtp.prescoring import batches_of
from wmtp.scores import CARD, Card, ColumnCard, ScoreFile, StoredScores, row_key, score_writer, spans_of, writing
from wmtp.scores.rows import span_of
from wmtp.storage import ObjectPath, Place, write_atomic
from wmtp.testing import memory_storage, tiny_base
from wmtp.value import ValueModel

KEY: dict[str, str | int] = {
    "tokenizer": "t",
    "data.template": "{prompt}\n",
    "data.max_length": 64,
    "precision": "fp32",
}
VALUES = ColumnCard(model="a" * 64, source="critic")
NLL = ColumnCard(model="b" * 64, source="reference", alignment="matched", width=3)


def rows_of(count: int, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        length = int(random.integers(2, 12))
        tokens = random.integers(3, 60, length).astype(np.int32)
        made.append(Row(tokens, int(random.integers(0, length)), i, 1.0, 0, f"p{i}"))
    return made


class Written:
    """A folder of scores of some rows, whose scores are known."""

    def __init__(self, folder: Place, rows: list[Row], *, dtype: str = "float32", per_batch: int = 3) -> None:
        self.rows, self.spans = rows, [span_of(row.tokens, row.response_start) for row in rows]
        batches = [self.spans[i : i + per_batch] for i in range(0, len(rows), per_batch)]
        tokens = sum(span.length for span in self.spans)
        columns = {"values": VALUES, "reference_nll": NLL}
        card = Card.model_validate(
            {
                "key": KEY,
                "data": "d",
                "columns": columns,
                "dtype": dtype,
                "batch_tokens": 9,
                "rows": len(rows),
                "tokens": tokens,
            }
        )
        self.file = score_writer(folder, card, batches)
        random = np.random.default_rng(1)
        self.scores = [
            {name: random.normal(size=(sum(s.length for s in batch), column.width)) for name, column in columns.items()}
            for batch in batches
        ]

    def write(self, *numbers: int) -> None:
        for number in numbers or range(len(self.scores)):
            self.file.write(number, self.scores[number])

    def all(self, name: str) -> NDArray[Any]:
        return np.concatenate([scores[name] for scores in self.scores])


def finished(folder: Place, rows: list[Row], **options: Any) -> Written:
    made = Written(folder, rows, **options)
    made.file.begin()
    made.write()
    made.file.finish()
    return made


def files(folder: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# what is read


@pytest.mark.parametrize(("name", "column"), [("values", VALUES), ("reference_nll", NLL)])
def test_what_was_written_is_read_back_for_rows_in_any_order_and_padding(
    tmp_path: Path, name: str, column: ColumnCard
) -> None:
    rows = rows_of(20)
    made = finished(tmp_path / "s", rows)
    stored = StoredScores(tmp_path / "s", KEY, name, column)
    stored.check_rows(rows[5:9])
    chosen = [7, 3, 12, 3]
    got = stored.of(collate(rows, chosen, pad_id=2))
    starts = np.cumsum([0, *(span.length for span in made.spans)])
    expected = torch.zeros(4, max(len(rows[i].tokens) for i in chosen), column.width)
    for b, i in enumerate(chosen):
        span = made.spans[i]
        found = made.all(name)[starts[i] : starts[i + 1]]
        expected[b, span.start : span.end] = torch.from_numpy(found.astype(np.float32))
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_a_row_that_only_fills_has_scores_of_0(tmp_path: Path) -> None:
    rows = rows_of(4)
    finished(tmp_path / "s", rows)
    empty = filler(2, pad_id=0)
    assert not StoredScores(tmp_path / "s", KEY, "values", VALUES).of(empty).any()


def test_fewer_heads_than_were_scored_read_the_first_ones(tmp_path: Path) -> None:
    rows = rows_of(4)
    finished(tmp_path / "s", rows)
    batch = collate(rows, range(4), pad_id=0)
    three, two = (
        StoredScores(tmp_path / "s", KEY, "reference_nll", NLL.model_copy(update={"width": w})) for w in (3, 2)
    )
    assert torch.equal(two.of(batch), three.of(batch)[:, :, :2])


def test_float16_is_within_its_stated_error(tmp_path: Path) -> None:
    rows = rows_of(20)
    finished(tmp_path / "half", rows, dtype="float16")
    finished(tmp_path / "full", rows)
    batch = collate(rows, range(20), pad_id=0)
    half, full = (StoredScores(tmp_path / name, KEY, "values", VALUES).of(batch) for name in ("half", "full"))
    assert not torch.equal(half, full)
    assert bool(((half - full).abs() <= torch.maximum(full.abs() * 2**-11, torch.tensor(2.0**-25))).all())


def test_a_token_takes_its_numbers_and_a_row_24_bytes(tmp_path: Path) -> None:
    rows = rows_of(50)
    for dtype, size in (("float32", 4), ("float16", 2)):
        made = finished(tmp_path / dtype, rows, dtype=dtype)
        sizes = {name: len(content) for name, content in files(tmp_path / dtype).items()}
        assert sizes["values.npy"] - 128 == size * made.file.card.tokens
        assert sizes["reference_nll.npy"] - 128 == 3 * size * made.file.card.tokens
        assert sizes["index.npy"] - 24 * len(rows) in (128, 192)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6), st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=50)
def test_a_row_is_known_by_its_ids_and_the_start_of_its_response_whatever_its_padding(
    ids: list[int], start: int, padding: int
) -> None:
    start = min(start, len(ids) - 1)
    row = Row(np.array(ids, dtype=np.int32), start, 0, 1.0, 0)
    longer = Row(np.array(ids + [7] * padding, dtype=np.int32), start, 0, 1.0, 0)
    (span, *_) = spans_of(collate([row, longer], [0, 1], pad_id=0))
    assert span == span_of(row.tokens, start)
    assert span.length == len(ids) - start + (start > 0)
    others = [row_key(np.array([*ids[:-1], ids[-1] ^ 1]), start), row_key(row.tokens, start + 1)]
    others += [row_key(longer.tokens, start)] if padding else []
    assert span.key not in others


# what is refused


@pytest.mark.parametrize("name", KEY)
def test_another_value_of_any_key_is_refused_and_named(tmp_path: Path, name: str) -> None:
    finished(tmp_path / "s", rows_of(3))
    with pytest.raises(DataError, match=f"made with another {name}: .*score again"):
        StoredScores(tmp_path / "s", {**KEY, name: "other"}, "values", VALUES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "c" * 64}, "another model of reference_nll"),
        ({"alignment": "next"}, "another alignment"),
        ({"width": 4}, "num_heads"),
    ],
)
def test_another_model_alignment_or_more_heads_are_refused_and_named(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    finished(tmp_path / "s", rows_of(3))
    with pytest.raises(DataError, match=told):
        StoredScores(tmp_path / "s", KEY, "reference_nll", NLL.model_copy(update=change))


def test_other_data_are_refused_and_the_first_row_named(tmp_path: Path) -> None:
    rows = rows_of(5)
    finished(tmp_path / "s", rows)
    stored = StoredScores(tmp_path / "s", KEY, "values", VALUES)
    other = [*rows, *rows_of(2, seed=9)]
    with pytest.raises(DataError, match=r"other data: 2 of 7 rows have none, the first is of problem 'p0'"):
        stored.check_rows(other)
    with pytest.raises(DataError, match="other data: row 0"):
        stored.of(collate(other, [5], pad_id=0))


@pytest.mark.parametrize("file", ["values.npy", "index.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_refused(tmp_path: Path, file: str, damage: str) -> None:
    finished(tmp_path / "s", rows_of(3))
    path = tmp_path / "s" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flip" else b""))
    if damage == "gone":
        path.unlink()
    with pytest.raises(DataError, match=f"{file} is missing or damaged"):
        StoredScores(tmp_path / "s", KEY, "values", VALUES)


def test_a_folder_without_scores_says_how_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wmtp score --recipe"):
        StoredScores(tmp_path / "none", KEY, "values", VALUES)
    (tmp_path / CARD).write_text('{"format": 2}')
    with pytest.raises(DataError, match="no card of scores"):
        StoredScores(tmp_path, KEY, "values", VALUES)


def test_a_column_that_was_not_scored_is_refused_and_those_there_are_named(tmp_path: Path) -> None:
    finished(tmp_path / "s", rows_of(3))
    with pytest.raises(DataError, match="has scores values, reference_nll, but the run needs reward"):
        StoredScores(tmp_path / "s", KEY, "reward", VALUES)


# how it is written


@given(st.permutations(range(7)), st.integers(0, 7), st.sampled_from([None, "torn", "empty"]))
@settings(max_examples=12)
def test_any_order_any_interruption_and_a_torn_part_end_with_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], stop: int, harm: str | None
) -> None:
    folder = tmp_path_factory.mktemp("scores")
    rows = rows_of(20)
    whole = finished(folder / "whole", rows)
    first = Written(folder / "broken", rows)
    first.file.begin()
    for number in order[:stop]:
        first.write(number)
    if harm is not None and stop:
        part = folder / "broken" / "parts" / f"{order[0]:08}.part"
        part.write_bytes(part.read_bytes()[: 0 if harm == "empty" else -5])
    again = Written(folder / "broken", rows)
    todo = again.file.begin()
    assert set(todo) == set(order[stop:]) | ({order[0]} if harm is not None and stop else set())
    if todo:
        again.write(*todo)
    again.file.finish()
    assert files(folder / "broken") == files(folder / "whole")
    assert whole.file.begin() == []


@pytest.mark.parametrize("stop", range(4))
def test_a_kill_while_parts_become_columns_is_made_good_and_little_lies_there_twice(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(12)
    finished(tmp_path / "whole", rows)
    made = Written(tmp_path / "broken", rows)
    made.file.begin()
    made.write()
    monkeypatch.setattr(writing, "TWICE", 1)
    forget, left = ScoreFile._forget, iter(range(stop))

    def killed(self: ScoreFile, numbers: list[int], files: Any) -> None:
        assert len(numbers) <= 1
        if next(left, None) is None:
            raise KeyboardInterrupt
        forget(self, numbers, files)

    monkeypatch.setattr(ScoreFile, "_forget", killed)
    with pytest.raises(KeyboardInterrupt):
        made.file.finish()
    assert len(list((tmp_path / "broken" / "parts").glob("*.part"))) == 4 - stop
    monkeypatch.setattr(ScoreFile, "_forget", forget)
    again = Written(tmp_path / "broken", rows)
    assert again.file.begin() == []
    if stop < 4:  # a part that is torn meanwhile is scored once more
        part = tmp_path / "broken" / "parts" / "00000003.part"
        part.write_bytes(part.read_bytes()[:-1])
        assert again.file.begin() == [3]
        again.write(3)
    again.file.finish()
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_part_that_is_missing_at_the_end_is_an_error_and_nothing_is_published(tmp_path: Path) -> None:
    made = Written(tmp_path / "s", rows_of(9))
    made.file.begin()
    made.write(0, 2)
    with pytest.raises(WmtpError, match=r"00000001.part is missing or damaged"):
        made.file.finish()
    assert not (tmp_path / "s" / CARD).exists()
    made.write(1)
    made.file.finish()


@pytest.mark.parametrize("done", [True, False])
def test_a_folder_that_was_begun_for_something_else_is_refused_and_left_alone(tmp_path: Path, done: bool) -> None:
    first = Written(tmp_path / "s", rows_of(4))
    first.file.begin()
    first.write()
    if done:
        first.file.finish()
    before = sorted(path.name for path in (tmp_path / "s").rglob("*"))
    other = Written(tmp_path / "s", rows_of(4), dtype="float16")
    other.file.card = other.file.card.model_copy(update={"key": {**KEY, "precision": "bf16"}})
    with pytest.raises(UsageError, match=r"something else \(dtype, key.precision\)"):
        other.file.begin()
    assert sorted(path.name for path in (tmp_path / "s").rglob("*")) == before


def test_a_folder_of_other_files_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        Written(tmp_path, rows_of(3)).file.begin()


def test_a_score_that_float16_cannot_hold_is_an_error(tmp_path: Path) -> None:
    made = Written(tmp_path / "s", rows_of(3), dtype="float16")
    made.file.begin()
    made.scores[0]["values"][0] = 1e5
    with pytest.raises(WmtpError, match="too large for float16"):
        made.write(0)


def test_the_card_says_what_was_scored(tmp_path: Path) -> None:
    finished(tmp_path / "s", rows_of(3))
    card = json.loads((tmp_path / "s" / CARD).read_text())
    assert card["key"] == KEY
    assert card["columns"]["reference_nll"]["alignment"] == "matched"
    assert sorted(card["sha256"]) == ["index.npy", "reference_nll.npy", "values.npy"]


# batches, and what a model is


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_batches_hold_every_row_once_and_no_more_positions_than_they_may(lengths: list[int], most: int) -> None:
    lengths.sort(reverse=True)
    batches = batches_of(lengths, most)
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= most for batch in batches)


def test_a_model_is_known_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    for name, seed, loss in (
        ("one", 0, "pairwise"),
        ("two", 0, "pairwise"),
        ("other", 1, "pairwise"),
        ("loss", 0, "lambda_return"),
    ):
        torch.manual_seed(0)
        save_model(ValueModel(tiny_base(seed=seed), "linear", "frozen", loss), tmp_path / name)
    one, two, other, loss = (model_fingerprint(str(tmp_path / name)) for name in ("one", "two", "other", "loss"))
    assert one == two
    assert len({one, other, loss}) == 3


# in a store


@pytest.fixture
def bucket() -> Iterator[ObjectPath]:
    with memory_storage() as made:
        yield made


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_scores_in_a_store_are_the_files_and_the_numbers_of_scores_on_a_disk(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows, folder = rows_of(20), request.getfixturevalue("bucket" if kind == "memory" else "s3") / "scores"
    finished(tmp_path / "s", rows)
    finished(folder, rows)
    assert files(folder) == files(tmp_path / "s")
    batch = collate(rows, [7, 3, 12, 3], pad_id=2)
    for name, column in (("values", VALUES), ("reference_nll", NLL)):
        near, far = (StoredScores(place, KEY, name, column) for place in (tmp_path / "s", folder))
        far.check_rows(rows)
        assert torch.equal(far.of(batch), near.of(batch))


@given(st.permutations(range(7)), st.integers(0, 7), st.booleans())
@settings(max_examples=12)
def test_scoring_into_a_store_goes_on_after_an_interruption_and_scores_a_damaged_part_again(
    order: list[int], stop: int, damaged: bool
) -> None:
    rows = rows_of(20)
    with memory_storage() as bucket:
        finished(bucket / "whole", rows)
        first = Written(bucket / "broken", rows)
        first.file.begin()
        for number in order[:stop]:
            first.write(number)
        again = Written(bucket / "broken", rows)
        todo = again.file.begin()
        assert todo == sorted(order[stop:])
        if todo:
            again.write(*todo)
        if damaged:
            part = bucket / "broken" / "parts" / f"{order[0]:08}.part"
            write_atomic(part, part.read_bytes()[:-1])
            with pytest.raises(WmtpError, match=f"{order[0]:08}.part is missing or damaged; run the command again"):
                again.file.finish()
            assert again.file.begin() == [order[0]]
            assert not (bucket / "broken" / CARD).exists()
            again.write(order[0])
        again.file.finish()
        assert files(bucket / "broken") == files(bucket / "whole")
        assert again.file.begin() == []


def test_a_damaged_file_of_scores_in_a_store_is_refused(bucket: ObjectPath) -> None:
    finished(bucket / "s", rows_of(3))
    path = bucket / "s" / "values.npy"
    content = path.read_bytes()
    write_atomic(path, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"values.npy is missing or damaged"):
        StoredScores(bucket / "s", KEY, "values", VALUES)
    with pytest.raises(DataError, match="wmtp score --recipe"):
        StoredScores(bucket / "none", KEY, "values", VALUES)


def test_scores_are_not_put_among_other_objects(bucket: ObjectPath) -> None:
    write_atomic(bucket / "notes.txt", "mine")
    with pytest.raises(UsageError, match="holds something else"):
        Written(bucket, rows_of(3)).file.begin()
