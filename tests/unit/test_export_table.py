"""docs/models.md says which head family of which architecture goes out in which format: each cell is one test."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import Mimo, medusa_logits
from torch import Tensor

from wmtp import checkpoint
from wmtp.adapters import is_adapter, merge_adapters
from wmtp.config import Config
from wmtp.decoding import generate
from wmtp.errors import UsageError
from wmtp.export import TARGETS, export
from wmtp.families import FAMILIES as HEADS
from wmtp.formats.hf import load_causal_lm
from wmtp.formats.native import load_model, save_model
from wmtp.model import MTPModel
from wmtp.parts import build_model
from wmtp.testing import FAMILIES, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
TOKENS = torch.randint(3, 260, (1, 9), generator=torch.Generator().manual_seed(0))
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES}
ARCHITECTURES["mistral, full attention"] = ("mistral", {"sliding_window": None})
"""The table's names -> ours, and what is different."""

Cell = tuple[str, str, str]


def table() -> dict[Cell, str]:
    """What the page says of each (head family, architecture, target)."""
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("| heads | architecture |"))
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in takewhile(lambda line: line.startswith("|"), lines[begin:])
    ]
    (_, _, *targets), _, *body = rows
    said = {}
    for heads, architecture, *cells in body:
        said |= {(heads, architecture, target): cell for target, cell in zip(targets, cells, strict=True)}
    return said


CELLS = table()


def always(cell: Cell) -> bool:
    """Whether a cell is looked at in every run; the others in the exhaustive one."""
    _, architecture, target = cell
    return architecture == "llama" or (CELLS[cell] == "yes" and target not in ("wmtp", "hf", "adapter"))


def test_the_table_has_every_family_architecture_and_target() -> None:
    targets = ["head:2" if target == "head:K" else target for target in TARGETS]
    assert set(CELLS) == set(product(HEADS, ARCHITECTURES, targets))
    assert all(said == "yes" or said.startswith("no: ") for said in CELLS.values())


@dataclass(frozen=True)
class Source:
    """A model, and the folder that it was saved in."""

    model: MTPModel
    folder: str


Sources = Callable[[str, str], Source]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """One for each head family and architecture, made when it is first asked for."""
    tokenizer = tiny_tokenizer()

    @functools.cache
    def made(heads: str, architecture: str) -> Source:
        name, options = ARCHITECTURES[architecture]
        model = tiny_model(name, 2, heads=heads, noise=0.1, vocab_size=272, **options).eval()
        return Source(model, str(save_model(model, tmp_path_factory.mktemp("source") / "m", tokenizer)))

    return made


@pytest.mark.parametrize(
    ("heads", "architecture", "target"),
    [cell if always(cell) else pytest.param(*cell, marks=pytest.mark.exhaustive) for cell in CELLS],
)
@torch.no_grad()
def test_a_cell_of_the_table_is_true(
    heads: str, architecture: str, target: str, sources: Sources, tmp_path: Path
) -> None:
    said, source = CELLS[heads, architecture, target], sources(heads, architecture)
    if said == "yes":
        GOES_OUT[target](source, tmp_path)
        return
    with pytest.raises(UsageError) as caught:
        export(source.folder, str(tmp_path / "out"), target)
    assert caught.value.exit_code == 2
    assert said.removeprefix("no: ") in str(caught.value)
    assert not (tmp_path / "out").exists()


def greedy(model: MTPModel) -> list[int]:
    """What head 1 goes on with."""
    return generate(model, TOKENS, 6, "plain", eos=()).tokens[0]


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def ours(target: str, source: Source, tmp_path: Path) -> None:
    """A model with its heads, all of it as it was."""
    again = load_model(str(export(source.folder, str(tmp_path / "out"), target))).eval()
    assert same_state(again, source.model)
    assert greedy(again) == greedy(source.model)
    assert generate(again, TOKENS, 6, eos=()).tokens[0] == greedy(source.model)


