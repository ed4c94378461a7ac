"""Crash-safe, pickle-free checkpoints of one process or many ranks, in one format.

A checkpoint is a folder `step_00000120`:

    model.safetensors               the tensors of part `model`; of several ranks `model.00000.safetensors`, ...
    state.json                      everything else in the parts, and where each tensor's pieces are
    rank-00000.json                 what rank 0 gave as its own (random states); `.own.safetensors`: its tensors
    manifest.json                   written last: step, facts, number of ranks, size and SHA-256 of every other file

`save` writes one, and is done when it is on the disk; a `Saver` does so in the background. `load` reads one on as many
ranks as there are. Tensors are planned by `torch.distributed.checkpoint`, so a sharded state goes from any number of
ranks to any other; reading and writing is ours (see `pieces`), so that no pickle is made or read and every byte is
under a checksum. What a crash leaves behind is said in `folder`.

One run at a time may save into a folder, one save at a time, and of its ranks all must.
"""

from wmtp.checkpoint.folder import FORMAT, MANIFEST, list_steps, newest, remove_litter
from wmtp.checkpoint.loading import Checkpoint, load
from wmtp.checkpoint.saving import Saver, save
from wmtp.checkpoint.tree import State

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Checkpoint",
    "Saver",
    "State",
    "list_steps",
    "load",
    "newest",
    "remove_litter",
    "save",
]
