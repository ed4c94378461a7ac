"""Saving: a snapshot of what every rank holds, its files, and one commit by rank 0."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.tensor import DTensor

from wmtp.checkpoint import folder as folders
from wmtp.checkpoint.agreement import Ranks
from wmtp.checkpoint.pieces import Index, Order, Outline, Staging, bytes_of, hold, live, share_out
from wmtp.checkpoint.tensorfile import Content, write_file, write_tensors
from wmtp.checkpoint.tree import State, encode
from wmtp.errors import CheckpointError
from wmtp.faults import fault
from wmtp.storage import Place, fsync_folder

T = TypeVar("T")

MAX_FACTS = 4 << 20
_SPARE = 1 << 20
_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")


def save(
    folder: Place,
    step: int,
    parts: Mapping[str, State],
    facts: Mapping[str, Any],
    *,
    keep_last: int = 2,
    group: ProcessGroup | None = None,
    per_rank: Mapping[str, State] | None = None,
) -> Place:
    """Write `folder/step_<step>` so that a crash at any instant leaves it absent or whole; return its path.

    A state is a tree of dicts (text or int keys), lists, tuples, None, bool, int, float, text and tensors, plain or
    sharded (DTensor). Tensors that are one another (same memory, same layout) within a part are stored once and come
    back as one object. Strides, gradients and devices are not kept. No tensor may change meanwhile.

    A step that exists is left alone if it is whole and the same, set aside as `.bad-` if it is damaged, and
    replaced if it differs; in an object store a damaged one is replaced and a whole one is an error. Afterwards the
    newest `keep_last` whole steps remain, this one among them.

    Args:
        parts: every rank gives the same ones, and its pieces of the same tensors; of everything else in them, and of
            `step`, `facts` and `keep_last`, the word of rank 0 counts.
        facts: plain JSON that describes the run.
        group: a gloo group of all ranks that nothing else uses meanwhile, and a folder that they share. None: this
            process is alone.
        per_rank: states that differ from rank to rank (random states); each rank gets its own back.

    Raises:
        CheckpointError: on every rank, if any rank failed. Nothing was lost that was there before, and nothing
            unfinished remains, unless a rank died: then `remove_litter` finds it.
    """
    ranks = Ranks(group)
    job = _Job(folder, step, facts, keep_last, ranks)
    return _write(job, lambda: _hold(job, parts, per_rank, live))


class Saver:
    """Saves in the background: the caller waits only while its tensors are copied to CPU memory.

    At most one save is under way. Its failure is raised by whatever comes next: `wait`, `close` or `save`, on every
    rank alike, so ranks that call the same methods at the same steps stay together. The copies take as much CPU memory
    as the rank's tensors; it is kept from save to save. An interpreter that ends waits for the save that is under way.

        with Saver(run / "checkpoints", group=group) as saver:
            ...
            saver.wait()                        # CheckpointError: the save before failed
            saver.save(step, parts, facts)      # returns as soon as the tensors may change
    """

    def __init__(self, folder: Place, *, keep_last: int = 2, group: ProcessGroup | None = None) -> None:
        """`group` as in `save`: from the start of a save to its end it must be left to it."""
        self._folder, self._keep_last, self._ranks = folder, keep_last, Ranks(group)
        self._staging = Staging()
        self._thread = ThreadPoolExecutor(1, "wmtp-checkpoint")
        self._pending: Future[Place] | None = None

    def save(
        self,
        step: int,
        parts: Mapping[str, State],
        facts: Mapping[str, Any],
        *,
        per_rank: Mapping[str, State] | None = None,
        wait: bool = False,
    ) -> Place:
        """Start to save, as the function `save` does; return the path that the checkpoint will have.

        Args:
            wait: return when it is on the disk. Then nothing is copied beforehand.

        Raises:
            CheckpointError: the save before failed, and this one was not begun; or a value cannot be stored; or, with
                `wait`, this save failed. Of several ranks the second is told by the next call, on every rank.
        """
        self.wait()
        job = _Job(self._folder, step, facts, self._keep_last, self._ranks)
        if wait:
            return _write(job, lambda: _hold(job, parts, per_rank, live))
        brought = _kept(lambda: _hold(job, parts, per_rank, self._staging.copy), at_once=self._ranks.group is None)
        self._pending = self._thread.submit(_write, job, brought)
        return job.path

    def wait(self) -> None:
        """Until nothing is under way.

        Raises:
            CheckpointError: the last save failed; told once.
        """
        if self._pending is None:
            return
        try:
            self._pending.result()
        finally:
            if self._pending.done():  # not after an interrupt: then it is still under way
                self._pending = None

    def close(self) -> None:
        """Wait, then give thread and memory back. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._staging.clear()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; if the block failed too, its error goes on and has this one's reason as a note."""
        try:
            self.close()
        except CheckpointError as failed:
            if error is None:
                raise
            error.add_note(f"and the checkpoint under way failed: {failed}")


