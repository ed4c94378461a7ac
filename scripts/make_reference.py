"""The reference pages of the docs, made from the code: `python scripts/make_reference.py` writes docs/reference/,
`--check` only says whether it is what the code says now.

commands.md comes from the command line's own parser, config.md from the classes of configs and studies and the texts
under their fields, python.md from what the package exports, decisions.md from the titles of docs/decisions/.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.main import get_command

import wmtp
from wmtp import config
from wmtp.cli import app
from wmtp.study import settings

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
MADE = "<!-- Made by scripts/make_reference.py; change the code, then run that. -->\n"


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not up to date")
    options = parser.parse_args()
    stale = [name for name, text in pages().items() if _read(FOLDER / name) != text]
    if options.check:
        if stale:
            sys.exit(f"not what the code says now: {', '.join(stale)}; run python scripts/make_reference.py")
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(pages()[name])
        print(f"wrote {FOLDER / name}")


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def pages() -> dict[str, str]:
    """Every page by its name."""
    return {
        "commands.md": commands_page(),
        "config.md": config_page(),
        "python.md": python_page(),
        "decisions.md": decisions_page(),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines) + "\n"


# Commands


def commands_page() -> str:
    """Every command with its arguments and options."""
    intro = (
        "Every command answers `--help`, `wmtp --install-completion` sets up completion in your shell, and `--json` "
        "prints one JSON object instead of text. Exit codes: 0 done; 1 failed; 2 wrong usage, config or input; 130 and "
        "143 interrupted, with the state saved."
    )
    parts = [_command(path, command) for path, command in _commands(["wmtp"], get_command(app))]
    return f"# Commands\n\n{MADE}\n{intro}\n\n" + "".join(parts)


def _commands(path: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
    inside = getattr(command, "commands", None)
    if inside is None:
        yield path, command
        return
    for name, one in inside.items():
        yield from _commands([*path, name], one)


def _command(path: list[str], command: Any) -> str:
    name = " ".join(path)
    text = inspect.cleandoc(command.help or "")
    about, _, example = text.partition("Example: ")
    lines = [f"## {name}\n\n", " ".join(about.split()) + "\n\n"]
    if example:
        lines.append(f"    {' '.join(example.split())}\n\n")
    if path[:2] == ["wmtp", "bench"]:
        return "".join([*lines, f"Its options: `{name} --help`.\n\n"])
    rows = [_parameter(one) for one in command.params if one.name != "help" and not getattr(one, "hidden", False)]
    return "".join([*lines, table(["option", "default", "what"], rows)])


def _parameter(one: Any) -> list[str]:
    if one.param_type_name == "argument":
        name = one.metavar or one.name.upper()
    else:
        name = ", ".join(one.opts)
        if not one.is_flag:
            name += f" {one.metavar or one.name.upper()}"
    required = "required" if one.required else ""
    given = one.default is None or one.default is False or one.default == [] or callable(one.default)
    return [f"`{name}`", required or ("" if given else f"`{one.default}`"), one.help or ""]


# Config


def config_page() -> str:
    """Every key of a recipe, config or study, by section."""
    intro = (
        "Every key of a recipe or config: `wmtp train --recipe FILE --config FILE [KEY=VALUE]...`. Later files and "
        "overrides win; keys merge into a section; an unknown key is an error. In a default, `null` means "
        "that nothing is set. The last sections are those of a study's file: `wmtp study --study FILE`."
    )
    return f"# Config keys\n\n{MADE}\n{intro}\n\n" + "".join(_section(*one) for one in _sections())


@cache
def _sections() -> list[tuple[str, type[BaseModel]]]:
    """Dotted path and class of every section, the outermost first, each class once."""
    return [*_sections_of(config.Config, ""), *_sections_of(settings.StudyConfig, "study")]


def _sections_of(root: type[BaseModel], path: str) -> list[tuple[str, type[BaseModel]]]:
    found: dict[type[BaseModel], str] = {root: path}
    waiting: list[type[BaseModel]] = [root]
    while waiting:
        part = waiting.pop(0)
        for name, hint in get_type_hints(part, include_extras=True).items():
            if name not in part.model_fields:
                continue
            for inside in _parts_in(hint):
                if inside not in found:
                    found[inside] = f"{found[part]}.{name}".lstrip(".")
                    waiting.append(inside)
    return [(path, part) for part, path in found.items()]


def _parts_in(hint: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        yield _plain(hint)
        return
    inside = get_args(hint)
    for one in inside[:1] if get_origin(hint) is Annotated else inside:
        yield from _parts_in(one)


def _plain(part: type[BaseModel]) -> type[BaseModel]:
    """A generic class without its arguments."""
    origin = part.__pydantic_generic_metadata__["origin"]
    return origin if origin is not None else part


def _kind(part: type[BaseModel]) -> str:
    """`scheme: rho1` for one of several classes that a section may be; else nothing."""
    for name in ("kind", "scheme"):
        hint = get_type_hints(part).get(name)
        if get_origin(hint) is Literal:
            return f"{name}: {' or '.join(get_args(hint))}"
    return ""


def _title(path: str, part: type[BaseModel]) -> str:
    if part is config.ScheduleConfig:
        return "a schedule"
    return " with ".join(filter(None, [path or "Top level", _kind(part)]))


def _anchor(title: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


def _section(path: str, part: type[BaseModel]) -> str:
    hints = get_type_hints(part, include_extras=True)
    rows = [
        [f"`{name}`", _type(hints[name]), _default(field), _text(part, name, hints[name])]
        for name, field in part.model_fields.items()
    ]
    return f"## {_title(path, part)}\n\n{_about(part)}\n\n" + table(["key", "value", "default", ""], rows)


def _about(part: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(part.__doc__ or "").split())


def _text(part: type[BaseModel], name: str, hint: Any) -> str:
    """What stands under the field; else what is said of the one section it may be, or that it tells sections apart."""
    told = _texts()[part.__name__][name]
    sections = list(_parts_in(hint))
    if told or len(sections) > 1:
        return told
    if sections:
        return _about(sections[0])
    return "says which section this is" if _kind(part).startswith(f"{name}:") else ""


@cache
def _texts() -> dict[str, dict[str, str]]:
    """Class and field -> the text that stands under the field."""
    found: dict[str, dict[str, str]] = {}
    nodes = [*ast.parse(inspect.getsource(config)).body, *ast.parse(inspect.getsource(settings)).body]
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            inherited = [found[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in found]
            found[node.name] = {name: text for texts in [*inherited, _own_texts(node)] for name, text in texts.items()}
    return found


def _own_texts(node: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for one, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            told = isinstance(after, ast.Expr)
            texts[one.target.id] = " ".join(ast.literal_eval(after.value).split()) if told else ""
    return texts


WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "null", Any: "anything"}


def _type(hint: Any) -> str:
    """What may be given, in words."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if origin is Annotated:
        return _type(inside[0]) + _bounds(inside[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in inside))
    if origin is list:
        return f"list of {_type(inside[0])}"
    if origin is tuple:
        return "[" + ", ".join(_type(one) for one in inside) + "]"
    if origin is dict:
        return f"mapping of {_type(inside[0])} to {_type(inside[1])}"
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        return _link(_plain(hint))
    return "number"  # a type variable of a schedule


