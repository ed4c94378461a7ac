"""Two ranks are one process, and so are four: every strategy, every arm, schemes with memory too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Zygote
from fsdp_events import check_fetched_ahead, check_reduced_behind, micro_batches
from tests_recipe import with_few_rows

from wmtp.config import load
from wmtp.formats.hf import load_tokenizer, random_causal_lm
from wmtp.formats.native import save_model
from wmtp.memory import gradient_bytes, layout, optimiser_bytes, weight_bytes
from wmtp.model import MTPModel
from wmtp.parts import build
from wmtp.prescoring import score
from wmtp.rehearsal import units_of
from wmtp.value import ValueModel

WORKER = Path(__file__).with_name("rank_worker.py")
pytestmark = pytest.mark.slow

ARMS: dict[str, list[str]] = {
    "baseline": ["train.micro_batch_size=2"],
    "uneven": ["train.batch_size=7", "train.micro_batch_size=2"],
    "few_rows": ["train.batch_size=1", "train.micro_batch_size=1"],
    "tied": ["model.architecture.tie_word_embeddings=true"],
    "budget": ["train.micro_batch_tokens=200", "train.micro_batch_size=null"],
    "verifiable": ["objective={{weighting: {{scheme: critic, critic: '{models}/critic', whiten: ema}}}}"],
    "select": ["objective={{weighting: {{scheme: rho1, reference: '{models}/reference'}}}}"],
    "soft": ["objective={{weighting: {{scheme: rho1, reference: '{models}/reference', mode: soft}}}}"],
    "running": [
        "objective={{weighting: {{scheme: rho1, reference: '{models}/reference', scope: running}}}}",
        "train.micro_batch_size=null",
    ],
    "gradient": ["objective={{weighting: {{scheme: gradient, ema_decay: 0.5}}}}", "train.micro_batch_size=2"],
    "hybrid": [
        "objective={{weighting: {{scheme: hybrid, parts: [{{scheme: critic, critic: '{models}/critic', whiten: ema}}, "
        "{{scheme: rho1, reference: '{models}/reference', mode: soft}}, {{scheme: gradient}}]}}}}"
    ],
    "stored": [
        "objective={{weighting: {{scheme: hybrid, parts: [{{scheme: critic, critic: '{models}/critic', whiten: ema, "
        "scores: '{models}/scores'}}, {{scheme: rho1, reference: '{models}/reference', mode: soft, "
        "scores: '{models}/scores'}}, {{scheme: gradient}}]}}}}"
    ],
    "random_matched": [
        "objective={{weighting: {{scheme: random_matched, of: {{scheme: critic, critic: '{models}/critic'}}}}}}"
    ],
    "inverted": ["objective={{weighting: {{scheme: inverted, of: {{scheme: gradient}}}}}}", "train.micro_batch_size=2"],
    "shuffled": [
        "objective={{weighting: {{scheme: shuffled, "
        "of: {{scheme: rho1, reference: '{models}/reference', mode: soft}}}}}}"
    ],
    "skip": ["objective={{weighting: {{scheme: rho1, reference: '{models}/reference', mode: skip, ratio: 0.3}}}}"],
    "grpo": ["objective={{weighting: {{scheme: grpo, mode: positive}}}}", "data.solutions=all"],
    "one_head": ["model.heads.num_heads=1", "train.micro_batch_size=2"],
    "annealed": [
        "objective={{weighting: {{scheme: rho1, reference: '{models}/reference', ratio: {{start: 0.9, end: 0.3}}}}, "
        "head_decay: {{start: 0.5, end: 1, shape: cosine, steps: 3}}}}"
    ],
    "critic": ["objective={{kind: value, loss: pairwise, head: mlp}}", "train.micro_batch_size=2"],
    "critic_returns": ["objective={{kind: value, loss: lambda_return, backbone: frozen}}", "data.solutions=all"],
    "from_base": ["model.architecture=null", "model.path='{models}/base'"],
    "from_heads": ["model.architecture=null", "model.path='{models}/heads'"],
    "from_fewer_heads": [
        "model.architecture=null",
        "model.path='{models}/heads'",
        "model.heads={{num_heads: 4, init: fresh}}",
    ],
    "bf16": ["precision=bf16", "train.micro_batch_size=2"],
    "bf16_tied": ["precision=bf16", "model.architecture.tie_word_embeddings=true"],
    "checkpointed": ["train.activation_checkpointing=true"],
    "linear": ["model.heads={{family: linear, num_heads: 3, init: fresh}}", "train.micro_batch_size=2"],
    "chain_tied": [
        "model.heads={{family: chain, num_heads: 3, init: fresh}}",
        "model.architecture.tie_word_embeddings=true",
    ],
    "heads_only": ["model.heads={{num_heads: 3, init: fresh, trained: heads}}", "train.micro_batch_size=2"],
    "heads_and_norm": ["model.heads={{num_heads: 3, init: fresh, trained: heads+norm}}", "train.micro_batch_size=2"],
    "from_chain": ["model.architecture=null", "model.path='{models}/chain'", "model.heads.family=chain"],
    "from_heads_lora": [
        "model.architecture=null",
        "model.path='{models}/heads'",
        "model.lora={{rank: 4, alpha: 8, on: both}}",
        "train.micro_batch_size=2",
    ],
}
STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD")
TWO = [(arm, "FULL_SHARD") for arm in ARMS] + [
    (arm, other) for arm in ("baseline", "select", "tied", "critic", "bf16") for other in STRATEGIES[1:]
]
FOUR = [("baseline", strategy) for strategy in (*STRATEGIES, "HYBRID_SHARD")] + [
    (arm, "FULL_SHARD") for arm in ("running", "verifiable", "stored")
]
CASES = {
    2: [(arm, strategy) for arm in ARMS for strategy in STRATEGIES],
    4: [(arm, strategy) for arm in ARMS for strategy in (*STRATEGIES, "HYBRID_SHARD")],
}
"""Every arm under every strategy; those that are neither in TWO nor in FOUR only when all tests are asked for."""
RARE = {
    "few_rows", "budget", "soft", "random_matched", "annealed", "from_base", "from_heads", "bf16_tied", "checkpointed",
    "critic_returns", "linear", "heads_only", "shuffled", "skip", "grpo", "one_head", "tied", "heads_and_norm",
    "from_chain", "gradient", "from_fewer_heads",
}  # fmt: skip
"""Arms that differ from others by what ranks have no part in: tried when all tests are asked for."""
FIXED = {(2, "hybrid", "FULL_SHARD"), *((n, arm, "FULL_SHARD") for n in CASES for arm in ("baseline", "stored"))}
"""Cases of tests that name none."""


def marked(ranks: int, arm: str, strategy: str) -> list[pytest.MarkDecorator]:
    rare = arm in RARE or (strategy != "FULL_SHARD" and arm == "bf16")
    usual = (arm, strategy) in {2: TWO, 4: FOUR}[ranks] and not rare
    return [] if usual else [pytest.mark.exhaustive]


EACH_ARM = [pytest.param(arm, marks=marked(2, arm, "FULL_SHARD")) for arm in ARMS]
EACH_CASE = [pytest.param(r, *case, marks=marked(r, *case)) for r, cases in CASES.items() for case in cases]


def cases_of(items: list[pytest.Item]) -> dict[int, list[tuple[str, str]]]:
    """The cases that the tests which will run ask for."""
    asked = set(FIXED)
    for item in items:
        values = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if item.path == Path(__file__) and "arm" in values:
            asked.add((values.get("ranks", 2), values["arm"], values.get("strategy", "FULL_SHARD")))
    return {ranks: [case for case in cases if (ranks, *case) in asked] for ranks, cases in CASES.items()}


EPS = 1e-4
"""Of Adam: with the usual 1e-8 a gradient that is nothing but rounding, and so differs between CPUs and between ranks,
makes a step of its own; beside this one its step is as small as it is."""


def recipe_of(arm: str, strategy: str, models: Path) -> dict[str, Any]:
    """What the worker is told about a case."""
    overrides = [*(o.format(models=models) for o in ARMS[arm]), f"optim.eps={EPS}", f"distributed.strategy={strategy}"]
    return {"recipe": str(models / "recipe.yaml"), "overrides": overrides}


def launch(forks: Zygote, ranks: int, cases: dict[str, dict[str, Any]], out: Path) -> dict[str, Any]:
    """What the cases came to with so many ranks."""
    out.mkdir()
    file = out / "cases.json"
    file.write_text(json.dumps(cases))
    codes, said = forks.ranks(ranks, WORKER, file, out, limit_s=300 + 20 * len(cases))
    assert codes == [0] * ranks, said[-6000:]
    return {name: torch.load(out / f"{name}.pt", weights_only=True) for name in cases}


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, forks: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, Any]]:
    """What every case that is asked for came to with 1 (the arm alone: no strategy), 2 and 4 ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    tokenizer = load_tokenizer("embedded://tiny-llama")
    recipe = with_few_rows(folder)
    architecture = load([recipe]).model.architecture or {}

    def base(seed: int) -> Any:
        return random_causal_lm(architecture, len(tokenizer), seed)

    base(1).save_pretrained(folder / "base")
    save_model(ValueModel(base(2), "mlp"), folder / "critic", tokenizer)
    save_model(MTPModel(base(2), 1, "copy"), folder / "reference", tokenizer)
    save_model(MTPModel(base(3), 3, "fresh"), folder / "heads", tokenizer)
    save_model(MTPModel(base(3), 3, "fresh", family="chain"), folder / "chain", tokenizer)
    score(load([recipe], recipe_of("stored", "FULL_SHARD", folder)["overrides"]), batch_tokens=2048)
    wanted = cases_of(request.session.items)
    arms = {arm for cases in wanted.values() for arm, _ in cases}
    one = launch(forks, 1, {arm: recipe_of(arm, "FULL_SHARD", folder) for arm in ARMS if arm in arms}, folder / "1")
    many = {
        ranks: launch(forks, ranks, {f"{a}-{s}": recipe_of(a, s, folder) for a, s in cases}, folder / str(ranks))
        for ranks, cases in wanted.items()
    }
    scored = {ranks: folder / str(ranks) / "scores" for ranks in (1, *CASES)}
    return {0: {"models": folder, "scored": scored}, 1: one, **many}


