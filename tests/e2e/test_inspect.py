"""`wmtp inspect`: figures of single tokens, against an independent way to get each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.storage import copy
from wmtp.testing import memory_storage

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str, str]]

SHORT = ["train.steps=2", "train.log_every=2", "train.eval_batches=1", "checkpoint.every=null"]


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every arm, hardly trained, and what `wmtp inspect` says of it; with the run folder as `folder`."""
    from tests_recipe import ARMS, RECIPE

    from wmtp.cli import run_command

    runs = tmp_path_factory.mktemp("runs")
    (runs / "recipe.yaml").write_text(RECIPE)
    found = {}
    for arm, overrides in ARMS.items():
        extra = [*SHORT, *(override.format(runs=runs) for override in overrides)]
        assert run_command(["train", "--recipe", str(runs / "recipe.yaml"), "--out", str(runs / arm), *extra]) == 0
        assert run_command(["inspect", str(runs / arm), "--rows", "2"]) == 0
        found[arm] = json.loads((runs / arm / "eval" / "tokens.json").read_text()) | {"folder": runs / arm}
    return found


def variants(look: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for problem in look["problems"]:
        yield from problem["variants"]


def test_each_problem_has_a_correct_and_an_incorrect_solution_of_the_held_out_file(looks: dict[str, Any]) -> None:
    import wmtp

    file = Path(wmtp.__file__).parent / "embedded" / "problems_validation.jsonl"
    known = {
        (row["problem_id"], row["is_correct"], row["response"])
        for row in map(json.loads, file.read_text().splitlines())
    }
    for problem in looks["baseline"]["problems"]:
        assert [variant["correct"] for variant in problem["variants"]] == [True, False]
        for variant in problem["variants"]:
            text = "".join(variant["tokens"][:-1] if variant["ends"] else variant["tokens"])
            assert any(p == problem["problem"] and c == variant["correct"] and r.startswith(text) for p, c, r in known)


def test_the_first_heads_nll_is_that_of_the_model_as_transformers_loads_it(looks: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    look = looks["baseline"]
    model = AutoModelForCausalLM.from_pretrained(look["folder"] / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(look["folder"] / "final")
    for problem in look["problems"]:
        before = len(tokenizer(problem["prompt"])["input_ids"])
        for variant in problem["variants"]:
            text = problem["prompt"] + "".join(variant["tokens"])
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                logs = torch.log_softmax(model(ids).logits[0].double(), -1)
            expected = [-float(logs[j - 1, ids[0, j]]) for j in range(ids.shape[1])][before:]
            assert variant["nll"][0] == pytest.approx(expected, rel=1e-4)


def test_baseline_weighs_every_token_1_and_has_no_critic(looks: dict[str, Any]) -> None:
    for variant in variants(looks["baseline"]):
        assert {weight for head in variant["weight"] for weight in head} == {1.0}
        assert not {"value", "advantage", "excess"} & set(variant)


def test_rho1_keeps_the_tokens_with_the_largest_excess_of_each_head(looks: dict[str, Any]) -> None:
    for k in range(looks["rho1"]["heads"]):
        pairs = [pair for v in variants(looks["rho1"]) for pair in zip(v["weight"][k], v["excess"][k], strict=True)]
        kept, dropped = ([excess for weight, excess in pairs if weight == chosen] for chosen in (1.0, 0.0))
        assert min(kept) > max(dropped)
        assert 0.6 <= len(kept) / len(pairs) < 0.62


def test_the_critics_weights_rise_with_the_advantage_and_belong_to_the_token(looks: dict[str, Any]) -> None:
    for variant in variants(looks["verifiable"]):
        assert all(head == variant["weight"][0] for head in variant["weight"])
        by_advantage = [w for _, w in sorted(zip(variant["advantage"], variant["weight"][0], strict=True))]
        assert by_advantage == sorted(by_advantage)
        assert 0.1 <= by_advantage[0] <= by_advantage[-1] <= 3.0


def test_the_values_are_those_of_the_critics_own_run(looks: dict[str, Any]) -> None:
    for own, used in zip(variants(looks["critic"]), variants(looks["verifiable"]), strict=True):
        assert own["tokens"] == used["tokens"]
        assert own["value"] == pytest.approx(used["value"], rel=1e-4, abs=1e-6)
        assert "nll" not in own


def test_the_scheme_has_the_memory_it_had_when_the_run_ended(looks: dict[str, Any]) -> None:
    """Whitening by running averages: of the whole run, not of the rows shown."""
    from wmtp import checkpoint

    steps = checkpoint.list_steps(looks["verifiable"]["folder"] / "checkpoints")
    mean, variance = checkpoint.load(steps[-1], parts=["objective"]).parts["objective"]["moments"]
    advantages = torch.tensor([a for v in variants(looks["verifiable"]) for a in v["advantage"]]).double()
    own_mean, own_variance = float(advantages.mean()), float(advantages.var(unbiased=False))
    mixed = 0.99 * mean + 0.01 * own_mean, 0.99 * variance + 0.01 * own_variance
    expected = ((advantages - mixed[0]) / mixed[1] ** 0.5).exp().clamp(0.1, 3.0)
    weights = torch.tensor([w for v in variants(looks["verifiable"]) for w in v["weight"][0]]).double()
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)


def test_the_terminal_shows_both_solutions_and_says_what_the_colour_means(
    looks: dict[str, Any], wmtp_command: Command
) -> None:
    code, stdout, _ = wmtp_command("inspect", looks["verifiable"]["folder"], "--rows", 1)
    assert code == 0
    problem = looks["verifiable"]["problems"][0]
    for variant in problem["variants"]:
        code_lines = "".join(variant["tokens"][:-1] if variant["ends"] else variant["tokens"]).splitlines()
        assert all(line in stdout for line in code_lines)
    assert "  value   adv. weight    nll   " in stdout
    assert "weight of head 1" in stdout
    assert "tokens.json" in stdout


def test_json_is_the_file(looks: dict[str, Any], wmtp_command: Command) -> None:
    folder = looks["critic"]["folder"]
    code, stdout, _ = wmtp_command("inspect", folder, "--rows", 2, "--json")
    assert code == 0
    assert json.loads(stdout) == json.loads((folder / "eval" / "tokens.json").read_text())


def test_an_unfinished_run_and_a_run_without_held_out_rows_are_refused(
    looks: dict[str, Any], tmp_path: Path, wmtp_command: Command
) -> None:
    code, _, message = wmtp_command("inspect", tmp_path)
    assert (code, "is no finished run" in message) == (2, True)
    run = tmp_path / "run"
    run.mkdir()
    (run / "final").symlink_to(looks["baseline"]["folder"] / "final")
    text = (looks["baseline"]["folder"] / "config.yaml").read_text()
    before, validation = text.split("  validation:\n")
    after = validation.split("  validation_fraction:", 1)[1]
    unwatched = after.replace("eval_every: 5", "eval_every: null")
    (run / "config.yaml").write_text(f"{before}  validation: null\n  validation_fraction:{unwatched}")
    code, _, message = wmtp_command("inspect", run)
    assert (code, "no held-out rows" in message) == (2, True)


def test_a_run_in_a_store_is_inspected_as_one_on_a_disk(looks: dict[str, dict[str, Any]]) -> None:
    from wmtp.cli import run_command

    folder = looks["baseline"]["folder"]
    with memory_storage() as bucket:
        for path in folder.rglob("*"):
            if path.is_file() and "eval" not in path.parts:
                copy(path, bucket / "run" / path.relative_to(folder).as_posix())
        assert run_command(["inspect", f"{bucket}/run", "--rows", "2"]) == 0
        assert (bucket / "run/eval/tokens.json").read_bytes() == (folder / "eval" / "tokens.json").read_bytes()


# wmtp critic inspect


def critic_look(wmtp_command: Command, folder: Path, *options: Any) -> dict[str, Any]:
    code, out, error = wmtp_command("critic", "inspect", folder, *options, "--rows", 2, "--json")
    assert code == 0, error
    return dict(json.loads(out))


def test_a_critics_run_shows_the_advantages_and_weights_that_it_would_give(
    looks: dict[str, Any], wmtp_command: Command
) -> None:
    """At lam 0 an advantage is the value's change; it is whitened over the tokens shown, and clipped as asked."""
    look = critic_look(wmtp_command, looks["critic"]["folder"], "lam=0", "clip=[0.5,2]")
    told, weights = [], []
    for variant in variants(look):
        changes = [after - before for before, after in zip(variant["value"], variant["value"][1:], strict=False)]
        assert variant["advantage"][1:] == pytest.approx(changes, abs=1e-5)
        told += variant["advantage"]
        weights += variant["weight"][0]
    advantages = torch.tensor(told).double()
    whitened = (advantages - advantages.mean()) / advantages.std(unbiased=False)
    torch.testing.assert_close(torch.tensor(weights).double(), whitened.exp().clamp(0.5, 2.0), rtol=1e-3, atol=1e-4)
    assert "lam 0.0" in look["about"]


def test_credit_and_ranked_pairs_are_those_of_the_tokens_shown(looks: dict[str, Any], wmtp_command: Command) -> None:
    look = critic_look(wmtp_command, looks["verifiable"]["folder"])
    for row in look["credit"]:
        own = [
            figures
            for v in variants(look)
            if v["correct"] == row["correct"]
            for *figures, changed in zip(v["value"], v["advantage"], v["weight"][0], v["changed"], strict=True)
            if changed == row["changed"]
        ]
        assert row["tokens"] == len(own)
        for place, name in enumerate(("value", "advantage", "weight")):
            expected = sum(figures[place] for figures in own) / len(own) if own else None
            assert row[name] == (None if expected is None else pytest.approx(expected, rel=1e-4, abs=1e-6))
    means = [[sum(v["value"]) / len(v["value"]) for v in problem["variants"]] for problem in look["problems"]]
    assert look["pairs"] == {"count": 2, "right": sum(good > bad for good, bad in means)}


def test_every_line_of_a_solution_is_printed_with_its_figures(looks: dict[str, Any], wmtp_command: Command) -> None:
    code, out, _ = wmtp_command("critic", "inspect", looks["critic"]["folder"], "--rows", 1, "--by", "advantage")
    assert code == 0
    for variant in looks["critic"]["problems"][0]["variants"]:
        text = "".join(variant["tokens"][:-1] if variant["ends"] else variant["tokens"])
        for line in text.splitlines():
            assert f" {line}" in out
    assert "coloured by advantage" in out


@pytest.mark.parametrize(
    ("arm", "options", "told"),
    [
        ("baseline", [], "in which no critic gives the weights"),
        ("rho1", ["lam=0"], "is no critic's run"),
        ("critic", ["terminal=reward"], "was trained pairwise"),
        ("critic", ["lam=2"], "lam"),
        ("critic", ["lamb=0"], "lamb"),
        ("critic", ["critic=elsewhere"], "leave critic and scores out"),
        ("critic", ["--by", "nll"], "value, advantage, weight"),
    ],
)
def test_what_a_critic_cannot_show_is_refused(
    arm: str, options: list[str], told: str, looks: dict[str, Any], wmtp_command: Command
) -> None:
    code, _, error = wmtp_command("critic", "inspect", looks[arm]["folder"], *options)
    assert code == 2
    assert told in error
