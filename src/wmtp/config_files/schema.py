"""What a pydantic model allows at a place: types, keys, choices."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from wmtp.config_files.problems import Key, KeyPath


@dataclass(frozen=True, slots=True)
class Member:
    """One type that a value may have, with its explicit pydantic `Tag`, if any."""

    type: Any
    tag: str | None = None


def members_of(annotation: Any, tag: str | None = None) -> list[Member]:
    """Return the types that an annotation allows: unions, aliases and `Annotated` are opened."""
    if hasattr(annotation, "__value__"):
        return members_of(annotation.__value__, tag)
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(getattr(item, "tag", None), str)]
        return members_of(inner, tags[0] if tags else tag)
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in members_of(part, tag)]
    return [Member(annotation, tag)]


def models_of(members: Sequence[Member]) -> list[type[BaseModel]]:
    return [m.type for m in members if isinstance(m.type, type) and issubclass(m.type, BaseModel)]


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the annotation of each field under the key that a file uses for it."""
    named = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias
        named[alias if isinstance(alias, str) else name] = info.annotation
    return named


def _under(members: Sequence[Member], key: Key) -> list[Member]:
    """Return the types that the value at `key` may have."""
    found = [members_of(fields[str(key)]) for fields in map(fields_of, models_of(members)) if key in fields]
    for member in members:
        if get_origin(member.type) is not Literal:
            args = [arg for arg in get_args(member.type) if arg is not Ellipsis]
            found += [members_of(arg) for arg in (args if isinstance(key, int) else args[1:])]
    return [member for group in found for member in group]


def has_field(members: Sequence[Member], key: Key) -> bool:
    return any(key in fields_of(model) for model in models_of(members))


def choices_of(annotation: Any) -> list[str]:
    """Return the strings that an annotation of literals or an enum lists."""
    found: list[str] = []
    for member in members_of(annotation):
        if get_origin(member.type) is Literal:
            values: list[Any] = list(get_args(member.type))
        else:
            values = list(member.type) if isinstance(member.type, enum.EnumType) else []
        found += [str(value.value if isinstance(value, enum.Enum) else value) for value in values]
    return found


def _narrowed(members: list[Member], label: Key) -> list[Member]:
    """Return the members of a union that pydantic's `label` (a tag or a class name) names, else all."""
    text = str(label)
    chosen = [m for m in members if text in (m.tag, getattr(m.type, "__name__", None))]
    for model in models_of(members):
        if any(text in choices_of(annotation) for annotation in fields_of(model).values()):
            chosen.append(Member(model))
    return chosen or members


def allowed_at(schema: Any, steps: KeyPath, kept: Sequence[bool]) -> list[Member]:
    """Return the types allowed at a location; steps that are not kept are union labels, not keys."""
    members = members_of(schema)
    for key, keep in zip(steps, kept, strict=True):
        members = _under(members, key) if keep else _narrowed(members, key)
    return members
