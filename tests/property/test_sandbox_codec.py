"""The codec carries values unchanged, and nothing that comes over the wire is more than a value or a CodecError."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, OrderedDict, deque
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wmtp.sandbox._jail import codec

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**2000), max_value=2**2000)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.sampled_from([int, str, list, ValueError])
)
keys = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=5)
values = st.recursive(
    scalars | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 2, -1])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
        | st.lists(keys, max_size=4).map(Counter)
        | st.lists(inner, max_size=4).map(lambda items: deque(items, 4))
    ),
    max_leaves=12,
)
json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)
tags = st.sampled_from([*codec._DECODERS, "object", "nonsense"])
hostile = st.recursive(
    json_data | st.sampled_from([*codec._LIBRARY, "os.system", "builtins.eval", "collections.namedtuple"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(tags, inner, min_size=1, max_size=2),
    max_leaves=20,
)


def through_the_wire(value: Any) -> Any:
    return codec.decode(codec.unpack(codec.pack(codec.encode(value))[4:]))


def same(one: Any, other: Any) -> bool:
    """Equal, of one type at every level."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


@given(values)
@example(float("-0.0"))
@example(2**53 + 1)
@example("\ud800")
@example({(): frozenset({(1,)})})
def test_every_value_arrives_as_it_was_sent(value: Any) -> None:
    assert same(through_the_wire(value), value)


@given(hostile)
@example({"int": "0x" + "f" * 2**21})
@example({"library": ["os.system", ["true"]]})
@example({"library": ["decimal.Decimal", ["1e999999999999999999999"]]})
@example({"library": ["fractions.Fraction", [1, 0]]})
@example({"set": [[]]})
@example({"range": [0, 1, 0]})
@example({"bytes": "zz"})
@example({"type": "eval"})
def test_whatever_comes_is_a_value_that_can_be_sent_again_or_a_codec_error(data: Any) -> None:
    try:
        value = codec.decode(data)
    except codec.CodecError:
        return
    codec.encode(value)


@given(st.binary(max_size=64) | json_data.map(lambda data: json.dumps(data).encode()))
@example(b"[" * 100_000)
@example(b"9" * 100_000)
@example(b'"\\ud800"')
def test_any_bytes_are_a_message_or_a_codec_error(body: bytes) -> None:
    try:
        codec.unpack(body)
    except codec.CodecError:
        return


@given(st.lists(json_data, max_size=5), st.binary(max_size=3))
def test_messages_come_out_of_a_pipe_one_by_one_and_a_torn_one_does_not(messages: list[Any], rest: bytes) -> None:
    get, put = os.pipe()
    try:
        for message in messages:
            codec.send(put, message)
        os.write(put, rest)
        os.close(put)
        for message in messages:
            assert repr(codec.receive(get)) == repr(message)
        with pytest.raises(EOFError):
            codec.receive(get)
    finally:
        os.close(get)


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __int__(self) -> int:
        return 99

    def bit_length(self) -> int:
        return 0


class Listlike(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([99])

    def __getitem__(self, item: Any) -> Any:
        return [99]


def test_a_subclass_goes_as_what_it_holds_and_none_of_its_methods_is_asked() -> None:
    assert same(through_the_wire([Liar(3), Liar(2**70), Listlike([1])]), [3, 2**70, [1]])


@pytest.mark.parametrize(
    "value", [object(), lambda: 0, open, codec, Ellipsis, type("Own", (), {}), re_type := type(int)]
)
def test_what_has_no_code_is_refused_or_handed_to_the_caller(value: Any) -> None:
    if value is re_type:
        assert through_the_wire(value) is type
        return
    with pytest.raises(codec.UnsupportedType):
        codec.encode(value)
    assert codec.encode([value], lambda other: {"object": 7}) == [{"object": 7}]
    with pytest.raises(codec.CodecError):
        codec.decode([{"object": 7}])
    assert codec.decode([{"object": 7}], lambda number: number) == [7]


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def test_what_is_too_large_or_too_deep_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_FRAME", 10_000)
    cycle: list[Any] = []
    cycle.append(cycle)
    for value in (deep(codec.MAX_DEPTH + 1), cycle, 1 << codec.MAX_BITS, "x" * 10_001, [0] * 5001):
        with pytest.raises(codec.CodecError):
            codec.encode(value)
    with pytest.raises(codec.CodecError, match="levels"):
        codec.decode(deep(codec.MAX_DEPTH + 2))
    with pytest.raises(codec.CodecError, match="bytes"):
        codec.pack("x" * 10_000, limit=10_000)
    for data in ({"range": [0, 1 << codec.MAX_DIVIDED_BITS]}, {"library": ["fractions.Fraction", [1, 1 << 2**14]]}):
        with pytest.raises(codec.CodecError, match="more than 16384 bits"):
            codec.decode(data)
    same_hash = [key * (2**61 - 1) for key in range(1, codec.MAX_SAME_HASH + 2)]
    for data in ({"set": same_hash}, {"dict": [[key, 0] for key in same_hash]}, {"keys": same_hash}):
        with pytest.raises(codec.CodecError, match="hash"):
            codec.decode(json.loads(json.dumps(data)))


def test_an_endless_iterator_gives_what_is_carried_and_then_says_that_there_was_more() -> None:
    taken = through_the_wire(n for n in iter(int, 1))
    for _ in range(codec.MAX_ITEMS):
        assert next(taken) == 0
    with pytest.raises(codec.CodecError, match="more than"):
        next(taken)