STREAMED = {"from_base": 1, "from_heads": 1, "from_chain": 1, "verifiable": 1, "select": 1, "soft": 1, "running": 1} | {
    "from_fewer_heads": 1,
    "hybrid": 2,
    "random_matched": 1,
    "shuffled": 1,
    "skip": 1,
    "annealed": 1,
}
"""Models whose weights lie in a folder: each rank reads its own rows."""


@pytest.mark.parametrize("arm", EACH_ARM)
def test_weights_from_a_folder_go_straight_into_the_shares(results: dict[int, dict[str, Any]], arm: str) -> None:
    assert results[1][arm]["streamed"] == 0
    assert results[2][f"{arm}-FULL_SHARD"]["streamed"] == STREAMED.get(arm, 0)


@pytest.mark.parametrize("arm", EACH_ARM)
def test_random_weights_are_drawn_into_the_shares_and_never_built_whole(
    results: dict[int, dict[str, Any]], arm: str
) -> None:
    assert results[1][arm]["drawn"] == 0
    assert results[2][f"{arm}-FULL_SHARD"]["drawn"] == (0 if arm.startswith("from_") else 1)


@pytest.mark.parametrize(("ranks", "arm", "strategy"), EACH_CASE)
def test_weights_gradients_and_optimiser_take_the_bytes_that_a_dry_run_says(
    results: dict[int, dict[str, Any]], ranks: int, arm: str, strategy: str, tmp_path: Path
) -> None:
    case = recipe_of(arm, strategy, results[0]["models"])
    model = build(load([Path(case["recipe"])], case["overrides"]), weights=False).model
    pieces = layout(strategy, 2 if strategy == "HYBRID_SHARD" else ranks).pieces
    said = sum(term(units_of(model), pieces) for term in (weight_bytes, gradient_bytes, optimiser_bytes))
    assert results[ranks][f"{arm}-{strategy}"]["state_bytes"] == said


