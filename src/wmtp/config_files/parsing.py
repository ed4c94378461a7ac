"""From the text of one file or override to nodes; refuses what a configuration must not hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import yaml
from yaml.reader import ReaderError

from wmtp.config_files.nodes import Node, Scalar, kind_name, type_name, typed
from wmtp.config_files.problems import Origin, Refused, dotted
from wmtp.storage import Place

MAX_BYTES = 1_000_000
MAX_DEPTH = 50


def read_text(path: Place, origin: Origin) -> str:
    """Return the text of a file; refuse what cannot be read, is too large or is not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise Refused(origin, "this is a directory; expected a YAML file") from None
    except FileNotFoundError:
        raise Refused(origin, "no such file; give one that is there (relative to the current folder)") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise Refused(origin, f"cannot be read: {why}; expected a YAML file") from None
    if len(content) > MAX_BYTES:
        raise Refused(origin, f"larger than {MAX_BYTES:,} bytes, which no configuration needs; expected a YAML file")
    return _decoded(content, origin)


def _decoded(content: bytes, origin: Origin) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; save the file as UTF-8"
    raise Refused(Origin(origin.source, origin.order, line), message)


class Parser:
    """Builds nodes from the YAML events of one text; refuses what a configuration must not hold."""

    def __init__(self, text: str, origin: Origin, *, lines: bool) -> None:
        self._text = text
        self._origin = origin
        self._lines = lines
        self._end = 0  # where the content read so far ends
        self._events = self._checked_events()

    def file(self) -> Node:
        """Return the mapping that the text holds; a text without content is an empty mapping."""
        root, _ = self._document()
        if root is None or root.value == Scalar("", True):
            return Node(self._origin, {})
        if not isinstance(root.value, dict):
            self._refuse(root.origin, f"expected a mapping of keys to values at the top, got {kind_name(root)}")
        return root

    def override(self) -> Node:
        """Return the scalar or flow collection that the text holds; an empty text is null."""
        root, (start, end) = self._document()
        if (self._text[:start] + self._text[end:]).strip():
            self._refuse(self._origin, "the value holds a comment or a document marker; put it in quotes")
        return root or Node(self._origin, Scalar("", True))

    def _document(self) -> tuple[Node | None, tuple[int, int]]:
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
            self._refuse(self._at(extra), "a second document starts here; expected one: remove the line ---")
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
            problem = "not valid YAML: an escape or a number in it is out of range; put the text in single quotes"
        self._refuse(origin, problem)

    def _syntax(self, error: yaml.MarkedYAMLError) -> tuple[Origin, str]:
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

    def _on(self, line: int) -> Origin:
        return Origin(self._origin.source, self._origin.order, line) if self._lines else self._origin

    def _at(self, event: yaml.Event) -> Origin:
        return self._on(_start(event).line + 1)

    def _refuse(self, origin: Origin, text: str) -> NoReturn:
        raise Refused(origin, text)

    def _refuse_at(self, event: yaml.Event, text: str) -> NoReturn:
        self._refuse(self._at(event), f"column {_start(event).column + 1}: {text}")

    def _node(self, event: yaml.Event, depth: int, origin: Origin | None = None) -> Node:
        """Return the node that `event` starts; `origin` is its key's place."""
        self._refuse_decorations(event)
        origin = origin or self._at(event)
        self._end = _end(event).index
        if isinstance(event, yaml.ScalarEvent):
            return Node(origin, Scalar(event.value, event.style is None))
        if depth > MAX_DEPTH:
            self._refuse_at(event, f"nested more than {MAX_DEPTH} levels deep, as no option is; count the brackets")
        build = self._mapping if isinstance(event, yaml.MappingStartEvent) else self._sequence
        return Node(origin, build(depth))

    def _refuse_decorations(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._refuse_at(event, "aliases (*name) are not allowed; quote text that starts with *")
        if getattr(event, "anchor", None) is not None:
            self._refuse_at(event, "anchors (&name) are not allowed; quote text that starts with &")
        if getattr(event, "tag", None) is not None:
            self._refuse_at(event, "tags (!name) are not allowed; quote text that starts with an exclamation mark")

    def _mapping(self, depth: int) -> dict[str, Node]:
        items: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in items:
                first = f" (first on line {items[key].origin.line})" if self._lines else ""
                self._refuse_at(event, f"the key {dotted((key,))} appears twice in one mapping{first}; keep one")
            items[key] = self._node(next(self._events), depth + 1, self._at(event))
        self._end = _end(event).index
        return items

    def _sequence(self, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        self._end = _end(event).index
        return items

    def _key(self, event: yaml.Event) -> str:
        """Return the key that `event` holds: a string, taken literally."""
        self._refuse_decorations(event)
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse_at(event, "expected a string as key, got a mapping or a list; put {} and [] in quotes")
        if event.style is None and event.value == "<<":
            self._refuse_at(event, "merge keys (<<) are not allowed; write the keys out, or use a second file")
        if event.style is None and not isinstance(value := typed(event.value), str):
            self._refuse_at(event, f"expected a string as key, got {type_name(value)}; put the key in quotes")
        return str(event.value)


def _start(event: yaml.Event) -> Any:
    return event.start_mark


def _end(event: yaml.Event) -> Any:
    return event.end_mark


def _code(error: ReaderError) -> int:
    return error.character if isinstance(error.character, int) else ord(error.character)
