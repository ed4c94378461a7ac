"""The benchmarks compare like with like, and their JSON is what benchmarks/README.md says. Nothing is timed here."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.utils.flop_counter import FlopCounterMode

from wmtp.bench import BENCHMARKS, backends, data, decoding, faults, loss, measuring, packing, step, storage, tracking
from wmtp.cli import run_command
from wmtp.errors import WmtpError
from wmtp.model import batch_targets
from wmtp.storage import ObjectPath
from wmtp.targets import IGNORE

FOLDER = Path(__file__).parents[2] / "benchmarks"
CASE_KEYS = {
    "heads", "vocabulary", "fraction", "weights", "rows", "width", "dtype", "variant", "skipped", "seconds",
    "median_seconds", "to_naive", "to_matmuls", "to_wmtp", "to_known", "extra_bytes", "extra_bytes_adding",
    "memory_to_naive",
}  # fmt: skip
MACHINE_KEYS = {
    "device", "device_name", "dtype", "threads", "cores", "processor", "system", "python", "torch", "wmtp",
    "load", "memory",
}  # fmt: skip
OTHERS = ("liger", "cce", "wmtp_compiled")
"""For CUDA or bf16 alone; `tests/equivalence/test_{loss_backends,switches}.py` compare them with the plain loss."""
EXACT = [name for name in loss.VARIANTS if name not in ("matmuls", *OTHERS)]
TINY = ["--vocabulary", "50", "--rows", "24", "--width", "8", "--repeat", "2"]


TINY_STEP = ["--small", "--rows", "1", "--length", "16", "--repeat", "1"]
TINY_PACKING = [
    "--small",
    "--steps",
    "2",
    "--tokens",
    "128",
    "--row-length",
    "64",
    "128",
    "--layers",
    "2",
    "--repeat",
    "1",
]


def document_of(name: str, options: Sequence[str], folder: Path, version: int = 1) -> dict[str, Any]:
    """The JSON that a benchmark writes, run through the command line."""
    file = folder / f"{name}.json"
    assert run_command(["bench", name, *options, "--json", str(file)]) == 0
    document: dict[str, Any] = json.loads(file.read_text())
    assert (document["version"], document["benchmark"]) == (version, name)
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{key}`" in readme for key in documented_keys(document))
    return document


def documented_keys(document: dict[str, Any]) -> set[str]:
    """Keys of a document, of its machine, and of each of its cases."""
    return set(document) | set(document.get("machine", ())) | {key for row in document.get("cases", ()) for key in row}


def case(**changes: Any) -> Any:
    values = {"heads": 3, "vocabulary": 50, "fraction": 0.5, "weights": "known", "rows": 24, "width": 8}
    return loss.Case(**(values | {"dtype": "float64"} | changes))


def gradients(variant: str, inputs: Any) -> list[torch.Tensor]:
    inputs.forget_gradients()
    loss.VARIANTS[variant](inputs)
    return [leaf.grad for leaf in inputs.leaves()]


@pytest.mark.parametrize("weights", ["known", "batch"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", EXACT)
def test_every_variant_has_the_gradients_of_naive(
    variant: str, dtype: str, fraction: float, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case_ = case(dtype=dtype, fraction=fraction, weights=weights)
    if (reason := loss.obstacle(variant, case_, torch.device("cpu"))) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(loss, "default_chunk", lambda *_: 5)  # several chunks, the last one smaller
    inputs = loss.build(case_, torch.device("cpu"))
    expected = gradients("naive", inputs)
    for mine, theirs in zip(gradients(variant, inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4 if dtype == "float32" else 1e-6, atol=1e-6)


@pytest.mark.parametrize("weights", ["known", "batch"])
@pytest.mark.parametrize("variant", [*EXACT, "matmuls"])
def test_every_variant_adds_to_the_gradients_that_are_there(variant: str, weights: str) -> None:
    inputs = loss.build(case(weights=weights), torch.device("cpu"))
    once = [gradient.clone() for gradient in gradients(variant, inputs)]
    loss.VARIANTS[variant](inputs)
    for leaf, gradient in zip(inputs.leaves(), once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_the_inputs_have_the_share_of_targets_and_of_weights_they_say(fraction: float) -> None:
    inputs = loss.build(case(fraction=fraction, rows=80), torch.device("cpu"))
    valid = inputs.target_BTK != loss.IGNORE
    assert valid.float().mean() == fraction
    kept = inputs.weights(torch.rand(valid.shape))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert float(kept.sum() / valid.sum()) == pytest.approx(loss.KEPT)
    assert not kept[~valid].any()


def added_product(total: Any, left: Any, right: Any, **_: Any) -> int:
    """What torch's counter leaves out: `total += left @ right` in place."""
    return 2 * left[0] * left[1] * right[1]


