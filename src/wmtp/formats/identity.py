"""What a model is, whatever its folder is called."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wmtp.errors import ModelError
from wmtp.formats.hf import base_of, folder_of, model_config
from wmtp.storage import sha256_file

_CONTENT = ("config.json", "wmtp.json", "adapter_config.json", "*.safetensors")


def model_fingerprint(source: str) -> str:
    """sha256 over the names and contents of a model folder's config and weights, and of an adapter's model; of a hub
    model, over id and commit.

    Raises:
        ModelError: no such model.
    """
    digest = hashlib.sha256()
    folder = folder_of(source)
    if folder.is_dir():
        for path in sorted({path for pattern in _CONTENT for path in folder.glob(pattern)}):
            digest.update(f"{path.name} {sha256_file(path)}\n".encode())
        base = base_of(source)
        if base != source:
            digest.update(model_fingerprint(base).encode())
        return digest.hexdigest()
    digest.update(f"{source}@{commit_of(source)}".encode())
    return digest.hexdigest()


def commit_of(source: str) -> str:
    """Of a hub model, as it is at hand here.

    Raises:
        ModelError: no such model, or it is in no cache that says which commit it is.
    """
    from huggingface_hub import try_to_load_from_cache

    model_config(source)  # it is in the cache from here on
    found = try_to_load_from_cache(source, "config.json")
    if not isinstance(found, str):
        raise ModelError(f"the hub does not say which commit {source} is; download the model and give its folder")
    return Path(found).parent.name
