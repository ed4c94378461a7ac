"""Serving engines' own Python files, run without the engines: what a file imports from its package is a stand-in.

How tensors are found by name, and what a draft layer makes of its inputs, is then the engine's own code. Layers that
need its kernels are written out (`engines.py`).
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engines import norm, qwen2_layer
from torch import Tensor, nn

# Layers. Parameters begin as NaN, so that one which is not loaded shows.


def empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, torch.nan), requires_grad=False)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = empty(size), eps

    def forward(self, hidden: Tensor) -> Tensor:
        return norm(hidden, self.weight, self.eps)


class Table(nn.Module):
    """An embedding or an unembedding, by the row."""

    def __init__(self, rows: int, width: int, **options: Any) -> None:
        super().__init__()
        self.weight = empty(rows, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class LogitsProcessor(nn.Module):
    """vLLM's: a vocabulary, what it was without padding, a factor. SGLang's is given a config, and not called."""

    def __init__(self, vocabulary: Any, before: int | None = None, scale: float = 1.0, **options: Any) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, table: Table, hidden: Tensor, *more: Any) -> Tensor:
        return self.scale * F.linear(hidden, table.weight)


class Linear(nn.Module):
    """Several maps of the same input, one below the other; each is loaded by its name (`shard_id`)."""

    def __init__(self, width: int, rows: Mapping[Any, int], bias: bool = False) -> None:
        super().__init__()
        self.rows = rows
        self.weight = empty(sum(rows.values()), width)
        if bias:
            self.bias = empty(sum(rows.values()))
        if len(rows) > 1:
            for parameter in self.parameters():
                parameter.weight_loader = self.load  # type: ignore[attr-defined]

    def load(self, parameter: nn.Parameter, loaded: Tensor, name: Any = None) -> None:
        """A newer vLLM hands over the name with the tensor."""
        name = loaded.shard_id if name is None else name  # type: ignore[attr-defined]
        start = sum(list(self.rows.values())[: list(self.rows).index(name)])
        load(parameter[start : start + self.rows[name]], loaded)

    def parts(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The maps' own tensors."""
        sizes = list(self.rows.values())
        return {
            f"{name}.{kind}": part
            for kind, parameter in self.named_parameters()
            for name, part in zip(names, parameter.split(sizes), strict=True)
        }


class Qwen2DecoderLayer(nn.Module):
    """With the engines' names of parameters."""

    def __init__(self, config: Any, *unused: Any, **options: Any) -> None:
        super().__init__()
        self.config = config
        width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
        queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.qkv_proj = Linear(width, {"q": queries, "k": keys, "v": keys}, bias=True)
        self.self_attn.o_proj = Linear(queries, {"": width})
        self.mlp.gate_up_proj = Linear(width, {0: config.intermediate_size, 1: config.intermediate_size})
        self.mlp.down_proj = Linear(config.intermediate_size, {"": width})
        self.input_layernorm = RMSNorm(width)
        self.post_attention_layernorm = RMSNorm(width)

    def forward(self, positions: Tensor, hidden_states: Tensor, **options: Any) -> Any:
        """Of one row. vLLM adds the second result, which is folded in already; SGLang does so by its `batch`."""
        weights = {
            name: value for name, value in self.named_parameters() if "qkv" not in name and "gate_up" not in name
        }
        attention, mlp = self.self_attn.qkv_proj, self.mlp.gate_up_proj
        weights |= {f"self_attn.{n}": v for n, v in attention.parts(["q_proj", "k_proj", "v_proj"]).items()}
        weights |= {f"mlp.{n}": v for n, v in mlp.parts(["gate_proj", "up_proj"]).items()}
        config = self.config.to_dict()
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        out = qwen2_layer(config, hidden_states[None], weights, "", first=int(positions[0]))[0]
        return out if "forward_batch" in options else (out, torch.zeros_like(out))


class Qwen2Model(nn.Module):
    def __init__(self, config: Any, *unused: Any, **options: Any) -> None:
        super().__init__()
        self.embed_tokens = Table(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Qwen2DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


def load(parameter: Tensor, loaded: Tensor) -> None:
    assert parameter.shape == loaded.shape
    parameter.data.copy_(loaded)


def whole(model: nn.Module) -> bool:
    """Whether every parameter was loaded."""
    return not any(bool(torch.isnan(parameter).any()) for parameter in model.parameters())


STANDINS: dict[str, Any] = {
    "RMSNorm": RMSNorm,
    "ParallelLMHead": Table,
    "VocabParallelEmbedding": Table,
    "LogitsProcessor": LogitsProcessor,
    "Qwen2DecoderLayer": Qwen2DecoderLayer,
    "Qwen2Model": Qwen2Model,
    "default_weight_loader": load,
    "init_logger": logging.getLogger,
    "support_quantized_model_reload_from_hp_weights": lambda function: function,
    "without_trust_remote_code": lambda options: options,
    "add_prefix": lambda name, prefix: name,
    "PoolingType": SimpleNamespace(LAST=0),
    "Pooler": lambda **options: None,
    "DEFAULT_VOCAB_PADDING_SIZE": 64,
    "layer_stack": nullcontext,
    "batch": SimpleNamespace(
        start=lambda batch: None, fold=lambda hidden, batch: hidden, take_output=lambda hidden, batch: hidden
    ),
}
"""What the files import, by name."""


# Files.


class Anything:
    """What a file imports and no test needs: enough for annotations and for calls while it is imported."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes whatever it is given."""


class Standins(MetaPathFinder, Loader):
    """Answers every import from a package: a few files are its own, the others are stand-ins."""

    def __init__(self, package: str, folder: Path, own: Collection[str], parts: Mapping[str, Any]) -> None:
        self.package, self.folder, self.own, self.parts = package, folder, own, parts

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] != self.package:
            return None
        if name in self.own:
            return importlib.util.spec_from_file_location(
                name, self.folder.joinpath(*name.split(".")).with_suffix(".py")
            )
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = self.named  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""

    def named(self, name: str) -> Any:
        """Classes by different names are different ones: a model may be made of several."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self.parts[name] if name in self.parts else type(name, (Anything,), {})


OWN = {"vllm.model_executor.models.utils"}
"""Files that others import and that are run too: it has vLLM's loader of weights."""


def located(package: str, path: str) -> Path:
    """The folder of an engine's package. Skips the test where it, or a file of it, is not."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package}'s files are not here: pip install --no-deps {package}")
    folder = Path(found.submodule_search_locations[0])
    if not (folder / path).is_file():
        pytest.skip(f"this version of {package} has no {path}")
    return folder


@contextmanager
def engine_file(
    package: str, path: str, own: Collection[str] = OWN, parts: Mapping[str, Any] = STANDINS
) -> Iterator[Any]:
    """One file of an engine as a module; the engine itself is never imported. Skips as `located` does.

    Args:
        path: in the package.
        own: modules of the package that it imports and that are run too.
        parts: stand-ins for what else it imports, by name.
    """
    folder = located(package, path)
    name = ".".join([package, *Path(path).with_suffix("").parts])
    spec = importlib.util.spec_from_file_location(name, folder / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, finder = set(sys.modules), Standins(package, folder.parent, own, parts)
    sys.meta_path.insert(0, finder)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.meta_path.remove(finder)
        for imported in set(sys.modules) - before:
            if imported.split(".")[0] == package:
                del sys.modules[imported]
