"""Crash-safe, pickle-free checkpoints of one process.

A checkpoint is a folder `step_00000120` with one `<part>.safetensors` for each part's tensors, `state.json`
for everything else in the parts, and `manifest.json`, written last, with the size and SHA-256 of the others.

What a crash at any instant leaves behind: files are made in a hidden folder, each synced, the manifest last,
then the folder; only then does one rename give it its name. So a visible step folder is complete, and damage
that comes later (a flipped bit, a cut or swapped file) is found by the checksums before a tensor is read.
Hidden folders carry the writer's process id: `.tmp-` unfinished, `.del-` being removed, `.old-` replaced,
`.bad-` damaged and kept as evidence. One process at a time may save into a folder, one save at a time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from wmtp.errors import CheckpointError, WmtpError
from wmtp.storage import fsync_folder, sha256_file

State = dict[str, Any]

FORMAT = 1
MANIFEST, TREES, TENSORS = "manifest.json", "state.json", ".safetensors"
MAX_DEPTH = 100
MAX_HEADER = 100_000_000
MAX_FACTS = 4 << 20
MAX_MANIFEST = 16 << 20
_SLICE = 16 << 20
_SPARE = 1 << 20
_EXACT_INT = 2**53

_STEP = re.compile(r"step_(\d{8,})")
_HIDDEN = re.compile(r"\.(tmp|del|old)-(step_\d{8,})-(\d+)-[0-9a-f]+")
_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

_NATIVE = {
    torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
    torch.float32: "F32", torch.int32: "I32", torch.uint32: "U32",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.int16: "I16", torch.uint16: "U16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""What every supported safetensors can name; tensors of other types are stored as bytes beside their type."""

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


@dataclass(frozen=True)
class Checkpoint:
    """What `load` read: tensors are on the CPU, contiguous, and share no memory with the files."""

    path: Path
    step: int
    parts: dict[str, State]
    facts: dict[str, Any]


# Saving


def save(folder: Path, step: int, parts: Mapping[str, State], facts: Mapping[str, Any], *, keep_last: int = 2) -> Path:
    """Write `folder/step_<step>` so that a crash at any instant leaves it absent or whole; return its path.

    A state is a tree of dicts (text or int keys), lists, tuples, None, bool, int, float, text and tensors.
    Tensors that are one another (same memory, same layout) within a part are stored once and come back as one
    object. Strides, gradients and devices are not kept. No tensor may change meanwhile. `facts` is plain JSON.

    A step that exists is left alone if it is whole and the same, set aside as `.bad-` if it is damaged, and
    replaced if it differs. Afterwards the newest `keep_last` whole steps remain, this one among them.
    CheckpointError: nothing was lost that was there before, and nothing unfinished remains.
    """
    name = _checked_name(step, parts, keep_last)
    plan = _plan(parts)
    head = {"format": FORMAT, "step": step, "facts": _plain(facts)}
    needed = sum(file.size for file in plan) + _SPARE
    temporary = _hidden("tmp", folder / name)
    with _as_checkpoint_error(f"cannot save {folder / name}", lambda: _disk_full(needed, folder)):
        _make_folder(folder)
        remove_litter(folder)
        _require_space(needed, folder)
        try:
            _write_all(temporary, plan, head)
            _commit(temporary, folder / name)
        except BaseException as error:
            _undo(temporary, error)
            raise
    with _as_checkpoint_error(f"{folder / name} is saved, but older checkpoints could not be removed"):
        _prune(folder, folder / name, keep_last)
    return folder / name


def _checked_name(step: int, parts: Mapping[str, State], keep_last: int) -> str:
    if type(step) is not int or step < 0:
        raise CheckpointError(f"the step must be an int of at least 0, got {step!r}")
    if keep_last < 1:
        raise CheckpointError(f"keep_last must be at least 1, got {keep_last}")
    for name in parts:
        if not _PART.fullmatch(name):
            raise CheckpointError(f"part {name!r}: a name has 1 to 64 letters, digits, '_' or '-'")
    return f"step_{step:08d}"


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


def _write_all(temporary: Path, plan: Sequence[_File], head: Mapping[str, Any]) -> None:
    """All files, then the manifest that vouches for them, then the folder's names: each on disk before the next."""
    temporary.mkdir()
    files = {}
    for file in plan:
        digest = _write_file(temporary / file.name, file.chunks())
        files[file.name] = {"size": file.size, "sha256": digest}
    _write_file(temporary / MANIFEST, [_render_manifest({**head, "files": files})])
    fsync_folder(temporary)


