"""Values and messages that cross from one process to another: a closed set of types, rebuilt from scratch.

Nothing is unpickled, no class is looked up by a name that came over the wire, no method of the sender's objects is
called by the receiver. A value is JSON; what JSON lacks is an object with one key, its tag. Decoding gives exact
builtins (and the few library types of `_LIBRARY`), so an `__eq__`, a `__hash__` or a subclass of the sender's never
takes part in a comparison. Sizes are bounded before anything is built, and keys are counted by hash, because a set
of colliding integers would keep its receiver busy for hours.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import islice
from math import isfinite
from typing import Any

MAX_FRAME = 16 * 2**20
"""Bytes of one message from a process that runs untrusted code."""
MAX_PARTS = 2**21
"""Commas of such a message: a few bytes of text may be a hundred bytes of objects."""
MAX_JOB = 64 * 2**20
"""Bytes of one message to such a process: program and tests."""
MAX_DEPTH = 100
"""Containers inside containers."""
MAX_BITS = 2**22
"""Size of an integer: some 1,260,000 decimal digits."""
MAX_DIVIDED_BITS = 2**14
"""Size of the integers in a fraction or a range: both are divided to build it, and the time that takes grows with the
square of their size, to minutes at MAX_BITS."""
MAX_ITEMS = 10_000
"""Items taken from an iterator, which might have no end."""
MAX_SAME_HASH = 64
"""Keys of one container with the same hash."""
_PLAIN = 2**53
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().raw_decode

Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]
Other = Callable[[Any], Any]


class CodecError(ValueError):
    """A value or message that is not carried: too large, malformed, or of a type outside the set."""


class UnsupportedType(CodecError):
    """A value of a type outside the set."""


# --- Values -----------------------------------------------------------------------------------------------------------


def encode(value: Any, other: Other | None = None) -> Any:
    """`value` as JSON data. `other` gets what has no code and returns JSON data in its place.

    Raises:
        UnsupportedType: a type outside the set, and no `other`.
        CodecError: too deep, or larger than a message can be.
    """
    room = MAX_FRAME

    def inner(item: Any, depth: int) -> Any:
        nonlocal room
        room -= len(item) + 2 if type(item) in (str, bytes, bytearray) else 2
        if room < 0:  # before a text of a gigabyte is copied, or a set of a million numbers
            raise CodecError(f"a value that takes more than {MAX_FRAME} bytes")
        return _encode(item, depth, inner, other or _refuse)

    return inner(value, 0)


def decode(data: Any, other: Other | None = None) -> Any:
    """The value that `data` stands for, built anew. `other` gets the payload of the tag `object`.

    Raises:
        CodecError: `data` is nothing that `encode` makes.
    """
    try:
        return _decode(data, 0, other)
    except CodecError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"malformed value: {type(error).__name__}") from error


def _refuse(value: Any) -> Any:
    raise UnsupportedType(f"a value of type {type(value).__name__[:64]} cannot be carried")


def _encode(value: Any, depth: int, at_depth: Callable[[Any, int], Any], other: Other) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_PLAIN <= value <= _PLAIN else {"int": _hexadecimal(value)}
    if kind is float:
        return value if isfinite(value) else {"float": repr(value)}
    if depth >= MAX_DEPTH:
        raise CodecError(f"a value has more than {MAX_DEPTH} levels")

    def inner(item: Any) -> Any:
        return at_depth(item, depth + 1)

    if kind is list:
        return [inner(item) for item in value]
    if kind is type and value in _TYPE_NAMES:
        return {"type": _TYPE_NAMES[value]}
    found = _ENCODERS.get(kind)
    if found is not None:
        tag, parts = found
        return {tag: parts(value, inner)}
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _LIBRARY and _library_class(name) is kind:
        return {"library": [name, [inner(part) for part in _LIBRARY[name][0](value)]]}
    for base, plain in _BASES:  # a subclass goes as what it holds; the base's own methods read it
        if issubclass(kind, base):
            return at_depth(plain(value), depth)
    return other(value)


def _hexadecimal(value: int) -> str:
    if value.bit_length() > MAX_BITS:
        raise CodecError(f"an integer of {value.bit_length()} bits; at most {MAX_BITS} are carried")
    return hex(value)


def _pairs(value: dict[Any, Any], inner: Encode) -> list[Any]:
    return [[inner(key), inner(item)] for key, item in dict.items(value)]


def _items(value: Iterable[Any], inner: Encode) -> list[Any]:
    return [inner(item) for item in value]


def _taken(value: Iterator[Any], inner: Encode) -> list[Any]:
    """At most MAX_ITEMS, and whether that was all."""
    taken = [inner(item) for item in islice(value, MAX_ITEMS + 1)]
    return [taken[:MAX_ITEMS], len(taken) <= MAX_ITEMS]


def _iterator_types() -> tuple[type, ...]:
    samples: tuple[Any, ...] = (
        iter([]), iter(()), iter({}), iter(set()), iter(""), iter(range(0)), iter({}.values()), iter({}.items()),
        reversed([]), reversed({}), (None for _ in ()), map(abs, []), filter(None, []), zip(), enumerate([]),
    )  # fmt: skip
    return tuple(type(sample) for sample in samples)


_ENCODERS: dict[type, tuple[str, Callable[[Any, Encode], Any]]] = {
    tuple: ("tuple", _items),
    dict: ("dict", _pairs),
    set: ("set", _items),
    frozenset: ("frozenset", _items),
    bytes: ("bytes", lambda value, _: value.hex()),
    bytearray: ("bytearray", lambda value, _: value.hex()),
    complex: ("complex", lambda value, inner: [inner(value.real), inner(value.imag)]),
    range: ("range", lambda value, inner: [inner(value.start), inner(value.stop), inner(value.step)]),
    type({}.keys()): ("keys", _items),
    type({}.values()): ("values", _items),
    type({}.items()): ("items", lambda value, inner: [[inner(key), inner(item)] for key, item in value]),
    **dict.fromkeys(_iterator_types(), ("iterator", _taken)),
}

_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (complex, lambda value: complex(complex.__complex__(value))),
    (str, str.__str__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (bytearray, lambda value: bytearray.__getitem__(value, slice(None))),
    (tuple, lambda value: tuple.__getitem__(value, slice(None))),
    (list, lambda value: list.__getitem__(value, slice(None))),
    (dict, lambda value: dict(dict.items(value))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
)

_BUILTIN_TYPES: dict[str, type] = {name: kind for name, kind in vars(builtins).items() if type(kind) is type}
_TYPE_NAMES = {kind: name for name, kind in _BUILTIN_TYPES.items()}

_FACTORIES: dict[str | None, type | None] = {
    None: None, "int": int, "float": float, "str": str, "list": list, "dict": dict, "set": set, "tuple": tuple,
    "bool": bool,
}  # fmt: skip


def _factory_name(factory: Any) -> str | None:
    for name, known in _FACTORIES.items():
        if factory is known:
            return name
    return None


_LIBRARY: dict[str, tuple[Callable[[Any], tuple[Any, ...]], Callable[..., Any]]] = {
    # name: (the parts a value is made of, what to do with the class and the decoded parts)
    "collections.Counter": (lambda v: (dict(dict.items(v)),), lambda kind, parts: kind(_exact(parts, dict))),
    "collections.OrderedDict": (lambda v: (dict(dict.items(v)),), lambda kind, parts: kind(_exact(parts, dict))),
    "collections.defaultdict": (
        lambda v: (_factory_name(v.default_factory), dict(dict.items(v))),
        lambda kind, factory, items: kind(_FACTORIES[_exact(factory, str, type(None))], _exact(items, dict)),
    ),
    "collections.deque": (
        lambda v: (list(v), v.maxlen),
        lambda kind, items, most: kind(_exact(items, list), _exact(most, int, type(None))),
    ),
    "fractions.Fraction": (
        lambda v: (v.numerator, v.denominator),
        lambda kind, *parts: kind(*_divided(parts)),
    ),
    "decimal.Decimal": (lambda v: (str(v),), lambda kind, text: kind(_exact(text, str)[:MAX_ITEMS])),
    "datetime.date": (lambda v: (v.year, v.month, v.day), lambda kind, *parts: kind(*_integers(parts))),
    "datetime.timedelta": (lambda v: (v.days, v.seconds, v.microseconds), lambda kind, *p: kind(*_integers(p))),
    "datetime.time": (lambda v: _naive(v, v.hour, v.minute), lambda kind, *parts: kind(*_integers(parts))),
    "datetime.datetime": (
        lambda v: _naive(v, v.year, v.month, v.day, v.hour, v.minute),
        lambda kind, *parts: kind(*_integers(parts)),
    ),
}  # fmt: skip


def _naive(value: Any, *parts: int) -> tuple[int, ...]:
    if value.tzinfo is not None:
        raise UnsupportedType("a time with a time zone cannot be carried")
    return (*parts, value.second, value.microsecond)


def _library_class(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def _exact(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise CodecError(f"malformed value: {type(value).__name__} where {kinds[0].__name__} was expected")
    return value


def _integers(parts: Iterable[Any]) -> list[int]:
    return [_exact(part, int) for part in parts]


def _divided(parts: Iterable[Any]) -> list[int]:
    found = _integers(parts)
    if any(part.bit_length() > MAX_DIVIDED_BITS for part in found):
        raise CodecError(f"a fraction or a range with an integer of more than {MAX_DIVIDED_BITS} bits")
    return found


def _decode(data: Any, depth: int, other: Other | None) -> Any:
    if data is None or type(data) in (bool, int, float, str):
        return data
    if depth > MAX_DEPTH:
        raise CodecError(f"a value has more than {MAX_DEPTH} levels")

    def inner(item: Any) -> Any:
        return _decode(item, depth + 1, other)

    if type(data) is list:
        return [inner(item) for item in data]
    if type(data) is not dict or len(data) != 1:
        raise CodecError("malformed value: expected one tag")
    [(tag, payload)] = data.items()
    if tag == "object" and other is not None:
        return other(payload)
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise CodecError(f"malformed value: unknown tag {tag[:64]!r}")
    return decoder(payload, inner)


def _integer(payload: Any, _: Decode) -> int:
    if len(_exact(payload, str)) > MAX_BITS // 4 + 4:
        raise CodecError(f"an integer of more than {MAX_BITS} bits")
    return int(payload, 16)


def _float(payload: Any, _: Decode) -> float:
    if payload not in ("nan", "inf", "-inf"):
        raise CodecError("malformed float")
    return float(payload)


def _listed(payload: Any, inner: Decode) -> list[Any]:
    return [inner(item) for item in _exact(payload, list)]


def _keyed(payload: Any, inner: Decode) -> list[Any]:
    """Items that are to be hashed; refused when too many share a hash."""
    items = _listed(payload, inner)
    _require_spread(items)
    return items


def _require_spread(keys: list[Any]) -> None:
    if len(keys) > MAX_SAME_HASH:
        hashes = sorted(map(hash, keys))
        if any(one == other for one, other in zip(hashes, hashes[MAX_SAME_HASH:], strict=False)):
            raise CodecError(f"more than {MAX_SAME_HASH} keys have the same hash")


def _paired(payload: Any, inner: Decode) -> list[tuple[Any, Any]]:
    pairs = [(inner(key), inner(item)) for key, item in _exact(payload, list)]
    _require_spread([key for key, _ in pairs])
    return pairs


def _rebuilt(payload: Any, inner: Decode) -> Any:
    name, parts = _exact(payload, list)
    build = _LIBRARY[_exact(name, str)][1]
    module, _, attribute = name.rpartition(".")
    return build(getattr(import_module(module), attribute), *_listed(parts, inner))


def _iterator(payload: Any, inner: Decode) -> Iterator[Any]:
    items, complete = payload
    return _replay(_listed(items, inner), _exact(complete, bool))


def _replay(items: list[Any], complete: bool) -> Iterator[Any]:
    yield from items
    if not complete:
        raise CodecError(f"an iterator gave more than {MAX_ITEMS} items")


_DECODERS: dict[str, Callable[[Any, Decode], Any]] = {
    "int": _integer,
    "float": _float,
    "tuple": lambda payload, inner: tuple(_listed(payload, inner)),
    "dict": lambda payload, inner: dict(_paired(payload, inner)),
    "set": lambda payload, inner: set(_keyed(payload, inner)),
    "frozenset": lambda payload, inner: frozenset(_keyed(payload, inner)),
    "bytes": lambda payload, _: bytes.fromhex(_exact(payload, str)),
    "bytearray": lambda payload, _: bytearray.fromhex(_exact(payload, str)),
    "complex": lambda payload, inner: complex(*(_exact(part, float) for part in _listed(payload, inner))),
    "range": lambda payload, inner: range(*_divided(_listed(payload, inner))),
    "keys": lambda payload, inner: dict.fromkeys(_keyed(payload, inner)).keys(),
    "values": lambda payload, inner: dict(enumerate(_listed(payload, inner))).values(),
    "items": lambda payload, inner: dict(_paired(payload, inner)).items(),
    "iterator": _iterator,
    "type": lambda payload, _: _BUILTIN_TYPES[_exact(payload, str)],
    "library": _rebuilt,
}


# --- Messages ---------------------------------------------------------------------------------------------------------


def pack(message: Any, limit: int = MAX_FRAME) -> bytes:
    """A message with its length in front.

    Raises:
        CodecError: longer than `limit` bytes.
    """
    try:
        body = _to_json(message).encode("ascii")
    except RecursionError as error:
        raise CodecError("a message is nested too deeply") from error
    if len(body) > limit:
        raise CodecError(f"a message of {len(body)} bytes; at most {limit} are carried")
    return len(body).to_bytes(4, "big") + body


def unpack(body: bytes | bytearray) -> Any:
    """The message without its length.

    Raises:
        CodecError: not what `pack` makes.
    """
    try:
        message, end = _from_json(body.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise CodecError(f"malformed message: {type(error).__name__}") from error
    if end != len(body):
        raise CodecError("malformed message: more than one")
    return message


def send(fd: int, message: Any) -> None:
    """Writes a whole message to a blocking descriptor."""
    rest = memoryview(pack(message))
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int, limit: int = MAX_FRAME) -> Any:
    """The next message of a blocking descriptor.

    Raises:
        EOFError: the other side is closed.
        CodecError: malformed, or more than `limit` bytes.
    """
    size = int.from_bytes(_read(fd, 4), "big")
    if size > limit:
        raise CodecError(f"a message of {size} bytes; at most {limit} are carried")
    return unpack(_read(fd, size))


def _read(fd: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(fd, min(size - len(parts), 2**16))
        if not part:
            raise EOFError("the other side is closed")
        parts += part
    return bytes(parts)
