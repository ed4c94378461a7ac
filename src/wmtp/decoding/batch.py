"""The loop: draft, run the trunk over the last token and the drafts, keep what head 1 agrees with. docs/math.md (6)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from wmtp.decoding.cost import FLAT, FLAT_ELSEWHERE, drafting_cost, weights_of
from wmtp.decoding.drafting import Drafter, drafter_of
from wmtp.decoding.pace import ROWS_THAT_DRAW, Adaptive, Fixed, Pace
from wmtp.decoding.sampling import Choice, Drawn, Greedy, Sampling, uniform_numbers
from wmtp.decoding.stopping import Stop
from wmtp.decoding.trunk import CachedTrunk, decoding
from wmtp.devices import widest_float
from wmtp.model import MTPModel

Finish = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True)
class Options:
    """What is the same for every row."""

    max_new_tokens: int
    longest_draft: int
    """K - 1 or less; 0 is plain decoding."""
    adaptive: bool
    sampling: Sampling | None
    seed: int
    eos: Collection[int]
    stop: Stop | None
    context: int | None
    """Positions that the model knows."""
    only_row: bool
    """Nothing else is decoded in this call."""


@dataclass
class Row:
    """A continuation on its way."""

    prompt: Sequence[int]
    budget: int
    """Tokens it may still get when it starts."""
    drafted: list[int]
    accepted: list[int]
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    forwards: int = 1
    draft: int = 0
    """How many tokens are drafted for it in the running forward."""
    outcome: tuple[int, int] = (0, 0)
    """Drafts of the last forward, and how many of them were accepted."""

    @property
    def length(self) -> int:
        """Tokens that the trunk has seen for good: all but the last new one."""
        return len(self.prompt) + max(len(self.tokens) - 1, 0)

    @property
    def room(self) -> int:
        """Most drafts that may still be of use: a forward gives one token more."""
        return self.budget - len(self.tokens) - 1

    def take(self, new: list[int], options: Options) -> None:
        """Add the accepted drafts and the token that head 1 chose after them, up to where the row ends."""
        accepted = len(new) - 1
        for j in range(self.draft):
            self.drafted[j] += 1
            self.accepted[j] += j < accepted
        self.outcome = self.draft, accepted
        since = len(self.tokens)
        self.tokens += new
        end = next((n for n, token in enumerate(self.tokens[since:], since + 1) if token in options.eos), None)
        if end is not None:
            self.finish = "eos"
            del self.tokens[end:]
        end = options.stop.end(self.tokens, since) if options.stop is not None else None
        if end is not None:
            self.finish = "stop"
            del self.tokens[end:]
        if self.finish is None and len(self.tokens) == self.budget:
            self.finish = "length" if self.budget == options.max_new_tokens else "context"


def decode_batch(
    model: MTPModel, prompts: Sequence[Sequence[int]], members: Sequence[tuple[int, int, int]], options: Options
) -> list[Row]:
    """Continue prompts together.

    Args:
        members: one row each: index into `prompts`, and the two numbers (prompt, sample) that name its random numbers.
    """
    with decoding(model):
        return _Batch(model, prompts, members, options).run()


@dataclass
class Group:
    """Rows that share a draft length, and have not ended."""

    pace: Pace
    rows: list[Row]

    def set_drafts(self, rows: int) -> None:
        """Say how many tokens to draft for each row, in a forward of so many rows."""
        length = self.pace.next(max(row.room for row in self.rows), rows)
        for row in self.rows:
            row.draft = min(length, row.room)

    def learn(self) -> None:
        """From what came of the drafts; then let go of the rows that have ended."""
        self.pace.learn([row.outcome for row in self.rows])
        self.rows = [row for row in self.rows if row.finish is None]


class _Batch:
    """The rows that are still going on, and all that is kept for them between forwards."""

    def __init__(
        self,
        model: MTPModel,
        prompts: Sequence[Sequence[int]],
        members: Sequence[tuple[int, int, int]],
        options: Options,
    ) -> None:
        self.model, self.options, self.prompts = model, options, prompts
        self.source = [source for source, _, _ in members]
        self.rows = [self._row(prompts[source]) for source in self.source]
        limit = max(len(row.prompt) + row.budget for row in self.rows)
        drafts = options.longest_draft > 0
        self.trunk = CachedTrunk(model, len(prompts), limit, keep_output=drafts)
        self.drafter: Drafter | None = drafter_of(model, self.trunk, len(prompts)) if drafts else None
        self.device = self.trunk.slots.device
        self.choice = self._choice([(prompt, sample) for _, prompt, sample in members])
        self.groups = self._groups()
        self.active = self.rows

    def _row(self, prompt: Sequence[int]) -> Row:
        options, longest = self.options, self.options.longest_draft
        room = options.max_new_tokens if options.context is None else options.context - len(prompt)
        return Row(prompt, min(options.max_new_tokens, room), [0] * longest, [0] * longest)

    def _groups(self) -> list[Group]:
        """All rows together where tokens do not depend on how many are drafted; else each by itself, so that what it
        draws does not depend on the rows beside it."""
        apart = self.options.sampling is not None and self.options.adaptive
        together = [[row] for row in self.rows] if apart else [[*self.rows]]
        return [Group(pace, rows) for pace, rows in zip(self._paces(len(together)), together, strict=True)]

    def _paces(self, count: int) -> list[Pace]:
        """So many, which know nothing yet."""
        longest = self.options.longest_draft
        if self.drafter is None or not self.options.adaptive:
            return [Fixed(longest) for _ in range(count)]
        flat = FLAT.get(self.device.type, FLAT_ELSEWHERE)
        cost = drafting_cost(weights_of(self.model), self.drafter.passes, longest, flat)
        return [Adaptive(longest, cost) for _ in range(count)]

    def _choice(self, names: Sequence[tuple[int, int]]) -> Choice:
        options = self.options
        if options.sampling is None:
            return Greedy()
        numbers_BN3 = uniform_numbers(options.seed, names, options.max_new_tokens)
        return Drawn(options.sampling, numbers_BN3.to(self.device, widest_float(self.device)))

    def run(self) -> list[Row]:
        """The rows, each at its end."""
        certain_B = self._read_prompts()
        while self.active:
            certain_B = self._forward(certain_B)
        return self.rows

    def _read_prompts(self) -> Tensor:
        """Run every prompt once, then go on with its rows; their first new tokens."""
        lengths = [len(prompt) for prompt in self.prompts]
        longest = max(lengths)
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in self.prompts]
        hidden_PTD = self.trunk.run(torch.tensor(padded, device=self.device), [0] * len(lengths))
        last_P = torch.tensor(lengths, device=self.device) - 1
        hidden_PD = hidden_PTD[self.trunk.slots.row_B1[:, 0], last_P]
        if self.source != list(range(len(self.prompts))):
            if self.drafter is not None:
                self.drafter.fill(lengths)
            self._select(self.source)
        logits_PV = self.model.project(hidden_PD)
        return self._advance(logits_PV[self.source][:, None], self._no_drafts())

    def _no_drafts(self) -> Tensor:
        return torch.zeros(len(self.active), 0, dtype=torch.long, device=self.device)

    def _forward(self, certain_B: Tensor) -> Tensor:
        """One forward of the trunk: one new token for every row, and the drafts that were right."""
        supposed = ROWS_THAT_DRAW if self.options.sampling and not self.options.only_row else None
        for group in self.groups:
            group.set_drafts(supposed or len(self.active))
        longest = max(row.draft for row in self.active)
        length = [row.length for row in self.active]
        drafts_BJ = self._no_drafts()
        if self.drafter is not None and longest > 0:
            place_B = self._places()
            drafts_BJ = self.drafter.draft(
                length, certain_B, longest, lambda logits: self.choice.draft(logits, place_B)
            )
        hidden_BQD = self.trunk.run(torch.cat([certain_B[:, None], drafts_BJ], 1), length)
        for row in self.active:
            row.forwards += 1
        return self._advance(self.model.project(hidden_BQD), drafts_BJ)

    def _places(self) -> Tensor:
        """Number of each row's next new token."""
        return torch.tensor([len(row.tokens) for row in self.active], device=self.device)

    def _advance(self, logits_BQV: Tensor, drafts_BJ: Tensor) -> Tensor:
        """Verify the drafts, let every row take what it got; the last token of each row that goes on."""
        count_B = torch.tensor([row.draft for row in self.active], device=self.device)
        accepted_B, next_B = self.choice.verify(logits_BQV, drafts_BJ, count_B, self._places())
        drafts, accepted, following = drafts_BJ.tolist(), accepted_B.tolist(), next_B.tolist()
        for b, row in enumerate(self.active):
            row.take([*drafts[b][: accepted[b]], following[b]], self.options)
        for group in self.groups:
            group.learn()
        self.groups = [group for group in self.groups if group.rows]
        return self._drop_finished(next_B)

    def _drop_finished(self, next_B: Tensor) -> Tensor:
        """Go on without the rows that have ended; the last ones take their places, so that few caches are copied."""
        count = sum(row.finish is None for row in self.active)
        if count == len(self.active):
            return next_B
        movers = (b for b in range(count, len(self.active)) if self.active[b].finish is None)
        kept = [b if self.active[b].finish is None else next(movers) for b in range(count)]
        self.active = [self.active[b] for b in kept]
        if kept:
            self._select(kept)
            self.choice.select(kept)
        return next_B[kept]

    def _select(self, rows: Sequence[int]) -> None:
        self.trunk.select(rows)
        if self.drafter is not None:
            self.drafter.select(rows)