def operations(variant: str, weights: str) -> float:
    """Floating-point operations of the matrix products, in units of one product over all trainable rows."""
    case_ = case(weights=weights, rows=80)
    inputs = loss.build(case_, torch.device("cpu"))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product}) as counter:
        loss.VARIANTS[variant](inputs)
    rows = case_.heads * case_.rows * case_.fraction
    return counter.get_total_flops() / (2 * rows * case_.width * case_.vocabulary)


@pytest.mark.parametrize(("weights", "products"), [("known", 3.0), ("batch", 1 + 3 * 0.6)])
def test_ours_does_the_products_of_the_limit_and_no_more(weights: str, products: float) -> None:
    assert operations("matmuls", weights) == pytest.approx(products)
    assert operations("wmtp", weights) <= products * (1 + 1e-9)


def test_the_json_of_the_loss_has_the_documented_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("loss", ["--quick", *TINY, "--no-memory"], tmp_path)
    assert set(document) == {"version", "benchmark", "machine", "settings", "cases", "claims"}
    assert document["settings"]["preset"] == "quick"
    assert set(document["machine"]) == MACHINE_KEYS
    assert all(set(row) == CASE_KEYS for row in document["cases"])
    assert len(document["cases"]) == 2 * 2 * 2 * len(loss.VARIANTS)
    assert all(len(row["seconds"]) == 2 and row["to_naive"] for row in document["cases"] if not row["skipped"])
    assert all(set(row) == {"claim", "at_most", "measured", "met"} for row in document["claims"])
    assert "matmuls" in capsys.readouterr().out


@pytest.mark.parametrize("name", loss.PRESETS)
def test_a_preset_replaces_defaults_and_an_option_goes_before_it(name: str) -> None:
    wanted = loss.PRESETS[name].options
    options = vars(loss.parse(["--preset", name]))
    assert {key: options[key] for key in wanted} == wanted
    options = vars(loss.parse(["--rows", "8", "--preset", name, "--heads", "3"]))
    assert (options["rows"], options["heads"]) == (8, [3])
    assert name in (FOLDER / "README.md").read_text()


def test_bfloat16_runs_in_every_variant_but_the_compiled_one(tmp_path: Path) -> None:
    variants = ["--variant", *(name for name in loss.VARIANTS if name != "wmtp_compiled")]  # compiling takes a minute
    document = document_of("loss", ["--preset", "bf16", *TINY, "--no-memory", *variants], tmp_path)
    assert {row["dtype"] for row in document["cases"]} == {"bfloat16"}


def test_a_variant_that_cannot_run_is_skipped_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss, "free_bytes", lambda device: 1)
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    assert run_command(["bench", "loss", "--heads", "2", "--fraction", "1.0", *TINY, "--no-memory"]) == 0
    out = capsys.readouterr().out
    assert "no chunked linear_cross_entropy" in out
    assert "GiB of logits" in out


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be reset on Linux only")
def test_memory_is_that_of_the_logits() -> None:
    case_ = case(heads=2, vocabulary=8000, rows=512, width=16, dtype="float32", fraction=1.0)
    extra = loss.extra_memory("naive", case_, torch.device("cpu"))
    logits = 4 * case_.heads * case_.rows * case_.vocabulary
    assert set(extra) == {"fresh", "adding"}
    for measured in extra.values():
        assert 1.9 * logits < measured < 4.1 * logits


