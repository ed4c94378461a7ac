"""What a YAML text is before its references are replaced, and the types of plain scalars: YAML 1.2's core schema."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from wmtp.config_files.problems import Origin

MAX_NUMBER = 400  # a longer run of digits is text, not a number

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar as written, before references are replaced and its type is known."""

    text: str
    plain: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where its key was written."""

    origin: Origin
    value: dict[str, Node] | list[Node] | Scalar


def typed(text: str) -> Any:
    """Return the value of a plain scalar under the YAML 1.2 core schema; `010` is the integer 10."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INFINITE.fullmatch(text) or text in _NAN:
        return float(text.replace(".", "", 1))
    return _number(text) if len(text) <= MAX_NUMBER else text


def _number(text: str) -> int | float | str:
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def type_name(value: object) -> str:
    """Return what plain data is in the words of YAML, with its article."""
    names = {type(None): "null", bool: "a boolean", int: "an integer", float: "a number", dict: "a mapping"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a string")


def kind_name(node: Node) -> str:
    """Return what a node is in the words of YAML, with its article."""
    if isinstance(node.value, Scalar):
        return type_name(typed(node.value.text)) if node.value.plain else "a string"
    return type_name(node.value)


def is_null(node: Node) -> bool:
    """Tell whether nothing stands there, or a plain null."""
    return isinstance(node.value, Scalar) and node.value.plain and node.value.text in _NULLS
