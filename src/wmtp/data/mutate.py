"""Plausible wrong programs, made from a correct one by a single change to its syntax tree.

`mutants` walks the tree once per operator, puts one replacement at a time in place and writes the whole program out
again with `ast.unparse`. An original that goes through `normalize` therefore shares the formatting of its mutants, and
nothing but the mistake tells them apart. No code is run: whether a mutant really is wrong is for tests to decide.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from wmtp.errors import DataError

Node = TypeVar("Node", bound=ast.AST)
Names = tuple[str, ...]
Operator = Callable[[ast.AST, Names], Iterator[ast.AST]]

_BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_NEGATION: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_LOOKALIKES = {
    "all": "any",
    "any": "all",
    "appendleft": "append",
    "bisect_left": "bisect_right",
    "bisect_right": "bisect_left",
    "endswith": "startswith",
    "find": "rfind",
    "ljust": "rjust",
    "lower": "upper",
    "lstrip": "rstrip",
    "max": "min",
    "min": "max",
    "partition": "rpartition",
    "rfind": "find",
    "rjust": "ljust",
    "rstrip": "lstrip",
    "startswith": "endswith",
    "upper": "lower",
}
_DROPPABLE_CALLS = frozenset({"abs", "int", "list", "reversed", "set", "sorted", "str", "sum"})
_DROPPABLE_METHODS = frozenset({"copy", "lower", "strip", "upper"})
_REMOVABLE = (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.Break, ast.Continue, ast.Raise, ast.Delete)
_UNTOUCHED_FIELDS = frozenset({"annotation", "returns", "decorator_list", "type_params", "type_ignores"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Mutant:
    """A program that differs from a normalised original in one place.

    Attributes:
        source: The text of the whole program.
        operator: The name of the operator in `OPERATORS` that made it.
        line: The first line (from 1) of `source` that differs from the original.
    """

    source: str
    operator: str
    line: int


# --- Replacements -----------------------------------------------------------------------------------------------------
# Every operator gets a node and the local names visible at it, and yields the nodes that may stand in its place.


def _changed(node: Node, **fields: object) -> Node:
    """A shallow copy of `node` with some fields replaced."""
    values: dict[str, object] = {**dict(ast.iter_fields(node)), **fields}
    return ast.copy_location(type(node)(**values), node)


def _item_replaced(items: Sequence[object], index: int, *new: object) -> list[object]:
    return [*items[:index], *new, *items[index + 1 :]]


def _integer(value: int) -> ast.expr:
    """An integer as the parser would write it: negative ones are a minus sign and a constant."""
    return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))


def _is_integer(node: ast.AST | None) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int


def _shifted(node: ast.expr) -> Iterator[ast.expr]:
    """`node + 1` and `node - 1`; constants are left to `off_by_one`."""
    if not _is_integer(node):
        yield ast.BinOp(node, ast.Add(), ast.Constant(1))
        yield ast.BinOp(node, ast.Sub(), ast.Constant(1))


def _comparisons(node: ast.AST, table: dict[type[ast.cmpop], type[ast.cmpop]]) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            if type(op) in table:
                yield _changed(node, ops=_item_replaced(node.ops, index, table[type(op)]()))


def _compare_boundary(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    return _comparisons(node, _BOUNDARY)


def _compare_negate(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    return _comparisons(node, _NEGATION)


def _arithmetic_swap(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield _changed(node, op=_ARITHMETIC[type(node.op)]())


def _augmented_swap(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.AugAssign):
        if type(node.op) in _ARITHMETIC:
            yield _changed(node, op=_ARITHMETIC[type(node.op)]())
        if isinstance(node.target, ast.Name):
            assignment = ast.Assign([node.target], node.value, type_comment=None)
            yield ast.copy_location(assignment, node)


def _off_by_one(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield _integer(node.value + 1)
        yield _integer(node.value - 1)


def _bool_swap(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.BoolOp):
        yield _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _drop_not(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand


def _negate_condition(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        single = isinstance(node.test, ast.Compare) and len(node.test.ops) == 1
        if not (negated or single):
            yield _changed(node, test=ast.UnaryOp(ast.Not(), node.test))


def _flip_bool(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)


def _swap_arguments(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call) and not any(isinstance(arg, ast.Starred) for arg in node.args):
        for index, (first, second) in enumerate(pairwise(node.args)):
            args = [*node.args[:index], second, first, *node.args[index + 2 :]]
            yield _changed(node, args=args)


def _swap_operands(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp):
        yield _changed(node, left=node.right, right=node.left)


def _wrong_variable(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        place = names.index(node.id)
        for step in (1, -1):
            yield _changed(node, id=names[(place + step) % len(names)])


def _wrong_function(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Name) and node.func.id in _LOOKALIKES:
        yield _changed(node, func=_changed(node.func, id=_LOOKALIKES[node.func.id]))
    elif isinstance(node.func, ast.Attribute) and node.func.attr in _LOOKALIKES:
        yield _changed(node, func=_changed(node.func, attr=_LOOKALIKES[node.func.attr]))


def _drop_call(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Name) and node.func.id in _DROPPABLE_CALLS and len(node.args) == 1:
        if not isinstance(node.args[0], ast.GeneratorExp | ast.Starred):
            yield node.args[0]
    elif isinstance(node.func, ast.Attribute) and node.func.attr in _DROPPABLE_METHODS and not node.args:
        yield node.func.value


def _drop_operand(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp):
        yield node.left
        yield node.right
    elif isinstance(node, ast.BoolOp):
        for index in range(len(node.values)):
            rest = [*node.values[:index], *node.values[index + 1 :]]
            yield rest[0] if len(rest) == 1 else _changed(node, values=rest)


def _drop_filter(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.comprehension):
        for index in range(len(node.ifs)):
            yield _changed(node, ifs=_item_replaced(node.ifs, index))


def _slice_bound(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.Slice):
        for field in ("lower", "upper"):
            bound = getattr(node, field)
            moved = list(_shifted(bound)) if bound is not None else [_integer(1 if field == "lower" else -1)]
            for new in moved:
                yield _changed(node, **{field: new})


def _index_shift(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice | ast.Tuple):
        if isinstance(node.slice, ast.Constant) and not _is_integer(node.slice):
            return
        for new in _shifted(node.slice):
            yield _changed(node, slice=new)


def _range_bound(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        return
    if len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
        yield _changed(node, args=[ast.Constant(1), node.args[0]])
    for index, arg in enumerate(node.args[:2]):
        if not isinstance(arg, ast.Starred):
            for new in _shifted(arg):
                yield _changed(node, args=_item_replaced(node.args, index, new))


def _blocks(node: ast.AST) -> Iterator[tuple[str, list[ast.stmt]]]:
    """The statement lists of a compound statement inside a function, by field name."""
    if isinstance(node, ast.Module | ast.ClassDef):
        return
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            yield field, block


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _drop_statement(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    for field, block in _blocks(node):
        if isinstance(node, _FUNCTIONS) and sum(not _is_docstring(statement) for statement in block) == 1:
            continue  # an empty function is no plausible mistake
        for index, statement in enumerate(block):
            if isinstance(statement, _REMOVABLE) and not _is_docstring(statement):
                kept = _item_replaced(block, index)
                yield _changed(node, **{field: kept or ([] if field != "body" else [ast.Pass()])})


def _drop_branch(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    for field, block in _blocks(node):
        for index, statement in enumerate(block):
            if isinstance(statement, ast.If):
                kept = _item_replaced(block, index, *statement.orelse)
                yield _changed(node, **{field: kept or ([] if field != "body" else [ast.Pass()])})
                if statement.orelse:
                    yield _changed(node, **{field: _item_replaced(block, index, _changed(statement, orelse=[]))})


def _drop_condition(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    for field, block in _blocks(node):
        for index, statement in enumerate(block):
            if isinstance(statement, ast.If) and not statement.orelse:
                yield _changed(node, **{field: _item_replaced(block, index, *statement.body)})


def _return_in_loop(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    for field, block in _blocks(node):
        for index, (loop, following) in enumerate(pairwise(block)):
            if isinstance(loop, ast.For | ast.While) and isinstance(following, ast.Return) and not loop.orelse:
                longer = _changed(loop, body=[*loop.body, following])
                yield _changed(node, **{field: [*block[:index], longer, *block[index + 2 :]]})


def _break_continue(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.Break):
        yield ast.copy_location(ast.Continue(), node)
    elif isinstance(node, ast.Continue):
        yield ast.copy_location(ast.Break(), node)


def _wrong_return(node: ast.AST, names: Names) -> Iterator[ast.AST]:
    if isinstance(node, ast.Return) and node.value is not None:
        value = node.value
        if isinstance(value, ast.Compare) or (isinstance(value, ast.Call) and not value.args):
            yield _changed(node, value=ast.UnaryOp(ast.Not(), value))
        elif isinstance(value, ast.Constant) and value.value is None:
            yield _changed(node, value=ast.Constant(0))
        elif isinstance(value, ast.List | ast.Dict) and not ast.unparse(value).strip("[]{}"):
            yield _changed(node, value=ast.Constant(None))
        elif isinstance(value, ast.Name | ast.Call | ast.Subscript):
            yield _changed(node, value=ast.UnaryOp(ast.USub(), value))


OPERATORS: dict[str, Operator] = {
    "compare_boundary": _compare_boundary,  # `<` and `<=`, `>` and `>=`
    "compare_negate": _compare_negate,  # `==` and `!=`, `in` and `not in`, `<` and `>=`
    "arithmetic_swap": _arithmetic_swap,  # `+` and `-`, `//` and `%`, `*` to `+`
    "augmented_swap": _augmented_swap,  # `+=` to `-=`, `+=` to `=`
    "off_by_one": _off_by_one,  # an integer constant one too large or one too small
    "range_bound": _range_bound,  # `range(n)` to `range(1, n)`, `range(n - 1)`, `range(n + 1)`
    "slice_bound": _slice_bound,  # `a[i:]` to `a[i + 1:]`, `a[:]` to `a[1:]`
    "index_shift": _index_shift,  # `a[i]` to `a[i + 1]` and `a[i - 1]`
    "bool_swap": _bool_swap,  # `and` and `or`
    "drop_not": _drop_not,  # `not a` to `a`
    "negate_condition": _negate_condition,  # `if a:` to `if not a:`
    "flip_bool": _flip_bool,  # `True` and `False`
    "swap_arguments": _swap_arguments,  # `f(a, b)` to `f(b, a)`
    "swap_operands": _swap_operands,  # `a - b` to `b - a`
    "wrong_variable": _wrong_variable,  # a local variable in the place of another one
    "wrong_function": _wrong_function,  # `min` and `max`, `any` and `all`, `find` and `rfind`
    "drop_call": _drop_call,  # `sorted(a)` to `a`, `a.lower()` to `a`
    "drop_operand": _drop_operand,  # `a + b` to `a` or `b`, `a and b` to `a` or `b`
    "drop_filter": _drop_filter,  # `[x for x in a if x]` to `[x for x in a]`
    "drop_statement": _drop_statement,  # an assignment, a return or another simple statement is missing
    "drop_branch": _drop_branch,  # one side of an `if` is missing
    "drop_condition": _drop_condition,  # the body of an `if` runs always
    "return_in_loop": _return_in_loop,  # the `return` after a loop is indented into it
    "break_continue": _break_continue,  # `break` and `continue`
    "wrong_return": _wrong_return,  # the result negated, or `None` and an empty value mixed up
}


# --- Walking and writing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Site:
    """A node, the slot that holds it (a field of a node or an index of a list) and the local names visible at it."""

    node: ast.AST
    owner: ast.AST | list[ast.AST]
    key: str | int
    names: Names

    def put(self, node: ast.AST) -> None:
        if isinstance(self.owner, list):
            assert isinstance(self.key, int)
            self.owner[self.key] = node
        else:
            setattr(self.owner, str(self.key), node)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` that share its scope: not those of inner functions and comprehensions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*_FUNCTIONS, ast.Lambda, ast.ClassDef, *_COMPREHENSIONS)):
            yield from _own_nodes(child)


def _stored_names(nodes: Iterator[ast.AST]) -> list[str]:
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _parameters(arguments: ast.arguments) -> list[str]:
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [argument.arg for argument in every if argument is not None]


def _visible_names(node: ast.AST, names: Names) -> Names:
    """The local names visible below `node`, in the order in which they are bound."""
    if isinstance(node, _FUNCTIONS):
        return tuple(dict.fromkeys([*_parameters(node.args), *_stored_names(_own_nodes(node))]))
    if isinstance(node, ast.Lambda):
        return tuple(dict.fromkeys([*names, *_parameters(node.args)]))
    if isinstance(node, _COMPREHENSIONS):
        bound = [name for part in node.generators for name in _stored_names(ast.walk(part.target))]
        return tuple(dict.fromkeys([*names, *bound]))
    return names


def _sites(node: ast.AST, names: Names = ()) -> Iterator[_Site]:
    """Every node below `node` that operators may change, in the order of the text."""
    visible = _visible_names(node, names)
    for field, value in ast.iter_fields(node):
        if field in _UNTOUCHED_FIELDS or isinstance(value, ast.arguments):
            continue
        inside = visible
        if isinstance(node, ast.comprehension) and field == "iter":
            own = _stored_names(ast.walk(node.target))
            inside = tuple(name for name in visible if name not in own)
        if isinstance(value, ast.AST):
            yield _Site(value, node, field, inside)
            yield from _sites(value, inside)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield _Site(item, value, index, inside)
                    yield from _sites(item, inside)


def _compiles(source: str) -> bool:
    """Whether Python accepts the text; warnings about odd code (`1 is 2`) do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "<mutant>", "exec", dont_inherit=True)
        except SyntaxError:
            return False
    return True


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
    raise DataError(f"this program is not valid Python ({reason}); expected source text that parses: {source[:80]!r}")


