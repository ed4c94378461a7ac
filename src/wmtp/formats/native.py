"""WMTP's own model folder, out and in.

    config.json, model.safetensors (sharded when large), tokenizer files    a plain Hugging Face folder
    wmtp.json                                                               what WMTP added
    mtp_heads.safetensors                                                   heads 2..K           (an MTP model)
    value_head.safetensors                                                  the value head       (a critic, or a policy
                                                                                                  that followed one)

So `transformers` loads the folder as it is, heads dropped, without a warning; and whether a folder is ours is told
by its `wmtp.json`, never by its name.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from wmtp.adapters import merged
from wmtp.errors import ModelError, WmtpError, first_line
from wmtp.formats import meta, nextn
from wmtp.formats.hf import base_of, folder_of, load_causal_lm
from wmtp.formats.kind import ADAPTER, CONFIG
from wmtp.formats.remote import WRITING, copied, published, tensors_of
from wmtp.formats.scan import check_finite, check_floating, check_safetensors
from wmtp.formats.sums import check_sum, write_sums
from wmtp.model import MTPModel
from wmtp.storage import ObjectPath, Place, fsync_folder, place
from wmtp.value import ValueHead, ValueModel

FORMAT = 1
MTP_HEADS, VALUE_HEAD, CARD = "mtp_heads.safetensors", "value_head.safetensors", "wmtp.json"


class MTPCard(BaseModel):
    """`wmtp.json` of a model with prediction heads."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = 1
    kind: Literal["mtp"] = "mtp"
    heads: Literal["parallel", "linear", "chain"] = "parallel"
    num_heads: int
    value_head: Literal["linear", "mlp", "sigmoid"] | None = None
    """Of a policy that followed a critic's values."""


class ValueCard(BaseModel):
    """`wmtp.json` of a critic."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = 1
    kind: Literal["value"] = "value"
    head: Literal["linear", "mlp", "sigmoid"]
    loss: Literal["pairwise", "lambda_return", "monte_carlo", "combined"]
    """What trained it: pairwise values are defined up to a constant only."""
    rewards: Literal["labels", "model"] = "labels"
    """What its values foresee: is_correct, or a reward model's score in standard deviations from its mean."""


def read_card(source: str) -> MTPCard | ValueCard | None:
    """What is known of a model's heads, WMTP's or those that a checkpoint came with; None for a plain model.

    Raises:
        ModelError: a `wmtp.json` that this version does not understand.
    """
    source = base_of(source)
    path = folder_of(source) / CARD
    if meta.holds(source):
        return MTPCard(num_heads=meta.read_params(source).n_future_tokens)
    if not path.is_file():
        layers = nextn.stored_layers(source)
        return MTPCard(heads="chain", num_heads=1 + layers) if layers else None
    try:
        content = json.loads(path.read_bytes())
        if content["kind"] == "value":
            return ValueCard.model_validate(content)
        return MTPCard.model_validate(content)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ValidationError) as problem:
        raise ModelError(
            f"{path} is not a model card this version of wmtp understands ({first_line(problem)}); use the version "
            "that wrote it"
        ) from problem