def _link(part: type[BaseModel]) -> str:
    path = dict((one, path) for path, one in _sections())[part]
    title = _title(path, part)
    return f"[{_kind(part) or title}](#{_anchor(title)})"


def _bounds(metadata: Sequence[Any]) -> str:
    """` >= 1`, ` in (0, 1)` and their like."""
    found = [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    texts = []
    for one in found:
        for kind, sign, name in ((Ge, ">=", "ge"), (Gt, ">", "gt"), (Le, "<=", "le"), (Lt, "<", "lt")):
            if isinstance(one, kind):
                texts.append(f"{sign} {getattr(one, name):,}")
        if isinstance(one, MinLen) and one.min_length:
            texts.append("not empty")
        if isinstance(one, MaxLen):
            texts.append(f"at most {one.max_length}")
    return f" ({', '.join(texts)})" if texts else ""


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    return f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return repr(value) if isinstance(value, str) and ("\n" in value or not value) else str(value)


# Python


def python_page() -> str:
    """What the package exports."""
    intro = "`import wmtp` costs nothing: names are loaded when they are first used."
    return f"# Python\n\n{MADE}\n{intro}\n\n" + "".join(_export(name) for name in wmtp.__all__)


def _export(name: str) -> str:
    thing = getattr(wmtp, name)
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))
    text = inspect.getdoc(thing) or ""
    body = "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines())
    return f"## {name}\n\n    {name}{signature}\n\n{body}\n"


# Decisions


def decisions_page() -> str:
    """Every decision with its title."""
    rows = []
    for path in sorted((FOLDER.parent / "decisions").glob("*.md")):
        number, _, title = path.read_text().splitlines()[0].removeprefix("# ").partition(" ")
        rows.append([f"[{number}](../decisions/{path.name})", title])
    return f"# Decisions\n\n{MADE}\nWhat was decided, and why.\n\n" + table(["", "decided"], rows)


if __name__ == "__main__":
    main()
