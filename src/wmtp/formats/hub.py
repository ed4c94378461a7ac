"""Models by hub id: fetched into the cache of `huggingface_hub`, and from there on folders like any other.

First what is small: configs, tokenizer, code (which nobody runs for that). Weights come when they are asked for, of the
same commit, and safetensors only. A process asks the hub once for each id, and sees one commit of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from wmtp.errors import ModelError, WmtpError, first_line
from wmtp.formats.kind import CONFIG, read_json
from wmtp.redaction import without_credentials
from wmtp.storage import place

SMALL = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.bpe", "*.py", "tokenizer*", "vocab*", "merges*",
    "SHA256SUMS",
)  # fmt: skip
"""Names of files that are fetched at once."""
NEVER = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Pickles, whatever else their names say."""
INDEX = "model.safetensors.index.json"
HEADS = ("mtp_heads.safetensors", "value_head.safetensors")


def is_id(source: str) -> bool:
    """Whether a source has the form of a hub id, ORGANISATION/NAME, and no folder or file here has that name."""
    if "://" in source or source.count("/") != 1 or source.startswith((".", "/", "~")):
        return False
    return not place(source).exists()


def fetched(name: str, *, weights: bool) -> Path:
    """The folder of a hub model's files, in the cache.

    Args:
        weights: safetensors too.

    Raises:
        ModelError: no such repository, one that this user may not read, or none in the cache while offline.
        WmtpError: the hub cannot be reached, or does not deliver.
    """
    small = _small(name)
    if weights:
        _weights(name)
    return small


def commit_of(name: str) -> str:
    """Which commit `fetched` gives. Raises as it does."""
    return _small(name).name


def forget() -> None:
    """Ask the hub again."""
    _small.cache_clear()
    _weights.cache_clear()


@cache
def _small(name: str) -> Path:
    return _download(name, None, SMALL, NEVER)


@cache
def _weights(name: str) -> Path:
    folder = _small(name)
    return _download(name, folder.name, [*_weight_names(folder), *HEADS], [*NEVER, "*/*"])


def _weight_names(folder: Path) -> list[str]:
    """Files of weights: those that the index names, or the one that needs none; of what is no model of transformers',
    such as an adapter, all."""
    if not (folder / CONFIG).is_file():
        return ["*.safetensors"]
    named = read_json(folder / INDEX).get("weight_map") if (folder / INDEX).is_file() else None
    files = {str(name) for name in named.values()} if isinstance(named, dict) else {"model.safetensors"}
    return sorted(file for file in files if file.endswith(".safetensors"))


def _download(name: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(unwanted))
        )
    except GatedRepoError as problem:
        raise ModelError(
            f"{name} on the hub is gated: ask for access on its page there, and set HF_TOKEN to a token of that account"
        ) from problem
    except RepositoryNotFoundError as problem:
        raise ModelError(
            f"there is no model {name} on the hub, or it is private: give the name of one that is there, or set "
            "HF_TOKEN to a token that may read it"
        ) from problem
    except HFValidationError as problem:
        raise ModelError(
            f"{name} is no hub id ({first_line(problem)}); give ORGANISATION/NAME, or a folder"
        ) from problem
    except Exception as problem:  # of httpx, hf_xet and the disk, none of which has a class of its own for all of it
        if isinstance(problem, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"{name} is not, or not all of it, in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is "
                "set: unset it once, or give a folder"
            ) from problem
        said = without_credentials(first_line(problem))
        raise WmtpError(
            f"cannot fetch {name} from the hub: {said}; try again, or download it and give the folder"
        ) from problem