def load_model(
    source: str,
    *,
    heads: str | None = None,
    num_heads: int | None = None,
    init: str = "copy",
    depth: str = "added",
    dtype: torch.dtype = torch.float32,
) -> MTPModel:
    """An `MTPModel` from a Hugging Face model (heads are added), a WMTP folder or one of Meta's (heads are read).

    Which of these a folder is, its files say.

    Args:
        source: local folder, `file://`, `embedded://` or hub id.
        heads: head family. None: the folder's own, or `parallel` for a model without heads.
        num_heads: K. None: the folder's own number, or 4 for a model without heads. Fewer than stored drops the last;
            more than stored keeps these, and adds heads that nothing has trained yet.
        init: of heads that are added, see `MTPModel`.
        depth: the same; `matched` for a model without heads only.

    Raises:
        ModelError: not such a model, tensors that do not fit, or another family than that of the heads that it has.
    """
    card = read_card(source)
    if isinstance(card, ValueCard):
        raise ModelError(f"{source} is a critic (kind 'value'); a language model was expected")
    if card is None:
        base = load_causal_lm(source, dtype)
        return MTPModel(base, 4 if num_heads is None else num_heads, init, family=heads or "parallel", depth=depth)
    if card.num_heads > 1 and heads not in (None, card.heads):
        raise ModelError(f"{source} has {card.heads} heads, {heads!r} were asked for; leave heads out")
    count = card.num_heads if num_heads is None else num_heads
    if count > card.num_heads and depth != "added":
        raise ModelError(
            f"depth {depth!r} makes heads of the model's own layers, and {source} was saved with heads: take depth "
            "'added', or the plain model that `wmtp export --to hf` makes of it"
        )
    if meta.holds(source):
        model = meta.load_meta(source, dtype)
    elif not (folder_of(base_of(source)) / CARD).is_file():
        model = nextn.load_nextn(source, dtype)
    else:
        model = MTPModel(load_causal_lm(source, dtype), card.num_heads, family=card.heads)
        _read_into(model.extra_heads, folder_of(base_of(source)) / MTP_HEADS)
        if card.value_head is not None:
            model.value_head = load_value_head(source)
    if count < card.num_heads:
        model.keep_heads(count)
    else:
        model.add_heads(count - card.num_heads, init, family=heads)
    return model


def load_value_model(source: str, *, backbone: str = "frozen", dtype: torch.dtype = torch.float32) -> ValueModel:
    """A critic that `save_model` wrote.

    Raises:
        ModelError: the folder holds something else.
    """
    card = read_card(source)
    if not isinstance(card, ValueCard):
        found = "a plain model" if card is None else f"kind {card.kind!r}"
        raise ModelError(f"{source} is not a critic ({found}); train one with objective.kind = value")
    model = ValueModel(load_causal_lm(source, dtype), card.head, backbone, card.loss, rewards=card.rewards)
    _read_into(model.value_head, folder_of(source) / VALUE_HEAD)
    return model


def load_value_head(source: str) -> ValueHead:
    """The value head of a critic, or of a policy that followed one, without its backbone: `VALUE_HEAD` in the folder.

    Raises:
        ModelError: the folder holds something else.
    """
    card = read_card(source)
    kind = card.head if isinstance(card, ValueCard) else None if card is None else card.value_head
    if kind is None:
        raise ModelError(
            f"{source} is neither a critic nor a policy that followed one: it has no value head; name one that has"
        )
    path = folder_of(source, weights=True) / VALUE_HEAD
    shapes = check_safetensors(path)
    try:
        head = ValueHead(shapes["layers.0.weight"][1], kind)
    except (KeyError, IndexError) as problem:
        raise ModelError(f"{path} is no value head: expected a matrix layers.0.weight in it") from problem
    _read_into(head, path)
    return head


def _read_into(module: nn.Module, path: Place) -> None:
    from safetensors import SafetensorError

    if not any(True for _ in module.parameters()):
        return
    check_safetensors(path)
    try:
        module.load_state_dict(tensors_of(path))
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as problem:
        raise ModelError(
            f"{path} does not fit the model: {first_line(problem)}; use files that were saved together"
        ) from problem
    check_floating(path, dict(module.named_parameters()))
    check_finite(path, module.named_parameters())
    check_sum(path)


