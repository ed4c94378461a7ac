"""Layers compiled for decoding, with every program made before the first text."""

from __future__ import annotations

import torch

from wmtp.decoding.drafting import drafter_of
from wmtp.decoding.trunk import COMPILED, CachedTrunk, check_cached, decoding
from wmtp.devices import check_compiler
from wmtp.model import MTPModel

ROWS = (3, 1)
WIDTHS = (5, 2, 1)
"""Forwards that stand for all: a prompt, several tokens after it, one. What torch compiles for a size of 1 fits no
other size, and the other sizes share a program."""


def compile_layers(model: MTPModel, backend: str = "inductor") -> None:
    """Compile every layer and head for decoding; the tokens stay what they are.

    Layers share their programs, and all of them are made here, by forwards over a few made-up tokens: afterwards
    nothing is compiled, whatever the rows, their lengths and the drafts, as long as the model stays on its device and
    in its dtype. That takes a minute or more with `inductor`.

    Args:
        backend: as `torch.compile` takes it. `inductor` needs a C++ compiler on CPU.

    Raises:
        ModelError: an architecture that cannot be decoded.
        ConfigError: `inductor` without a compiler that works.
    """
    check_cached(model)
    if backend == "inductor":
        check_compiler(model.unembedding().projection_VD.device, "decoding.compile_layers")
    for layer in (*model.trunk_layers(), *model.heads()):
        layer.compile(dynamic=True, backend=backend)
    COMPILED.add(model)
    with decoding(model):
        for rows in ROWS:
            _make_programs(model, rows)


def _make_programs(model: MTPModel, rows: int) -> None:
    """Run trunk and heads over several tokens a row, and over one."""
    more = model.num_heads - 1
    trunk = CachedTrunk(model, rows, sum(WIDTHS) + 1, keep_output=more > 0)
    drafter = drafter_of(model, trunk, rows) if more else None
    length = 0
    for width in WIDTHS:
        tokens_BQ = torch.zeros(rows, width, dtype=torch.long, device=trunk.slots.device)
        trunk.run(tokens_BQ, [length] * rows)
        length += width
        if drafter is not None:
            drafter.draft([length] * rows, tokens_BQ[:, 0], min(width, more), lambda logits: logits.argmax(-1))
