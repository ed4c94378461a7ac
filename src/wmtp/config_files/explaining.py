"""pydantic's validation errors in the words of the user who wrote the configuration."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import BaseModel

from wmtp.config_files.masking import secret_texts, shown
from wmtp.config_files.nodes import Node
from wmtp.config_files.problems import Key, KeyPath, Origin, Problem, dotted, located
from wmtp.config_files.schema import Member, allowed_at, choices_of, fields_of, has_field, members_of, models_of

MAX_ROUTES = 64
MAX_NAMES = 20

Details = Mapping[str, Any]
"""One error of pydantic's."""

_EXPECTED = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "finite_number": "a finite number",
    "string": "a string",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "dataclass": "a mapping",
    "none_required": "null",
    "path": "a path",
    "int_from_float": "an integer",
    "greater_than": "a value greater than {gt}",
    "greater_than_equal": "a value greater than or equal to {ge}",
    "less_than": "a value less than {lt}",
    "less_than_equal": "a value less than or equal to {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches the pattern {pattern}",
    "too_short": "at least {min_length} items, got {actual_length}",
    "too_long": "at most {max_length} items, got {actual_length}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
}

_ELSEWHERE = {"gpu": "cuda"}
"""What others call it."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a validation error points: the user's key path, and the types allowed there."""

    path: KeyPath
    allowed: list[Member]
    parent: list[Member]


def _item(value: Any, key: Key) -> Any:
    """Return what plain data holds at `key`, or `...` for nothing."""
    if isinstance(value, list) and isinstance(key, int):
        return value[key] if 0 <= key < len(value) else ...
    return value.get(key, ...) if isinstance(value, dict) else ...


def _routes(value: Any, steps: KeyPath, kept: tuple[bool, ...] = ()) -> Iterator[tuple[tuple[bool, ...], Any]]:
    """Yield the ways to read `steps` as keys into `value`, skipping union labels, most keys first."""
    if not steps:
        yield kept, value
        return
    if (item := _item(value, steps[0])) is not ...:
        yield from _routes(item, steps[1:], (*kept, True))
    yield from _routes(value, steps[1:], (*kept, False))


def _place(error: Details, schema: Any, data: Any) -> _Place:
    """Return where the error points; the route that ends at the very object pydantic saw is preferred."""
    steps, last = tuple(error["loc"]), error["type"]
    if last == "missing" or steps[-1:] == ("[key]",):
        steps = steps[:-1]
    routes = list(islice(_routes(data, steps), MAX_ROUTES))
    kept = next((kept for kept, value in routes if value is error["input"]), routes[0][0])
    if last == "missing":
        steps, kept = (*steps, error["loc"][-1]), (*kept, True)
    elif steps and not kept[-1] and has_field(allowed_at(schema, steps[:-1], kept[:-1]), steps[-1]):
        kept = (*kept[:-1], True)  # an invalid default: the key is in the schema but not in the data
    path = tuple(key for key, keep in zip(steps, kept, strict=True) if keep)
    parent = allowed_at(schema, steps[:-1], kept[:-1])
    return _Place(path, allowed_at(schema, steps, kept), parent)


def _near(word: object, names: Sequence[str]) -> str:
    """Return `; did you mean ...?` for the name nearest to `word`, or nothing."""
    lower = {name.lower(): name for name in names}
    text = str(word).lower()
    if _ELSEWHERE.get(text) in lower:
        return f"; did you mean {lower[_ELSEWHERE[text]]!r}?"
    matches = difflib.get_close_matches(text, lower, n=1)
    matches += [name for name in lower if name == _initials(text) or text == _initials(name)]
    return f"; did you mean {lower[matches[0]]!r}?" if matches else ""


def _initials(name: str) -> str:
    words = [word for word in re.split(r"[_-]", name) if word]
    return "".join(word[0] for word in words) if len(words) > 1 else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


def _unknown_key(place: _Place) -> str:
    names = sorted({name for model in models_of(place.parent) for name in fields_of(model)})
    valid = f"(valid keys: {_listed(names)})" if names else "(no keys are allowed here)"
    below = _one_level_down(place)
    near = f"; did you mean {' or '.join(below)}?" if below else _near(place.path[-1], names)
    return f"unknown key{near} {valid}"


def _one_level_down(place: _Place) -> list[str]:
    """Where the key is known in a section of the section that it was given in."""
    *above, key = place.path
    sections = [section for model in models_of(place.parent) for section in fields_of(model).items()]
    found = [name for name, kind in sections if has_field(members_of(kind), key)]
    return [dotted((*above, name, key)) for name in dict.fromkeys(found)]


