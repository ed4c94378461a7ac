"""Decoding with the heads: they draft, head 1 verifies, and the result is that of plain decoding. docs/math.md (6).

slots        caches in which every row has its own length
attention    several queries on keys that heads share
trunk        the trunk and head 1 over new tokens only
drafting     what a head family must say to draft        cost      what that costs, from the sizes of matrices
pace         how many tokens to draft                    sampling  which token follows, which drafts are kept
stopping     where a text ends                           compiled  layers compiled for it
batch        the loop                                    generation  one batch, or many prompts
"""

from __future__ import annotations

from wmtp.decoding.compiled import compile_layers
from wmtp.decoding.generation import MODES, Continuation, Generation, context_of, eos_of, generate, generate_many
from wmtp.decoding.sampling import Sampling
from wmtp.decoding.stopping import Stop, StopStrings
from wmtp.decoding.trunk import check_cached

__all__ = [
    "MODES",
    "Continuation",
    "Generation",
    "Sampling",
    "Stop",
    "StopStrings",
    "check_cached",
    "compile_layers",
    "context_of",
    "eos_of",
    "generate",
    "generate_many",
]
