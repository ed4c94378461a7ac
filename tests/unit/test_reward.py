"""Reward models: what they read, what they say of a row, and the scale on which a critic learns it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wmtp.config import Config
from wmtp.data.batches import collate
from wmtp.data.judged import RewardText
from wmtp.data.records import Record
from wmtp.data.text import Encoder, Row
from wmtp.errors import ConfigError, DataError, ModelError
from wmtp.formats.native import load_value_head, save_model
from wmtp.formats.reward import load_reward_model, load_reward_text
from wmtp.objective import ValueObjective
from wmtp.ranks import alone
from wmtp.rehearsal import on_meta, rehearse_scoring
from wmtp.reward import RewardModel, RunningScale
from wmtp.scoring import reward_scores
from wmtp.testing import FAMILIES, Ranks, random_batch, tiny_base, tiny_tokenizer
from wmtp.value import ValueModel

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip


def classifier(kind: str = "llama", **options: Any) -> Any:
    """A sequence classifier of random weights that are large enough to tell texts apart."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model("bert", **BERT) if kind == "bert" else FAMILIES[kind]()
    config.num_labels, config.initializer_range = 1, 0.3
    for name, value in options.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def judged_rows(count: int = 6) -> list[Row]:
    random = np.random.default_rng(0)
    return [
        Row(np.array([5, 6, 7]), 1, i, float("nan"), 0, f"p{i}", judged=random.integers(3, 64, n).astype(np.int32))
        for i, n in enumerate(random.integers(1, 20, count))
    ]


# what it says


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_row_in_a_batch_has_the_reward_that_transformers_gives_it_alone(kind: str) -> None:
    base, rows = classifier(kind), judged_rows()
    got = reward_scores(RewardModel(base), collate(rows, range(len(rows)), pad_id=1))
    with torch.no_grad():
        alone = torch.cat([base(input_ids=torch.tensor(row.judged).long().unsqueeze(0)).logits for row in rows])
    assert float(got.std()) > 0.01
    torch.testing.assert_close(got[:, 0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "layers"), [("llama", 3), ("gpt2", 3), ("bert", 0)])
def test_what_asking_a_reward_model_holds_can_be_told_without_weights(kind: str, layers: int) -> None:
    model = RewardModel(classifier(kind))
    assert len(model.layers()) == layers
    moments = rehearse_scoring(on_meta(model), (2, 8), lambda heads: {})
    assert max(moment.activations for moment in moments) > 2 * 8 * 32 * 4


@pytest.mark.parametrize(
    ("option", "told"), [({"num_labels": 2}, "has 2 outputs"), ({"pad_token_id": None}, "pad_token_id")]
)
def test_a_classifier_that_is_no_reward_model_is_refused(option: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        RewardModel(classifier(**option))


def test_a_language_model_is_no_reward_model_and_the_missing_head_is_named(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelError, match=r"missing keys in its weights: score\.weight"):
        load_reward_model(str(tmp_path / "lm"))


def test_a_saved_reward_model_is_loaded_with_its_context_and_chat_template(tmp_path: Path) -> None:
    base, tokenizer = classifier(), tiny_tokenizer()
    tokenizer.chat_template = CHAT
    base.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    loaded, text = load_reward_model(str(tmp_path / "rm")), load_reward_text(str(tmp_path / "rm"), None)
    batch = collate(judged_rows(), range(6), pad_id=1)
    assert torch.equal(reward_scores(loaded.eval(), batch), reward_scores(RewardModel(base), batch))
    assert text.context == 64


# what it reads


def chatting() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def test_a_record_is_read_in_the_reward_models_own_chat_template() -> None:
    text = RewardText(chatting(), None, 99)
    asked = Record("p", "add", "return 1")
    assert text.tokenizer.decode(text.ids(asked)) == "<user>add<assistant>return 1"
    told = replace(asked, messages=({"role": "system", "content": "be brief"}, {"role": "user", "content": "add"}))
    assert text.tokenizer.decode(text.ids(told)) == "<system>be brief<user>add<assistant>return 1"


def test_without_a_chat_template_the_configs_is_used() -> None:
    text = RewardText(tiny_tokenizer(), "Q {prompt} A {response}", 99)
    assert text.tokenizer.decode(text.ids(Record("p", "{x}", "y"))) == "Q {x} A y"
    with pytest.raises(DataError, match="conversation"):
        text.ids(Record("p", "x", "y", messages=({"role": "user", "content": "x"},)))


@pytest.mark.parametrize(
    ("chat", "template", "told"),
    [
        (CHAT, "{prompt}{response}", "leave it out"),
        (None, None, "has no chat template"),
        (None, "{prompt}", r"\{response\} is missing"),
        (None, "{prompt}{response}{x}", r"only \{prompt\} and \{response\}"),
    ],
)
def test_a_template_that_does_not_go_with_the_tokenizer_is_refused(
    chat: str | None, template: str | None, told: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat
    with pytest.raises(ConfigError, match=told):
        RewardText(tokenizer, template, 99)


def test_a_record_longer_than_the_reward_model_reads_is_dropped_or_refused_but_never_cut() -> None:
    record, judge = Record("p", "add", "y" * 9), RewardText(chatting(), None, 12)
    options: dict[str, Any] = {"template": "{prompt}\n", "max_length": 8, "judge": judge}
    for what in ("truncate", "error"):
        encoder = Encoder(tiny_tokenizer(), on_long_row=what, **options)
        with pytest.raises(DataError, match="longer than the context of the reward model"):
            encoder.row(record, *encoder.tokens([record]))
    encoder = Encoder(tiny_tokenizer(), on_long_row="drop", **options | {"max_length": 99})
    assert encoder.row(record, *encoder.tokens([record])) is None
    assert encoder.report.dropped_long == 1


# the scale


Steps = list[list[float]]
REWARDS = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=5), min_size=1, max_size=5)