@dataclass(frozen=True)
class _Job:
    folder: Place
    step: int
    facts: Mapping[str, Any]
    keep_last: int
    ranks: Ranks

    @property
    def path(self) -> Place:
        return self.folder / f"step_{self.step:0>8}"


@dataclass(frozen=True)
class _Brought:
    """What one rank has for a checkpoint: all of it is fixed but values that are still live."""

    trees: dict[str, Any]
    outline: Outline
    values: dict[MetadataIndex, Content]
    facts: dict[str, Any]
    own_state: bytes | None
    own_values: dict[str, Content]

    @property
    def own_bytes(self) -> int:
        """Size of what is this rank's alone."""
        return sum(content.nbytes for content in self.own_values.values()) + len(self.own_state or b"")


_Copy = Callable[[Mapping[MetadataIndex, torch.Tensor]], dict[MetadataIndex, Content]]


def _hold(job: _Job, parts: Mapping[str, State], per_rank: Mapping[str, State] | None, copy: _Copy) -> _Brought:
    """This rank's share, after all of it was checked."""
    _check_arguments(job, [*parts, *(per_rank or {})])
    facts = _plain(job.facts)
    trees, tensors = _encoded(parts)
    own_trees, own = _encoded(per_rank or {})
    sharded = [name for name, tensor in own.items() if isinstance(tensor, DTensor)]
    if sharded:
        raise CheckpointError(f"per_rank: {sharded[0]} is sharded over ranks; it belongs in a part")
    shared, mine = hold(tensors), hold({f"{_OWN}{name}": tensor for name, tensor in own.items()})
    with _saving(job):
        values = copy(shared.local | mine.local)
    (orders,), index = share_out([mine.outline], lambda part, rank: own_tensors(job.ranks.rank))
    return _Brought(
        trees,
        shared.outline,
        values,
        facts,
        None if per_rank is None else _state_json(own_trees, {k.removeprefix(_OWN): v for k, v in index.items()}),
        {order.key: values[order.index] for order in orders},
    )


_OWN = "@"


def _encoded(parts: Mapping[str, State]) -> tuple[dict[str, Any], dict[str, Any]]:
    trees, tensors = {}, {}
    for part, state in parts.items():
        encoded = encode(state, part)
        trees[part] = encoded.tree
        tensors.update({f"{part}/{name}": tensor for name, tensor in encoded.tensors.items()})
    return trees, tensors


def _check_arguments(job: _Job, parts: list[str]) -> None:
    if type(job.step) is not int or job.step < 0:
        raise CheckpointError(f"the step must be an int of at least 0, got {job.step!r}")
    if job.keep_last < 1:
        raise CheckpointError(f"keep_last must be at least 1, got {job.keep_last}")
    for name in parts:
        if not _PART.fullmatch(name):
            raise CheckpointError(f"part {name!r}: a name has 1 to 64 letters, digits, '_' or '-'")


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as they will be read, or CheckpointError if JSON would not give them back the same."""
    try:
        text = json.dumps(dict(facts), allow_nan=False)
        same: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the facts are not plain JSON: {error}") from error
    changed = [key for key, value in facts.items() if key not in same or same[key] != value]
    if changed:
        raise CheckpointError(f"the facts {changed} are not plain JSON: they would be read back as something else")
    if len(text) > MAX_FACTS:
        raise CheckpointError(
            f"the facts take {len(text)} bytes of JSON, {MAX_FACTS} are possible; they are no data store"
        )
    return same


# Names of files


def part_tensors(part: str, rank: int, ranks: int) -> str:
    """The tensors of a part that one rank wrote; of a process alone simply `<part>.safetensors`."""
    return f"{part}.safetensors" if ranks == 1 else f"{part}.{rank:05d}.safetensors"


def own_state(rank: int) -> str:
    """Trees and index of a rank's own states. No part's file can have this name, or the next."""
    return f"rank-{rank:05d}.json"


def own_tensors(rank: int) -> str:
    """The tensors of a rank's own states."""
    return f"rank-{rank:05d}.own.safetensors"


# Writing


def _kept(work: Callable[[], T], *, at_once: bool) -> Callable[[], T]:
    """Do the work now and give its result later. So too its error, unless `at_once`: other ranks must hear of it."""
    try:
        result = work()
    except CheckpointError as error:
        if at_once:
            raise
        return partial(_raise, error)
    return lambda: result


def _raise(error: CheckpointError) -> Any:
    raise error