def save_model(
    model: MTPModel | ValueModel,
    path: str | Place,
    tokenizer: Any = None,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    plain: bool = False,
) -> Place:
    """Write a model folder; it appears whole or not at all, replacing the model that was there.

    Args:
        tensors: the model's whole state, where the model itself holds only a share of it.
        plain: the base model alone, as anybody's: nothing in the folder says that it came from here.

    Raises:
        ModelError: there is something else than a model folder at `path`; it is left as it is.
        WmtpError: the folder cannot be written.
    """

    def write(folder: Path) -> None:
        state = merged(model, model.state_dict() if tensors is None else tensors)
        _write_base(model, state, folder)
        if not plain:
            _write_extra(model, state, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    return write_folder(path, write)


def write_folder(path: str | Place, write: Callable[[Path], None], *, on_disk: bool = False) -> Place:
    """A folder of model files that `write` fills; it appears whole or not at all, replacing the model that was there.

    Args:
        on_disk: files for an object store may need a disk in between, see `remote.published`.

    Raises:
        ModelError: there is something else than a model folder at `path`; it is left as it is.
        WmtpError: the folder cannot be written.
    """
    from safetensors import SafetensorError

    folder = place(path).resolve()
    _check_replaceable(folder)
    if isinstance(folder, ObjectPath):
        try:
            published(folder, write, on_disk=on_disk)
        except (OSError, SafetensorError) as problem:
            raise WmtpError(f"cannot write the model folder {folder}: {first_line(problem)}") from problem
        return folder
    temporary = folder.with_name(f".tmp-{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        write_sums(temporary, {})
        _publish(temporary, folder)
    except (OSError, SafetensorError) as problem:
        raise WmtpError(f"cannot write the model folder {folder}: {first_line(problem)}") from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def copy_model(source: Place, target: Place) -> Place:
    """The same model folder once more; it appears whole or not at all, replacing the model that was there.

    Raises:
        ModelError: there is something else than a model folder at `target`.
        WmtpError: the folder cannot be written.
    """
    _check_replaceable(target)
    if isinstance(source, ObjectPath) and isinstance(target, ObjectPath):
        copied(source, target)
        return target
    if isinstance(source, ObjectPath) or isinstance(target, ObjectPath):
        raise WmtpError(f"a model folder is copied within one kind of storage, not from {source} to {target}")
    temporary = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        shutil.copytree(source, temporary)
        _publish(temporary, target)
    except OSError as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise WmtpError(f"cannot write the model folder {target}: {problem}") from problem
    return target


def _check_replaceable(folder: Place) -> None:
    """Saving replaces a whole folder, so it must not hold anything but a model."""
    if not folder.exists():
        return
    known = any((folder / name).is_file() for name in (CONFIG, meta.WEIGHTS, ADAPTER, WRITING))
    if not folder.is_dir() or (any(folder.iterdir()) and not known):
        raise ModelError(f"{folder} exists and is no model folder; saving a model would delete it: give another path")


def _write_base(model: MTPModel | ValueModel, state: Mapping[str, Tensor], folder: Path) -> None:
    """By transformers' own hand, so that tied weights are left out and tensors have the names its releases share."""
    tensors = {model.hf_key(k): v for k, v in state.items() if k.startswith("base.")}
    model.base.save_pretrained(folder, state_dict=tensors)


def _write_extra(model: MTPModel | ValueModel, state: Mapping[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    card: BaseModel
    if isinstance(model, ValueModel):
        card = ValueCard.model_validate({"head": model.value_head.kind, "loss": model.loss, "rewards": model.rewards})
        save_file(_below(state, "value_head."), folder / VALUE_HEAD, metadata={"format": "pt"})
    else:
        value_head = None if model.value_head is None else model.value_head.kind
        card = MTPCard.model_validate({"heads": model.family, "num_heads": model.num_heads, "value_head": value_head})
        if value_head is not None:
            save_file(_below(state, "value_head."), folder / VALUE_HEAD, metadata={"format": "pt"})
        if model.num_heads > 1:
            save_file(_below(state, "extra_heads."), folder / MTP_HEADS, metadata={"format": "pt"})
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n")


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a submodule, under their names in it."""
    return {k.removeprefix(prefix): v.detach().contiguous() for k, v in state.items() if k.startswith(prefix)}


def _publish(temporary: Path, folder: Path) -> None:
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    fsync_folder(temporary)
    aside = folder.with_name(f".del-{folder.name}-{uuid.uuid4().hex[:8]}")
    if folder.exists():
        folder.rename(aside)
    temporary.rename(folder)
    fsync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)
