"""Random weights that are drawn later are those that one process has, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from wmtp.formats.drawn import Drawn
from wmtp.formats.hf import without_parameters
from wmtp.formats.native import load_model, save_model
from wmtp.formats.streamed import fill, grown_model, missing
from wmtp.model import MTPModel
from wmtp.probing import without_weights
from wmtp.testing import FAMILIES, tiny_base


def with_heads(family: str, init: str, *, later: bool) -> tuple[MTPModel, Drawn]:
    torch.manual_seed(5)
    drawn = Drawn()
    if not later:
        return MTPModel(tiny_base(family, 3), 3, init), drawn
    with drawn:
        with without_parameters():
            base = tiny_base(family, 3)
        return MTPModel(base, 3, init), drawn


@pytest.mark.parametrize("init", ["copy", "fresh"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_rows_of_any_parameter_are_those_of_a_model_that_was_built_whole(family: str, init: str) -> None:
    whole, _ = with_heads(family, init, later=False)
    after = torch.get_rng_state()
    model, drawn = with_heads(family, init, later=True)
    assert torch.get_rng_state().equal(after), "what is drawn next is the same too"
    assert without_weights(model)
    assert drawn.name(model)
    for name, parameter in whole.named_parameters():
        rows = parameter.shape[0]
        parts = [drawn.rows(name, 0, rows // 3), drawn.rows(name, rows // 3, rows)]
        assert torch.cat(parts).equal(parameter), name


def test_drawing_leaves_the_generator_alone() -> None:
    model, drawn = with_heads("llama", "fresh", later=True)
    assert drawn.name(model)
    before = torch.get_rng_state()
    drawn.rows("base.lm_head.weight", 0, 2)
    assert torch.get_rng_state().equal(before)


def test_values_that_cannot_be_made_again_are_told() -> None:
    with Drawn() as drawn, without_parameters():
        module = nn.Module()
        module.weight = nn.Parameter(torch.randn(300, 300))  # drawn before it was a parameter, and large
    assert not drawn.name(module)


def test_small_values_made_before_are_kept() -> None:
    with Drawn() as drawn, without_parameters():
        module = nn.Module()
        module.weight = nn.Parameter(torch.arange(6.0))
    assert drawn.name(module)
    assert drawn.rows("weight", 1, 3).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("init", ["copy", "fresh", "zero"])
@pytest.mark.parametrize(
    ("stored", "family"), [("parallel", "parallel"), ("linear", "linear"), ("chain", "chain"), (None, "chain")]
)
def test_a_folder_with_fewer_heads_is_filled_with_what_is_loaded_whole(
    stored: str | None, family: str, init: str, tmp_path: Path
) -> None:
    """Trained heads as they are stored, new ones as `init` says, from the same random numbers."""
    torch.manual_seed(1)
    saved = MTPModel(tiny_base("llama", 3), 3, "fresh", family=stored) if stored else MTPModel(tiny_base("llama", 3), 1)
    save_model(saved, tmp_path)
    torch.manual_seed(5)
    whole = load_model(str(tmp_path), heads=family, num_heads=5, init=init)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    model, new = grown_model(str(tmp_path), 5, init, family)
    assert torch.get_rng_state().equal(after), "what is drawn next is the same too"
    assert missing(model, str(tmp_path), new) == []
    fill(model, str(tmp_path), torch.device("cpu"), new)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in whole.named_parameters()]
    for name, parameter in whole.named_parameters():
        assert model.get_parameter(name).equal(parameter), name