def test_stored_scores_train_as_the_models_themselves_do(results: dict[int, dict[str, Any]]) -> None:
    online, stored = results[1]["hybrid"], results[1]["stored"]
    for figures, expected in [
        *zip(stored["steps"], online["steps"], strict=True),
        (stored["validation"], online["validation"]),
    ]:
        assert figures == {name: close(value, 1e-5) for name, value in expected.items()}
    for parameter, expected in online["weights"].items():
        torch.testing.assert_close(stored["weights"][parameter], expected, rtol=1e-4, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("ranks", CASES)
def test_any_number_of_ranks_writes_the_same_scores(results: dict[int, dict[str, Any]], ranks: int) -> None:
    one, many = ({f.name: f.read_bytes() for f in results[0]["scored"][n].iterdir()} for n in (1, ranks))
    assert sorted(one) == ["index.npy", "reference_nll.npy", "scores.json", "values.npy"]
    assert many == one


def close(expected: Any, relative: float) -> Any:
    return pytest.approx(expected, rel=relative, abs=1e-6, nan_ok=True)


def leaves(memory: Any) -> list[Any]:
    """All that a scheme remembers, and under which names, in order; a hybrid's parts have memories of their own."""
    if isinstance(memory, dict):
        return [leaf for name in sorted(memory) for leaf in (name, *leaves(memory[name]))]
    return [leaf for part in memory for leaf in leaves(part)] if isinstance(memory, list) else [memory]


@pytest.mark.parametrize(("ranks", "arm", "strategy"), EACH_CASE)
def test_ranks_are_one_process(results: dict[int, dict[str, Any]], ranks: int, arm: str, strategy: str) -> None:
    one, many = results[1][arm], results[ranks][f"{arm}-{strategy}"]
    if arm.startswith("bf16"):  # autocast rounds products, ranks round what they fetch: near, and no more
        for expected, got in zip(one["steps"], many["steps"], strict=True):
            assert got["loss/nll"] == pytest.approx(expected["loss/nll"], rel=1e-2)
            assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-1)
        return
    for step, (expected, got) in enumerate(zip(one["steps"], many["steps"], strict=True)):
        assert got.keys() == expected.keys()
        for figure in expected:
            assert got[figure] == close(expected[figure], 1e-6 if figure.startswith("loss") else 1e-4), (step, figure)
    for figure in one["validation"]:
        # extremes and correlations of a critic's values enlarge rounding
        relative = 1e-3 if figure.startswith(("value/", "reliability/")) else 1e-5
        assert many["validation"][figure] == close(one["validation"][figure], relative), figure
    for kept, remembered in zip(leaves(one["memory"]), leaves(many["memory"]), strict=True):
        assert remembered == (close(kept, 1e-5) if isinstance(kept, float) else kept)
    for parameter, expected in one["weights"].items():
        torch.testing.assert_close(many["weights"][parameter], expected, rtol=1e-4, atol=1e-5, msg=parameter)


