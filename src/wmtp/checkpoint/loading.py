"""Loading: every file is verified before anything in it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import ProcessGroup

from wmtp.checkpoint.agreement import Ranks
from wmtp.checkpoint.folder import STATE, Manifest, as_checkpoint_error, check_files, parse, read_manifest, well_formed
from wmtp.checkpoint.pieces import Stored, read_index, read_into, read_whole
from wmtp.checkpoint.saving import own_state
from wmtp.checkpoint.tree import Path as TreePath
from wmtp.checkpoint.tree import State, decode, identity, shown, tensor_names, tensors_of
from wmtp.errors import CheckpointError
from wmtp.storage import Place

MAX_NAMED = 8
"""So many tensors that do not fit are named in a message."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load` read. Tensors without a template are whole, on the CPU, and share no memory with the files."""

    path: Place
    step: int
    parts: dict[str, State]
    facts: dict[str, Any]
    ranks: int
    """How many ranks saved it."""
    per_rank: dict[str, State] | None = None
    """What this rank gave as `per_rank`; None if it gave none, or the number of ranks was another, or only named
    parts were asked for."""


def load(
    path: Place,
    parts: Mapping[str, State | None] | Sequence[str] | None = None,
    *,
    group: ProcessGroup | None = None,
) -> Checkpoint:
    """Read a checkpoint, or only some parts of it.

    Nothing is unpickled and no name in a file is used as a path unchecked. Files that the manifest does not list are
    ignored; of those it lists only the ones that are needed must be whole.

    Args:
        parts: templates by part: states whose tensors, plain or sharded (DTensor), are filled in place, sharded ones
            with the pieces this rank holds, whatever the number of ranks that saved; what is no tensor comes from the
            checkpoint. A part whose template is None, or parts by name only: whole tensors. None: all parts so.
        group: a gloo group of the ranks that load together: each verifies some of the files.

    Raises:
        CheckpointError: on every rank, if any rank failed. It names the file and what is wrong with it, or the tensors
            that templates and checkpoint do not have in common (then nothing was filled).
    """
    ranks = Ranks(group)
    templates = parts if isinstance(parts, Mapping) else {}
    manifest, state = ranks.together(lambda: None, lambda _: [_read_state(path)] * ranks.size)
    loading = _Loading(path, manifest, ranks)
    ready: list[tuple[list[_Part], list[_Places], list[_Part] | None]] = []
    done: list[Checkpoint] = []

    def verify() -> None:
        shared = [_Part.of(path / STATE, name, state) for name in _wanted(path, parts, state)]
        loading.verify(shared)
        places = [loading.places(part, templates.get(part.name)) for part in shared]
        ready.append((shared, places, None if _names_only(parts) else loading.own_parts()))

    def read() -> None:
        shared, places, own = ready[0]
        states = {part.name: loading.read(part, place) for part, place in zip(shared, places, strict=True)}
        mine = None if own is None else {part.name: loading.read(part, None) for part in own}
        done.append(Checkpoint(path, manifest.step, states, manifest.facts, manifest.ranks, mine))

    for work in (verify, read):
        ranks.together(work, lambda _: [None] * ranks.size)
    return done[0]


def _names_only(parts: Any) -> bool:
    return parts is not None and not isinstance(parts, Mapping)


def _wanted(path: Place, parts: Any, state: Mapping[str, Any]) -> list[str]:
    names = list(state) if parts is None else list(parts)
    for name in names:
        if name not in state:
            raise CheckpointError(f"{path} has no part {name!r}; it has {list(state)}")
    return names


def _read_state(path: Place) -> tuple[Manifest, dict[str, Any]]:
    manifest = read_manifest(path)
    check_files(path, manifest, [STATE])
    return manifest, _read_json(path / STATE)


def _read_json(file: Place) -> dict[str, Any]:
    with as_checkpoint_error(f"{file} cannot be read"):
        return parse(file, file.read_bytes())


