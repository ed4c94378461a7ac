"""Whatever a program says, the grader gives a verdict, and none that it was talked into."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.sandbox import CallTests, FunctionTests, Limits, StdinTests
from wmtp.sandbox._exchange import Child, Ended, OnMessage, Outcome
from wmtp.sandbox._grade import grade
from wmtp.sandbox._jail import codec

ANSWER = 918273645
words = st.sampled_from(
    ["ready", "value", "raise", "uncarried", "passed", "outcome", "gone", "wrong", "object", "changed", "library"]
)
said = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2),
    max_leaves=8,
)


def deepest() -> Any:
    """Lists in lists, as many as can be read at all."""
    found: Any = []
    for levels in range(1, 5000):
        try:
            found = codec.unpack(b"[" * levels + b"]" * levels)
        except codec.CodecError:
            return found
    return found


class Speaks:
    """A worker whose program sends the given messages and then ends well."""

    def __init__(self, messages: list[Any]) -> None:
        self._messages = messages

    def exchange(self, children: list[Child], limits: Limits, on_message: OnMessage | None = None) -> Outcome:
        kept = []
        for message in self._messages:
            if on_message is None:
                kept.append(message)
            elif not on_message(message):
                break
        ended = Ended(0, 0.0, None, messages=kept)
        return Outcome([ended, *[Ended(0, 0.0, None) for _ in children[1:]]], 0.0)


@settings(max_examples=50)
@given(st.lists(said, max_size=3))
def test_any_words_of_a_program_are_a_failure_with_a_reason_that_can_be_printed(messages: list[Any]) -> None:
    require_failure(messages)


def test_words_as_deep_as_can_be_read_are_a_failure_like_others() -> None:
    deep = deepest()
    for last in ({"raise": [deep, deep, deep]}, {"uncarried": deep}, {"value": deep}):
        require_failure([last])
        require_failure([{"ready": {}}, last])


def require_failure(messages: list[Any]) -> None:
    for tests in (CallTests("f", [([1], ANSWER)]), FunctionTests("assert f(1)"), StdinTests([("", str(ANSWER))])):
        trial = grade(Speaks(messages), "", tests, Limits())
        assert trial.status in ("wrong", "error", "memory", "forbidden", "bad_tests")
        assert trial.reason.isprintable()
