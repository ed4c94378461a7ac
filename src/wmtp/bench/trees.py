"""What drafts of several candidates a place would give: counted, not built (docs/decisions/0034).

One path of drafts has the likeliest token of each head. A tree has more tokens at a place, and one forward verifies all
of its paths, each node as one more token in it (Cai et al. 2024, Medusa, section 2.1, arXiv 2401.10774). Greedy tokens
do not depend on what is drafted. So a text is decoded once, each head is asked where the true tokens stood among its
candidates, and the forwards that any tree would have taken follow from that.

A `chain` head is asked given the true tokens before: a node counts only if the nodes above it are true.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from wmtp.bench import measuring
from wmtp.decoding.trunk import CachedTrunk, decoding
from wmtp.model import MTPModel

Ranks = list[tuple[int, ...]]
"""Of one continuation, for each number of new tokens that are known, from 1 on: where the token at each further place
stood among the candidates of the head that drafts it; 0 is the likeliest. Places after the end are left out."""
Path = tuple[int, ...]
"""Candidates from the first place on. A tree is a set of paths that has the beginnings of each."""
SIZES = (1, 2, 4, 8)
"""Trees that are counted have so many times the nodes of one path."""
FORWARDS = 20
"""Forwards in one measurement of their time."""


def ranks_of(model: MTPModel, prompt: Sequence[int], new: Sequence[int]) -> Ranks:
    """Where a continuation's own tokens stand among the candidates of heads 2..K, in one forward without caches."""
    device = model.unembedding().projection_VD.device
    tokens_BT = torch.tensor([[*prompt, *new]], device=device)
    before, count = len(prompt), len(new)
    places: list[list[int]] = []
    with decoding(model, eager=True):
        for j, hidden_BTD in enumerate(model(tokens_BT)[1:], 1):
            logits_NV = model.project(hidden_BTD[0, before - 1 : before - 1 + max(count - j, 0)])
            true_N1 = tokens_BT[0, before + j :, None]
            places.append((logits_NV > logits_NV.gather(1, true_N1)).sum(1).tolist())
    return [tuple(rank[i] for rank in places if i < len(rank)) for i in range(count - 1)]


def one_path(length: int) -> frozenset[Path]:
    """The tree of what is built: the likeliest token at each of `length` places."""
    return frozenset((0,) * depth for depth in range(1, length + 1))


def best_tree(texts: Sequence[Ranks], nodes: int, candidates: int) -> frozenset[Path]:
    """The tree of so many nodes that is right the most often in these texts, or a smaller one if no more is ever right.

    A node is right at least as often as those below it, so the most frequent paths are a tree, and no other of that
    size accepts more, over all places of these texts. Elsewhere it gives less.

    Args:
        candidates: of each head that may be nodes.
    """
    right = Counter(row[:depth] for ranks in texts for row in ranks for depth in range(1, len(row) + 1))
    paths = [path for path in right if max(path) < candidates]
    return frozenset(sorted(paths, key=lambda path: (-right[path], len(path), path))[:nodes])


def forwards(ranks: Ranks, tree: Collection[Path]) -> int:
    """Forwards of the trunk that a text takes with a tree of drafts, the prompt's included."""
    known = count = 1
    while known <= len(ranks):
        row = ranks[known - 1]
        known += 1 + next((depth for depth in range(len(row)) if row[: depth + 1] not in tree), len(row))
        count += 1
    return count


def tokens_per_forward(texts: Sequence[Ranks], tree: Collection[Path]) -> float:
    """New tokens of the texts per forward, as `Generation.tokens_per_forward` counts them."""
    return sum(len(ranks) + 1 for ranks in texts) / sum(forwards(ranks, tree) for ranks in texts)


def shares(texts: Sequence[Ranks], place: int, candidates: int) -> list[float | None]:
    """How often the token at a place (from 0) is each of the head's first candidates, where those before are right.

    Right is the first candidate here. None if that never happens.
    """
    found = [row[place] for ranks in texts for row in ranks if len(row) > place and not any(row[:place])]
    return [found.count(rank) / len(found) if found else None for rank in range(candidates)]


def forward_of(trunk: CachedTrunk, start: int, width: int) -> Callable[[], None]:
    """`FORWARDS` forwards of one row over so many tokens, all at the same place."""
    tokens_BQ = torch.zeros(1, width, dtype=torch.long, device=trunk.slots.device)

    def run() -> None:
        for _ in range(FORWARDS):
            trunk.model.project(trunk.run(tokens_BQ, [start]))

    return run


def forward_seconds(
    model: MTPModel, start: int, widths: Collection[int], settings: argparse.Namespace
) -> dict[int, list[float]]:
    """Seconds per round of forwards of the trunk and head 1 over so many tokens of one row, after `start` others."""
    with decoding(model):
        trunk = CachedTrunk(model, 1, start + max(widths), keep_output=False)
        trunk.run(torch.zeros(1, start, dtype=torch.long, device=trunk.slots.device), [0])
        runs = {width: forward_of(trunk, start, width) for width in sorted(widths)}
        return measuring.interleaved(runs, settings.repeat, settings.device, clock=measuring.CLOCKS[settings.clock])


def figures(
    model: MTPModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    settings: argparse.Namespace,
) -> dict[str, Any]:
    """Everything, as it is written.

    Args:
        continuations: greedy ones, of each prompt.
        settings: of `wmtp bench decoding`.
    """
    texts = [ranks_of(model, prompt, new) for prompt, new in zip(prompts, continuations, strict=True)]
    drafts = model.num_heads - 1
    trees = [one_path(drafts), *(best_tree(texts, size * drafts, settings.candidates) for size in SIZES)]
    widths = {1, *(1 + len(tree) for tree in trees)}
    taken = forward_seconds(model, max(map(len, prompts)), widths, settings)
    return {
        "candidates": settings.candidates,
        "shares": [shares(texts, place, settings.candidates) for place in range(drafts)],
        "trees": [
            {
                "nodes": len(tree),
                "deepest": max(map(len, tree), default=0),
                "tokens_per_forward": tokens_per_forward(texts, tree),
                "forward_to_one": measuring.ratio(taken[1 + len(tree)], taken[1]),
            }
            for tree in trees
        ],
    }


COLUMNS = ("tree", "nodes", "deepest", "tokens/forward", "its time to one token's", "tokens per that time")


def lines_of(found: dict[str, Any]) -> list[str]:
    """Tables for people."""
    places = [["place", *(f"candidate {rank + 1}" for rank in range(found["candidates"]))]]
    places += [
        [str(j), *("-" if share is None else f"{share:.1%}" for share in row)]
        for j, row in enumerate(found["shares"], 1)
    ]
    names = ["one path", *(f"best of {size} times its nodes" for size in SIZES)]
    trees = [_line(name, tree) for name, tree in zip(names, found["trees"], strict=True)]
    return [
        "the true token is the head's candidate, where the places before are right:",
        measuring.aligned(places),
        "",
        "trees of drafts, chosen on these very texts: at most this; the time of the heads is not in it:",
        measuring.aligned([COLUMNS, *trees]),
    ]


def _line(name: str, tree: dict[str, Any]) -> list[str]:
    cost = tree["forward_to_one"]
    return [
        name,
        str(tree["nodes"]),
        str(tree["deepest"]),
        f"{tree['tokens_per_forward']:.2f}",
        measuring.spread(cost),
        f"{tree['tokens_per_forward'] / cost[0]:.2f}",
    ]