def test_the_json_of_the_index_says_whether_its_aims_are_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(benchmark: str, arguments: Sequence[str]) -> Any:
        _, variant, path, pairs = arguments
        assert len(data.VARIANTS[variant](Path(path), int(pairs))) == {"json": 400, "index": 40}[variant]
        return {**data.of_child(variant, Path(path), int(pairs)), "extra_bytes": 1000}

    monkeypatch.setattr(data.measuring, "in_child", here)
    document = document_of("data", ["--records", "400", "--pairs", "20", "--repeat", "2"], tmp_path)
    assert [case["variant"] for case in document["cases"]] == ["json", "index"]
    assert document["met"].keys() == data.CLAIMS.keys()
    assert "time_to_json" in capsys.readouterr().out


def test_claims_are_judged_only_where_they_were_measured() -> None:
    row = dict.fromkeys(CASE_KEYS) | loss.ISSUE_CASE | {"heads": 4, "fraction": 1.0, "weights": "known"}
    found = loss.claims([row | {"variant": "wmtp", "to_naive": [0.9, 0.8, 1.0], "to_matmuls": [1.01, 1.0, 1.1]}])
    verdict = {claim["claim"]: claim["met"] for claim in found}
    assert verdict["time, to naive"] is False
    assert verdict["time, to the matrix products"] is True
    assert verdict["extra memory, to K=1"] is None


def test_the_devices_stand_side_by_side() -> None:
    options = loss.parse(["--heads", "1", "--fraction", "1.0", *TINY, "--no-memory"])
    report = loss.measure(options, show=lambda text: None)
    other = report | {"machine": report["machine"] | {"device": "mps"}}
    lines = backends.table([report, other])
    assert len(lines) == 1 + len(report["cases"])
    assert len({len(line) for line in lines}) == 1
    assert lines[0][-1] == "cpu/mps"
    assert {line[-1] for line in lines[1:]} == {"1.0", "-"}, "a variant that was skipped has no figure"
    assert measuring.aligned(lines).count("\n") == len(report["cases"])


def test_the_json_of_the_backends_holds_one_report_per_device(tmp_path: Path) -> None:
    options = ["--devices", "cpu", "--heads", "1", "--fraction", "1.0", *TINY, "--no-memory"]
    document = document_of("backends", options, tmp_path)
    assert [report["machine"]["device"] for report in document["reports"]] == ["cpu"]
    assert {row["heads"] for row in document["reports"][0]["cases"]} == {1}


def test_the_json_of_the_step_has_the_documented_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("step", [*TINY_STEP, "--no-memory", "--activation-checkpointing"], tmp_path)
    measured = {"naive", "wmtp", "wmtp_k1", "wmtp_checkpointed"}
    for key in ("parameters", "seconds", "median_seconds", "time_to_wmtp", "flops", "extra_bytes"):
        assert set(document[key]) == measured
    assert set(document["machine"]) == MACHINE_KEYS
    assert document["flops"]["wmtp_checkpointed"] > document["flops"]["wmtp"]
    assert document["skipped"] == {}
    assert "wmtp_checkpointed" in capsys.readouterr().out


