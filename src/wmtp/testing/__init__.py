"""What our tests use and yours may: tiny models, tokenizer and batches; ranks as threads; an object store in memory;
what a scheme promises.

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
from wmtp.testing.storage import MemoryStore, memory_storage

__all__ = [
    "BOS",
    "EOS",
    "FAMILIES",
    "PAD",
    "VOCABULARY",
    "Family",
    "MemoryStore",
    "Ranks",
    "check_scheme",
    "draw_step",
    "memory_storage",
    "random_batch",
    "tiny_base",
    "tiny_model",
    "tiny_tokenizer",
]
