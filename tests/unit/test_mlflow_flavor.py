"""A final model answers texts, or tables of them, the way MLflow asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wmtp import run_tracking
from wmtp.config import load
from wmtp.errors import UsageError
from wmtp.formats.native import save_model
from wmtp.mlflow_flavor import Completer, Judge, _load_pyfunc
from wmtp.testing import tiny_base, tiny_model, tiny_tokenizer
from wmtp.value import ValueModel

RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"


def test_a_language_model_completes_texts_of_a_list_or_a_column(tmp_path: Path) -> None:
    save_model(tiny_model(vocab_size=269), tmp_path / "final", tiny_tokenizer())
    model = _load_pyfunc(str(tmp_path / "final"))
    assert isinstance(model, Completer)
    texts = model.predict(["a b", "c"], {"max_new_tokens": 3})
    assert len(texts) == 2
    assert model.predict({"prompt": ["a b", "c"]}, {"max_new_tokens": 3}) == texts
    with pytest.raises(UsageError, match="got max_new_tokens, temperature"):
        model.predict(["a"], {"temperature": 1.0})


def test_a_critic_gives_the_value_after_the_last_token(tmp_path: Path) -> None:
    critic = ValueModel(tiny_base(vocab_size=269), "linear").eval()
    save_model(critic, tmp_path / "final", tiny_tokenizer())
    model = _load_pyfunc(str(tmp_path / "final"))
    assert isinstance(model, Judge)
    ids = model.tokenizer("a b")["input_ids"]
    with torch.no_grad():
        expected = float(critic(torch.tensor([ids]))[0, -1])
    assert model.predict(["a b"]) == [pytest.approx(expected)]


def test_a_registered_critic_is_called_value_head_and_a_policy_by_its_arm() -> None:
    assert run_tracking.model_name(load([RECIPE])) == "wmtp_baseline"
    assert run_tracking.model_name(load([RECIPE], ["objective={kind: value}"])) == "wmtp_critic_value_head"


def test_params_under_secret_names_are_hidden() -> None:
    leaves = dict(run_tracking._leaves({"own": {"api_key": "hunter2", "max_tokens": 3}, "none": None}))
    assert leaves == {"own.api_key": "***", "own.max_tokens": "3"}
