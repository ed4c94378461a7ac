"""One micro-batch's passes on the meta device: what lives when, without weights and without computing anything.

A copy of the model whose tensors have shapes only goes forward and backward as the objective would send it, and every
tensor that an operation makes is counted until it is gone. So recomputed activations, one head after another, lower
precision and the peculiarities of an architecture are all in the figures, at any size, in about a second. Some things
need help there:

- attention would fall back to the form that builds `[B, H, T, T]`: it is sent to the operator that CPUs use, which
  keeps what those of GPUs keep (queries, keys, values, output, one number per query);
- autocast does not reach the meta device: products are cast here, and parameters' copies kept as long as it keeps them;
- transformers asks whether rows hold single documents: they do.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wmtp.memory import Moment, Parts, Unit
from wmtp.model import MTPModel
from wmtp.reward import RewardModel
from wmtp.value import ValueHead, ValueModel

Model = MTPModel | ValueModel | RewardModel
Loss = Callable[[int], Parts]
"""Bytes by part of the loss of so many heads at a time."""


def unit_modules(model: Model) -> list[nn.Module]:
    """The units that sharding makes (`parts.spread`), in the order of the forward pass; what is left is the last."""
    if isinstance(model, MTPModel):
        embedding = model.own_embedding()
        return [*([] if embedding is None else [embedding]), *model.trunk_layers(), *model.heads()]
    return [*model.layers(), *([model.value_head] if isinstance(model, ValueModel) else [])]


def units_of(model: Model) -> list[Unit]:
    """The shapes of every unit, the one that is left at the end."""
    taken: set[nn.Parameter] = set()
    units = []
    for module in (*unit_modules(model), model):
        own = [parameter for parameter in module.parameters() if parameter not in taken]
        taken.update(own)
        trained, frozen = ([tuple(p.shape) for p in own if p.requires_grad is wanted] for wanted in (True, False))
        units.append(Unit(tuple(trained), tuple(frozen), cast=not isinstance(module, ValueHead)))
    return units


def on_meta(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """A copy whose tensors have shapes only, and which recomputes nothing.

    Args:
        dtype: that sharding fetches parameters in.
    """
    memory: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memory[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    memory |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    made = copy.deepcopy(model, memory)
    for module in made.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False  # type: ignore[assignment]
    made.base.to(dtype)
    if isinstance(made, MTPModel):
        made.extra_heads.to(dtype)
    return made


def rehearse(
    model: Model, shape: tuple[int, int], loss: Loss, kept: int, *, head_by_head: bool, autocast: bool = False
) -> list[Moment]:
    """The moments of training on a micro-batch of (rows, length).

    Args:
        model: from `on_meta`.
        loss: bytes by part of the loss, of so many heads at a time.
        kept: bytes of the unembedding's gradient.
        head_by_head: whether the objective asks for one head after another.
        autocast: whether products are in bf16 although parameters are not.
    """
    recorder = _Recorder(model)
    with _helped(autocast) as context, recorder:
        tokens_BT = _tokens(model, shape)
        if isinstance(model, MTPModel):
            _train_heads(model, tokens_BT, recorder, loss, kept, head_by_head, context)
        else:
            with context:
                values_BT = model(tokens_BT)
            recorder.backward([values_BT], [torch.empty_like(values_BT)])
    return recorder.finished()


def rehearse_scoring(model: Model, shape: tuple[int, int], loss: Loss, *, autocast: bool = False) -> list[Moment]:
    """The moments of asking a frozen critic, reference or reward model about a micro-batch."""
    recorder = _Recorder(model)
    with _helped(autocast), recorder, torch.no_grad():
        scored = model(_tokens(model, shape))
        if isinstance(model, MTPModel):
            recorder.enter(recorder.rest, "loss", loss(len(scored)))
    return recorder.finished()


def _tokens(model: Model, shape: tuple[int, int]) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=next(model.parameters()).device)


def _train_heads(
    model: MTPModel,
    tokens_BT: Tensor,
    recorder: _Recorder,
    loss: Loss,
    kept: int,
    head_by_head: bool,
    context: AbstractContextManager[Any],
) -> None:
    """What `MTPObjective.backward` does."""

    def back(hidden_K: list[Tensor]) -> None:
        recorder.enter(recorder.rest, "loss", loss(len(hidden_K)), kept)
        trained = [hidden for hidden in hidden_K if hidden.requires_grad]
        if trained:
            recorder.backward(trained, [torch.empty_like(hidden) for hidden in trained])

    with context:
        trunk = model.trunk(tokens_BT)
    cut = trunk.detached() if head_by_head and model.heads_apart else None
    if cut is None:
        with context:
            hidden_K = list(model.each_head(trunk))
        back(hidden_K)
        return
    for k in range(model.num_heads):
        with context:
            hidden = model.head(k, cut)
        back([hidden])
    if cut.hidden_BTD.grad is not None:
        recorder.backward([trunk.hidden_BTD], [cut.hidden_BTD.grad])


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Those among an operation's arguments or results, and in the lists there."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


PRODUCTS = ((F, "linear"), (F, "scaled_dot_product_attention"), (torch, "addmm"), (torch, "matmul"), (torch, "bmm"))
"""What autocast computes in bf16."""


@contextmanager
def _helped(autocast: bool) -> Iterator[AbstractContextManager[Any]]:
    """Put in place what the meta device cannot do by itself; also for what is recomputed on the way back.

    Gives the context of forward passes."""
    original = {(place, name): getattr(place, name) for place, name in PRODUCTS}
    helped = original | {(F, "scaled_dot_product_attention"): _attention}
    real, ours = torch.autocast, _Autocast()
    try:
        for (place, name), function in helped.items():
            setattr(place, name, ours.lowering(function) if autocast else function)
        torch.autocast = ours  # type: ignore[misc, assignment]
        yield ours("meta")
    finally:
        torch.autocast = real  # type: ignore[misc]
        for (place, name), function in original.items():
            setattr(place, name, function)


class _Autocast:
    """What `torch.autocast` does, on a device that it refuses even to be switched off on.

    Like the real one it keeps the bf16 copy of a trained parameter until the outermost region ends. Outside of all
    regions products are in bf16 too: there a backward pass computes again what a region computed first.
    """

    def __init__(self) -> None:
        self.regions: list[bool] = []
        """Whether each open region is switched on, the innermost last."""
        self.copies: dict[int, Tensor] = {}

    def __call__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **_: Any) -> _Region:
        """A region, asked for as the real one is."""
        return _Region(self, enabled)

    def lowering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function of bf16 numbers."""

        def product(*args: Any, **keywords: Any) -> Any:
            return function(*map(self._lowered, args), **{name: self._lowered(each) for name, each in keywords.items()})

        return product

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or not all(self.regions[-1:]):
            return value
        if not (self.regions and value.requires_grad and value.is_leaf):
            return value.to(torch.bfloat16)
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(torch.bfloat16)
        return self.copies[id(value)]