def plain(target: str, source: Source, tmp_path: Path) -> None:
    """What transformers loads is the model of that head, and transformers decodes as we do."""
    from transformers import AutoModelForCausalLM

    folder = export(source.folder, str(tmp_path / "out"), target)
    theirs, info = AutoModelForCausalLM.from_pretrained(str(folder), output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = load_model(source.folder)
    expected.keep_only(1 if target == "hf" else 2)
    state = {expected.hf_key(name): value for name, value in expected.state_dict().items()}
    found = theirs.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert theirs.eval().generate(TOKENS, **options)[0, TOKENS.shape[1] :].tolist() == greedy(expected.eval())


def medusa(source: Source, tmp_path: Path) -> None:
    first, *others = source.model(TOKENS)
    got = medusa_logits(Path(str(export(source.folder, str(tmp_path / "out"), "vllm-medusa"))), first)
    for logits, expected in zip(got, others, strict=True):
        torch.testing.assert_close(logits, source.model.project(expected), rtol=1e-5, atol=1e-5)


def mimo_logits(source: Source, target: str, tmp_path: Path) -> tuple[Tensor, Tensor]:
    """Those of an engine's equations, positions from 1 on, but for the last one; checks the target model's."""
    folder = Path(str(export(source.folder, str(tmp_path / "out"), target)))
    got, drafted = Mimo(folder, "vllm" if target == "vllm-mimo" else "sglang", first=1).logits(TOKENS)
    torch.testing.assert_close(got, source.model.project(source.model(TOKENS)[0]), rtol=1e-4, atol=1e-4)
    return drafted[:, :-1], source.model.project(source.model(TOKENS)[1])[:, :-1]


def sglang_mimo(source: Source, tmp_path: Path) -> None:
    torch.testing.assert_close(*mimo_logits(source, "sglang-mimo", tmp_path), rtol=1e-4, atol=1e-4)
    again = load_model(str(tmp_path / "out")).eval()
    assert all(torch.equal(one, other) for one, other in zip(again(TOKENS), source.model(TOKENS), strict=True))
    assert greedy(again) == greedy(source.model)


def vllm_mimo(source: Source, tmp_path: Path) -> None:
    """This final norm's weight is uniform: only there is vLLM's draft the head's (`test_mimo.py`)."""
    torch.testing.assert_close(*mimo_logits(source, "vllm-mimo", tmp_path), rtol=1e-4, atol=1e-4)


def adapter(source: Source, tmp_path: Path) -> None:
    """From a checkpoint of a run with adapters; peft makes of the files what the adapted model is."""
    peft = pytest.importorskip("peft", reason="adapters need peft: pip install 'wmtp[lora]'")
    lora = {"rank": 2, "alpha": 6.0, "on": "trunk"}
    chosen = {"path": source.folder, "heads": {"family": source.model.family, "num_heads": 2}, "lora": lora}
    config = Config.model_validate(
        {"model": chosen, "data": {"train": {"path": "none"}, "max_length": 32}, "train": {"steps": 1}}
    )
    model, _ = build_model(config, tiny_tokenizer())
    assert isinstance(model, MTPModel)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(std=0.3)
    facts = {"config": config.model_dump(mode="json")}
    run = checkpoint.save(tmp_path / "checkpoints", 1, {"model": model.state_dict()}, facts)
    folder = str(export(str(run), str(tmp_path / "out"), "adapter"))
    merge_adapters(model)
    again = load_model(folder).eval()
    assert same_state(again, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        theirs = peft.PeftModel.from_pretrained(load_causal_lm(source.folder), folder).eval()
    expected = model.eval().project(model(TOKENS)[0])
    torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - source.model.project(source.model(TOKENS)[0])).abs().max() > 0.1
    assert greedy(again) == greedy(model)


GOES_OUT: dict[str, Callable[[Source, Path], None]] = {
    "wmtp": functools.partial(ours, "wmtp"),
    "meta": functools.partial(ours, "meta"),
    "hf": functools.partial(plain, "hf"),
    "head:2": functools.partial(plain, "head:2"),
    "vllm-medusa": medusa,
    "sglang-mimo": sglang_mimo,
    "vllm-mimo": vllm_mimo,
    "adapter": adapter,
}
"""What is seen of an export by target."""