def test_a_step_that_cannot_be_compiled_is_skipped_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(model: Any, *, checkpointing: bool, compiled: bool) -> None:
        if compiled:
            raise TorchDynamoException("no C++ compiler\nand much more")

    monkeypatch.setattr(step, "prepare_model", no_compiler)
    document = document_of("step", [*TINY_STEP, "--no-memory", "--compile"], tmp_path)
    assert document["skipped"] == {"wmtp_compile": "torch.compile does not work here: no C++ compiler"}
    assert set(document["seconds"]) == {"naive", "wmtp", "wmtp_k1"}
    assert "skipped: torch.compile does not work here" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be reset on Linux only")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("step", [*TINY_STEP, "--peak", "wmtp"]),
        ("packing", [*TINY_PACKING, "--peak", "long_tail", "packed_128"]),
    ],
)
def test_what_a_child_prints_is_its_peak(name: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", name, *options]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) >= 0


def test_a_child_that_fails_is_an_error_that_shows_why() -> None:
    with pytest.raises(WmtpError, match=r"(?s)memory pass.*--no-memory.*No such command"):
        measuring.in_child("nothing", [])


def test_the_json_of_packing_has_the_documented_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("packing", [*TINY_PACKING, "--no-memory"], tmp_path)
    assert set(document) == {"version", "benchmark", "machine", "settings", "documents", "cases"}
    ways = ["token_budget", "packed_64", "packed_128", "random_padded"]
    kinds = ["embedded", "long_tail"]
    assert [(row["documents"], row["way"]) for row in document["cases"]] == [(k, w) for k in kinds for w in ways]
    for row in document["cases"]:
        about = document["documents"][row["documents"]]
        assert row["padding_share"] == pytest.approx(1 - about["tokens"] / row["positions"])
        assert row["to_token_budget"]
    assert all(about["largest_nll_difference"] < 1e-4 for about in document["documents"].values())
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{key}`" in readme for about in document["documents"].values() for key in about)
    assert "packed_128" in capsys.readouterr().out


def test_the_json_of_decoding_has_the_documented_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--small", "--prompts", "3", "--batch", "1", "2", "--length", "4", "--repeat", "1", "--family", "chain"]
    options += ["--candidates", "2", "--data", "embedded://problems_train.jsonl"]
    document = document_of("decoding", options, tmp_path, decoding.VERSION)
    (model,) = document["models"]
    assert model["family"] == "chain"
    assert set(document["machine"]) == MACHINE_KEYS
    cases = model["cases"]
    assert [(row["batch"], row["variant"]) for row in cases] == [(b, v) for b in (1, 2) for v in decoding.VARIANTS]
    skipped = {(row["batch"], row["variant"]) for row in cases if row["skipped"]}
    assert skipped == {(1, "assisted"), (2, "assisted"), (2, "prompt_lookup")}
    done = [row for row in cases if not row["skipped"]]
    assert all(row["same_as_plain"] == 1 and row["tokens"] == 12 for row in done)
    assert {len(row["drafted"]) for row in done if row["variant"] == "longest"} == {3}
    found = model["trees"]
    assert found["trees"][0]["nodes"] == 3
    assert [len(row) for row in found["shares"]] == [2, 2, 2]
    readme = (FOLDER / "README.md").read_text()
    names = (*decoding.VARIANTS, *done[0], *document["settings"], *model, *found, *found["trees"][0])
    assert all(f"`{name}`" in readme for name in names)
    printed = capsys.readouterr()
    assert "hopeless" in printed.out
    assert [line.split()[:4] for line in printed.err.splitlines() if line.startswith("chain")] == [
        ["chain", str(row["batch"]), "4", row["variant"]] for row in cases
    ]


def test_the_json_of_storage_has_the_documented_keys(
    s3: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_WIDTH": 8, "_FFN": 12, "_VOCABULARY": 20}.items():
        monkeypatch.setattr(storage, name, value)
    options = ["--location", str(s3), "--bytes", "5000", "--repeat", "1", "--no-memory"]
    assert storage.main([*options, "--json", str(tmp_path / "s.json")]) == 0
    assert not s3.exists()
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["object_bytes"] > 5000
    assert set(found["time_to_raw"]) == {"raw", "wmtp", "whole"}
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in (*found, *found["settings"], *storage.VARIANTS))


@pytest.mark.parametrize("variant", tracking.TRACKED)
def test_every_point_of_a_tracked_run_arrives_once_whatever_becomes_of_its_server(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wmtp.tracking.sink.START_S", 0.01)
    monkeypatch.setattr(tracking, "END_S", 0.2)
    options = ["--width", "32", "--layers", "1", "--heads", "1", "--rows", "1", "--steps", "4", "--log-every", "1"]
    seconds, points = tracking.one(variant, tracking.parse([*options, "--device", "cpu"]), tmp_path / "one")
    assert points is not None
    assert min(seconds.values()) > 0
    assert (points["missing"], points["too_many"]) == (0, 0)
    assert points["logged"] > 4
    assert points["sent_late"] == points["logged"] or variant != "hangs"
    assert "View run" not in capsys.readouterr().out  # what mlflow prints would end up in the JSON of a command


@pytest.mark.parametrize(("lost", "code"), [({}, 0), ({"missing": 1}, 1), ({"too_many": 1}, 1)])
def test_the_json_of_tracking_has_the_documented_keys_and_a_point_that_is_lost_or_there_twice_ends_it_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: dict[str, int], code: int
) -> None:
    points = {"logged": 5, "sent_late": 0, "missing": 0, "too_many": 0} | lost
    said = {name: points for name in tracking.TRACKED}
    monkeypatch.setattr(tracking, "one", lambda name, *_: ({"wall": 3.0, "cpu": 2.0}, said.get(name)))
    assert tracking.main(["--repeat", "1", "--json", str(tmp_path / "t.json")]) == code
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["points"]["killed"] == {name: 2 * value for name, value in points.items()}
    assert document["time_to_none"]["hangs"] == {"wall": [1.0, 1.0, 1.0], "cpu": [1.0, 1.0, 1.0]}
    readme = (FOLDER / "README.md").read_text()
    names = (*documented_keys(document), *document["settings"], *tracking.VARIANTS, *tracking.CLOCKS, *points)
    assert all(f"`{name}`" in readme for name in names)


def test_rounds_end_when_their_time_is_over_but_one_is_measured() -> None:
    taken = measuring.interleaved({"a": lambda: None}, 9, torch.device("cpu"), most_seconds=0)
    assert len(taken["a"]) == 1


def test_the_prompts_of_decoding_are_as_transformers_pads_them() -> None:
    tokens_BT, mask_BT = decoding.left_padded([[5, 6], [7]])
    assert tokens_BT.tolist() == [[5, 6], [0, 7]]
    assert mask_BT.tolist() == [[1, 1], [0, 1]]
    assert decoding.until_end([5, 1, 1], [1]) == [5, 1]
    assert decoding.until_end([5, 6], [1]) == [5, 6]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX system")
def test_the_json_of_the_sandbox_has_the_documented_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("sandbox", ["--programs", "6", "--rounds", "1", "--workers", "1"], tmp_path)
    assert set(document) == {"version", "benchmark", "machine", "settings", "isolation", "cases", "load"}
    assert document["cases"][0]["to_fresh"] == [1.0, 1.0, 1.0]
    assert all(row["cpu_ms"] > 0 for row in document["cases"])
    assert (document["load"]["flips"], document["load"]["unlike_labels"]) == ([], 0)
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{key}`" in readme for key in document["load"])
    assert "fresh interpreter" in capsys.readouterr().out


def packing_options(*more: str) -> Any:
    return packing.parse([*TINY_PACKING, "--device", "cpu", *more])


def test_every_arrangement_has_the_same_documents_targets_and_gradients() -> None:
    options = packing_options()
    sample, model = packing.sample_of("long_tail", options), packing.model_of(options)
    tokens, expected = sum(len(row.tokens) for row in sample.rows), None
    for way in packing.ways_of(options):
        micros = packing.arrange(way, sample, options)
        assert sum(micro.batch.num_tokens for micro in micros) == tokens
        pairs = sum(int((batch_targets(micro.batch, options.heads) != IGNORE).sum()) for micro in micros)
        mean = packing.forward_backward(model, micros)
        found = pairs, mean, [p.grad.clone() for p in model.parameters()]
        expected = expected or found
        assert found[0] == expected[0]
        assert mean == pytest.approx(expected[1], rel=1e-5)
        for mine, theirs in zip(found[2], expected[2], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_the_check_of_packing_finds_documents_that_see_each_other() -> None:
    options = packing_options()
    sample, model = packing.sample_of("long_tail", options), packing.model_of(options)
    micros = packing.packed(sample.rows, options.tokens, 128)
    assert packing.check_packing(model, sample.rows, micros) < 1e-4
    blind = [packing.Micro(micro.batch, None, micro.places) for micro in micros]
    with pytest.raises(WmtpError, match="does not keep packed documents apart"):
        packing.check_packing(model, sample.rows, blind)


def test_first_fit_puts_every_document_into_one_row_with_room_for_it() -> None:
    lengths = [3, 60, 8, 64, 30, 30, 5, 1]
    bins = packing.first_fit(lengths, 64)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(lengths)))
    assert [sum(lengths[i] for i in chosen) for chosen in bins] == [64, 64, 60, 13]