def scaled(steps: Steps, scale: RunningScale) -> list[NDArray[np.float64]]:
    return [scale.scaled([torch.tensor(step)], alone, True)[0].double().numpy() for step in steps]


@given(REWARDS)
@settings(max_examples=25)
def test_rewards_are_scaled_by_mean_and_deviation_of_all_rows_so_far(steps: Steps) -> None:
    for number, got in enumerate(scaled(steps, RunningScale()), 1):
        seen = np.concatenate([np.array(step) for step in steps[:number]])
        deviation = seen.std() if seen.std() > 1e-2 else None
        if deviation is not None:
            np.testing.assert_allclose(got, (np.array(steps[number - 1]) - seen.mean()) / deviation, atol=1e-2)


@given(REWARDS, st.floats(0.1, 9), st.floats(-30, 30))
@settings(max_examples=25)
def test_neither_the_unit_nor_the_offset_of_a_reward_matters(steps: Steps, unit: float, offset: float) -> None:
    other = [[unit * reward + offset for reward in step] for step in steps]
    one, two = RunningScale(), RunningScale()
    for got, expected in zip(scaled(other, one), scaled(steps, two), strict=True):
        if two.deviation > 1e-2:
            np.testing.assert_allclose(got, expected, atol=2e-2)


def test_rewards_that_are_all_the_same_are_0() -> None:
    assert not any(got.any() for got in scaled([[0.1, 0.1, 0.1], [0.1]], RunningScale()))


def test_micro_batches_and_ranks_make_no_difference_to_the_scale() -> None:
    rewards, whole = torch.tensor([3.0, -1.0, 0.5, 7.0, 2.0]), RunningScale()
    (expected,) = whole.scaled([rewards], alone, True)
    parts = RunningScale().scaled([rewards[:2], rewards[:0], rewards[2:]], alone, True)
    torch.testing.assert_close(torch.cat(parts), expected)

    def of_rank(rank: int, reduce: Any) -> torch.Tensor:
        return RunningScale().scaled([rewards[rank::2]], reduce, True)[0]

    shares = Ranks(2).run(of_rank)
    for rank, got in enumerate(shares):
        torch.testing.assert_close(got, expected[rank::2])


def test_an_evaluation_reads_the_scale_and_leaves_it_and_a_checkpoint_keeps_it() -> None:
    batch = replace(random_batch(4, 12), reward_B=torch.full((4,), torch.nan))
    rewards = torch.tensor([1.0, 2.0, 4.0, 9.0])
    objective = ValueObjective("lambda_return", reward=lambda batch: rewards)
    model = ValueModel(tiny_base(), "linear")
    (trained,) = objective.plan(model, [batch], alone, True)
    state = objective.state_dict()
    again = ValueObjective("lambda_return", reward=lambda batch: rewards * 3)
    again.load_state_dict(state)
    (seen,) = again.plan(model, [batch], alone, False)
    assert again.state_dict() == state
    torch.testing.assert_close(seen, (rewards * 3 - rewards.mean()) / rewards.std(correction=0))
    sums = objective.sums(model, batch, trained, alone, True)
    figures = objective.metrics(dict(sums.meter.sums), sums.meter)
    assert bool(sums.weighted_sum.isfinite())  # whatever the labels
    assert (figures["reward/mean"], "value/calibration_error" in figures) == (4.0, False)


# config and files


def test_what_a_reward_cannot_be_used_for_is_refused() -> None:
    def made(**objective: Any) -> Config:
        return Config.model_validate(
            {
                "model": {"path": "x"},
                "data": {"train": {"path": "x"}},
                "objective": {"kind": "value", "reward": {"model": "x"}, **objective},
                "train": {"steps": 1},
            }
        )

    assert made(loss="lambda_return").objective.reward is not None  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="reward does nothing in loss 'pairwise'"):
        made()
    with pytest.raises(ValueError, match="head 'sigmoid' cannot give"):
        made(loss="monte_carlo", head="sigmoid")


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_value_head_is_loaded_without_its_backbone(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    critic = ValueModel(tiny_base(), kind, rewards="model")
    save_model(critic, tmp_path / "critic")
    head = load_value_head(str(tmp_path / "critic"))
    hidden = torch.randn(2, 3, 32)
    assert torch.equal(head(hidden), critic.value_head(hidden))
    tiny_base().save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match="it has no value head"):
        load_value_head(str(tmp_path / "plain"))