@dataclass(frozen=True)
class _Part:
    """A part as `state.json` or a rank's own file has it."""

    source: Place
    name: str
    tree: Any
    index: dict[str, Stored]
    names: dict[TreePath, str]
    """Where the tree has tensors, and which."""

    @classmethod
    def of(cls, source: Place, name: str, state: Mapping[str, Any]) -> _Part:
        with well_formed(source):
            entry = state[name]
            part = cls(source, name, entry["tree"], read_index(entry["tensors"]), tensor_names(entry["tree"]))
            missing = [stored for stored in part.names.values() if stored not in part.index]
            if missing:
                raise ValueError(f"part {name!r} has no tensor {missing[0]!r}")
            if not isinstance(part.tree, dict) or not {"dict", "items"} & part.tree.keys():
                raise ValueError(f"part {name!r} is not a dict")
        return part

    @property
    def files(self) -> set[str]:
        """The files that its tensors are in."""
        return {piece.file for stored in self.index.values() for piece in stored.pieces}


_Places = dict[TreePath, torch.Tensor] | None
"""The tensors of a template, by where the checkpoint's tree has them; None without one."""


@dataclass(frozen=True)
class _Loading:
    path: Place
    manifest: Manifest
    ranks: Ranks

    def verify(self, parts: Sequence[_Part]) -> None:
        """This rank's share of the files."""
        files = sorted({file for part in parts for file in part.files}, key=lambda file: (self._size(file), file))
        check_files(self.path, self.manifest, files[self.ranks.rank :: self.ranks.size])

    def _size(self, file: str) -> int:
        return self.manifest.files.get(file, (0, ""))[0]

    def own_parts(self) -> list[_Part] | None:
        """What this rank saved for itself, verified; None if as many ranks as now did not save, or nothing."""
        name = own_state(self.ranks.rank)
        if self.manifest.ranks != self.ranks.size or name not in self.manifest.files:
            return None
        check_files(self.path, self.manifest, [name])
        state = _read_json(self.path / name)
        parts = [_Part.of(self.path / name, part, state) for part in state]
        check_files(self.path, self.manifest, sorted({file for part in parts for file in part.files}))
        return parts

    def places(self, part: _Part, template: State | None) -> _Places:
        """The template's tensors by path, which must be those of the checkpoint; None without a template."""
        if template is None:
            return None
        given = tensors_of(template, part.name)
        problems = [f"{shown(where)} is not in the checkpoint" for where in given.keys() - part.names.keys()]
        problems += [f"{shown(where)} is only in the checkpoint" for where in part.names.keys() - given.keys()]
        problems += [
            f"{shown(where)} is {stored.dtype} {list(stored.shape)} in the checkpoint and {tensor.dtype} "
            f"{list(tensor.shape)} now"
            for where, tensor in given.items()
            if (stored := part.index.get(part.names.get(where, "")))
            and (stored.dtype, stored.shape) != (tensor.dtype, tuple(tensor.shape))
        ]
        problems += _wrongly_tied(part, given)
        if problems:
            more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
            raise CheckpointError(
                f"{self.path} does not fit: in part {part.name!r} {'; '.join(sorted(problems)[:MAX_NAMED])}{more}. "
                "Build model and optimiser as they were when it was saved"
            )
        return given

    def read(self, part: _Part, places: _Places) -> State:
        """The part's state; its tensors are new ones, or those of a template."""
        if places is None:
            whole = read_whole(self.path, [part.index[name] for name in dict.fromkeys(part.names.values())])
            state: State = decode(part.tree, lambda _, name: whole[part.index[name]])
        else:
            read_into(self.path, [(part.index[part.names[where]], tensor) for where, tensor in places.items()])
            state = decode(part.tree, lambda where, _: places[where])
        return state


def _wrongly_tied(part: _Part, given: Mapping[TreePath, torch.Tensor]) -> list[str]:
    """Tensors that are one in the template and two in the checkpoint: the second would overwrite the first."""
    first: dict[Any, TreePath] = {}
    return [
        f"{shown(where)} and {shown(other)} are two tensors in the checkpoint and one now"
        for where, tensor in given.items()
        if where in part.names and part.names[other := first.setdefault(identity(tensor), where)] != part.names[where]
    ]
