"""Files and overrides merged in order into one tree of nodes."""

from __future__ import annotations

from collections.abc import Sequence

from wmtp.config_files.masking import override_name
from wmtp.config_files.nodes import Node, is_null, kind_name
from wmtp.config_files.parsing import MAX_DEPTH, Parser, read_text
from wmtp.config_files.problems import KeyPath, Origin, Refused, dotted, raise_any
from wmtp.storage import Place


def _merged(old: Node, new: Node) -> Node:
    """Return `old` overlaid with `new`: mappings merge key by key, everything else is replaced."""
    if not (isinstance(old.value, dict) and isinstance(new.value, dict)):
        return new
    items = dict(old.value)
    for key, node in new.value.items():
        items[key] = _merged(items[key], node) if key in items else node
    return Node(old.origin, items)


def _assigned(node: Node | None, keys: Sequence[str], new: Node, done: KeyPath = ()) -> Node:
    """Return `node` with `new` merged in at `keys`; missing mappings on the way are made, lists are not."""
    if not keys:
        return _merged(node, new) if node else new
    key, rest = keys[0], keys[1:]
    if node is None or is_null(node):
        if _is_index(key):
            raise Refused(new.origin, f"there is no list at {dotted(done)} to take item {key} of; set the whole list")
        return Node(new.origin, {key: _assigned(None, rest, new, (*done, key))})
    if isinstance(node.value, dict):
        child = _assigned(node.value.get(key), rest, new, (*done, key))
        return Node(node.origin, {**node.value, key: child})
    if isinstance(node.value, list):
        index = _index(key, node.value, new.origin, done)
        child = _assigned(node.value[index], rest, new, (*done, index))
        return Node(node.origin, [*node.value[:index], child, *node.value[index + 1 :]])
    problem = f"{dotted(done)} is {kind_name(node)} (set at {node.origin}), so it has no key {dotted((key,))}"
    raise Refused(new.origin, f"{problem}; set {dotted(done)} itself")


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit()


def _index(key: str, items: list[Node], origin: Origin, path: KeyPath) -> int:
    if not _is_index(key):
        raise Refused(origin, f"{dotted(path)} is a list; expected an index, got {dotted((key,))} (the first is 0)")
    if len(key) > len(str(len(items))) or int(key) >= len(items):
        problem = f"{dotted(path)} has {len(items)} items (numbered from 0), so there is no item {key}"
        raise Refused(origin, f"{problem}; to add one, set the whole list")
    return int(key)


def _with_override(tree: Node, text: str, order: int) -> Node:
    """Return `tree` with the override `a.b.c=value` applied."""
    origin = Origin(override_name(text), order)
    key, equals, value = text.partition("=")
    keys = [part.strip() for part in key.split(".")]
    if not equals:
        raise Refused(origin, "expected key=value, such as a.b=1; found no '='")
    if not all(keys):
        raise Refused(origin, "expected key=value with a dotted key such as a.b, found an empty key")
    if len(keys) > MAX_DEPTH:
        raise Refused(origin, f"the key is nested more than {MAX_DEPTH} levels deep, as no option is; count the dots")
    return _assigned(tree, keys, Parser(value, origin, lines=False).override())


def gathered(files: Sequence[Place], overrides: Sequence[str]) -> Node:
    """Return all files and overrides merged in order; raise `ConfigError` for all that cannot be read."""
    tree, problems = Node(Origin("configuration", 0), {}), []
    for order, path in enumerate(files):
        origin = Origin(str(path), order)
        try:
            tree = _merged(tree, Parser(read_text(path, origin), origin, lines=True).file())
        except Refused as refused:
            problems.append(refused.problem)
    raise_any(problems)
    for order, text in enumerate(overrides, start=len(files)):
        try:
            tree = _with_override(tree, text, order)
        except Refused as refused:
            problems.append(refused.problem)
    raise_any(problems)
    return tree