@pytest.mark.parametrize(("ranks", "arm", "strategy"), EACH_CASE)
def test_a_sharded_rank_holds_its_share(
    results: dict[int, dict[str, Any]], ranks: int, arm: str, strategy: str
) -> None:
    whole, held = results[1][arm]["held"], results[ranks][f"{arm}-{strategy}"]["held"]
    pieces = {"NO_SHARD": 1, "HYBRID_SHARD": 2}.get(strategy, ranks)
    padding = 100  # a vector of 3 split over 4 ranks leaves some with nothing and some with one
    assert abs(held - whole / pieces) <= padding


def test_the_first_ranks_rows_are_its_share_of_the_one_order(results: dict[int, dict[str, Any]]) -> None:
    for ranks in (2, 4):
        for one, part in zip(
            results[1]["baseline"]["rows"], results[ranks]["baseline-FULL_SHARD"]["rows"], strict=True
        ):
            assert len(part) == math.ceil(len(one) / ranks)
            assert set(part) <= set(one)


@pytest.mark.parametrize("ranks", CASES)
def test_between_processes_heads_travel_while_others_compute(results: dict[int, dict[str, Any]], ranks: int) -> None:
    """The order of the calls: gloo returns from each when it is done."""
    told = results[ranks]["baseline-FULL_SHARD"]
    found = [names for names in micro_batches(told["events"]) if f"post_backward_reduce ({told['units'][1]})" in names]
    assert found, "an evaluation has no backward pass"
    for names in found:
        check_fetched_ahead(names, told["units"])
        check_reduced_behind(names, told["units"][1:])
