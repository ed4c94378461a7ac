"""Random weights for a model without memory: what initialises a parameter is written down, and done when it has some.

A model is built on the meta device exactly as it would be built on the CPU. Every operation that would have changed a
parameter there is noted with the state of the random generator before it, and the generator moves on as if it had
taken place. `Drawn.rows` does it all again for one parameter, whole, and gives the rows that are asked for. So every
rank gets its share of the very weights that one process would have, and holds one whole tensor at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

SMALL = 1 << 16
"""Elements of a parameter whose first values, made before it was registered, are kept: vectors of ones, say."""


@dataclass(frozen=True)
class _Deed:
    """An operation on a parameter, or on a view of it."""

    function: Any
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    others: tuple[Any, ...]
    keywords: dict[str, Any]
    generator: Tensor | None
    """State of the generator before, where the operation draws."""

    def do(self, whole: Tensor) -> None:
        """To a tensor with memory."""
        if self.generator is not None:
            torch.set_rng_state(self.generator)
        self.function(whole.as_strided(self.size, self.stride, self.offset), *self.others, **self.keywords)

    @property
    def decides_all(self) -> bool:
        """Whether nothing of what was there before is left."""
        return self.function in DECIDING


_aten = torch.ops.aten
DECIDING = {
    _aten.normal_.default, _aten.uniform_.default, _aten.zero_.default, _aten.fill_.Scalar, _aten.fill_.Tensor,
}  # fmt: skip


@dataclass
class _History:
    """Of one storage."""

    storage: torch.UntypedStorage
    first: Tensor | None = None
    deeds: list[_Deed] = field(default_factory=list)


class Drawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, models are built whose parameters have shapes only (`hf.without_parameters`)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._histories: dict[int, _History] = {}
        self._named: dict[str, tuple[nn.Parameter, _History]] = {}
        self.complete = True
        """False if something was done to a parameter that cannot be done again from what is written down."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        result = function(*args, **keywords)
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if target is None:
            return result
        if function._schema.is_mutable and target.is_meta:
            self._note(function, target, args[1:], keywords)
        elif (
            isinstance(result, Tensor) and result.is_meta and function in (_aten.clone.default, _aten._to_copy.default)
        ):
            self._copied(target, result)
        return result

    def _note(self, function: Any, target: Tensor, others: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((others, keywords))):
            self.complete = False
            return
        draws = torch.Tag.nondeterministic_seeded in function.tags
        state = torch.get_rng_state() if draws else None
        size, stride = tuple(target.size()), tuple(target.stride())
        kept = tree_map_only(Tensor, torch.clone, (others, keywords))
        deed = _Deed(function, size, stride, int(target.storage_offset()), kept[0], kept[1], state)
        if draws:  # the generator moves on as it would have
            function(torch.empty_strided(size, stride, dtype=target.dtype), *others, **keywords)
        history = self._history(target)
        if deed.decides_all and target.numel() * target.element_size() == target.untyped_storage().nbytes():
            history.first = None
            history.deeds.clear()
        history.deeds.append(deed)

    def _copied(self, source: Tensor, result: Tensor) -> None:
        history = self._history(result)
        if source.is_meta:
            known = self._history(source)
            history.first, history.deeds = known.first, list(known.deeds)
        elif source.numel() <= SMALL:
            history.first = source.detach().clone()

    def _history(self, tensor: Tensor) -> _History:
        storage = tensor.untyped_storage()
        return self._histories.setdefault(id(storage), _History(storage))

    def name(self, model: nn.Module) -> bool:
        """Remember the model's parameters by name, before they are sharded; False if one cannot be made again."""
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                self._named[name] = (parameter, self._history(parameter))
                self.complete = self.complete and self.decides(name)
        return self.complete

    def decides(self, name: str) -> bool:
        """Whether a parameter has none of its values from elsewhere."""
        history = self._named[name][1]
        return history.first is not None or (bool(history.deeds) and history.deeds[0].decides_all)

    def touches(self, name: str) -> bool:
        """Whether a parameter has some value that is written down here."""
        history = self._named[name][1]
        return history.first is not None or bool(history.deeds)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a parameter as it was initialised."""
        parameter, history = self._named[name]
        whole = torch.empty(parameter.shape, dtype=parameter.dtype)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            if history.first is not None:
                whole.copy_(history.first)
            for deed in history.deeds:
                deed.do(whole)
        return whole[start:stop]
