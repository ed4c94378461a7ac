"""Code that comes with a model: it runs only where its repository, or its folder, was named.

The `auto_map` of a `config.json` or `tokenizer_config.json` says which classes are in Python files of the folder, as
`FILE.CLASS`, or of another repository, as `REPOSITORY--FILE.CLASS`. transformers runs them if it is told to trust the
model. It is told so here, and only where the model and every repository that it takes a class from were named.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from wmtp.errors import ModelError, first_line
from wmtp.formats.kind import CONFIG, read_json
from wmtp.storage import ObjectPath, place

OF_TOKENIZER = "tokenizer_config.json"
LOADED = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer")
"""The classes of an `auto_map` that are ever asked for here."""
ATTENTION = ("attn_implementation", "_attn_implementation")
_CLASS = re.compile(r"(?P<file>\w[\w-]*(/\w[\w-]*)*)\.\w+")
_REFUSED = "trust_remote_code"
"""What transformers says it would have to be given."""

_named: ContextVar[frozenset[str]] = ContextVar("named", default=frozenset())


@contextmanager
def remote_code(*sources: str) -> Iterator[None]:
    """Within it, transformers may run the Python files of these models, and of no others; besides those that were named
    around it.

    Args:
        sources: folders or hub ids, as the models themselves are given.
    """
    before = _named.set(_named.get() | set(sources))
    try:
        yield
    finally:
        _named.reset(before)


def _is_named(source: str) -> bool:
    named = _named.get()
    return bool(named) and _identity(source) in map(_identity, named)


def _identity(source: str) -> str:
    """One name for all ways to write a folder; a hub id is its own."""
    path = place(source)
    return str(path.resolve()) if path.is_dir() else source


@contextmanager
def code_of(source: str, folder: Path) -> Iterator[bool]:
    """Around the loading of a model by transformers; whether it may run code of it.

    Args:
        source: the model as it was given.
        folder: where its files are.

    Raises:
        ModelError: code is needed, and it or a repository that it is in was not named; or it does not run. Also where a
            config asks for compiled attention of the hub, which transformers would run for anybody, or for another
            config, which nobody has looked at.
    """
    _check_config(folder / CONFIG)
    may_run = _may_run(source, folder)
    try:
        if may_run:
            _copy(source, folder)
        yield may_run
    except ValueError as problem:
        if may_run or _REFUSED not in str(problem):
            raise
        raise _refusal(source, folder) from problem
    except (SyntaxError, NameError) as problem:
        raise ModelError(
            f"the code of {source} does not run: {first_line(problem)}; mend it, or use another model"
        ) from problem


def _check_config(path: Path) -> None:
    config = read_json(path) if path.is_file() else {}
    if "configuration_files" in config:
        raise ModelError(f"{path} has configuration_files, other configs in its place: leave them out, give the one")
    asked = [one for one in _attention(config) if "/" in one]
    if asked:
        raise ModelError(
            f"{path} asks for attention by code of {asked[0]}, which is never run: leave attn_implementation out there"
        )


def _attention(config: Any) -> Iterator[str]:
    """What a config, and configs in it, say of how attention is computed."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if name in ATTENTION:
            yield from map(str, value.values() if isinstance(value, dict) else [value])
        else:
            yield from _attention(value)


def _may_run(source: str, folder: Path) -> bool:
    if not _is_named(source):
        return False
    found = _repositories(source, folder)
    if found and (isinstance(place(source), ObjectPath) or not all(map(_is_named, found))):
        raise _refusal(source, folder)
    return bool(found)


def _copy(source: str, folder: Path) -> None:
    """Have transformers copy a model's Python files to where it imports them from, one process after the other: all
    share that folder, and one could import what another has half written."""
    from transformers import dynamic_module_utils

    copies = Path(dynamic_module_utils.HF_MODULES_CACHE)
    copies.mkdir(parents=True, exist_ok=True)
    with (copies / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for repository, files in _repositories(source, folder).items():
            for file in files:
                if repository != source:
                    dynamic_module_utils.get_cached_module_file(repository, file)
                elif (folder / file).is_file():
                    dynamic_module_utils.get_cached_module_file(folder, file)


def _repositories(source: str, folder: Path) -> dict[str, set[str]]:
    """The Python files that a model's classes are in, by the repository or folder that has them.

    Raises:
        ModelError: configs that cannot be read, or that name a class otherwise than transformers does.
    """
    found: dict[str, set[str]] = {}
    for path in (folder / CONFIG, folder / OF_TOKENIZER):
        for reference in _references(read_json(path).get("auto_map")) if path.is_file() else ():
            *repositories, name = reference.split("--")  # as transformers splits it
            parts = _CLASS.fullmatch(name)
            if parts is None or len(repositories) > 1 or "" in repositories:
                raise ModelError(f"{path}: {reference!r} in its auto_map names no class; expected FILE.CLASS")
            (repository,) = repositories or [source]
            found.setdefault(repository, set()).add(f"{parts['file']}.py")
    return found


def _references(auto_map: Any) -> Iterator[str]:
    """Classes: one, or for tokenizers a slow and a fast one, either of which may be missing."""
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, list):
        yield from (one for one in auto_map if isinstance(one, str))
    elif isinstance(auto_map, dict):
        for name in LOADED:
            found = auto_map.get(name)
            yield from _references(found) if not isinstance(found, dict) else ()


def _beside(folder: Path) -> set[str]:
    """All Python files of a folder: what is imported from it, or run because it is there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*.py")}


def _refusal(source: str, folder: Path) -> ModelError:
    found = _repositories(source, folder)
    files = "; ".join(
        ", ".join(sorted(names | (_beside(folder) if where == source else set())))
        + ("" if where == source else f" of {where}")
        for where, names in found.items()
    )
    if isinstance(place(source), ObjectPath):
        return ModelError(
            f"{source} has code of its own ({files}), which runs from a disk or by hub id only: copy it to a disk, and "
            "name that folder with --remote-code, or in remote_code of the config"
        )
    lacking = [one for one in dict.fromkeys([source, *found]) if not _is_named(one)]
    return ModelError(
        f"{source} needs code that was not named, and nothing of it was run: {files}. Read it; to let it run, give "
        f"{' '.join(f'--remote-code {one}' for one in lacking)}, or in a config remote_code: [{', '.join(lacking)}]"
    )
