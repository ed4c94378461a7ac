"""A scheme of the user's own while it runs: where it breaks what a scheme promises, the run ends in its name."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wmtp.errors import SchemeError, WmtpError, first_line, not_on_mps, out_of_memory
from wmtp.ranks import Reduce
from wmtp.weighting.base import Scheme, SchemeInput, When

_CHECK = "mend it, and try it with wmtp.testing.check_scheme (docs/schemes/own.md)"


class Watched:
    """Asks a scheme, and looks at what it says.

    Shape, data type and graph are looked at with every answer. Values are looked at where a step ends, since an
    accelerator would have to be waited for before: done (`observe`) or undone (`load_state_dict`). An evaluation waits
    for its figures anyway: there they are looked at at once.

    Args:
        scheme: that is asked.
        name: of the scheme, for messages.

    Raises:
        SchemeError: from `weights`, `observe`, `state_dict` and `load_state_dict`.
    """

    def __init__(self, scheme: Scheme, name: str) -> None:
        self.scheme, self.name = scheme, name
        self._range_2: Tensor | None = None

    @property
    def when(self) -> When:
        """As the scheme."""
        return self.scheme.when

    @property
    def per_head(self) -> bool:
        """As the scheme."""
        return self.scheme.per_head

    @property
    def needs(self) -> frozenset[str]:
        """As the scheme."""
        return self.scheme.needs

    @property
    def bounds(self) -> tuple[float, float] | None:
        """As the scheme."""
        return self.scheme.bounds

    def weights(self, step: Sequence[SchemeInput], reduce: Reduce, training: bool) -> list[Tensor | None]:
        """The scheme's, if they are what a scheme gives."""
        with self._blamed("weights"):
            given = self.scheme.weights(step, reduce, training)
        if not isinstance(given, list | tuple) or len(given) != len(step):
            got = f"{len(given)} of them" if isinstance(given, list | tuple) else type(given).__name__
            raise self._broken(f"returned {got}, expected a list of {len(step)}, one a micro-batch")
        for weight_BTK, batch in zip(given, step, strict=True):
            if weight_BTK is not None:
                self._look(weight_BTK, tuple(batch.target_BTK.shape))
        if not training:
            self._settle()
        return list(given)

    def observe(self, totals: Mapping[str, Tensor]) -> None:
        """The step's weights are looked at, and the scheme is told."""
        self._settle()
        with self._blamed("observe"):
            self.scheme.observe(totals)

    def state_dict(self) -> dict[str, Any]:
        """The scheme's."""
        with self._blamed("state_dict"):
            return self.scheme.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The step's weights are looked at, and the scheme remembers what it did before."""
        self._settle()
        with self._blamed("load_state_dict"):
            self.scheme.load_state_dict(state)

    def _look(self, weight_BTK: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(weight_BTK, Tensor):
            raise self._broken(f"returned {type(weight_BTK).__name__}, expected a tensor or None for each micro-batch")
        if (tuple(weight_BTK.shape), weight_BTK.dtype) != (shape, torch.float32):
            raise self._broken(
                f"returned {weight_BTK.dtype} of the shape {tuple(weight_BTK.shape)}, expected torch.float32 of the "
                f"shape [B, T, K] = {shape}"
            )
        if weight_BTK.requires_grad:
            raise self._broken("returned a tensor with a gradient, expected a detached one: use torch.no_grad()")
        if weight_BTK.numel():
            range_2 = torch.stack(weight_BTK.aminmax())
            both = range_2 if self._range_2 is None else torch.stack([range_2, self._range_2])
            self._range_2 = both if both.dim() == 1 else torch.stack([both[:, 0].amin(), both[:, 1].amax()])

    def _settle(self) -> None:
        """Raise if a weight since the last look is negative or not finite."""
        if self._range_2 is None:
            return
        low, high = self._range_2.tolist()
        self._range_2 = None
        if not 0 <= low <= high < float("inf"):
            raise self._broken(f"returned weights from {low:.4g} to {high:.4g}, expected finite ones of at least 0")

    def _broken(self, what: str) -> SchemeError:
        return SchemeError(f"{self.name}: weights() {what}; {_CHECK}")

    @contextmanager
    def _blamed(self, method: str) -> Iterator[None]:
        """What the scheme's code raises becomes one message; what is ours stays what it is."""
        try:
            yield
        except WmtpError:
            raise
        except Exception as problem:
            ours = out_of_memory(problem) or not_on_mps(problem)
            text = f"{type(problem).__name__}: {first_line(problem)} ({self._place(problem)})"
            raise ours or SchemeError(f"{self.name}: {method}() raised {text}; {_CHECK}") from problem

    def _place(self, problem: Exception) -> str:
        """File and line: the last in the scheme's own file, where it is one of those."""
        frames = traceback.extract_tb(problem.__traceback__)
        own = getattr(sys.modules.get(type(self.scheme).__module__), "__file__", None)
        frame = next((one for one in reversed(frames) if one.filename == own), frames[-1])
        return f"{frame.filename}:{frame.lineno}"


def unwatched(scheme: Scheme) -> Scheme:
    """The scheme itself."""
    return scheme.scheme if isinstance(scheme, Watched) else scheme