def _first_difference(original: str, mutant: str) -> int:
    """The first line (from 1) of `mutant` that differs from the same line of `original`."""
    old, new = original.split("\n"), mutant.split("\n")
    for number, (before, after) in enumerate(zip(old, new, strict=False), 1):
        if before != after:
            return number
    return min(len(old) + 1, len(new))


def normalize(source: str) -> str:
    """Write a program in the one formatting that `mutants` uses (comments and blank lines go).

    Args:
        source: A Python program.

    Returns:
        The text that `ast.unparse` makes of it.

    Raises:
        DataError: If the program does not parse.
    """
    return ast.unparse(_parse(source))


def mutants(source: str) -> Iterator[Mutant]:
    """All programs that differ from `source` by one operator at one place, without duplicates.

    They come in a fixed order: by operator in the order of `OPERATORS`, then by place in the text. Some of them may
    still be correct; only running tests can tell.

    Args:
        source: A correct Python program.

    Yields:
        One `Mutant` after another, each of which compiles and differs from `normalize(source)`.

    Raises:
        DataError: If the program does not parse.
    """
    original = normalize(source)
    tree = _parse(original)
    sites = list(_sites(tree))
    seen = {original}
    for name, operator in OPERATORS.items():
        for site in sites:
            for replacement in operator(site.node, site.names):
                site.put(replacement)
                text = ast.unparse(tree)
                site.put(site.node)
                if text not in seen and _compiles(text):
                    seen.add(text)
                    yield Mutant(text, name, _first_difference(original, text))
