"""Which token follows: the likeliest, or one drawn; and which drafts are kept. docs/math.md (6).

Both ways answer the same three questions (`Choice`), so the loop that asks them does not know which it has. Random
numbers belong to a row and to the place of a new token in it: what a row draws depends neither on which rows are
beside it nor on how often a place was drafted before it was decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wmtp.decoding.slots import select_rows
from wmtp.errors import UsageError

DRAFT, ACCEPT, CHOOSE = range(3)
"""What the three uniform numbers of each new token are for."""


@dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are drawn from: the model's, sharpened, then cut by top-k, top-p and min-p in turn.

    Args:
        temperature: divides the logits; > 0.
        top_p: keep the likeliest tokens that together have this probability (Holtzman et al. 2020); in (0, 1].
        top_k: keep so many of the likeliest tokens; None keeps all.
        min_p: keep tokens of at least this share of the likeliest one's probability; in [0, 1).

    Raises:
        UsageError: a number outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature must be above 0, got {self.temperature} (greedy decoding draws nothing)")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 <= self.min_p < 1:
            raise UsageError(f"min_p must be at least 0 and below 1, got {self.min_p}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities `[..., V]` in fp32 from logits `[..., V]`."""
        scaled = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        probabilities = scaled.softmax(-1)
        if self.top_p < 1:
            ordered, index = probabilities.sort(dim=-1, descending=True)
            likelier = ordered.cumsum(-1) - ordered
            cut = torch.zeros_like(ordered, dtype=torch.bool).scatter(-1, index, likelier >= self.top_p)
            probabilities = probabilities.masked_fill(cut, 0.0)
        if self.min_p > 0:
            least = self.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        return probabilities / probabilities.sum(-1, keepdim=True)


class Choice(Protocol):
    """How tokens are chosen."""

    def draft(self, logits_BJV: Tensor, place_B: Tensor) -> Tensor:
        """Drafts `[B, J]` from the logits of heads; more of them may be asked for before they are verified.

        Args:
            place_B: number (from 0) of the row's new token that the first draft of all is for.
        """
        ...

    def verify(self, logits_BQV: Tensor, drafts_BJ: Tensor, count_B: Tensor, place_B: Tensor) -> tuple[Tensor, Tensor]:
        """How many drafts of each row are accepted, and the token that follows them: `[B]` and `[B]`.

        Args:
            logits_BQV: head 1's, with Q = J + 1: at the certain token and at every draft.
            drafts_BJ: what `draft` gave since the last call.
            count_B: how many of a row's drafts are meant.
            place_B: number of the new token that the first draft is for.
        """
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        ...


def leading(accepted_BJ: Tensor) -> Tensor:
    """How many are accepted before the first that is not: `[B]`."""
    return accepted_BJ.long().cumprod(1).sum(1)


class Greedy:
    """The likeliest token; a draft is accepted when it is that token."""

    def draft(self, logits_BJV: Tensor, place_B: Tensor) -> Tensor:
        """See `Choice`."""
        return logits_BJV.argmax(-1)

    def verify(self, logits_BQV: Tensor, drafts_BJ: Tensor, count_B: Tensor, place_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `Choice`."""
        target_BQ = logits_BQV.argmax(-1)
        meant_BJ = torch.arange(drafts_BJ.shape[1], device=drafts_BJ.device) < count_B[:, None]
        accepted_B = leading((drafts_BJ == target_BQ[:, :-1]) & meant_BJ)
        return accepted_B, target_BQ.gather(1, accepted_B[:, None])[:, 0]

    def select(self, rows: Sequence[int]) -> None:
        """Nothing is kept."""


class Drawn:
    """Tokens drawn from a distribution; drafts by the rejection rule of Leviathan et al. 2023, equation (6.2).

    Args:
        uniform_BN3: numbers in [0, 1), three for each new token of each row.
    """

    def __init__(self, sampling: Sampling, uniform_BN3: Tensor) -> None:
        self.sampling = sampling
        self.uniform_BN3 = uniform_BN3
        self._drafted: list[Tensor] = []

    def draft(self, logits_BJV: Tensor, place_B: Tensor) -> Tensor:
        """See `Choice`."""
        q_BJV = self.sampling.probabilities(logits_BJV)
        already = sum(q.shape[1] for q in self._drafted)
        self._drafted.append(q_BJV)
        return draw(q_BJV, self._uniform(place_B + already, q_BJV.shape[1], DRAFT))

    def verify(self, logits_BQV: Tensor, drafts_BJ: Tensor, count_B: Tensor, place_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `Choice`."""
        p_BQV = self.sampling.probabilities(logits_BQV)
        q_BQV = torch.cat([*self._drafted, torch.zeros_like(p_BQV[:, :1])], 1)
        self._drafted = []
        width = drafts_BJ.shape[1]
        q_BQV = q_BQV * (torch.arange(width + 1, device=q_BQV.device) < count_B[:, None])[..., None]
        p_BJ, q_BJ = (x[:, :width].gather(-1, drafts_BJ[..., None])[..., 0] for x in (p_BQV, q_BQV))
        accepted_B = leading((self._uniform(place_B, width, ACCEPT) * q_BJ < p_BJ) & (q_BJ > 0))
        row_B = torch.arange(len(accepted_B), device=accepted_B.device)
        p_BV, q_BV = p_BQV[row_B, accepted_B], q_BQV[row_B, accepted_B]
        rest_BV = (p_BV - q_BV).clamp(min=0)
        # p and q that are equal up to rounding leave nothing, and then either of them is the answer.
        rest_BV = torch.where(rest_BV.sum(-1, keepdim=True) > 0, rest_BV, p_BV)
        return accepted_B, draw(rest_BV, self._uniform(place_B + accepted_B, 1, CHOOSE)[:, 0])

    def select(self, rows: Sequence[int]) -> None:
        """See `Choice`."""
        self.uniform_BN3 = select_rows(self.uniform_BN3, rows)

    def _uniform(self, place_B: Tensor, width: int, purpose: int) -> Tensor:
        """`[B, width]`; past a row's last token any number does, nothing there is used."""
        place_BJ = place_B[:, None] + torch.arange(width, device=place_B.device)
        last = self.uniform_BN3.shape[1] - 1
        return self.uniform_BN3[:, :, purpose].gather(1, place_BJ.clamp(max=last))


def draw(weight: Tensor, uniform: Tensor) -> Tensor:
    """Index drawn in proportion to weights `[..., V]` by numbers `[...]` in [0, 1): their running sum, inverted."""
    total = weight.cumsum(-1, dtype=uniform.dtype)
    threshold = torch.minimum(uniform * total[..., -1], total[..., -1].nextafter(torch.zeros_like(total[..., -1])))
    return torch.searchsorted(total, threshold[..., None], right=True)[..., 0]


def uniform_numbers(seed: int, rows: Sequence[tuple[int, int]], length: int) -> Tensor:
    """Numbers `[B, length, 3]` in [0, 1) (float64) of rows named by (prompt, sample).

    A row's numbers depend on the seed and its name alone, and those of a token do not depend on `length`.
    """
    each = [np.random.default_rng([seed, *row]).random((length, 3)) for row in rows]
    return torch.from_numpy(np.stack(each))
