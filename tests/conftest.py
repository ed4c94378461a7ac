"""What holds for every test: offline, one torch thread, the same hypothesis examples each time."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("wmtp", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("wmtp")
