"""Hostile programs and hostile tests: none passes, none reaches anything outside, none outlives its verdict.

Every attack is tried at every level of isolation that this machine has or that can be had by switching mechanisms
off. Where a level cannot hold an attack back, it must say so: the word for it is not among its promises, and
`require="strong"` refuses that level.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from attacks import ANSWER, ATTACKS, FORGERIES, REACHING, UNTRUSTED_TESTS, Attack
from outside import SECRET, Outside, jailed, settled

from wmtp.sandbox import FunctionTests, Limits, Sandbox, SandboxError, StdinTests
from wmtp.sandbox._start import PROMISES

pytestmark = [pytest.mark.fault, pytest.mark.skipif(sys.platform != "linux", reason="isolation is Linux's")]
LIMITS = Limits(cpu_s=0.3, asleep_s=0.5, memory_bytes=2**27, output_bytes=2**20)
LEVELS = {
    "level 3": ((), 3),
    "level 3 without Landlock": (("Landlock",), 3),
    "level 2": (("namespaces",), 2),
    "level 1": (("namespaces", "Landlock"), 1),
    "level 0": (("namespaces", "Landlock", "seccomp"), 0),
}


LOWER = ("level 2", "level 1", "level 0")


def cases() -> Iterator[Any]:
    """All attacks at the highest level, and each at one of the lower ones in turn; the rest is `exhaustive`."""
    for level in LEVELS:
        for at, attack in enumerate(ATTACKS):
            if level == "level 3 without Landlock" and attack not in REACHING:
                continue
            always = level == "level 3" or level == LOWER[at % len(LOWER)] or (level not in LOWER and at % 4 == 0)
            marks = () if always else pytest.mark.exhaustive
            yield pytest.param(level, attack, id=f"{level}-{attack.name}", marks=marks)


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    os.environ["WMTP_TEST_SECRET"] = SECRET
    world = Outside()
    yield world
    world.close()
    del os.environ["WMTP_TEST_SECRET"]


class Sandboxes:
    """One sandbox at a time, kept while tests ask for the same level."""

    def __init__(self) -> None:
        self._level, self._made = "", ExitStack()

    def at(self, level: str) -> Sandbox:
        if level != self._level:
            self._made.close()
            self._level = level
            self._sandbox = self._made.enter_context(Sandbox(workers=1, limits=LIMITS, without=LEVELS[level][0]))
        if self._sandbox.isolation.level != LEVELS[level][1]:
            pytest.skip(f"this machine has no {level}: {dict(self._sandbox.isolation.missing)}")
        return self._sandbox

    def close(self) -> None:
        self._made.close()


@pytest.fixture(scope="module")
def sandboxes(outside: Outside) -> Iterator[Sandboxes]:
    made = Sandboxes()
    yield made
    made.close()


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, sandboxes: Sandboxes) -> Sandbox:
    return sandboxes.at(request.param)


@pytest.mark.parametrize(("sandbox", "attack"), list(cases()), indirect=["sandbox"])
def test_attack(sandbox: Sandbox, attack: Attack, outside: Outside) -> None:
    """It fails in a way that is documented, changes nothing outside, and leaves no process behind.

    The tests are run: with a setup they are no plain data.
    """
    level = sandbox.isolation.level
    if level < attack.from_level:
        assert attack.promise not in PROMISES[level]
        assert not sandbox.isolation.strong
        return
    assert attack.promise is None or attack.promise in PROMISES[level]
    before = jailed()
    tests = StdinTests([("", str(ANSWER))]) if attack.script else FunctionTests([attack.test], setup="pass")
    verdict = sandbox.run(outside.fill(attack.source), tests)
    assert not verdict.passed
    assert verdict.status in attack.statuses, verdict.reason
    assert verdict.trust == "strong"
    assert verdict.reason.isprintable()
    assert len(verdict.reason) <= 400
    assert outside.changes() == {}
    assert settled(before)


@pytest.fixture(scope="module")
def kept() -> Iterator[Sandbox]:
    with Sandbox(workers=1, limits=LIMITS) as made:
        yield made


@pytest.mark.parametrize("attack", FORGERIES, ids=lambda attack: attack.name)
def test_a_forgery_gains_nothing_from_tests_that_are_data(kept: Sandbox, attack: Attack) -> None:
    """Tests that are plain assertions are compared here, by no process of theirs."""
    usual = f"assert f(1) == {ANSWER}"
    assert kept.run(f"def f(x): return {ANSWER}", usual).passed
    verdict = kept.run(attack.source, usual)
    assert not verdict.passed
    assert (verdict.decided, verdict.trust) == (True, "strong")


@pytest.mark.parametrize("sandbox", ["level 3", "level 2"], indirect=True)
@pytest.mark.parametrize("text", UNTRUSTED_TESTS.values(), ids=UNTRUSTED_TESTS)
def test_untrusted_tests(sandbox: Sandbox, text: str, outside: Outside) -> None:
    """Tests are jailed like programs, and do not pass by harming the jail."""
    verdict = sandbox.run("def f(x): return 2", [outside.fill(text)])
    assert not verdict.passed
    assert outside.changes() == {}


@pytest.mark.parametrize("sandbox", ["level 0"], indirect=True)
def test_what_a_program_started_ends_with_it_even_where_it_may_start_processes(sandbox: Sandbox) -> None:
    """However far it has moved away: children, and daemons in sessions of their own."""
    source = (
        "import os, time\ndef f(x):\n    for n in range(20):\n        if os.fork() == 0:\n"
        "            os.setsid()\n            if n % 2 == 0 or os.fork() == 0: time.sleep(999)\n"
        "            os._exit(0)\n    return 2"
    )
    before = jailed()
    verdict = sandbox.run(source, "assert f(1) == 2")
    assert verdict.passed, verdict.reason
    assert settled(before)


@pytest.mark.parametrize("sandbox", LEVELS, indirect=True)
def test_what_a_level_promises_was_tried_on_start_up(sandbox: Sandbox) -> None:
    """Each promise of a level is a small attack that was made on it, and held back."""
    isolation = sandbox.isolation
    assert all(isolation.held_back[promise] for promise in PROMISES[isolation.level])
    assert isolation.to_dict()["level"] == isolation.level


@pytest.mark.parametrize("level", ["level 1", "level 0"])
def test_strong_refuses_a_weak_level_and_says_what_is_missing(level: str) -> None:
    """Never silently less than was asked for."""
    before = jailed()
    with pytest.raises(SandboxError, match=r"needs isolation level 2.*namespaces: .*Landlock: "):
        Sandbox(require="strong", without=LEVELS[level][0])
    assert settled(before)


@pytest.mark.parametrize("sandbox", LEVELS, indirect=True)
def test_a_right_program_passes_at_every_level(sandbox: Sandbox) -> None:
    """What holds attacks back does not hold back the rest."""
    verdict = sandbox.run("import statistics\ndef f(x): return statistics.mean([x, 3])", ["assert f(1) == 2"])
    assert verdict.passed, verdict.reason
