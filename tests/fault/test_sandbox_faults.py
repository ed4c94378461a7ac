"""The sandbox when its machinery fails or is ended: nothing is left, and no fault becomes a program's failure."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS, PIECES
from ordinary import run_as_ordinary_user
from outside import MARK, Outside, jailed

from wmtp.sandbox import FunctionTests, Job, Limits, Sandbox, SandboxError, _grade, _worker

pytestmark = [pytest.mark.fault, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]
RIGHT = "def f(x): return x + 1"
TESTS = ["answer = 2\nassert f(1) == answer"]
"""Run, in a second process: plain assertions would be data."""
SPIN = "def f(x):\n    while True: pass"
WITHOUT = [(), ("namespaces",), ("namespaces", "Landlock", "seccomp")]


def eventually(what: Callable[[], object]) -> bool:
    """Whether `what` comes true; a test that waits for it does not say how soon."""
    for _ in range(600):
        if what():
            return True
        time.sleep(0.05)
    return False


def family(root: int) -> set[int]:
    """Sandbox processes that come from `root`."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid for pid in found if alive(pid)}


def alive(pid: int) -> bool:
    try:
        return MARK in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_python(code: str, *arguments: str, python: str = sys.executable, **options: object) -> str:
    """What a script prints; it must end well and complain about nothing."""
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, timeout=100, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return str(done.stdout)


