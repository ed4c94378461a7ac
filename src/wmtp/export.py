"""From a checkpoint, of any number of ranks, to one model folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wmtp import checkpoint
from wmtp.adapters import merge_adapters
from wmtp.config import Config
from wmtp.dataset import load_tokenizer
from wmtp.errors import CheckpointError, ModelError, UsageError, WmtpError, first_line
from wmtp.formats import hf, medusa, meta, mimo
from wmtp.formats.adapter import write_adapter
from wmtp.formats.code import remote_code
from wmtp.formats.native import ValueCard, load_model, load_value_model, read_card, save_model, write_folder
from wmtp.model import MTPModel
from wmtp.parts import build_model
from wmtp.probing import evaluating, probe
from wmtp.storage import ObjectPath, Place, place
from wmtp.value import ValueModel

Model = MTPModel | ValueModel
TARGETS = ("wmtp", "hf", "head:K", "meta", "vllm-medusa", "vllm-mimo", "sglang-mimo", "adapter")
MIMO: dict[str, mimo.Engine] = {"vllm-mimo": "vllm", "sglang-mimo": "sglang"}


def export(source: str, out: str, target: str = "wmtp", note: Callable[[str], None] = lambda text: None) -> Place:
    """Write a model folder for wmtp, transformers or others, and read it back to see that it is the same.

    Args:
        source: a checkpoint (`RUN/checkpoints/step_...`), a run folder (its newest checkpoint), or a model folder.
        note: is told of damaged checkpoints that were passed over, of a tokenizer that must be named to an engine, and
            of versions of an engine that do not serve the target.
        target: `wmtp` keeps the heads; `hf` drops all but the first, which leaves the base model; `head:K` is the plain
            model that parallel head K is, K = 1 being `hf`; `meta` is Meta's own format, for Llama models with parallel
            heads; `vllm-medusa` holds linear heads as vLLM up to 0.32 reads them, without the model; `vllm-mimo` and
            `sglang-mimo` a model with one chain head as these serve MiMo; `adapter` the adapters on the base model, as
            peft reads them (from a run).

    Raises:
        UsageError: no such source or target, a model that the target cannot hold, or a folder in the way.
        WmtpError: what was written is not what was read.
    """
    if _head(target) is None and target not in TARGETS:
        raise UsageError(f"--to must be one of {', '.join(TARGETS)}; got {target!r}")
    if target == "adapter":
        return _export_adapter(_found(source, note), out)
    model, tokenizer = _read(source, note)
    if model.base.is_remote_code() and isinstance(place(out), ObjectPath):
        raise UsageError(f"{source} has code of its own, which runs from a disk only: give a local --out, not {out}")
    with remote_code(out):  # what is read back has the code that runs already
        return _write(model, tokenizer, out, target, note)


def _write(model: Model, tokenizer: Any, out: str, target: str, note: Callable[[str], None]) -> Place:
    number = _head(target)
    if target == "wmtp":
        folder = save_model(model, out, tokenizer)
        _check(model, folder)
        return folder
    if isinstance(model, ValueModel):
        raise UsageError("a critic has no language model to export; use --to wmtp")
    if target == "meta":
        meta.params_of(model)
        folder = write_folder(out, lambda folder: meta.write_meta(model, folder, tokenizer), on_disk=True)
        _check(model, folder)
    elif target == "vllm-medusa":
        medusa.medusa_config(model)
        folder = write_folder(out, lambda folder: medusa.write_medusa(model, folder))
        medusa.check_medusa(model, folder)
        note(f"vLLM has Medusa up to version {medusa.LAST_VLLM}; later ones do not serve {folder}")
    elif target in MIMO:
        engine = MIMO[target]
        mimo.mimo_config(model, engine)
        folder = write_folder(out, lambda folder: mimo.write_mimo(model, folder, engine, tokenizer))
        mimo.check_mimo(model, folder, engine)
        if (folder / mimo.TOKENIZER).is_dir():
            note(f"the engine must be told where the tokenizer is: {folder / mimo.TOKENIZER} (vllm: --tokenizer)")
        if engine == "sglang":
            _check_same(model, load_model(str(folder)), folder)
    else:
        model.keep_only(1 if number is None else number)
        model.value_head = None
        folder = save_model(model, out, tokenizer, plain=True)
        _check(model, folder)
    return folder


def _head(target: str) -> int | None:
    """K of `head:K`."""
    found = re.fullmatch(r"head:([0-9]{1,3})", target)
    return None if found is None else int(found[1])


def _found(source: str, note: Callable[[str], None]) -> Place:
    """The checkpoint or model folder that is meant."""
    path = place(source)
    if not (path / "checkpoints").is_dir():
        return path
    found = checkpoint.newest(path / "checkpoints", on_bad=lambda bad, reason: note(f"passed over {bad}: {reason}"))
    if found is None:
        raise UsageError(f"the run {source} has no checkpoint yet; name a run that has one, or a model folder")
    return found


def _read(source: str, note: Callable[[str], None]) -> tuple[Model, Any]:
    path = _found(source, note)
    if (path / checkpoint.MANIFEST).is_file():
        model, tokenizer, _ = _from_checkpoint(path)
        merge_adapters(model)
        return model, tokenizer
    tokenizer = hf.load_tokenizer(source)
    loads = load_value_model if isinstance(read_card(source), ValueCard) else load_model
    return loads(source), tokenizer


def _from_checkpoint(path: Place) -> tuple[Model, Any, Config]:
    """The model as it was trained, with its adapters if it has any."""
    saved = checkpoint.load(path, ["model"])
    try:
        config = Config.model_validate(saved.facts["config"])
    except (KeyError, ValidationError) as problem:
        raise CheckpointError(
            f"{path} does not say how its model is built ({first_line(problem)}); use the version of wmtp that wrote it"
        ) from problem
    tokenizer = load_tokenizer(config)
    model, _ = build_model(config, tokenizer)
    try:
        model.load_state_dict(saved.parts["model"])
    except RuntimeError as problem:
        raise ModelError(
            f"{path} is a checkpoint of another model than its config says: {first_line(problem)}; name another one"
        ) from problem
    return model, tokenizer, config


def _export_adapter(path: Place, out: str) -> Place:
    """The adapters on the base model; read back, they make of it what merging makes."""
    if not (path / checkpoint.MANIFEST).is_file():
        raise UsageError(
            f"{path} is no checkpoint: adapters are there while they train, a model folder has none; give a run folder"
        )
    model, tokenizer, config = _from_checkpoint(path)
    lora, base = config.model.lora, config.model.path
    if lora is None or base is None or isinstance(model, ValueModel):
        raise UsageError("--to adapter is for runs with model.lora and model.path, on whose weights it is based")

    def write(folder: Path) -> None:
        write_adapter(model, folder, base, rank=lora.rank, alpha=lora.alpha)
        tokenizer.save_pretrained(folder)

    folder = write_folder(out, write)
    merge_adapters(model)
    again = hf.load_causal_lm(str(folder)).state_dict()
    expected = {model.hf_key(name): value for name, value in model.state_dict().items() if name.startswith("base.")}
    if any(not again[name].equal(value) for name, value in expected.items()):
        raise WmtpError(f"{folder} does not read back as it was written")
    return folder


def _check(model: Model, folder: Place) -> None:
    if isinstance(model, ValueModel):
        again: Model = load_value_model(str(folder))
    else:
        again = load_model(str(folder), num_heads=model.num_heads)
    expected, got = model.state_dict(), again.state_dict()
    different = [name for name in expected if name not in got or not got[name].equal(expected[name])]
    if different or expected.keys() != got.keys():
        raise WmtpError(f"{folder} does not read back as it was written: {', '.join(different[:3]) or 'other names'}")
    if isinstance(model, MTPModel):
        _check_same(model, again, folder)


def _check_same(model: MTPModel, again: Model, folder: Place) -> None:
    tokens_BT = probe(model.base)
    with evaluating(model), evaluating(again):
        same = all(ours.equal(theirs) for ours, theirs in zip(model(tokens_BT), again(tokens_BT), strict=True))
    if not same:
        raise WmtpError(
            f"{folder} has the same weights and computes something else: its config is not the model's; do not use it"
        )