def _write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write and sync a new file; return the SHA-256 of what was meant to be written."""
    digest = hashlib.sha256()
    try:
        with open(path, "xb") as stream:
            for chunk in chunks:
                digest.update(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return digest.hexdigest()


def _commit(temporary: Path, final: Path) -> None:
    """Give the complete folder its name.

    If the name is taken by a whole checkpoint that differs, the old one steps aside (1), the new one takes the
    name (2), the old one is removed (3). A crash before 1 leaves the old one in place; between 1 and 2 it is
    whole as `.old-`, and `newest`, `save` and `remove_litter` put it back; after 2 the new one is in place.
    """
    taken = os.path.lexists(final)
    whole = taken and _is_whole(final, hashes=True)
    if whole and (temporary / MANIFEST).read_bytes() == (final / MANIFEST).read_bytes():
        shutil.rmtree(temporary)
        return
    aside = _hidden("old" if whole else "bad", final)
    if taken:
        _rename(final, aside)
    _rename(temporary, final)
    if whole:
        shutil.rmtree(aside)


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    fsync_folder(target.parent)


def _undo(temporary: Path, error: BaseException) -> None:
    """Clear up after a failed save; what cannot be cleared is told with the error that caused it."""
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        _put_back(temporary.parent)
    except (OSError, WmtpError) as second:
        error.add_note(f"clearing up after it failed too: {second}")


def _prune(folder: Path, saved: Path, keep_last: int) -> None:
    """Remove old steps, never the one just saved.

    Steps whose files are missing or cut do not count, so they never push out a good one, and they stay for
    `newest` to report. The rename comes first: a crash leaves a hidden rest, never a visible half.
    """
    others = [path for path in list_steps(folder) if path != saved and _is_whole(path, hashes=False)]
    for path in others[: max(0, len(others) - (keep_last - 1))]:
        doomed = _hidden("del", path)
        _rename(path, doomed)
        shutil.rmtree(doomed)


def _make_folder(folder: Path) -> None:
    """Create the folder and its parents, and put their names on the disk, so that a power cut keeps them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        fsync_folder(path.parent)


def _require_space(needed: int, folder: Path) -> None:
    if _space(folder) < needed:
        raise CheckpointError(_disk_full(needed, folder))


def _space(folder: Path) -> float:
    """Bytes free for this user; endless where the file system does not say."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize if found.f_blocks else math.inf


def _disk_full(needed: int, folder: Path) -> str:
    return f"disk full: need {needed / 2**20:.1f} MiB, have {_space(folder) / 2**20:.1f} MiB at {folder}"


def _hidden(kind: str, step_folder: Path) -> Path:
    return step_folder.parent / f".{kind}-{step_folder.name}-{os.getpid()}-{secrets.token_hex(4)}"


# Listing and clearing up


def list_steps(folder: Path) -> list[Path]:
    """The step folders that have a manifest, oldest first; without one a folder is not a checkpoint."""
    with _as_checkpoint_error(f"cannot list {folder}"):
        if not folder.is_dir():
            return []
        found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=_step_of)


def newest(folder: Path, *, on_bad: Callable[[Path, str], None]) -> Path | None:
    """The newest checkpoint whose every checksum holds; `on_bad(path, reason)` for each newer one passed over.

    None if there is no checkpoint; CheckpointError if there are some and none is whole, because starting
    afresh without a word would throw the run away.
    """
    with _as_checkpoint_error(f"cannot read {folder}"):
        _put_back(folder)
    reasons = []
    for path in reversed(list_steps(folder)):
        try:
            _verify(path)
        except CheckpointError as error:
            reasons.append(str(error))
            on_bad(path, str(error))
        else:
            return path
    if reasons:
        raise CheckpointError(f"no checkpoint in {folder} is whole:\n" + "\n".join(reasons))
    return None


def remove_litter(folder: Path) -> None:
    """Remove what dead processes, and earlier failed saves of this one, left unfinished in `folder`.

    A replaced checkpoint (`.old-`) whose successor never took its place is put back first. Only for the
    process that saves into `folder`: the litter of a writer on another machine cannot be told from a dead one's.
    """
    with _as_checkpoint_error(f"cannot clear up {folder}"):
        _put_back(folder)
        for path, _, _ in _litter(folder):
            shutil.rmtree(path)


def _put_back(folder: Path) -> None:
    for path, kind, step in _litter(folder):
        if kind == "old" and not os.path.lexists(folder / step):
            _rename(path, folder / step)


def _litter(folder: Path) -> list[tuple[Path, str, str]]:
    """Hidden folders nobody is working on: (path, kind, step name)."""
    if not folder.is_dir():
        return []
    matches = [(path, _HIDDEN.fullmatch(path.name)) for path in folder.iterdir()]
    return [(path, found[1], found[2]) for path, found in matches if found and not _is_other_process(int(found[3]))]


def _is_other_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # alive, and another user's
    return True


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


# The manifest and what it vouches for


@dataclass(frozen=True)
class _Manifest:
    step: int
    facts: dict[str, Any]
    files: dict[str, tuple[int, str]]

    @property
    def parts(self) -> list[str]:
        return [name.removesuffix(TENSORS) for name in self.files if name.endswith(TENSORS)]


def _render_manifest(body: Mapping[str, Any]) -> bytes:
    """The manifest's bytes; the last entry is the checksum of the others, as they stand without it."""
    digest = hashlib.sha256(_render(body)).hexdigest()
    return _render({**body, "sha256": digest})