def _write(job: _Job, brought: Callable[[], _Brought]) -> Place:
    """All files on every rank, then the commit on rank 0; nobody returns before all is done, or failed."""
    ranks = job.ranks
    kept: list[_Brought] = []
    begun: list[Place] = []

    def announce() -> tuple[int, Outline, int]:
        kept.append(brought())
        return job.step, kept[0].outline, kept[0].own_bytes

    try:
        orders = ranks.together(announce, lambda all_ranks: _prepare(job, kept[0], all_ranks, begun))
        ranks.together(
            lambda: _write_share(job, kept[0], orders), lambda written: _commit(job, kept[0], orders, written)
        )
    except BaseException as error:
        for temporary in begun:
            folders.undo(temporary, error)
        raise
    ranks.together(lambda: None, lambda _: _prune(job))
    return job.path


@dataclass(frozen=True)
class _Orders:
    """What rank 0 tells a rank to write; `state.json` is for itself alone."""

    temporary: Place
    orders: list[Order]
    state: bytes | None = None


@contextmanager
def _saving(job: _Job, needed: int = 0) -> Iterator[None]:
    with folders.as_checkpoint_error(f"cannot save {job.path}", lambda: folders.disk_full(needed, job.folder)):
        yield


def _prepare(job: _Job, lead: _Brought, outlines: list[tuple[int, Outline, int]], begun: list[Place]) -> list[_Orders]:
    steps = [step for step, _, _ in outlines]
    if len(set(steps)) > 1:
        raise CheckpointError(f"the ranks save different steps: {steps}")
    held = [outline for _, outline, _ in outlines]
    orders, index = share_out(held, lambda part, rank: part_tensors(part, rank, len(held)))
    unknown = [f"{part}/{name}" for part, tensors in index.items() for name in tensors if part not in lead.trees]
    if unknown:
        raise CheckpointError(f"rank 0 has no {unknown[0]}, another rank has; every rank must save the same parts")
    state = _state_json(lead.trees, index)
    needed = bytes_of(index) + len(state) + sum(own for _, _, own in outlines) + _SPARE
    with _saving(job, needed):
        folders.make_folder(job.folder)
        folders.remove_litter(job.folder)
        folders.require_space(needed, job.folder)
        begun.append(folders.begin(job.path))
    return [_Orders(begun[0], share, state if rank == 0 else None) for rank, share in enumerate(orders)]


def _write_share(job: _Job, brought: _Brought, orders: _Orders) -> dict[str, tuple[int, str]]:
    """This rank's files; name -> size, SHA-256."""
    by_file: dict[str, dict[str, Content]] = {}
    for order in orders.orders:
        by_file.setdefault(order.file, {})[order.key] = brought.values[order.index]
    if brought.own_values:
        by_file[own_tensors(job.ranks.rank)] = brought.own_values
    needed = sum(content.nbytes for contents in by_file.values() for content in contents.values())
    with _saving(job, needed + len(brought.own_state or b"")):
        written = {name: write_tensors(orders.temporary / name, contents) for name, contents in by_file.items()}
        if brought.own_state is not None:
            name = own_state(job.ranks.rank)
            written[name] = write_file(orders.temporary / name, [brought.own_state])
        return written


def _commit(job: _Job, lead: _Brought, orders: _Orders, written: list[dict[str, tuple[int, str]]]) -> list[None]:
    """State and manifest, and only then the name: each on the disk before the next."""
    temporary, files = orders.temporary, {name: entry for share in written for name, entry in share.items()}
    assert orders.state is not None
    with _saving(job):
        for name, (size, _) in files.items():
            if not _is_there(temporary / name, size):
                raise CheckpointError(
                    f"rank 0 does not see {temporary / name} as it was written; do the ranks share it?"
                )
        files[folders.STATE] = write_file(temporary / folders.STATE, [orders.state])
        fault("ckpt_before_manifest")
        manifest = folders.render_manifest(job.step, len(written), lead.facts, dict(sorted(files.items())))
        write_file(temporary / folders.MANIFEST, [manifest])
        fsync_folder(temporary)
        fault("ckpt_before_rename")
        folders.commit(temporary, job.path)
        fault("ckpt_after_rename")
    return [None] * len(written)


def _is_there(path: Place, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _prune(job: _Job) -> list[None]:
    with folders.as_checkpoint_error(f"{job.path} is saved, but older checkpoints could not be removed"):
        folders.prune(job.folder, job.path, job.keep_last)
    return [None] * job.ranks.size


def _state_json(trees: Mapping[str, Any], index: Index) -> bytes:
    """`{"<part>": {"tree": ..., "tensors": index of the part}}`."""
    body = {part: {"tree": tree, "tensors": index.get(part, {})} for part, tree in trees.items()}
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
