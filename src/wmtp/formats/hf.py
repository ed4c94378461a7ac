"""Hugging Face models and tokenizers in: loaded strictly, from a local folder or by hub id.

`transformers` fills tensors that a checkpoint lacks with random numbers and says so in a log line. Here a missing,
unexpected or misshapen tensor is an error that names it. Weights come from safetensors only, and code of a model runs
only where it was named (`formats.code`).
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wmtp.errors import ModelError, first_line
from wmtp.formats import hub
from wmtp.formats.adapter import add_stored, read_adapter
from wmtp.formats.code import code_of
from wmtp.formats.kind import CONFIG, check_alone, kind_of
from wmtp.formats.remote import at_hand, tensors_of
from wmtp.formats.scan import check_finite, check_floating, check_folder, weight_files
from wmtp.formats.sums import check_sum
from wmtp.storage import ObjectPath, Place, matches, place


def locate(source: str) -> str:
    """Where the model is: the path of its folder, or a hub id as it is.

    Raises:
        ModelError: a file where a folder is needed, or neither a folder nor the form of a hub id.
    """
    path = place(source)
    if path.is_dir() and not (path / "config.json").exists() and (path / "final").is_dir():
        raise ModelError(f"{source} is a run folder; the model it trained is {source}/final: give that")
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ModelError(f"{source} is a file; a model folder (config.json, *.safetensors) was expected")
    if hub.is_id(source):
        return source
    raise ModelError(f"no model folder at {source}; give one that is there, or a hub id: ORGANISATION/NAME")


def folder_of(source: str, *, weights: bool = False) -> Place:
    """The folder that `locate` finds; of a hub id that of its files in the cache.

    Args:
        weights: of a hub id too, which are not there before they are asked for.

    Raises:
        ModelError: as `locate`, and `hub.fetched`.
        WmtpError: the hub does not deliver.
    """
    found = locate(source)
    return hub.fetched(found, weights=weights) if hub.is_id(found) else place(found)


@contextmanager
def files_of(source: str) -> Iterator[str]:
    """A folder on a disk with everything but weights. Raises as `folder_of` does."""
    folder = folder_of(source)
    if isinstance(folder, ObjectPath):
        with at_hand(folder) as local:
            yield str(local)
    else:
        yield str(folder)


@contextmanager
def without_parameters() -> Iterator[None]:
    """Modules made inside have parameters on the meta device: shape and type, no memory. Buffers are real."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def load_causal_lm(source: str, dtype: torch.dtype = torch.float32) -> Any:
    """A `transformers` causal language model with every weight read from `source`.

    Raises:
        ModelError: no such model, not a causal language model, or weights that do not fit, named.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    folder = folder_of(source, weights=True)
    kind = kind_of(folder)
    if kind == "adapter":
        return _load_adapted(source, dtype)
    if kind == "classifier":
        raise ModelError(
            f"{source} is a sequence classifier, such as a reward model: it has no unembedding; a causal language "
            "model was expected"
        )
    check_folder(folder)
    with told(f"cannot load a causal language model from {source}"):
        if isinstance(folder, ObjectPath):
            given = _remote_weights(folder, dtype)
            of_config = MODEL_FOR_CAUSAL_LM_MAPPING[type(given["config"])]
            model, info = of_config.from_pretrained(None, **given, dtype=dtype, **STRICT)
        else:
            model, info = from_folder(AutoModelForCausalLM, source, folder, dtype)
    check_loaded(source, info, model)
    _check_tied(source, model)
    check_files(folder, model)
    return model


def from_folder(auto_class: Any, source: str, folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The model that one of transformers' auto classes loads from a folder on a disk, and what it told of its loading.

    Args:
        source: the model as it was given.

    Raises:
        ModelError: no config, or an adapter too, which transformers would follow to another model.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{source} has no {CONFIG}; a whole model folder was expected: copy it again")
    check_alone(folder)
    with code_of(source, folder) as may_run:
        model, info = auto_class.from_pretrained(folder, trust_remote_code=may_run, dtype=dtype, **STRICT)
    return model, info


def check_files(folder: Place, model: Any) -> None:
    """Raise `ModelError` unless the files of weights are what their checksums say, and hold floats where it does."""
    floating = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    for path in weight_files(folder):
        check_floating(path, floating)
        check_sum(path)


def _load_adapted(source: str, dtype: torch.dtype) -> Any:
    base, folder = base_of(source), folder_of(source, weights=True)
    if kind_of(folder_of(base)) == "adapter":
        raise ModelError(f"{source} is an adapter of {base}, which is an adapter itself; one of a model was expected")
    model = load_causal_lm(base, dtype)
    add_stored(model, folder, read_adapter(folder))
    return model


def base_of(source: str) -> str:
    """The model that an adapter belongs to; any other model itself.

    Raises:
        ModelError: see `read_adapter`.
    """
    folder = folder_of(source)
    return read_adapter(folder).base_model_name_or_path if kind_of(folder) == "adapter" else source


def _remote_weights(folder: ObjectPath, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` needs of a model in an object store, where it cannot look for itself. The tensors become
    the model's own.

    Raises:
        ModelError: they cannot be read.
    """
    from transformers import GenerationConfig

    with told(f"cannot read the weights of {folder}"):
        tensors = {k: v for file in weight_files(folder) for k, v in tensors_of(file, widened=dtype).items()}
        with at_hand(folder) as local:
            given: dict[str, Any] = {"config": _config_in(str(folder), str(local)), "state_dict": tensors}
            if (local / "generation_config.json").is_file():
                given["generation_config"] = GenerationConfig.from_pretrained(local)
    return given


