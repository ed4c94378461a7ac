"""References to the environment: `${NAME}`, `${NAME:-default}` and `${NAME?message}` in values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wmtp.config_files.masking import looks_secret, shown
from wmtp.config_files.nodes import Node, Scalar, typed
from wmtp.config_files.problems import KeyPath, Origin, Problem, dotted, located

_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*)|\?(?P<message>[^{}]*))?\}|\$\{"
)


@dataclass(slots=True)
class Resolver:
    """Turns nodes into plain data; collects unset variables and which values hold a secret variable."""

    environ: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)
    secrets: set[KeyPath] = field(default_factory=set)

    def data(self, node: Node, path: KeyPath = ()) -> Any:
        """Return the node's value with references replaced and plain scalars typed."""
        if isinstance(node.value, dict):
            return {key: self.data(child, (*path, key)) for key, child in node.value.items()}
        if isinstance(node.value, list):
            return [self.data(child, (*path, index)) for index, child in enumerate(node.value)]
        if "${" not in node.value.text:
            return typed(node.value.text) if node.value.plain else node.value.text
        return self._replaced(node.value, node.origin, path)

    def _replaced(self, scalar: Scalar, origin: Origin, path: KeyPath) -> Any:
        """Return the text with each reference replaced once; a plain lone reference is typed."""
        lone = _REFERENCE.fullmatch(scalar.text)
        text = _REFERENCE.sub(lambda match: self._text(match, scalar, origin, path), scalar.text)
        return typed(text) if scalar.plain and lone and lone["name"] else text

    def _text(self, match: re.Match[str], scalar: Scalar, origin: Origin, path: KeyPath) -> str:
        """Return what one match stands for; note a problem and return nothing if it has no value."""
        name, default = match["name"], match["default"]
        if name is None:
            if match[0] != "$${":
                self._note(origin, path, self._malformed(scalar, path))
            return "${"
        if looks_secret(name):
            self.secrets.add(path)
        value = self.environ.get(name)
        if default is not None:
            return value or default
        if value is None:
            unset = f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            self._note(origin, path, f"{name}: {match['message'].strip()}" if match["message"] else unset)
        return value or ""

    def _malformed(self, scalar: Scalar, path: KeyPath) -> str:
        expected = "expected ${NAME}, ${NAME:-default} or ${NAME?message} without braces inside; $${ is a literal ${"
        return f"malformed reference in {shown(path, scalar.text, frozenset(self.secrets))}; {expected}"

    def _note(self, origin: Origin, path: KeyPath, text: str) -> None:
        self.problems.append(located(origin, f"{dotted(path)}: {text}"))
