"""The benchmarks compare like with like, and their JSON is what benchmarks/README.md says. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[2] / "benchmarks"
CASE_KEYS = {
    "heads", "vocabulary", "fraction", "weights", "rows", "width", "dtype", "variant", "skipped", "seconds",
    "median_seconds", "to_naive", "to_matmuls", "to_known", "extra_bytes", "extra_bytes_adding", "memory_to_naive",
}  # fmt: skip
MACHINE_KEYS = {
    "device", "device_name", "dtype", "threads", "cores", "processor", "system", "python", "torch", "load", "memory",
}  # fmt: skip


def load(name: str) -> ModuleType:
    """A script, imported by its path."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


loss = load("loss")
backends = load("backends")
EXACT = [name for name in loss.VARIANTS if name != "matmuls"]
TINY = ["--vocabulary", "50", "--rows", "24", "--width", "8", "--repeat", "2"]


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
    monkeypatch.setattr(loss, "CHUNK_BYTES", 5 * 4 * 50)  # several chunks, the last one smaller
    inputs = loss.build(case_, torch.device("cpu"))
    expected = gradients("naive", inputs)
    for mine, theirs in zip(gradients(variant, inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4 if dtype == "float32" else 1e-6, atol=1e-6)


@pytest.mark.parametrize("weights", ["known", "batch"])
@pytest.mark.parametrize("variant", loss.VARIANTS)
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


def test_the_json_has_the_documented_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loss.json"
    assert loss.main(["--quick", *TINY, "--no-memory", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert set(document) == {"version", "benchmark", "machine", "settings", "cases", "claims"}
    assert (document["version"], document["benchmark"]) == (1, "loss")
    assert set(document["machine"]) == MACHINE_KEYS
    assert all(set(row) == CASE_KEYS for row in document["cases"])
    assert len(document["cases"]) == 2 * 2 * 2 * len(loss.VARIANTS)
    assert all(len(row["seconds"]) == 2 and row["to_naive"] for row in document["cases"] if not row["skipped"])
    assert all(set(row) == {"claim", "at_most", "measured", "met"} for row in document["claims"])
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{key}`" in readme for key in CASE_KEYS | MACHINE_KEYS | set(document))
    assert "matmuls" in capsys.readouterr().out


def test_a_variant_that_cannot_run_is_skipped_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss, "free_bytes", lambda device: 1)
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    loss.main(["--heads", "2", "--fraction", "1.0", *TINY, "--no-memory"])
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
    assert {line[-1] for line in lines[1:]} == {"1.0"}
    assert backends.aligned(lines).count("\n") == len(report["cases"])