def random_causal_lm(architecture: dict[str, Any] | str, vocabulary: int, seed: int) -> Any:
    """A freshly initialised model.

    Args:
        architecture: a transformers config as a mapping with `model_type`, or the location of a `config.json`'s folder.
        vocabulary: the tokenizer's size; a mapping without `vocab_size` takes it.

    Raises:
        ModelError: unknown `model_type`, or a key the config class does not have.
    """
    config = architecture_config(architecture, vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with told("cannot build a causal language model of model.architecture", "one that transformers has"):
            return causal_lm_of(config)


def model_config(source: str) -> Any:
    """The transformers config of a model folder, without its weights; of an adapter, that of its model."""
    base = base_of(source)
    with told(f"cannot read the config of the model {source}"), files_of(base) as folder:
        return _config_in(base, folder)


def _config_in(source: str, folder: str) -> Any:
    """The config in a folder on a disk. It has an `auto_map` only if that code may run: see `causal_lm_of`."""
    from transformers import AutoConfig

    with code_of(source, Path(folder)) as may_run:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=may_run)
    if not may_run:
        vars(config).pop("auto_map", None)
    return config


def causal_lm_of(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model of a config that `model_config` or `architecture_config` gave, as it is initialised."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=True)


def architecture_config(architecture: dict[str, Any] | str, vocabulary: int) -> Any:
    """The transformers config of a mapping with `model_type`, or of a `config.json`'s folder.

    Args:
        vocabulary: the tokenizer's size; a mapping without `vocab_size` takes it.

    Raises:
        ModelError: unknown `model_type`, or a key the config class does not have.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if isinstance(architecture, str):
        return copy.deepcopy(model_config(architecture))
    options = dict(architecture)
    kind = options.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(
            f"model.architecture.model_type = {kind!r} is not one that transformers knows; use one of its names, such "
            "as llama"
        )
    known = set(CONFIG_MAPPING[kind]().to_dict()) | set(CONFIG_MAPPING[kind].attribute_map)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ModelError(f"model.architecture.{unknown[0]}: a {kind} config has no such key; leave it out")
    options.setdefault("vocab_size", vocabulary)
    with told(f"model.architecture is no {kind} config", "its keys with values of their types"):
        return AutoConfig.for_model(kind, **options)


def check_loaded(source: str, info: dict[str, Any], model: Any) -> None:
    """Raise `ModelError` that names tensors which a model's weights lack, or have too many, of another shape or not
    finite; `info` is what `from_pretrained` told of its loading."""
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(what, ()) if next_layer(str(name), model.config) is None)
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"{source}: {what.replace('_', ' ')} in its weights: {', '.join(names[:3])}{more}; they must be those "
                "of its config.json"
            )
    check_finite(source, model.named_parameters())


def next_layer(name: str, config: Any) -> int | None:
    """Which of the layers for multi-token prediction that a checkpoint carries beside its model (`formats.nextn`) a
    stored tensor belongs to, counted from 0; None if to none."""
    count = getattr(config, "num_nextn_predict_layers", None) or 0
    found = re.match(r"model\.(mtp_)?layers\.([0-9]{1,4})\.", name)
    if found is None:
        return None
    number = int(found[2]) - (0 if found[1] else config.num_hidden_layers)
    return number if 0 <= number < count else None


def _check_tied(source: str, model: Any) -> None:
    """transformers unties what a config ties if the weights hold two embeddings, and says so in a log line."""
    one, other = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and one is not None and other is not None and one.weight is not other.weight:
        raise ModelError(
            f"{source}: its config has tie_word_embeddings = true, its weights hold another lm_head.weight: set it to "
            "false, or leave that tensor out"
        )


STRICT = {
    "use_safetensors": True,  # no pickle
    "ignore_mismatched_sizes": True,  # `check_loaded` names them
    "output_loading_info": True,
}
"""How transformers' `from_pretrained` loads weights here."""


@contextmanager
def told(what: str, expected: str = "files as transformers saves them") -> Iterator[None]:
    """Turn what reading a model folder raises into a `ModelError`: `what`, why in a line, and what was expected."""
    try:
        yield
    except loading_errors() as problem:
        raise ModelError(f"{what}: {first_line(problem)}; expected {expected}") from problem


def loading_errors() -> tuple[type[Exception], ...]:
    """What reading a model folder raises when a file in it is missing, damaged or nonsense."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    expected = (OSError, ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, ImportError)
    nonsense = (AssertionError, IndexError, AttributeError)
    return (*expected, *nonsense, SafetensorError, StrictDataclassError)


def load_tokenizer(source: str, *, needs_eos: bool = True) -> Any:
    """A fast tokenizer with an EOS; also from a folder that has SentencePiece's `tokenizer.model` alone, read as
    Llama's: with a BOS in front.

    Args:
        needs_eos: False accepts one without: a reward model's, which ends no response.

    Raises:
        ModelError: none there, one without character offsets, or one without EOS; a SentencePiece model that
            transformers reads otherwise than SentencePiece does.
    """
    if not matches(folder_of(source), "tokenizer*"):
        source = base_of(source)
    with files_of(source) as folder:
        tokenizer = _tokenizer(source, folder, needs_eos)
    tokenizer.name_or_path = locate(source)
    return tokenizer


def _tokenizer(source: str, folder: str, needs_eos: bool) -> Any:
    from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

    if Path(folder).is_dir() and not any(path.is_file() for kind in OF_TOKENIZERS for path in Path(folder).glob(kind)):
        raise ModelError(f"cannot load a tokenizer from {source}: expected one of {', '.join(OF_TOKENIZERS)} there")
    sentencepiece = _sentencepiece_of(source, Path(folder))
    alone = sentencepiece is not None and not (Path(folder) / "tokenizer_config.json").is_file()
    try:
        if alone:  # AutoTokenizer would guess, and put a space in front that SentencePiece has not
            tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
        else:
            with code_of(source, Path(folder)) as may_run:
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=may_run)
            if tokenizer._auto_class is None and not follows_its_file(tokenizer, Path(folder)):  # code goes its own way
                by_type, tokenizer = tokenizer, PreTrainedTokenizerFast.from_pretrained(folder)
                if tokenizer.eos_token is None and by_type.eos_token in tokenizer.get_vocab():
                    tokenizer.eos_token = by_type.eos_token  # as models of its type have it
    except ModelError:
        raise
    except Exception as problem:  # the tokenizers library raises bare `Exception`s
        raise ModelError(
            f"cannot load a tokenizer from {source}: {first_line(problem)}; expected tokenizer.json or tokenizer.model"
        ) from problem
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"the tokenizer of {source} gives no character offsets; a fast tokenizer is needed")
    if needs_eos and tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {source} has no EOS token, so responses could not be ended; set eos_token in its "
            "tokenizer_config.json"
        )
    if sentencepiece is not None:
        _check_sentencepiece(source, sentencepiece, tokenizer)
    return tokenizer


def fast_tokenizer(backend: Any) -> Any:
    """A `tokenizers.Tokenizer` that was built in code as one of transformers, with pad, BOS and EOS.

    Raises:
        ModelError: its vocabulary lacks `<pad>`, `<bos>` or `<eos>`.
    """
    from transformers import PreTrainedTokenizerFast

    specials = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos")}
    lacking = [token for token in specials.values() if backend.token_to_id(token) is None]
    if lacking:
        raise ModelError(f"a tokenizer of a task must have {', '.join(specials.values())}; {lacking[0]} is missing")
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **specials)


OF_TOKENIZERS = ("tokenizer*", "vocab*", "*.model")
"""Names of their files."""

PROBES = (
    "def f(x):\n    return x + 1\n", "two  spaces, a\ttab", "\n\n# comment", "12345 + 6.78e-10", "naïve café, 数学 🙂",
    "[[1, 2], {'a': 0}]", "a_b.c(d)[e:f] != g",
)  # fmt: skip
"""Texts on which readers of one SentencePiece model must agree. None begins with a space: there SentencePiece puts
another one in front, and transformers' Llama tokenizer does not."""
NORMALISED = "cafe\u0301 \ufb01 \u00b2"
"""A text that Unicode normalisation changes."""


def follows_its_file(tokenizer: Any, folder: Path) -> bool:
    """Whether a tokenizer does what the folder's `tokenizer.json` says, where there is one. For some types of models
    (qwen2) transformers takes the vocabulary from that file and makes the other rules itself."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if type(tokenizer) is PreTrainedTokenizerFast or not file.is_file():
        return True
    said = Tokenizer.from_file(str(file))
    return all(
        said.encode(text, add_special_tokens=False).ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (*PROBES, NORMALISED)
    )


def _sentencepiece_of(source: str, folder: Path) -> Any:
    """SentencePiece's own reader of a folder's `tokenizer.model`, where there is no `tokenizer.json`; else None.

    Raises:
        ModelError: it needs packages that are not installed, or is damaged.
    """
    model = folder / "tokenizer.model"
    if not model.is_file() or (model.parent / "tokenizer.json").exists():
        return None
    try:
        import google.protobuf  # noqa: F401 transformers needs it for the same file
        from sentencepiece import SentencePieceProcessor
    except ImportError as problem:
        raise ModelError(
            f"{source} has a SentencePiece tokenizer.model, which needs further packages ({problem}); install "
            "wmtp[sentencepiece], or convert it to a tokenizer.json"
        ) from problem
    try:
        return SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError, TypeError) as problem:
        raise ModelError(f"{model} is no SentencePiece model: {first_line(problem)}; copy it again") from problem


def _check_sentencepiece(source: str, sentencepiece: Any, tokenizer: Any) -> None:
    for text in PROBES:
        ours, theirs = tokenizer(text, add_special_tokens=False)["input_ids"], sentencepiece.encode(text)
        if ours != theirs:
            raise ModelError(
                f"transformers reads the tokenizer.model of {source} otherwise than SentencePiece does: {text!r} gives "
                f"{ours[:8]}..., not {theirs[:8]}...; convert it to a tokenizer.json that agrees"
            )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over (token, id) of the whole vocabulary: equal if and only if every id means the same."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def backend_fingerprint(tokenizer: Any) -> str:
    """sha256 over all that decides which ids a text becomes: vocabulary, merges, rules, BOS, EOS, chat template."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {name: value for name, value in backend.items() if name not in ("truncation", "padding")}
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer("")["input_ids"]]
    described = json.dumps([rules, ends, tokenizer.chat_template], sort_keys=True) + _own_code(tokenizer)
    return hashlib.sha256(described.encode()).hexdigest()


def _own_code(tokenizer: Any) -> str:
    """The source of a tokenizer's class where that came with it (`formats.code`)."""
    named = getattr(tokenizer, "_auto_class", None) is not None
    return inspect.getsource(sys.modules[type(tokenizer).__module__]) if named else ""


def check_same_tokenizer(policy: Any, other: Any, what: str) -> None:
    """Raise `ModelError` unless every id means the same token in both; names the first that does not."""
    ours, theirs = policy.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    different = min(index for _, index in ours.items() ^ theirs.items())
    raise ModelError(
        f"{what} has another tokenizer than the policy: {len(theirs):,} against {len(ours):,} tokens, first "
        f"difference at id {different} ({_token(other, different)!r} against {_token(policy, different)!r}); name a "
        "model with the policy's"
    )


def _token(tokenizer: Any, index: int) -> str | None:
    return next((token for token, i in tokenizer.get_vocab().items() if i == index), None)
