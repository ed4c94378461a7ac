"""Configuration from YAML files and `key=value` overrides, and every mistake in it told at once.

`load` merges files and overrides, replaces environment references and validates the result against a
pydantic model; `dump` writes a model as YAML that `load` reads back as an equal object. Scalars follow the
YAML 1.2 core schema (`1e-4` is a number, `no` is a string). Nothing here knows a concrete configuration.
"""

from __future__ import annotations

import difflib
import enum
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from yaml.reader import ReaderError

from wmtp.errors import ConfigError
from wmtp.redaction import without_credentials
from wmtp.storage import Place

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_SHOWN = 80
MAX_NUMBER = 400  # a longer run of digits is text, not a number
MAX_ROUTES = 64
MAX_NAMES = 20
MIN_SECRET = 4  # shorter secrets are not searched for inside other messages

M = TypeVar("M", bound=BaseModel)
_Key = str | int
_Path = tuple[_Key, ...]
_Error = Mapping[str, Any]

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})
_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*)|\?(?P<message>[^{}]*))?\}|\$\{"
)
_BARE_STRING = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*", re.ASCII)
_BARE_KEY = re.compile(r"[\w-]+")
_SECRET = re.compile(r"passw|passphrase|secret|credential|(api|access|private)[_-]?key|token(?![a-z])")


# ---- what is wrong, and where ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a key was written: a file and line, or an override (line 0)."""

    source: str
    order: int
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class _Problem:
    """One line of the report; `order` sorts it by source and line."""

    order: tuple[float, float]
    text: str


class _Refused(Exception):
    """A source could not be read; carries the one problem found in it."""

    def __init__(self, origin: _Origin, text: str) -> None:
        super().__init__(text)
        self.problem = _problem(origin, text)


def _problem(origin: _Origin, text: str) -> _Problem:
    return _Problem((origin.order, origin.line), f"{origin}: {text}")


def _raise_any(problems: Sequence[_Problem]) -> None:
    """Raise one `ConfigError` that lists `problems` in the order of their sources; do nothing for none."""
    if not problems:
        return
    lines = [_printable(problem.text) for problem in sorted(problems, key=lambda problem: problem.order)]
    head = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise ConfigError("\n  ".join([f"{head} in the configuration", *lines]))


def _printable(text: str) -> str:
    """Return `text` on one line, with control characters written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _dotted(path: _Path) -> str:
    """Return the key path as the user writes it; keys that hold other characters are quoted."""
    return ".".join(str(key) if _BARE_KEY.fullmatch(str(key)) else repr(key) for key in path) or "configuration"


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


# ---- secrets -----------------------------------------------------------------------------------------------


class _Mask:
    """Stands for a value that must not be shown."""

    def __repr__(self) -> str:
        return "***"


def _looks_secret(name: str) -> bool:
    """Tell whether a key or variable name looks like it holds a secret (`hf_token`, not `tokens`)."""
    return _SECRET.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) is not None


def _is_secret(path: _Path, secrets: frozenset[_Path]) -> bool:
    """Tell whether `path` lies at or under a secret-looking key or a value made from a secret variable."""
    named = any(isinstance(key, str) and _looks_secret(key) for key in path)
    return named or any(path[:end] in secrets for end in range(len(path) + 1))


def _masked(value: Any, path: _Path, secrets: frozenset[_Path]) -> Any:
    """Return a copy of `value` in which every secret is replaced by a mask."""
    if _is_secret(path, secrets):
        return _Mask()
    if isinstance(value, dict):
        return {key: _masked(item, (*path, key), secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, (*path, index), secrets) for index, item in enumerate(value)]
    return value


def _secret_texts(value: Any, path: _Path, secrets: frozenset[_Path]) -> Iterator[str]:
    """Yield the text of every secret in `value` that is long enough to search for."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _secret_texts(item, (*path, key), secrets)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _secret_texts(item, (*path, index), secrets)
    elif value is not None and not isinstance(value, bool) and _is_secret(path, secrets):
        texts = (value, repr(value)[1:-1]) if isinstance(value, str) else (repr(value),)
        yield from (text for text in texts if len(text) >= MIN_SECRET)


def _shown(path: _Path, value: Any, secrets: frozenset[_Path]) -> str:
    """Return the repr of a value for a message: masked, then cut to `MAX_SHOWN` characters."""
    return _clipped(without_credentials(repr(_masked(value, path, secrets))))


