"""An index with lengths in tokens plans as if the whole file had been read, and belongs to one tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmtp.config import Config, load
from wmtp.data import token_lengths
from wmtp.data.batches import Batches
from wmtp.data.index import Index, build_index, default_folder, describe
from wmtp.data.sources import read_records
from wmtp.data.text import Encoder, Row
from wmtp.data.token_lengths import Measure
from wmtp.dataset import build_data
from wmtp.errors import ConfigError, DataError
from wmtp.formats.hf import backend_fingerprint, load_tokenizer
from wmtp.storage import resolve

RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"
TOKENIZER = load_tokenizer("embedded://tiny-llama")
TEMPLATE = "{prompt}\n"


def measure(**options: Any) -> Measure:
    return Measure(TOKENIZER, backend_fingerprint(TOKENIZER), **{"template": TEMPLATE, **options})


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Some of the embedded problems, in an order in which the rows of a problem are no neighbours."""
    lines = resolve("embedded://problems_train.jsonl").read_bytes().splitlines(keepends=True)[:160]
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(lines[i] for i in np.random.default_rng(0).permutation(len(lines))))
    return path


@pytest.fixture
def config(records: Path) -> Callable[..., Config]:
    """A run on these records, with overrides."""
    own = [f"data.train.path={records}", "train.steps=8", "data.max_length=256"]
    return lambda *overrides: load([RECIPE], [*own, *overrides])


def indexed(path: Path) -> str:
    return f"data.index={default_folder(path)}"


def content(rows: Batches, numbers: range) -> list[list[tuple[str, bytes]]]:
    """What batches are made of, in order."""
    found: list[list[Row]] = [[rows.rows[i] for i in rows.rows_of(number)] for number in numbers]
    return [[(row.name, row.tokens.tobytes()) for row in batch] for batch in found]


def test_a_measured_length_is_that_of_the_row_that_is_trained_on(records: Path) -> None:
    build_index(records, default_folder(records), measure())
    encoder = Encoder(TOKENIZER, template=TEMPLATE, max_length=90)
    found, _ = read_records(records)
    rows = [encoder.row(*pair) for pair in zip(found, encoder.tokens(found), strict=True)]
    with Index(records) as index:
        facts = index.facts_in_tokens(90)
        assert facts.length_R.tolist() == [len(row.tokens) for row in rows if row is not None]
        assert facts.response_R.tolist() == [len(row.tokens) - row.response_start for row in rows if row is not None]
        whole = index.facts_in_tokens(10**12).length_R
        assert index.longer_R(90).tolist() == (whole > 90).tolist()
        assert describe(index)["tokens"] == whole.sum()


PAIRS = "objective={kind: value, loss: pairwise}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.validation=null", "data.validation_fraction=0.3"],
        [PAIRS, "data.sampling.pairs=length", "data.max_length=110"],
        [PAIRS, "data.sampling={pairs: unique, max_per_problem: 2}", "data.max_length=80", "data.on_long_row=drop"],
        [PAIRS, "data.max_length=70", "data.on_long_row=drop"],
    ],
)
def test_a_run_on_an_index_that_knows_tokens_has_the_batches_of_a_run_on_the_whole_file(
    overrides: list[str], config: Callable[..., Config], records: Path
) -> None:
    build_index(records, default_folder(records), measure())
    whole = build_data(config(*overrides), TOKENIZER)
    part = build_data(config(*overrides, indexed(records)), TOKENIZER)
    assert content(part.train, range(8)) == content(whole.train, range(8))


def test_problems_of_another_split_do_not_decide_which_are_held_out(
    config: Callable[..., Config], records: Path
) -> None:
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    numbers = {name: 601 + number for number, name in enumerate(dict.fromkeys(line["problem_id"] for line in lines))}
    own = [json.dumps(line | {"source": "mbpp", "problem_id": f"mbpp/{numbers[line['problem_id']]}"}) for line in lines]
    more = [json.dumps(json.loads(own[0]) | {"problem_id": f"mbpp/{11 + number}"}) for number in range(9)]
    records.write_text("\n".join([*own, *more]))
    build_index(records, default_folder(records), measure())
    overrides = ("data.validation=null", "data.validation_fraction=0.3")
    held = []
    for given in ((), (indexed(records),)):
        validation = build_data(config(*overrides, *given), TOKENIZER).validation
        assert validation is not None
        held.append({row.name for row in validation.rows})
    assert held[0] == held[1] != set()