def _render(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")


def _read_manifest(path: Path) -> _Manifest:
    """The manifest, if every byte of it is as written; CheckpointError otherwise."""
    file = path / MANIFEST
    with _as_checkpoint_error(f"{file} cannot be read"):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size > MAX_MANIFEST:
            raise CheckpointError(f"{file} is larger than {MAX_MANIFEST} bytes, so it is no manifest")
        content = file.read_bytes()
    body = _parse(file, content)
    body.pop("sha256", None)
    if body.get("format") != FORMAT:
        raise CheckpointError(f"{file} has format {body.get('format')!r}, this version reads {FORMAT}")
    with _well_formed(file):
        if _render_manifest(body) != content:
            raise CheckpointError(f"{file} is damaged: it does not match its own checksum")
        files = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in body["files"].items()}
        manifest = _Manifest(int(body["step"]), dict(body["facts"]), files)
    _check_names(path, manifest)
    return manifest


def _check_names(path: Path, manifest: _Manifest) -> None:
    """Names out of a file are used as paths, so they must be plain, and the step must be the folder's."""
    for name in manifest.files:
        if not _FILE.fullmatch(name):
            raise CheckpointError(f"{path / MANIFEST} lists {name!r}, which is not a plain file name")
    if TREES not in manifest.files:
        raise CheckpointError(f"{path / MANIFEST} does not list {TREES}")
    if _STEP.fullmatch(path.name) and _step_of(path) != manifest.step:
        raise CheckpointError(f"{path / MANIFEST} belongs to step {manifest.step}, not to this folder")


def _verify(path: Path, parts: Iterable[str] | None = None, *, hashes: bool = True) -> _Manifest:
    """Check `state.json` and the files of the named parts (default: all files) against the manifest."""
    manifest = _read_manifest(path)
    names = list(manifest.files) if parts is None else [TREES, *(part + TENSORS for part in parts)]
    for name in names:
        if name not in manifest.files:
            raise CheckpointError(f"{path} has no part {name.removesuffix(TENSORS)!r}; it has {manifest.parts}")
        _check_file(path / name, *manifest.files[name], hashes=hashes)
    return manifest


def _check_file(file: Path, size: int, digest: str, *, hashes: bool) -> None:
    with _as_checkpoint_error(f"{file} cannot be read"):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} is damaged: it has {file.stat().st_size} bytes, not {size}")
        if hashes and sha256_file(file) != digest:
            raise CheckpointError(f"{file} is damaged: its content does not match its checksum {digest}")


def _is_whole(path: Path, *, hashes: bool) -> bool:
    try:
        _verify(path, hashes=hashes)
    except CheckpointError:
        return False
    return True


# Loading


