"""What the files of weights in a folder were when they were written: `SHA256SUMS`, as `sha256sum --check` reads it.

A flipped bit in a safetensors file is another number, which nothing else would tell. A `.pth` file has checksums of its
own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from wmtp.errors import ModelError
from wmtp.storage import ObjectPath, Place, sha256_file

SUMS = "SHA256SUMS"
_LINE = re.compile(r"^([0-9a-fA-F]{64}) [ *](?:\./)?(.+?)\r?$", re.MULTILINE)


def write_sums(folder: Path, elsewhere: Mapping[str, str]) -> None:
    """Write down the SHA-256 of a folder's safetensors files; nothing where there are none.

    Args:
        elsewhere: those of files that belong to the folder and are already where it will be, by name.
    """
    sums = {path.name: sha256_file(path) for path in folder.glob("*.safetensors")} | dict(elsewhere)
    if sums:
        (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def check_sum(path: Place) -> None:
    """Compare a file on a disk with what the `SHA256SUMS` beside it says of it, if it does. What is in an object store
    is left to the store, which has checksums too.

    Raises:
        ModelError: it is another file, or `SHA256SUMS` cannot be read.
    """
    if isinstance(path, ObjectPath) or not (path.parent / SUMS).is_file():
        return
    said = _said(path.parent / SUMS).get(path.name)
    if said is not None and sha256_file(path) != said:
        raise ModelError(
            f"{path} is not the file that {SUMS} beside it names: it was damaged, or changed after it was written; "
            f"download it again, or, if the change was meant, remove {SUMS}"
        )


def _said(path: Path) -> dict[str, str]:
    """SHA-256 by file name; lines that say something else are passed over, as `sha256sum --check` does."""
    try:
        found = _LINE.findall(path.read_text(errors="replace"))
    except OSError as problem:
        raise ModelError(f"{path} cannot be read ({problem.strerror or problem}); mend that, or remove it") from problem
    if not found:
        raise ModelError(f"{path} cannot be read: it must have lines of SHA-256 and file name; remove it")
    return {name: digest.lower() for digest, name in found}
