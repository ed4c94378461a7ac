"""What a tree of drafts would have given is counted as it would have gone (`wmtp bench decoding --candidates`)."""

from __future__ import annotations

from itertools import chain, combinations, product

from hypothesis import given
from hypothesis import strategies as st

from wmtp.bench.trees import Path, Ranks, best_tree, forwards, one_path, shares, tokens_per_forward

EVERY = [path for depth in (1, 2) for path in product(range(2), repeat=depth)]
"""Paths of two places with two candidates each."""
TREES = [
    frozenset(tree)
    for tree in chain.from_iterable(combinations(EVERY, size) for size in range(len(EVERY) + 1))
    if all(path[:1] in tree for path in tree)
]


def accepted(row: Path, tree: frozenset[Path]) -> int:
    return max((depth for depth in (1, 2) if row[:depth] in tree), default=0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12), st.integers(0, 6))
def test_no_tree_of_so_many_nodes_is_right_more_often_than_the_best(ranks: Ranks, nodes: int) -> None:
    best = best_tree([ranks], nodes, 2)
    assert best in TREES
    assert len(best) <= nodes
    most = max(sum(accepted(row, tree) for row in ranks) for tree in TREES if len(tree) <= nodes)
    assert sum(accepted(row, best) for row in ranks) == most


def test_a_forward_goes_as_far_as_a_path_of_the_tree_is_right_and_one_token_further() -> None:
    ranks: Ranks = [(0, 1, 0), (1, 0, 0), (0, 0, 2), (0, 0), (0,)]  # of a text of six tokens
    assert forwards(ranks, frozenset()) == 6
    assert forwards(ranks, one_path(3)) == 1 + 1 + 1  # the prompt's; token 2 and 3; 4, 5 and 6
    assert forwards(ranks, {(0,), (0, 1), (0, 1, 0)}) == 1 + 1 + 1  # tokens 2 to 5 in one
    assert forwards([], one_path(3)) == 1
    assert tokens_per_forward([ranks, []], one_path(3)) == 7 / 4


def test_shares_are_of_places_whose_predecessors_are_right() -> None:
    texts: list[Ranks] = [[(0, 1), (0, 0), (1, 0)], [(0,), (2,)]]
    assert shares(texts, 0, 3) == [3 / 5, 1 / 5, 1 / 5]
    assert shares(texts, 1, 2) == [1 / 2, 1 / 2]
    assert shares([[(1, 0)]], 1, 1) == [None]
