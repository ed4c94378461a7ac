"""Loading Meta's checkpoints takes the memory of the model that is loaded, and hardly more on the way."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wmtp.formats.meta import Params, load_meta, shapes

SMALL = {"dim": 64, "n_layers": 6, "n_heads": 4, "vocab_size": 96, "n_future_tokens": 3}
WIDE = {"dim": 4096, "n_layers": 3, "n_heads": 32, "vocab_size": 32000, "n_future_tokens": 2}
"""Of 7B's width: 3 of its 32 layers."""
SEVEN_BILLION = {"dim": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 32000, "n_future_tokens": 4}
"""The published one: 29 layers, 3 extra heads, 6,738,415,616 parameters."""
LARGE = pytest.mark.skipif("WMTP_LARGE" not in os.environ, reason="takes 15 GB of memory: set WMTP_LARGE=1")
COPYING = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)


def sparse(folder: Path, params: dict[str, Any]) -> int:
    """Write a checkpoint of zeros in bf16 that takes no space on the disk; its bytes."""
    (folder / "params.json").write_text(json.dumps(params))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes(Params(**params), params["vocab_size"]).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert (folder / "model.safetensors").stat().st_blocks * 512 < end / 4
    return end


def saved(folder: Path, params: dict[str, Any]) -> int:
    """The same as torch.save writes it."""
    (folder / "params.json").write_text(json.dumps(params))
    named = shapes(Params(**params), params["vocab_size"])
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in named.items()}
    torch.save(tensors, folder / "consolidated.pth")
    return sum(tensor.nbytes for tensor in tensors.values())


def resident() -> int:
    """Bytes of this process that no file holds."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that copies made inside took at a time, and the most that the process took."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.live = self.peak = self.process = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        result = function(*args, **(keywords or {}))
        if function in COPYING and isinstance(result, Tensor) and not result.is_meta:
            storage = result.untyped_storage()
            self.sizes[id(storage)] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._gone, id(storage))
        self.peak = max(self.peak, self.live)
        self.process = max(self.process, resident())
        return result

    def _gone(self, name: int) -> None:
        self.live -= self.sizes.pop(name)


@pytest.mark.parametrize(
    ("write", "params"),
    [
        pytest.param(sparse, SMALL, id="small"),
        pytest.param(saved, SMALL, id="pth"),
        pytest.param(sparse, WIDE, id="wide", marks=pytest.mark.exhaustive),
        pytest.param(sparse, SEVEN_BILLION, id="7b", marks=[pytest.mark.exhaustive, LARGE]),
    ],
)
def test_a_checkpoint_is_loaded_within_a_tenth_more_than_the_model(
    write: Callable[[Path, dict[str, Any]], int], params: dict[str, Any], tmp_path: Path
) -> None:
    size = write(tmp_path, params)
    before = resident()
    with Counted() as counted:
        model = load_meta(str(tmp_path), dtype=None)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    assert held == size
    assert held <= counted.peak <= 1.1 * held
    if size > 2**30:  # what the process itself makes and gives back is small beside it
        assert counted.process - before <= 1.1 * held
