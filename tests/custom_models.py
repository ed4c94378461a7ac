"""Model folders with code of their own, for tests: a Llama whose activation is another one, in two Python files.

Importing `configuration_own.py` makes the folder that `SPRUNG` names: so a test can tell whether it was run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wmtp.formats.code import remote_code
from wmtp.formats.hf import load_causal_lm
from wmtp.testing import tiny_base, tiny_tokenizer

CONFIGURATION = """
import os
from transformers import LlamaConfig

if "SPRUNG" in os.environ:
    os.makedirs(os.environ["SPRUNG"], exist_ok=True)


class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""

MODELING = """
import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel

from .configuration_own import OwnConfig


class Squared(nn.Module):
    def forward(self, x):
        return torch.relu(x) ** 2


class OwnModel(LlamaModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp.act_fn = Squared()


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()


class OwnForSequenceClassification(LlamaPreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = OwnModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class OddForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.model.norm_of_its_own = nn.LayerNorm(config.hidden_size)
        self.post_init()
"""

TOKENIZATION = """
import os
from transformers import PreTrainedTokenizerFast

if "SPRUNG" in os.environ:
    os.makedirs(os.environ["SPRUNG"], exist_ok=True)


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""

AUTO_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
}


def custom_model(folder: Path, **auto_map: Any) -> Path:
    """Write such a model, with a tokenizer that needs no code.

    Args:
        auto_map: classes in place of those of `AUTO_MAP`.
    """
    tiny_base(vocab_size=269, max_position_embeddings=256).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING)
    change(folder / "config.json", model_type="own_llama", auto_map={**AUTO_MAP, **auto_map})
    return folder


def custom_tokenizer(folder: Path, *, name: str = "tokenization_own.OwnTokenizer") -> Path:
    """Make the tokenizer of a folder one with code of its own."""
    (folder / "tokenization_own.py").write_text(TOKENIZATION)
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, name]}}
    change(folder / "tokenizer_config.json", **settings)
    return folder


def change(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def allowed_base(folder: Path) -> Any:
    """Its model, with its code."""
    with remote_code(str(folder)):
        return load_causal_lm(str(folder))


@contextmanager
def own_modules(folder: Path) -> Iterator[None]:
    """Within it transformers keeps copies of such code in a folder of the test, and forgets them at its end."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("SPRUNG", str(folder / "sprung"))
        try:
            yield
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
                del sys.modules[name]