def load(path: Path, parts: Sequence[str] | None = None) -> Checkpoint:
    """Read a checkpoint, or only the named parts of it; every file is verified before anything in it is used.

    Nothing is unpickled and no name in a file is used as a path unchecked. Files that the manifest does not
    list are ignored. CheckpointError names the file and what is wrong with it.
    """
    manifest = _verify(path, parts)
    file = path / TREES
    with _as_checkpoint_error(f"{file} cannot be read"):
        trees = _parse(file, file.read_bytes())
    with _well_formed(file):
        wanted = manifest.parts if parts is None else list(parts)
        states = {part: _load_part(path, part, trees[part]) for part in wanted}
    return Checkpoint(path, manifest.step, states, manifest.facts)


def _load_part(path: Path, part: str, entry: Mapping[str, Any]) -> State:
    tensors = _read_tensors(path / (part + TENSORS))
    for name, (dtype, shape) in entry["bytes"].items():
        tensors[name] = tensors[name].view(_DTYPES[dtype]).reshape(shape)
    state = _decode(entry["tree"], tensors)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / TREES} is malformed: part {part!r} is not a dict")
    return state


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Copies, because the library hands out views of the file, which would change and fail with it."""
    with _as_checkpoint_error(f"{file} cannot be read"), _well_formed(file):
        _check_header(file)
        with safe_open(file, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118


def _check_header(file: Path) -> None:
    with open(file, "rb") as stream:
        prefix = stream.read(8)
        length, room = int.from_bytes(prefix, "little"), file.stat().st_size - 8
    if len(prefix) < 8 or length > min(room, MAX_HEADER):
        raise CheckpointError(f"{file} is malformed: header of {length} bytes, {min(room, MAX_HEADER)} possible")


def _parse(file: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is damaged: a JSON object was expected, got {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Trees and tensors as bytes


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    chunks: Callable[[], Iterable[bytes | memoryview]]


def _plan(parts: Mapping[str, State]) -> list[_File]:
    """Every file but the manifest, with its exact size, before anything is written."""
    files, trees = [], {}
    for part, state in parts.items():
        shelf = _Shelf()
        tree = _encode(state, part, "", shelf, 0)
        trees[part] = {"tree": tree, "bytes": shelf.types()}
        header = shelf.header()
        size = len(header) + sum(tensor.nbytes for tensor in shelf.tensors.values())
        files.append(_File(part + TENSORS, size, partial(shelf.chunks, header)))
    text = json.dumps(trees, allow_nan=False, separators=(",", ":")).encode("ascii")
    return [*files, _File(TREES, len(text), lambda: [text])]


@dataclass(frozen=True)
class _Shelf:
    """The tensors of one part: each once, under a unique name."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    names: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def add(self, tensor: torch.Tensor, name: str) -> str:
        """The name it is stored under: the first tensor with the same memory and layout gave it."""
        identity = _identity(tensor)
        if identity not in self.names:
            unique, count = name, 1
            while unique in self.tensors or unique == "__metadata__":
                unique, count = f"{name}~{count}", count + 1
            self.tensors[unique], self.names[identity] = tensor, unique
        return self.names[identity]

    def types(self) -> dict[str, tuple[str, list[int]]]:
        """Type and shape of the tensors that the file holds as mere bytes."""
        return {
            name: (str(tensor.dtype), list(tensor.shape))
            for name, tensor in self.tensors.items()
            if tensor.dtype not in _NATIVE
        }

    def ordered(self) -> list[tuple[str, torch.Tensor]]:
        """Wide elements first, so that every tensor in the file is aligned to its element."""
        return sorted(self.tensors.items(), key=lambda item: (-_stored_width(item[1]), item[0]))

    def header(self) -> bytes:
        entries, end = {}, 0
        for name, tensor in self.ordered():
            native = _NATIVE.get(tensor.dtype)
            shape = list(tensor.shape) if native else [tensor.nbytes]
            entries[name] = {"dtype": native or "U8", "shape": shape, "data_offsets": [end, end + tensor.nbytes]}
            end += tensor.nbytes
        text = json.dumps(entries, separators=(",", ":")).encode("ascii")
        text += b" " * (-len(text) % 8)
        if len(text) > MAX_HEADER:
            raise CheckpointError(f"the tensors' names and shapes take {len(text)} bytes, {MAX_HEADER} are possible")
        return len(text).to_bytes(8, "little") + text

    def chunks(self, header: bytes) -> Iterator[bytes | memoryview]:
        """The file's content; at most one tensor at a time is copied (moved to the CPU, made contiguous)."""
        yield header
        for name, tensor in self.ordered():
            content = _as_bytes(name, tensor).numpy().data
            for start in range(0, len(content), _SLICE):
                yield content[start : start + _SLICE]