@dataclass(frozen=True)
class _Region:
    """May be entered again, and within itself."""

    autocast: _Autocast
    enabled: bool

    def __enter__(self) -> None:
        self.autocast.regions.append(self.enabled)

    def __exit__(self, *_: object) -> None:
        self.autocast.regions.pop()
        if not self.autocast.regions:
            self.autocast.copies.clear()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` by the operator that builds no `[B, H, T, T]`; a mask it makes numbers of."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    hidden: Tensor = operator(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return hidden


@dataclass
class _Open:
    """A moment that is being recorded."""

    unit: int
    passes: str
    before: int
    peak: int
    gradients: int
    loss: Parts
    kept: int


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that were made and are not gone, moment by moment."""

    def __init__(self, model: Model) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.gradients = 0
        self.sizes: dict[int, int] = {}
        self.moments: list[_Open] = []
        self.ready: list[nn.Parameter] = []
        """Whose gradients the unit at work has made."""
        self.on_the_way_back = False
        modules = unit_modules(model)
        self.rest = len(modules)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.register_post_accumulate_grad_hook(self._made)  # type: ignore[no-untyped-call]
        for unit, module in enumerate(modules):
            module.register_forward_pre_hook(self._begins(unit))
            module.register_forward_hook(self._ends(unit))
        self.enter(self.rest, "forward")

    def enter(self, unit: int, passes: str, loss: Parts | None = None, kept: int = 0) -> None:
        """A unit goes to work; the gradients of the one before are the walk's business."""
        for parameter in self.ready:
            parameter.grad = None
        self.ready.clear()
        self.gradients = 0
        self.moments.append(_Open(unit, passes, self.live, self.live, 0, loss or {}, kept))

    def backward(self, outputs: list[Tensor], gradients: list[Tensor]) -> None:
        """A backward pass, which enters its units by itself."""
        self.enter(self.rest, "backward")
        self.on_the_way_back = True
        torch.autograd.backward(outputs, gradients)
        self.on_the_way_back = False

    def finished(self) -> list[Moment]:
        """All moments, in order."""
        return [
            Moment(m.unit, m.passes, m.before, m.peak - m.gradients, m.gradients, m.loss, m.kept) for m in self.moments
        ]

    def _begins(self, unit: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if self.on_the_way_back:
                return  # recomputed
            if unit == 0 and arguments and arguments[0].requires_grad:
                arguments[0].register_hook(lambda gradient: self.enter(self.rest, "backward"))
            self.enter(unit, "forward")

        return hook

    def _ends(self, unit: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if self.on_the_way_back:
                return
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: self.enter(unit, "backward"))
            self.enter(self.rest, "forward")

        return hook

    def _made(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        if not any(parameter is other for other in self.ready):
            self.ready.append(parameter)
            self.gradients += parameter.grad.untyped_storage().nbytes()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return True  # a model asked for a value; of those known here, whether each row is one document
        keywords = keywords or {}
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, tuple(keywords.values())))}
        result = function(*args, **keywords)
        for tensor in _tensors((result,)):
            self._count(tensor.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        name, size = id(storage), storage.nbytes()
        if name in given or name in self.sizes:
            return
        self.sizes[name] = size
        self.live += size
        weakref.finalize(storage, self._gone, name)
        now = self.moments[-1]
        if self.live > now.peak:
            now.peak, now.gradients = self.live, self.gradients

    def _gone(self, name: int) -> None:
        self.live -= self.sizes.pop(name)