@pytest.mark.parametrize("without", WITHOUT, ids=str)
def test_a_grader_killed_in_the_middle_of_a_program_leaves_nothing_behind(without: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom wmtp.sandbox import Limits, Sandbox\n"
        f"sandbox = Sandbox(workers=1, without={without!r}, limits=Limits(cpu_s=60))\n"
        f"sandbox.run({SPIN!r}, {TESTS!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as grader:
        assert eventually(lambda: len(family(grader.pid)) >= 3), "the program never started"
        running = family(grader.pid)
        grader.kill()
    assert eventually(lambda: not any(alive(pid) for pid in running))


def test_a_grader_that_forgets_to_close_leaves_nothing_behind() -> None:
    code = (
        "import os\nfrom wmtp.sandbox import Sandbox\nsandbox = Sandbox(workers=1)\n"
        f"print(sandbox.run({RIGHT!r}, {TESTS!r}).status, os.getpid())"
    )
    before = jailed()
    assert run_python(code).split()[0] == "passed"
    assert eventually(lambda: jailed() <= before)


def test_a_zygote_killed_in_the_middle_is_replaced_and_the_program_judged_all_the_same() -> None:
    source = "def f(x):\n    for _ in range(10**6): pass\n    return 2"
    with Sandbox(workers=1) as sandbox:
        killed = threading.Timer(0.0, lambda: [os.kill(pid, signal.SIGKILL) for pid in family(os.getpid())])
        killed.start()
        verdict = sandbox.run(source, TESTS)
        killed.join()
    assert verdict.passed, verdict.reason


def test_zygotes_that_are_killed_again_and_again_give_no_label() -> None:
    with Sandbox(workers=1) as sandbox:
        stop = threading.Event()

        def kill() -> None:
            while not stop.wait(0.01):
                for pid in family(os.getpid()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            verdict = sandbox.run("def f(x):\n    for _ in range(10**7): pass\n    return 2", TESTS)
        finally:
            stop.set()
            killer.join()
        assert verdict.status == "sandbox_error"
        assert not verdict.decided
        assert sandbox.run(RIGHT, TESTS).passed


@pytest.mark.parametrize("without", WITHOUT, ids=str)
def test_when_memory_runs_out_a_program_goes_before_its_grader(without: tuple[str, ...]) -> None:
    with Sandbox(workers=1, without=without) as sandbox:
        assert "first to go when memory runs out" not in sandbox.isolation.missing
        found = {Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in family(os.getpid())}
    assert found == {"1000"}


def test_a_zygote_that_falls_silent_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "_SLACK_S", 0.5)
    monkeypatch.setattr(_worker, "_LEAVE_S", 0.5)
    monkeypatch.setattr(_grade, "_READING", Limits(wall_s=0.5))
    with Sandbox(workers=1, limits=Limits(wall_s=0.5)) as sandbox:
        for pid in family(os.getpid()):
            os.kill(pid, signal.SIGSTOP)
        assert sandbox.run(RIGHT, TESTS, Limits(wall_s=0.5)).passed


def test_a_grader_without_descriptors_gives_no_label() -> None:
    code = (
        "import os, resource\nfrom wmtp.sandbox import Sandbox\n"
        "with Sandbox(workers=1) as sandbox:\n"
        "    most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')), most[1]))\n"
        f"    print(sandbox.run({RIGHT!r}, {TESTS!r}).status)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, most)\n"
        f"    print(sandbox.run({RIGHT!r}, {TESTS!r}).status)"
    )
    assert run_python(code).split() == ["sandbox_error", "passed"]


def test_a_program_has_no_descriptor_of_a_grader_with_many() -> None:
    """However high their numbers are; the zygote's line to the grader is one of them."""
    program = (
        "import os\ndef f(most):\n    found = []\n    for fd in range(4, most):\n"
        "        try: os.fstat(fd); found.append(fd)\n        except OSError: pass\n    return found"
    )
    code = (
        "import os\nfrom wmtp.sandbox import Sandbox\n"
        "kept = [os.dup(0) for _ in range(300)]\n"
        "with Sandbox(workers=1) as sandbox:\n"
        f"    print(sandbox.run({program!r}, 'assert f(1024) == []'))"
    )
    assert "status='passed'" in run_python(code)


def nothing_new(before: dict[str, Any]) -> bool:
    """Whether the state is as before; of processes fewer will do, since other tests' orphans end in between."""
    now = state()
    return now.pop("processes") <= before["processes"] and all(now[name] == before[name] for name in now)


def state() -> dict[str, Any]:
    """What a sandbox, or a program that got out of it, could leave behind."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "limits": [resource.getrlimit(which) for which in range(16)],
        "files": sorted(path.name for path in Path(tempfile.gettempdir()).iterdir()),
        "processes": jailed(),
        "environment": os.environ.copy(),
        "threads": threading.active_count(),
        "shared memory": Path("/proc/sysvipc/shm").read_text(),
    }


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder that nobody else writes to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_after_close_no_process_descriptor_file_or_limit_is_left(own_tmp: None) -> None:
    before = state()
    with Sandbox(workers=2, scratch_bytes=2**20, limits=Limits(cpu_s=0.2)) as sandbox:
        for source in (RIGHT, SPIN, "open('left', 'w').write('x')\n" + RIGHT, "import os\nos._exit(0)"):
            sandbox.run(source, TESTS)
    assert eventually(lambda: nothing_new(before)), state()


@pytest.mark.parametrize("number", [40, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_hostile_programs_in_numbers_leave_nothing_behind(own_tmp: None, number: int) -> None:
    """And none passes, and the sandbox works as before."""
    skip_without_landlock()
    outside = Outside()
    try:
        before = state()
        attacks = random.Random(number).choices([one for one in ATTACKS if not one.script], k=number)
        jobs = (
            Job(outside.fill(attack.source), FunctionTests([attack.test], setup="pass"), id=attack)
            for attack in attacks
        )
        with Sandbox(workers=2, limits=Limits(cpu_s=0.3, asleep_s=0.3, memory_bytes=2**27)) as sandbox:
            verdicts = [(job.id, verdict) for job, verdict in sandbox.map(jobs, ordered=False)]
            assert sandbox.run(RIGHT, TESTS).passed
        assert len(verdicts) == number
        bad = [(one.name, got.status, got.reason) for one, got in verdicts if got.status not in one.statuses]  # type: ignore[union-attr]
        assert bad == []
        assert outside.changes() == {}
        assert eventually(lambda: nothing_new(before)), state()
    finally:
        outside.close()


def test_closing_ends_a_run_in_progress() -> None:
    ended: list[BaseException] = []
    sandbox = Sandbox(workers=1, limits=Limits(cpu_s=60))

    def run() -> None:
        try:
            sandbox.run(SPIN, TESTS)
        except SandboxError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert eventually(lambda: len(family(os.getpid())) >= 3)
    sandbox.close()
    thread.join()
    assert len(ended) == 1
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run(RIGHT, TESTS)


def test_a_zygote_outlives_the_thread_that_first_needed_it() -> None:
    with Sandbox(workers=1) as sandbox:
        before = family(os.getpid())
        thread = threading.Thread(target=lambda: sandbox.run(RIGHT, TESTS))
        thread.start()
        thread.join()
        assert sandbox.run(RIGHT, TESTS).passed
        assert family(os.getpid()) == before


def test_a_forked_grader_cannot_use_its_parents_sandbox_nor_end_it() -> None:
    code = (
        "import os\nfrom wmtp.sandbox import Sandbox, SandboxError\n"
        "sandbox = Sandbox(workers=1)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        f"    try: sandbox.run({RIGHT!r}, {TESTS!r})\n"
        "    except SandboxError as error: print(error, flush=True)\n"
        "    sandbox.close(); os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        f"print(sandbox.run({RIGHT!r}, {TESTS!r}).status)\nsandbox.close()"
    )
    assert run_python(code, "-W", "ignore").splitlines() == [
        "a sandbox cannot be used in a forked process; make one there",
        "passed",
    ]


LEAVES = "trace = '8c1d-trace-of-a-program'\ndef f(x): return [trace, x]"
SEARCHES = (
    PIECES["search"]
    + PIECES["memory"]
    + r"""
pattern = re.compile(r'8c1d-trace-of-a-progra[m]')
def f(x):
    found = [str(p) for v in values() for p in parts(v) if type(p) in (str, bytes) and pattern.search(str(p))]
    ends = [p for v in values() for p in parts(v) if type(p) is dict and {'status', 'cpu_s', 'killed'} <= p.keys()]
    return len(found), sum(len(re.findall(rb'8c1d-trace-of-a-progra[m]', page)) for page in pages()), len(ends)
"""
)


@pytest.mark.parametrize("without", WITHOUT, ids=str)
def test_a_program_finds_nothing_of_the_one_before_it(without: tuple[str, ...]) -> None:
    """Neither what it held, among the interpreter's objects and in the memory around them, nor how it ended; and the
    search does find what is there."""
    with Sandbox(workers=1, without=without) as sandbox:
        assert sandbox.run(LEAVES, ["assert f(1) == ['8c1d-trace-of-a-program', 1]"]).passed
        verdict = sandbox.run(SEARCHES, ["assert f(1) == (0, 0, 0), str(f(1))"])
        assert verdict.passed, verdict.reason
        own = SEARCHES + "\nkept = ['8c1d-trace-of-a-' + 'program', dict(status=0, cpu_s=0, killed=None)]"
        verdict = sandbox.run(own, ["found = f(1)\nassert min(found) > 0, str(found)"])
        assert verdict.passed, verdict.reason


def skip_without_landlock() -> None:
    with Sandbox(workers=1, without=["namespaces"]) as sandbox:
        if sandbox.isolation.level < 2:
            pytest.skip(f"this machine has no level 2: {dict(sandbox.isolation.missing)}")


PREFILTER = """
import json, os, sys
from wmtp.sandbox import Sandbox, SandboxError
from wmtp.sandbox._jail import kernel
import struct
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
def refuse(number, code):
    return [(EQUAL, 0, 1, number), (RETURN, 0, 0, 0x50000 | code)]
x86 = os.uname().machine == "x86_64"
rules = {
    "no Landlock": refuse(444, 38),
    "no namespaces": refuse(272 if x86 else 97, 1),
    "no seccomp": [
        (EQUAL, 0, 4, 157 if x86 else 167),
        (LOAD, 0, 0, 16), (EQUAL, 0, 1, 22), (RETURN, 0, 0, 0x50016), (LOAD, 0, 0, 0),
    ],
}
steps = [(LOAD, 0, 0, 0)]
for name in sys.argv[1:]:
    steps += rules[name]
steps.append((RETURN, 0, 0, 0x7FFF0000))
kernel.gain_nothing_by_exec()
kernel.Filter(b"".join(struct.pack("=HBBI", *step) for step in steps)).install()
with Sandbox(workers=1) as sandbox:
    verdict = sandbox.run("def f(x): return x + 1", ["assert f(1) == 2"])
    attack = sandbox.run("import socket\\ndef f(x): return bool(socket.socket())", ["assert f(1)"])
    strong = "starts"
    try: Sandbox(require="strong", workers=1).close()
    except SandboxError as error: strong = str(error)
    print(json.dumps([sandbox.isolation.to_dict(), verdict.status, attack.status, strong]))
"""


@pytest.mark.parametrize(
    ("lacks", "level", "reasons"),
    [
        (["no namespaces"], 2, {"namespaces": "unshare"}),
        (["no Landlock", "no namespaces"], 1, {"Landlock": "5.13"}),
        (["no Landlock", "no namespaces", "no seccomp"], 0, {"seccomp": "refuses"}),
    ],
    ids=["as in a container", "as on an old kernel", "as in a container on an old kernel"],
)
def test_a_kernel_that_lacks_something_gives_a_lower_level_and_says_so(
    lacks: list[str], level: int, reasons: dict[str, str]
) -> None:
    """The kernel's refusals are simulated by a filter on the grader, which the sandbox cannot tell from a real one."""
    skip_without_landlock()
    isolation, status, attack, strong = json.loads(run_python(PREFILTER, *lacks))
    assert (isolation["level"], status) == (level, "passed")
    assert attack != "passed" or level == 0
    for name, reason in reasons.items():
        assert reason in isolation["missing"][name]
    assert (strong == "starts") == (level >= 2)
    assert level >= 2 or all(name in strong for name in reasons)


def test_a_system_that_is_not_linux_gives_level_0_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zygote is told that it is on a Mac, so that it uses only what every POSIX system has."""
    monkeypatch.setattr(_worker, "_BOOT", "import sys; sys.platform = 'darwin'\n" + _worker._BOOT)
    short = Limits(cpu_s=0.3, wall_s=0.7)
    with Sandbox(workers=1) as sandbox:
        assert sandbox.isolation.level == 0
        for name in ("namespaces", "Landlock", "seccomp"):
            assert "only Linux has it" in sandbox.isolation.missing[name]
        assert sandbox.run(RIGHT, TESTS).passed
        assert sandbox.run(SPIN, TESTS, short).status == "timeout"
        assert sandbox.run("import time\ndef f(x): time.sleep(99)", TESTS, short).status == "timeout"
    with pytest.raises(SandboxError, match="needs isolation level 2"):
        Sandbox(require="strong", workers=1)


ORDINARY = """
import json, os, subprocess, sys
from attacks import ATTACKS, ANSWER, FORGERIES, PROCESSES, SYSTEM_CALLS
from wmtp.sandbox import FunctionTests, Job, Limits, Sandbox
victim = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(999)"])
found = {"uid": os.geteuid(), "bad": []}
for without in ((), ("namespaces",)):
    with Sandbox(require="strong", workers=1, without=without, limits=Limits(cpu_s=0.5, memory_bytes=2**28)) as sandbox:
        found[str(without)] = sandbox.isolation.level
        for attack in (FORGERIES[::3] + PROCESSES + SYSTEM_CALLS)[::EVERY]:
            source = attack.source.replace("@VICTIM@", str(victim.pid))
            verdict = sandbox.run(source, FunctionTests([attack.test], setup="pass"))
            if verdict.passed or verdict.status not in attack.statuses or victim.poll() is not None:
                found["bad"].append([attack.name, verdict.status, verdict.reason])
        if not sandbox.run("import json\\ndef f(x): return json.loads(x)", ["assert f('[1]') == [1]"]).passed:
            found["bad"].append("a right program")
victim.kill(); victim.wait()
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "every", [pytest.param(3, id="a share"), pytest.param(1, id="all", marks=pytest.mark.exhaustive)]
)
def test_an_ordinary_user_has_the_same_isolation(every: int) -> None:
    """Without root's rights, every attack that was tried is held back in the same way."""
    skip_without_landlock()
    here = Path(__file__).parent
    code = ORDINARY.replace("EVERY", str(every))
    found = run_as_ordinary_user(code, {name: (here / name).read_text() for name in ("attacks.py", "attacks.txt")})
    assert found["bad"] == []
    assert found[str(("namespaces",))] == 2