def _stored_width(tensor: torch.Tensor) -> int:
    return tensor.element_size() if tensor.dtype in _NATIVE else 1


def _as_bytes(name: str, tensor: torch.Tensor) -> torch.Tensor:
    try:
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        return plain.reshape(-1).view(torch.uint8)
    except RuntimeError as error:
        raise CheckpointError(
            f"tensor {name!r} ({tensor.dtype}, {tuple(tensor.shape)}) cannot be read: {error}"
        ) from error


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one another; a tensor without elements has no memory to share."""
    if tensor.numel() == 0:
        return (id(tensor),)
    layout = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (tensor.untyped_storage().data_ptr(), tensor.device, tensor.dtype, *layout)


def _encode(value: Any, part: str, name: str, shelf: _Shelf, depth: int) -> Any:
    """The value as JSON: what JSON cannot say is an object with one key that names its kind."""
    kind = type(value)
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{part}: {name[:200]}... is nested more than {MAX_DEPTH} deep")
    if kind in (dict, OrderedDict):
        return _encode_dict(value, part, name, shelf, depth)
    if kind in (list, tuple):
        items = [_encode(item, part, _below(name, i), shelf, depth + 1) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if isinstance(value, torch.Tensor):
        _check_tensor(value, part, name)
        return {"tensor": shelf.add(value, name)}
    return _encode_leaf(value, part, name)


def _encode_leaf(value: Any, part: str, name: str) -> Any:
    kind = type(value)
    if value is None or kind is bool or (kind is str and _is_unicode(value)):
        return value
    if kind is int:
        return value if abs(value) < _EXACT_INT else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    what = "text with a lone surrogate" if kind is str else f"a {kind.__module__}.{kind.__qualname__}"
    known = "dict, list, tuple, None, bool, int, float, str and tensors"
    raise CheckpointError(f"{part}: {name}: {what} cannot be stored; a state holds {known}")


def _encode_dict(value: Mapping[Any, Any], part: str, name: str, shelf: _Shelf, depth: int) -> dict[str, Any]:
    for key in value:
        if type(key) not in (str, int):
            raise CheckpointError(f"{part}: {name}: key {key!r} is a {type(key).__name__}; keys are text or int")
    pairs = [
        (_encode_leaf(key, part, name), _encode(item, part, _below(name, key), shelf, depth + 1))
        for key, item in value.items()
    ]
    return {"dict": dict(pairs)} if all(type(key) is str for key in value) else {"items": pairs}


def _below(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_tensor(tensor: torch.Tensor, part: str, name: str) -> None:
    """Only ordinary tensors: a subclass (sharded, say) would lose what makes it one."""
    kind = type(tensor)
    if kind not in (torch.Tensor, torch.nn.Parameter):
        problem = f"a {kind.__module__}.{kind.__qualname__} is not a plain tensor"
    elif tensor.layout is not torch.strided or tensor.is_quantized:
        problem = f"a tensor of layout {tensor.layout} and type {tensor.dtype} cannot be stored; make it dense"
    elif tensor.is_meta or (tensor.numel() and tensor.untyped_storage().data_ptr() == 0):
        problem = "the tensor has no memory, so no values"
    else:
        return
    raise CheckpointError(f"{part}: {name}: {problem}")


def _decode(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `_encode`; an unknown kind raises ValueError."""
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, body),) = node.items()
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in body.items()}
    if kind == "items":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in body}
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in body)
    return _decode_leaf(kind, body, tensors)


def _decode_leaf(kind: str, body: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if kind == "tensor":
        return tensors[body]
    if kind == "int":
        return int(body, 16)
    if kind == "float":
        return float(body)
    raise ValueError(f"unknown kind {kind!r}")


# Errors


@contextmanager
def _as_checkpoint_error(context: str, disk_full: Callable[[], str] | None = None) -> Iterator[None]:
    """What the system or torch raises becomes a CheckpointError that says where it happened."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, WmtpError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, WmtpError) else error
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = disk_full() if full and disk_full else error
        raise CheckpointError(f"{context}: {reason}") from error


@contextmanager
def _well_formed(file: Path) -> Iterator[None]:
    """Around code that trusts the shape of what it read: any surprise means that the file is malformed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{file} is malformed: {type(error).__name__}: {error}") from error