def test_an_index_that_knows_only_characters_makes_other_batches_and_says_so(
    config: Callable[..., Config], records: Path
) -> None:
    found = []
    for own in (None, measure()):
        build_index(records, default_folder(records), own)
        found.append(build_data(config(indexed(records)), TOKENIZER))
    assert content(found[0].train, range(8)) != content(found[1].train, range(8))
    assert found[0].fingerprint != found[1].fingerprint, "a run that goes on would not have its batches"
    notes = [[note for note in data.notes if note.startswith("data.index: ")] for data in found]
    assert [[note.rsplit(" ", 1)[1] for note in own] for own in notes] == [["characters"], ["tokens"]]


def test_kept_ids_are_what_the_tokenizer_gives_and_it_is_not_asked_again(
    config: Callable[..., Config], records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [PAIRS, indexed(records), "data.validation=null", "train.eval_every=null"]
    build_index(records, default_folder(records), measure())
    plain = build_data(config(*own), TOKENIZER)
    build_index(records, default_folder(records), measure(keep_ids=True))

    def never(*_: Any) -> Any:
        raise AssertionError("the ids were there")

    monkeypatch.setattr(Encoder, "tokens", never)
    for overrides in ([], [f"data.cache={tmp_path}/cache"]):
        assert build_data(config(*own, *overrides), TOKENIZER).fingerprint == plain.fingerprint


def test_processes_measure_what_one_measures(records: Path, tmp_path: Path) -> None:
    for workers in (0, 1):
        build_index(records, tmp_path / str(workers), measure(workers=workers, keep_ids=True))
    columns = [{path.name: path.read_bytes() for path in (tmp_path / str(n)).glob("*.bin")} for n in (0, 1)]
    assert columns[0] == columns[1]
    assert {"tokens.bin", "start.bin", "id.bin", "id_end.bin"} < set(columns[0])


def test_lengths_of_another_tokenizer_template_or_version_are_refused(
    config: Callable[..., Config], records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(records, default_folder(records), measure())
    with pytest.raises(DataError, match=r"made with another data.template .*--template '# \{prompt\}'"):
        build_data(config(indexed(records), "data.template='# {prompt}'"), TOKENIZER)
    other = load_tokenizer("embedded://tiny-llama")
    changed = json.loads(TOKENIZER.backend_tokenizer.to_str())
    changed["model"]["merges"] = changed["model"]["merges"][:-1]
    other._tokenizer = type(TOKENIZER.backend_tokenizer).from_str(json.dumps(changed))
    with pytest.raises(DataError, match="made with another tokenizer than this run has"):
        build_data(config(indexed(records)), other)
    monkeypatch.setattr(token_lengths, "token_code_version", lambda: "another")
    with pytest.raises(DataError, match="made with another version"):
        build_data(config(indexed(records)), TOKENIZER)


def test_long_rows_are_dropped_before_they_are_drawn_or_not_at_all(
    config: Callable[..., Config], records: Path
) -> None:
    own = [indexed(records), "data.on_long_row=drop"]
    build_index(records, default_folder(records))
    with pytest.raises(ConfigError, match=r"does not know lengths in tokens; make it with: .*--tokenizer"):
        build_data(config(*own), TOKENIZER)
    build_index(records, default_folder(records), measure())
    with pytest.raises(DataError, match=r"are longer than data\.max_length = 5"):
        build_data(config(*own, "data.max_length=5"), TOKENIZER)


def test_a_response_without_a_token_of_its_own_has_the_length_0_and_is_told_when_it_is_read(
    config: Callable[..., Config], records: Path
) -> None:
    changed = json.loads(TOKENIZER.backend_tokenizer.to_str())
    changed["normalizer"] = {"type": "Replace", "pattern": {"String": "!"}, "content": ""}
    other = load_tokenizer("embedded://tiny-llama")
    other._tokenizer = type(TOKENIZER.backend_tokenizer).from_str(json.dumps(changed))
    records.write_text('{"problem_id": "p", "prompt": "Say", "response": "!"}\n')
    build_index(records, default_folder(records), Measure(other, backend_fingerprint(other), TEMPLATE, keep_ids=True))
    with Index(records) as index:
        assert index.facts_in_tokens(90).response_R.tolist() == [0]
    with pytest.raises(DataError, match="the tokenizer makes no token of '!'"):
        build_data(config(indexed(records), "train.eval_every=null", "data.validation=null"), other)