def test_a_scratch_folder_that_is_a_trap_is_emptied_all_the_same() -> None:
    """Folders nested deeper than a path or a stack reaches, closed ones, and names that are no text."""
    trap = (
        "import os\ndef f(x):\n    os.mkdir('closed', 0)\n    open(b'\\xff\\n', 'w').close()\n"
        "    for _ in range(2500):\n        os.mkdir('d'); os.chdir('d'); open('x', 'w').close()\n    return 2"
    )
    with Sandbox(workers=1, scratch_bytes=2**22) as sandbox:
        before = family(os.getpid())
        verdict = sandbox.run(trap, TESTS)
        assert verdict.passed or "No space" in verdict.reason, verdict.reason
        verdict = sandbox.run("import os\ndef f(x): return len(os.listdir('.')) + 2", TESTS)
        assert verdict.passed, verdict.reason
        assert family(os.getpid()) == before, "the zygote had to be replaced"


@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=str)
def test_programs_share_no_open_file(without: tuple[str, ...]) -> None:
    """Flags of an open file are seen by all who have it, so that one program could leave word for the next."""
    set_flags = (
        "import fcntl, os\ndef f(x):\n"
        "    for fd in (0, 1, 2): fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)\n    return 2"
    )
    see_flags = (
        "import fcntl, os\ndef f(x): return [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK for fd in (0, 1, 2)]"
    )
    with Sandbox(workers=1, without=without) as sandbox:
        assert sandbox.run(set_flags, TESTS).passed
        assert sandbox.run(see_flags, "assert f(1) == [0, 0, 0]").passed


def test_a_program_in_the_weak_mode_is_called_weakly_judged() -> None:
    with Sandbox(workers=1) as sandbox:
        verdict = sandbox.run(RIGHT, FunctionTests(["assert f(1) == 2"], in_process=True))
    assert (verdict.status, verdict.trust) == ("passed", "weak")
