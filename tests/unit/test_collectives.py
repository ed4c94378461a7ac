"""No collective stands where only some ranks come by: it would wait for the others for ever."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import wmtp

SOURCES = sorted(Path(wmtp.__file__).parent.rglob("*.py"))
ASKS_THE_RANK = {"leads", "rank", "local_rank", "get_rank", "is_rank_zero"}
COLLECTIVES = {
    "all_gather", "all_gather_object", "all_reduce", "anywhere", "barrier", "broadcast", "broadcast_object_list",
    "first", "full_tensor", "gather", "gather_object", "get_model_state_dict", "get_optimizer_state_dict",
    "init_device_mesh", "largest", "new_group", "reduce", "scatter_object_list", "set_model_state_dict",
    "set_optimizer_state_dict", "together", "whole", "whole_state",
}  # fmt: skip


def names(node: ast.AST) -> set[str]:
    """Every name and attribute in an expression."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)
    }


def collectives(nodes: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Calls of collectives anywhere below."""
    for call in (n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call)):
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if called in COLLECTIVES:
            yield call.lineno, called


def leaves(body: list[ast.stmt]) -> bool:
    """Whether a block ends by leaving the function."""
    return bool(body) and isinstance(body[-1], ast.Return)


def guarded(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Collectives in a branch on the rank, or after a branch on the rank that left the function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp) and names(node.test) & ASKS_THE_RANK:
            inside = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [*node.body, *node.orelse]
            yield from collectives(inside)  # type: ignore[arg-type]
        for block in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if isinstance(block, list):
                yield from after_an_early_return(block)


def after_an_early_return(block: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    for place, statement in enumerate(block):
        if isinstance(statement, ast.If) and names(statement.test) & ASKS_THE_RANK and leaves(statement.body):
            yield from collectives(block[place + 1 :])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_collective_is_behind_a_question_about_the_rank(source: Path) -> None:
    assert list(guarded(ast.parse(source.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "if world.leads:\n    dist.barrier()",
        "if rank == 0:\n    pass\nelse:\n    x = world.first(f)",
        "x = whole(p) if dist.get_rank() == 0 else None",
        "def f():\n    if not world.leads:\n        return 1\n    return whole_state(m, world)",
    ],
)
def test_the_check_itself_finds_what_it_is_for(code: str) -> None:
    assert list(guarded(ast.parse(code)))