def _override_name(text: str) -> str:
    """Return how an override is named in messages; its value is masked if any part of it looks secret."""
    if _looks_secret(text):
        key, equals, _ = text.partition("=")
        text = f"{key}=***" if equals else "***"
    return f"override {_clipped(without_credentials(repr(text)))}"


# ---- from text to nodes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scalar:
    """A scalar as written, before references are replaced and its type is known."""

    text: str
    plain: bool


@dataclass(frozen=True, slots=True)
class _Node:
    """A value and where its key was written."""

    origin: _Origin
    value: dict[str, _Node] | list[_Node] | _Scalar


def _typed(text: str) -> Any:
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


def _read(path: Place, origin: _Origin) -> str:
    """Return the text of a file; refuse what cannot be read, is too large or is not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise _Refused(origin, "this is a directory; expected a YAML file") from None
    except FileNotFoundError:
        raise _Refused(origin, "no such file") from None
    except (OSError, ValueError) as error:
        raise _Refused(origin, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_BYTES:
        raise _Refused(origin, f"larger than {MAX_BYTES} bytes, which no configuration needs")
    return _decoded(content, origin)


def _decoded(content: bytes, origin: _Origin) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; save the file as UTF-8"
    raise _Refused(_Origin(origin.source, origin.order, line), message)


class _Parser:
    """Builds nodes from the YAML events of one text; refuses what a configuration must not hold."""

    def __init__(self, text: str, origin: _Origin, *, lines: bool) -> None:
        self._text = text
        self._origin = origin
        self._lines = lines
        self._end = 0  # where the content read so far ends
        self._events = self._checked_events()

    def file(self) -> _Node:
        """Return the mapping that the text holds; a text without content is an empty mapping."""
        root, _ = self._document()
        if root is None or root.value == _Scalar("", True):
            return _Node(self._origin, {})
        if not isinstance(root.value, dict):
            self._refuse(root.origin, f"expected a mapping of keys to values at the top, got {_kind(root)}")
        return root

    def override(self) -> _Node:
        """Return the scalar or flow collection that the text holds; an empty text is null."""
        root, (start, end) = self._document()
        if (self._text[:start] + self._text[end:]).strip():
            self._refuse(self._origin, "the value holds a comment or a document marker; put it in quotes")
        return root or _Node(self._origin, _Scalar("", True))

    def _document(self) -> tuple[_Node | None, tuple[int, int]]:
        """Return the only document's root, if there is one, and the range of characters it spans."""
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None, (0, 0)
        first = next(self._events)
        if not self._lines and getattr(first, "flow_style", True) is False:
            self._refuse(self._origin, "the value reads as a block mapping or list; put it in quotes, {} or []")
        root = self._node(first, 1)
        next(self._events)
        if isinstance(extra := next(self._events), yaml.DocumentStartEvent):
            self._refuse(self._at(extra), "a second document starts here; expected one")
        return root, (_start(first).index, self._end)

    def _checked_events(self) -> Iterator[yaml.Event]:
        """Yield the events; turn every way in which the YAML library fails into a problem."""
        origin, problem = self._origin, ""
        try:
            yield from yaml.parse(self._text, Loader=yaml.SafeLoader)
            return
        except ReaderError as error:
            line, column = self._line_and_column(error.position)
            origin, problem = self._on(line), f"column {column}: the character U+{_code(error):04X} is not allowed"
        except yaml.MarkedYAMLError as error:
            origin, problem = self._syntax(error)
        except (ValueError, OverflowError):
            problem = "not valid YAML: an escape or a number in it is out of range"
        self._refuse(origin, problem)

    def _syntax(self, error: yaml.MarkedYAMLError) -> tuple[_Origin, str]:
        """Return the place and wording of a syntax error, without an excerpt (it could hold a secret)."""
        mark = error.problem_mark or error.context_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        if mark is None:
            return self._origin, f"not valid YAML: {what}"
        row = self._text.splitlines()[mark.line : mark.line + 1]
        hint = "; inside [] and {} put ${...} in quotes" if row and "${" in row[0] else ""
        return self._on(mark.line + 1), f"column {mark.column + 1}: not valid YAML: {what}{hint}"

    def _line_and_column(self, index: int) -> tuple[int, int]:
        before = self._text[:index]
        return before.count("\n") + 1, index - before.rfind("\n")

    def _on(self, line: int) -> _Origin:
        return _Origin(self._origin.source, self._origin.order, line) if self._lines else self._origin

    def _at(self, event: yaml.Event) -> _Origin:
        return self._on(_start(event).line + 1)

    def _refuse(self, origin: _Origin, text: str) -> NoReturn:
        raise _Refused(origin, text)

    def _refuse_at(self, event: yaml.Event, text: str) -> NoReturn:
        self._refuse(self._at(event), f"column {_start(event).column + 1}: {text}")

    def _node(self, event: yaml.Event, depth: int, origin: _Origin | None = None) -> _Node:
        """Return the node that `event` starts; `origin` is its key's place."""
        self._refuse_decorations(event)
        origin = origin or self._at(event)
        self._end = _end(event).index
        if isinstance(event, yaml.ScalarEvent):
            return _Node(origin, _Scalar(event.value, event.style is None))
        if depth > MAX_DEPTH:
            self._refuse_at(event, f"nested more than {MAX_DEPTH} levels deep")
        build = self._mapping if isinstance(event, yaml.MappingStartEvent) else self._sequence
        return _Node(origin, build(depth))

    def _refuse_decorations(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._refuse_at(event, "aliases (*name) are not allowed; quote text that starts with *")
        if getattr(event, "anchor", None) is not None:
            self._refuse_at(event, "anchors (&name) are not allowed; quote text that starts with &")
        if getattr(event, "tag", None) is not None:
            self._refuse_at(event, "tags (!name) are not allowed; quote text that starts with !")

    def _mapping(self, depth: int) -> dict[str, _Node]:
        items: dict[str, _Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in items:
                first = f" (first on line {items[key].origin.line})" if self._lines else ""
                self._refuse_at(event, f"the key {_dotted((key,))} appears twice in one mapping{first}")
            items[key] = self._node(next(self._events), depth + 1, self._at(event))
        self._end = _end(event).index
        return items

    def _sequence(self, depth: int) -> list[_Node]:
        items: list[_Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        self._end = _end(event).index
        return items

    def _key(self, event: yaml.Event) -> str:
        """Return the key that `event` holds: a string, taken literally."""
        self._refuse_decorations(event)
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse_at(event, "expected a string as key, got a mapping or a list")
        if event.style is None and event.value == "<<":
            self._refuse_at(event, "merge keys (<<) are not allowed; write the keys out, or use a second file")
        if event.style is None and not isinstance(value := _typed(event.value), str):
            self._refuse_at(event, f"expected a string as key, got {_type_name(value)}; put the key in quotes")
        return str(event.value)


def _start(event: yaml.Event) -> Any:
    return event.start_mark


def _end(event: yaml.Event) -> Any:
    return event.end_mark


def _code(error: ReaderError) -> int:
    return error.character if isinstance(error.character, int) else ord(error.character)


def _type_name(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "an integer", float: "a number", dict: "a mapping"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a string")


def _kind(node: _Node) -> str:
    if isinstance(node.value, _Scalar):
        return _type_name(_typed(node.value.text)) if node.value.plain else "a string"
    return _type_name(node.value)


# ---- merging -----------------------------------------------------------------------------------------------


def _merged(old: _Node, new: _Node) -> _Node:
    """Return `old` overlaid with `new`: mappings merge key by key, everything else is replaced."""
    if not (isinstance(old.value, dict) and isinstance(new.value, dict)):
        return new
    items = dict(old.value)
    for key, node in new.value.items():
        items[key] = _merged(items[key], node) if key in items else node
    return _Node(old.origin, items)


def _assigned(node: _Node | None, keys: Sequence[str], new: _Node, done: _Path = ()) -> _Node:
    """Return `node` with `new` merged in at `keys`; missing mappings on the way are made, lists are not."""
    if not keys:
        return _merged(node, new) if node else new
    key, rest = keys[0], keys[1:]
    if node is None or _is_null(node):
        if _is_index(key):
            raise _Refused(new.origin, f"there is no list at {_dotted(done)} to take item {key} of; set the whole list")
        return _Node(new.origin, {key: _assigned(None, rest, new, (*done, key))})
    if isinstance(node.value, dict):
        child = _assigned(node.value.get(key), rest, new, (*done, key))
        return _Node(node.origin, {**node.value, key: child})
    if isinstance(node.value, list):
        index = _index(key, node.value, new.origin, done)
        child = _assigned(node.value[index], rest, new, (*done, index))
        return _Node(node.origin, [*node.value[:index], child, *node.value[index + 1 :]])
    problem = f"{_dotted(done)} is {_kind(node)} (set at {node.origin}), so it has no key {_dotted((key,))}"
    raise _Refused(new.origin, problem)


def _is_null(node: _Node) -> bool:
    return isinstance(node.value, _Scalar) and node.value.plain and node.value.text in _NULLS


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit()


def _index(key: str, items: list[_Node], origin: _Origin, path: _Path) -> int:
    if not _is_index(key):
        raise _Refused(origin, f"{_dotted(path)} is a list; expected an index, got {_dotted((key,))}")
    if len(key) > len(str(len(items))) or int(key) >= len(items):
        raise _Refused(origin, f"{_dotted(path)} has {len(items)} items (numbered from 0), so there is no item {key}")
    return int(key)


def _with_override(tree: _Node, text: str, order: int) -> _Node:
    """Return `tree` with the override `a.b.c=value` applied."""
    origin = _Origin(_override_name(text), order)
    key, equals, value = text.partition("=")
    keys = [part.strip() for part in key.split(".")]
    if not equals:
        raise _Refused(origin, "expected key=value, found no '='")
    if not all(keys):
        raise _Refused(origin, "expected key=value with a dotted key such as a.b, found an empty key")
    if len(keys) > MAX_DEPTH:
        raise _Refused(origin, f"the key is nested more than {MAX_DEPTH} levels deep")
    return _assigned(tree, keys, _Parser(value, origin, lines=False).override())


def _gathered(files: Sequence[Place], overrides: Sequence[str]) -> _Node:
    """Return all files and overrides merged in order; raise `ConfigError` for all that cannot be read."""
    tree, problems = _Node(_Origin("configuration", 0), {}), []
    for order, path in enumerate(files):
        origin = _Origin(str(path), order)
        try:
            tree = _merged(tree, _Parser(_read(path, origin), origin, lines=True).file())
        except _Refused as refused:
            problems.append(refused.problem)
    _raise_any(problems)
    for order, text in enumerate(overrides, start=len(files)):
        try:
            tree = _with_override(tree, text, order)
        except _Refused as refused:
            problems.append(refused.problem)
    _raise_any(problems)
    return tree


# ---- environment references --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Resolver:
    """Turns nodes into plain data; collects unset variables and which values hold a secret variable."""

    environ: Mapping[str, str]
    problems: list[_Problem] = field(default_factory=list)
    secrets: set[_Path] = field(default_factory=set)

    def data(self, node: _Node, path: _Path = ()) -> Any:
        """Return the node's value with references replaced and plain scalars typed."""
        if isinstance(node.value, dict):
            return {key: self.data(child, (*path, key)) for key, child in node.value.items()}
        if isinstance(node.value, list):
            return [self.data(child, (*path, index)) for index, child in enumerate(node.value)]
        if "${" not in node.value.text:
            return _typed(node.value.text) if node.value.plain else node.value.text
        return self._replaced(node.value, node.origin, path)

    def _replaced(self, scalar: _Scalar, origin: _Origin, path: _Path) -> Any:
        """Return the text with each reference replaced once; a plain lone reference is typed."""
        lone = _REFERENCE.fullmatch(scalar.text)
        text = _REFERENCE.sub(lambda match: self._text(match, scalar, origin, path), scalar.text)
        return _typed(text) if scalar.plain and lone and lone["name"] else text

    def _text(self, match: re.Match[str], scalar: _Scalar, origin: _Origin, path: _Path) -> str:
        """Return what one match stands for; note a problem and return nothing if it has no value."""
        name, default = match["name"], match["default"]
        if name is None:
            if match[0] != "$${":
                self._note(origin, path, self._malformed(scalar, path))
            return "${"
        if _looks_secret(name):
            self.secrets.add(path)
        value = self.environ.get(name)
        if default is not None:
            return value or default
        if value is None:
            unset = f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            self._note(origin, path, f"{name}: {match['message'].strip()}" if match["message"] else unset)
        return value or ""

    def _malformed(self, scalar: _Scalar, path: _Path) -> str:
        expected = "expected ${NAME}, ${NAME:-default} or ${NAME?message} without braces inside; $${ is a literal ${"
        return f"malformed reference in {_shown(path, scalar.text, frozenset(self.secrets))}; {expected}"

    def _note(self, origin: _Origin, path: _Path, text: str) -> None:
        self.problems.append(_problem(origin, f"{_dotted(path)}: {text}"))


# ---- what a schema allows ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    """One type that a value may have, with its explicit pydantic `Tag`, if any."""

    type: Any
    tag: str | None = None


def _members(annotation: Any, tag: str | None = None) -> list[_Member]:
    """Return the types that an annotation allows: unions, aliases and `Annotated` are opened."""
    if hasattr(annotation, "__value__"):
        return _members(annotation.__value__, tag)
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(getattr(item, "tag", None), str)]
        return _members(inner, tags[0] if tags else tag)
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part, tag)]
    return [_Member(annotation, tag)]


def _models(members: Sequence[_Member]) -> list[type[BaseModel]]:
    return [m.type for m in members if isinstance(m.type, type) and issubclass(m.type, BaseModel)]


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Return the annotation of each field under the key that a file uses for it."""
    named = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias
        named[alias if isinstance(alias, str) else name] = info.annotation
    return named


def _under(members: Sequence[_Member], key: _Key) -> list[_Member]:
    """Return the types that the value at `key` may have."""
    found = [_members(fields[str(key)]) for fields in map(_fields, _models(members)) if key in fields]
    for member in members:
        if get_origin(member.type) is not Literal:
            args = [arg for arg in get_args(member.type) if arg is not Ellipsis]
            found += [_members(arg) for arg in (args if isinstance(key, int) else args[1:])]
    return [member for group in found for member in group]


def _has_field(members: Sequence[_Member], key: _Key) -> bool:
    return any(key in _fields(model) for model in _models(members))


def _choices(annotation: Any) -> list[str]:
    """Return the strings that an annotation of literals or an enum lists."""
    found: list[str] = []
    for member in _members(annotation):
        if get_origin(member.type) is Literal:
            values: list[Any] = list(get_args(member.type))
        else:
            values = list(member.type) if isinstance(member.type, enum.EnumType) else []
        found += [str(value.value if isinstance(value, enum.Enum) else value) for value in values]
    return found


def _narrowed(members: list[_Member], label: _Key) -> list[_Member]:
    """Return the members of a union that pydantic's `label` (a tag or a class name) names, else all."""
    text = str(label)
    chosen = [m for m in members if text in (m.tag, getattr(m.type, "__name__", None))]
    for model in _models(members):
        if any(text in _choices(annotation) for annotation in _fields(model).values()):
            chosen.append(_Member(model))
    return chosen or members


def _allowed(schema: Any, steps: _Path, kept: Sequence[bool]) -> list[_Member]:
    """Return the types allowed at a location; steps that are not kept are union labels, not keys."""
    members = _members(schema)
    for key, keep in zip(steps, kept, strict=True):
        members = _under(members, key) if keep else _narrowed(members, key)
    return members


# ---- from validation errors to problems --------------------------------------------------------------------

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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a validation error points: the user's key path, and the types allowed there."""

    path: _Path
    allowed: list[_Member]
    parent: list[_Member]


def _item(value: Any, key: _Key) -> Any:
    """Return what plain data holds at `key`, or `...` for nothing."""
    if isinstance(value, list) and isinstance(key, int):
        return value[key] if 0 <= key < len(value) else ...
    return value.get(key, ...) if isinstance(value, dict) else ...


def _routes(value: Any, steps: _Path, kept: tuple[bool, ...] = ()) -> Iterator[tuple[tuple[bool, ...], Any]]:
    """Yield the ways to read `steps` as keys into `value`, skipping union labels, most keys first."""
    if not steps:
        yield kept, value
        return
    if (item := _item(value, steps[0])) is not ...:
        yield from _routes(item, steps[1:], (*kept, True))
    yield from _routes(value, steps[1:], (*kept, False))


def _place(error: _Error, schema: Any, data: Any) -> _Place:
    """Return where the error points; the route that ends at the very object pydantic saw is preferred."""
    steps, last = tuple(error["loc"]), error["type"]
    if last == "missing" or steps[-1:] == ("[key]",):
        steps = steps[:-1]
    routes = list(islice(_routes(data, steps), MAX_ROUTES))
    kept = next((kept for kept, value in routes if value is error["input"]), routes[0][0])
    if last == "missing":
        steps, kept = (*steps, error["loc"][-1]), (*kept, True)
    elif steps and not kept[-1] and _has_field(_allowed(schema, steps[:-1], kept[:-1]), steps[-1]):
        kept = (*kept[:-1], True)  # an invalid default: the key is in the schema but not in the data
    path = tuple(key for key, keep in zip(steps, kept, strict=True) if keep)
    parent = _allowed(schema, steps[:-1], kept[:-1])
    return _Place(path, _allowed(schema, steps, kept), parent)


def _near(word: object, names: Sequence[str]) -> str:
    """Return `; did you mean ...?` for the name nearest to `word`, or nothing."""
    lower = {name.lower(): name for name in names}
    text = str(word).lower()
    matches = difflib.get_close_matches(text, lower, n=1)
    matches += [name for name in lower if name == _initials(text) or text == _initials(name)]
    return f"; did you mean {lower[matches[0]]!r}?" if matches else ""


def _initials(name: str) -> str:
    words = [word for word in re.split(r"[_-]", name) if word]
    return "".join(word[0] for word in words) if len(words) > 1 else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


def _unknown_key(place: _Place) -> str:
    names = sorted({name for model in _models(place.parent) for name in _fields(model)})
    valid = f"(valid keys: {_listed(names)})" if names else "(no keys are allowed here)"
    near = _near(place.path[-1], names)
    return f"unknown key{near} {valid}"


@dataclass(frozen=True, slots=True)
class _Explainer:
    """Words validation errors for the user who wrote `tree`; `data` is what pydantic saw."""

    schema: type[BaseModel]
    tree: _Node
    data: Any
    secrets: frozenset[_Path]

    def problems(self, errors: Sequence[_Error]) -> list[_Problem]:
        """Return one problem for each key path; what the members of a union expect is joined by `or`."""
        texts: dict[_Path, list[str]] = {}
        values: dict[_Path, Any] = {}
        for error in errors:
            path, value, text = self._explained(error)
            known = texts.setdefault(path, [])
            values.setdefault(path, value)
            text = text.removeprefix("expected ") if known and known[0].startswith("expected ") else text
            if text not in known and f"expected {text}" not in known:
                known.append(text)
        return [self._line(path, self._written(path, values[path]), " or ".join(texts[path])) for path in texts]

    def _written(self, path: _Path, seen: Any) -> Any:
        """Return the value at `path` as the user wrote it; `seen`, where nothing or no value is to be shown."""
        value = self.data
        for key in path:
            value = _item(value, key)
        return seen if seen is ... or value is ... else value

    def _explained(self, error: _Error) -> tuple[_Path, Any, str]:
        """Return the key path, the value to show (`...` for none) and what was expected."""
        place, kind, context = _place(error, self.schema, self.data), error["type"], error.get("ctx", {})
        if kind == "missing":
            return place.path, ..., "this key is required"
        if kind == "extra_forbidden":
            return place.path, error["input"], _unknown_key(place)
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            return self._tag(place, error, context)
        if kind in ("value_error", "assertion_error"):
            value = ... if isinstance(error["input"], dict) or not place.path else error["input"]
            return place.path, value, self._scrubbed(str(context.get("error") or error["msg"]))
        where = "as key " if error["loc"][-1:] == ("[key]",) else ""
        return place.path, error["input"], self._expected(error, context).replace("expected ", f"expected {where}", 1)

    def _tag(self, place: _Place, error: _Error, context: Mapping[str, Any]) -> tuple[_Path, Any, str]:
        """Explain a discriminator key whose value is missing or names no member of the union."""
        key = re.fullmatch(r"'(\w+)'", str(context.get("discriminator")))
        path = (*place.path, key[1]) if key else place.path
        if error["type"] == "union_tag_invalid":
            return path, context["tag"] if key else error["input"], self._expected(error, context)
        tags = [m.tag for m in place.allowed if m.tag]
        for fields in map(_fields, _models(place.allowed)):
            tags += _choices(fields.get(key[1] if key else ""))
        choices = f"; expected one of {_listed([repr(tag) for tag in dict.fromkeys(tags)])}" if tags else ""
        return path, ... if key else error["input"], f"this key is required{choices}"

    def _expected(self, error: _Error, context: Mapping[str, Any]) -> str:
        """Return what was expected in plain words, with a near miss for a choice of strings."""
        kind = str(error["type"])
        template = _EXPECTED.get(kind) or _EXPECTED.get(re.sub(r"_(type|parsing|parsing_size)$", "", kind))
        if template is None:
            message = str(error["msg"])
            return self._scrubbed(message.replace("Input should be ", "expected ", 1))
        choices = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        return "expected " + template.format_map(context) + _near(context.get("tag", error["input"]), choices)

    def _scrubbed(self, message: str) -> str:
        """Return a foreign message on one line, with every secret of the configuration masked."""
        for secret in sorted(_secret_texts(self.data, (), self.secrets), key=len, reverse=True):
            message = message.replace(secret, "***")
        return " ".join(message.split())

    def _line(self, path: _Path, value: Any, text: str) -> _Problem:
        got = "" if value is ... else f" = {_shown(path, value, self.secrets)}"
        origin = self._origin(path)
        text = f"{_dotted(path)}{got}: {text}"
        if origin is None and not path:
            return _Problem((math.inf, 0), text)
        if origin is None:
            label = "(missing)" if value is ... else "(default)"
            return _Problem((math.inf, 0), f"{label} {text}")
        return _problem(origin, text)

    def _origin(self, path: _Path) -> _Origin | None:
        """Return where the key was written; for a mapping, where the first key under it was."""
        node: _Node | None = self.tree
        for key in path:
            node = _child(node, key)
        if node is None or not isinstance(node.value, dict):
            return None if node is None else node.origin
        first = next(iter(node.value.values()), node).origin
        if path:
            return first
        return _Origin(first.source, first.order) if node.value else None


def _child(node: _Node | None, key: _Key) -> _Node | None:
    if node is not None and isinstance(node.value, dict):
        return node.value.get(str(key))
    if node is not None and isinstance(node.value, list) and isinstance(key, int):
        return node.value[key] if key < len(node.value) else None
    return None


def _validated(schema: type[M], data: Any) -> tuple[M | None, list[_Error]]:
    """Return the object, or None and the errors; the exception, which holds every input, ends here."""
    try:
        return schema.model_validate(data), []
    except ValidationError as error:
        return None, list(error.errors(include_url=False))


def load(
    schema: type[M], files: Sequence[Place], overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> M:
    """Return `schema` built from `files`, merged in order, and then from `overrides` (`a.b.0.c=value`).

    Mappings merge, everything else is replaced by what comes later. `${NAME}`, `${NAME:-default}` and
    `${NAME?message}` in values are replaced from `environ` (the process's, if None). Raises `ConfigError`
    that lists every problem of the first stage that fails: reading files, applying overrides, replacing
    references, validating.
    """
    tree = _gathered(files, overrides)
    resolver = _Resolver(os.environ if environ is None else environ)
    data = resolver.data(tree)
    _raise_any(resolver.problems)
    config, errors = _validated(schema, data)
    if config is None:
        _raise_any(_Explainer(schema, tree, data, frozenset(resolver.secrets)).problems(errors))
        raise ConfigError(f"the configuration is not a valid {schema.__name__}")
    return config


def as_written(path: Place) -> dict[str, Any]:
    """Return the content of one file with references such as `${NAME}` left in its texts.

    Raises `ConfigError` if it cannot be read.
    """
    content = _unresolved(_gathered([path], []))
    return content if isinstance(content, dict) else {}


def _unresolved(node: _Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _unresolved(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_unresolved(child) for child in node.value]
    return _typed(node.value.text) if node.value.plain and "${" not in node.value.text else node.value.text


# ---- writing -----------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Writes plain data so that `load` reads it back: doubtful strings in quotes, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    bare = _BARE_STRING.fullmatch(text) and isinstance(_typed(text), str) and len(text) <= MAX_SHOWN
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else '"')


_Dumper.add_representer(str, _represent_text)


def _plain(value: Any) -> Any:
    """Return `value` as mappings, lists and scalars; strings are escaped against substitution."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, str | PurePath):
        return str(value).replace("${", "$${")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return [_plain(item) for item in sorted(value, key=repr)]
    return _plain(TypeAdapter(Any).dump_python(value, mode="json"))


def _plain_key(key: Any) -> str:
    """Return a key as a string; keys are read literally, so nothing in them is escaped."""
    return str(key.value if isinstance(key, enum.Enum) else key)


def dump(config: BaseModel) -> str:
    """Return the resolved configuration as YAML text from which `load` builds an equal object.

    Nothing is masked except what pydantic itself hides (`SecretStr`), so the text may hold secrets.
    """
    return render(_plain(config.model_dump(mode="python", by_alias=True, round_trip=True)))


def render(data: Any) -> str:
    """Return plain data as YAML text; references in it are references still."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=10**9)
