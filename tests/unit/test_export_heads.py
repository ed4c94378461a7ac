"""A single head goes out as the plain model that it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wmtp.errors import UsageError, WmtpError
from wmtp.export import export
from wmtp.formats.native import save_model
from wmtp.testing import tiny_base, tiny_model, tiny_tokenizer
from wmtp.value import ValueModel

TOKENS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_head_k_goes_out_as_the_plain_model_that_it_is(tmp_path: Path) -> None:
    """Of every architecture: `test_export_table.py`."""
    from transformers import AutoModelForCausalLM

    model = tiny_model("llama", 3, noise=0.1)
    save_model(model, tmp_path / "m", tiny_tokenizer())
    hidden_K = model.eval()(TOKENS)
    for number in (1, 2, 3):
        plain = AutoModelForCausalLM.from_pretrained(
            export(str(tmp_path / "m"), str(tmp_path / "out"), f"head:{number}")
        )
        torch.testing.assert_close(
            plain.eval()(TOKENS).logits, model.project(hidden_K[number - 1]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("heads", "target", "says"),
    [
        ("parallel", "head:4", "the head must be from 1 to 3, those of the model; got 4"),
        ("parallel", "head:0", "got 0"),
        ("parallel", "head:two", "--to must be one of"),
    ],
)
def test_what_cannot_go_out_is_said_and_nothing_is_written(heads: str, target: str, says: str, tmp_path: Path) -> None:
    save_model(tiny_model("llama", 3, heads=heads), tmp_path / "m", tiny_tokenizer())
    with pytest.raises(UsageError, match=says):
        export(str(tmp_path / "m"), str(tmp_path / "out"), target)
    assert not (tmp_path / "out").exists()


def test_a_critic_goes_out_as_itself_alone(tmp_path: Path) -> None:
    save_model(ValueModel(tiny_base()), tmp_path / "m", tiny_tokenizer())
    with pytest.raises(UsageError, match="a critic has no language model"):
        export(str(tmp_path / "m"), str(tmp_path / "out"), "meta")


def test_a_config_that_does_not_say_what_the_model_computes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", 2, noise=0.1)
    save_model(model, tmp_path / "m", tiny_tokenizer())

    def forgetful(self: object, *args: object, **options: object) -> str:
        return (
            '{"dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "multiple_of": 1, '
            '"ffn_dim_multiplier": 0.5705882352941176, "rope_theta": 77.0, "n_future_tokens": 2}'
        )

    monkeypatch.setattr("wmtp.formats.meta.Params.model_dump_json", forgetful)
    with pytest.raises(WmtpError, match="same weights and computes something else"):
        export(str(tmp_path / "m"), str(tmp_path / "out"), "meta")