def test_the_steps_of_the_sample_are_spread_over_all_lengths() -> None:
    options = packing_options("--steps", "4")
    sample = packing.sample_of("long_tail", options)
    means = [sum(len(sample.pool[i].tokens) for i in sample.batches.rows_of(n)) for n in sample.numbers]
    assert len(set(sample.numbers)) == 4
    assert means == sorted(means)
    assert means[-1] > 2 * means[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--rows", "0"], "argument --rows: got '0', expected a whole number of at least 1"),
        (["loss", "--fraction", "1.5"], "argument --fraction: got '1.5', expected a number above 0 and at most 1"),
        (["loss", "--preset", "huge"], "argument --preset: invalid choice: 'huge'"),
        (["loss", "--device", "abacus"], "argument --device: got 'abacus', expected auto, cpu, cuda or mps"),
        (["loss", "--json", "no/such/folder/f.json"], "expected a file in a folder that exists"),
        (["loss", "--fast"], "unrecognized arguments: --fast"),
        (["backends", "--heads", "none"], "argument --heads: got 'none'"),
        (["backends", "--devices", "abacus"], "argument --devices: got 'abacus'"),
        (["step", "--length", "3"], "argument --length: got 3, expected at least 16"),
        (["step", "--repeat", "-1"], "argument --repeat: got '-1'"),
        (["packing", "--width", "100"], "argument --width: got 100, expected a multiple of 64"),
        (["packing", "--row-length", "8"], "argument --row-length: got 8, expected at least 64"),
        (["packing", "--vocabulary", "2"], "argument --vocabulary: got 2, expected at least 8"),
        (["decoding", "--model", "nowhere"], "argument --model: got 'nowhere', expected a model folder"),
        (["decoding", "--small", "--model", "."], "argument --small: --model was given"),
        (["decoding", "--family", "chain", "--model", "."], "argument --family: --model was given"),
        (["tracking", "--steps", "1"], "argument --steps: got 1, expected at least 2"),
        (["decoding", "--variant", "magic"], "argument --variant: invalid choice: 'magic'"),
        (["decoding", "--small", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["nothing"], "No such command 'nothing'"),
    ],
)
def test_wrong_options_end_with_2_and_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", *arguments]) == 2
    caught = capsys.readouterr()
    assert message in caught.err
    assert caught.out == ""


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_lists_the_benchmarks_own_options_from_the_command_and_from_the_script(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: wmtp bench {name}" in shown
    assert "--json FILE" in shown
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out == shown


def test_listing_the_benchmarks_loads_no_torch() -> None:
    program = "import sys, wmtp.cli; wmtp.cli.run_command(['bench', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in BENCHMARKS)


@pytest.mark.parametrize(
    ("code", "printed", "ends_with"),
    [(0, b"step 1  loss 2.1\n", 0), (0, b"UserWarning: leaked semaphore\n", 1), (134, b"", 1)],
)
def test_a_row_of_runs_fails_by_one_exit_code_or_one_complaint(
    monkeypatch: pytest.MonkeyPatch, code: int, printed: bytes, ends_with: int
) -> None:
    runs = []

    def supervise(command: Any, *, output: int, **_: Any) -> int:
        runs.append(command(0))
        last = len(runs) == 3
        os.write(output, printed if last else b"")
        return code if last else 0

    monkeypatch.setattr(faults, "supervise", supervise)
    assert faults.main(["--in-a-row", "3", "--ranks", "2"]) == ends_with
    assert len(runs) == 3
