"""What our tests use and yours may: tiny models, tokenizer and batches; ranks as threads; what a scheme promises.

Needs no test framework, no network and no files.
"""

from __future__ import annotations

from wmtp.testing.models import (
    BOS,
    EOS,
    FAMILIES,
    PAD,
    VOCABULARY,
    Family,
    random_batch,
    tiny_base,
    tiny_model,
    tiny_tokenizer,
)
from wmtp.testing.ranks import Ranks
from wmtp.testing.schemes import check_scheme, draw_step

__all__ = [
    "BOS",
    "EOS",
    "FAMILIES",
    "PAD",
    "VOCABULARY",
    "Family",
    "Ranks",
    "check_scheme",
    "draw_step",
    "random_batch",
    "tiny_base",
    "tiny_model",
    "tiny_tokenizer",
]