@dataclass(frozen=True, slots=True)
class Explainer:
    """Words validation errors for the user who wrote `tree`; `data` is what pydantic saw."""

    schema: type[BaseModel]
    tree: Node
    data: Any
    secrets: frozenset[KeyPath]

    def problems(self, errors: Sequence[Details]) -> list[Problem]:
        """Return one problem for each key path; what the members of a union expect is joined by `or`."""
        texts: dict[KeyPath, list[str]] = {}
        values: dict[KeyPath, Any] = {}
        for error in errors:
            path, value, text = self._explained(error)
            known = texts.setdefault(path, [])
            values.setdefault(path, value)
            text = text.removeprefix("expected ") if known and known[0].startswith("expected ") else text
            if text not in known and f"expected {text}" not in known:
                known.append(text)
        return [self._line(path, self._written(path, values[path]), " or ".join(texts[path])) for path in texts]

    def _written(self, path: KeyPath, seen: Any) -> Any:
        """Return the value at `path` as the user wrote it; `seen`, where nothing or no value is to be shown."""
        value = self.data
        for key in path:
            value = _item(value, key)
        return seen if seen is ... or value is ... else value

    def _explained(self, error: Details) -> tuple[KeyPath, Any, str]:
        """Return the key path, the value to show (`...` for none) and what was expected."""
        place, kind, context = _place(error, self.schema, self.data), error["type"], error.get("ctx", {})
        if kind == "missing":
            return place.path, ..., "this key is required"
        if kind == "extra_forbidden":
            return place.path, error["input"], _unknown_key(place) + self._how_to_replace(place.path)
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            return self._tag(place, error, context)
        if kind in ("value_error", "assertion_error"):
            value = ... if isinstance(error["input"], dict) or not place.path else error["input"]
            return place.path, value, self._scrubbed(str(context.get("error") or error["msg"]))
        where = "as key " if error["loc"][-1:] == ("[key]",) else ""
        return place.path, error["input"], self._expected(error, context).replace("expected ", f"expected {where}", 1)

    def _how_to_replace(self, path: KeyPath) -> str:
        """What to do where an override meant another section than the one that it was merged into."""
        above = path[:-1]
        own, section = self._node(path), self._node(above)
        if own is None or section is None or not above or not isinstance(section.value, dict):
            return ""
        later = [node.origin for node in section.value.values() if node.origin.order > own.origin.order]
        name = dotted(above)
        overrides = [origin for origin in later if not origin.line]
        return f"; {overrides[0]} was merged into {name}: put {name}=null before it to replace it" if overrides else ""

    def _tag(self, place: _Place, error: Details, context: Mapping[str, Any]) -> tuple[KeyPath, Any, str]:
        """Explain a discriminator key whose value is missing or names no member of the union."""
        key = re.fullmatch(r"'(\w+)'", str(context.get("discriminator")))
        path = (*place.path, key[1]) if key else place.path
        if error["type"] == "union_tag_invalid":
            return path, context["tag"] if key else error["input"], self._expected(error, context)
        tags = [m.tag for m in place.allowed if m.tag]
        for fields in map(fields_of, models_of(place.allowed)):
            tags += choices_of(fields.get(key[1] if key else ""))
        choices = f"; expected one of {_listed([repr(tag) for tag in dict.fromkeys(tags)])}" if tags else ""
        return path, ... if key else error["input"], f"this key is required{choices}"

    def _expected(self, error: Details, context: Mapping[str, Any]) -> str:
        """Return what was expected in plain words, with a near miss for a choice of strings."""
        kind = str(error["type"])
        template = _EXPECTED.get(kind) or _EXPECTED.get(re.sub(r"_(type|parsing|parsing_size)$", "", kind))
        if template is None:
            message = str(error["msg"])
            return self._scrubbed(message.replace("Input should be ", "expected ", 1))
        choices = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        rule = re.sub(r"\b(at (?:least|most) 1) (item|character)s\b", r"\1 \2", template.format_map(context))
        return f"expected {rule}" + _near(context.get("tag", error["input"]), choices)

    def _scrubbed(self, message: str) -> str:
        """Return a foreign message on one line, with every secret of the configuration masked."""
        for secret in sorted(secret_texts(self.data, (), self.secrets), key=len, reverse=True):
            message = message.replace(secret, "***")
        return " ".join(message.split())

    def _line(self, path: KeyPath, value: Any, text: str) -> Problem:
        got = "" if value is ... else f" = {shown(path, value, self.secrets)}"
        origin = self._cited(path, text) or self._origin(path)
        text = f"{dotted(path)}{got}: {text}"
        if origin is None and not path:
            return Problem((math.inf, 0), text)
        if origin is None:
            label = "(missing)" if value is ... else "(default)"
            return Problem((math.inf, 0), f"{label} {text}")
        return located(origin, text)

    def _node(self, path: Sequence[Key]) -> Node | None:
        node: Node | None = self.tree
        for key in path:
            node = _child(node, key)
        return node

    def _cited(self, path: KeyPath, text: str) -> Origin | None:
        """Return the first override below a mapping whose key the text names; what is wrong came with it."""
        leaves = _leaves(self._node(path), path)
        return next((origin for key, origin in leaves if not origin.line and dotted(key) in text), None)

    def _origin(self, path: KeyPath) -> Origin | None:
        """Return where the key was written; for a mapping, where the first key under it was."""
        node = self._node(path)
        if node is None or not isinstance(node.value, dict):
            return None if node is None else node.origin
        first = next(iter(node.value.values()), node).origin
        if path:
            return first
        return Origin(first.source, first.order) if node.value else None


def _leaves(node: Node | None, path: KeyPath) -> Iterator[tuple[KeyPath, Origin]]:
    """Yield the key path and place of everything below a mapping."""
    if node is not None and isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from _leaves(child, (*path, key)) if isinstance(child.value, dict) else [((*path, key), child.origin)]


def _child(node: Node | None, key: Key) -> Node | None:
    if node is not None and isinstance(node.value, dict):
        return node.value.get(str(key))
    if node is not None and isinstance(node.value, list) and isinstance(key, int):
        return node.value[key] if key < len(node.value) else None
    return None
