"""What a model is, whatever its folder is called."""

from __future__ import annotations

import hashlib

from wmtp.formats import hub
from wmtp.formats.hf import base_of, folder_of, locate
from wmtp.storage import sha256_file

_CONTENT = ("config.json", "wmtp.json", "adapter_config.json", "*.safetensors", "*.py")


def model_fingerprint(source: str) -> str:
    """sha256 over the names and contents of a model folder's config and weights, and of an adapter's model; of a hub
    model, over id and commit.

    Raises:
        ModelError: no such model.
        WmtpError: the hub does not deliver.
    """
    digest = hashlib.sha256()
    if hub.is_id(locate(source)):
        digest.update(f"{source}@{hub.commit_of(source)}".encode())
    else:
        folder = folder_of(source)
        for path in sorted({path for pattern in _CONTENT for path in folder.glob(pattern)}):
            digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    base = base_of(source)
    if base != source:
        digest.update(model_fingerprint(base).encode())
    return digest.hexdigest()
