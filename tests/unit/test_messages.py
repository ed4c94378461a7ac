"""Every message of an error says what is wrong in one tone, and one that the user can act on says how.

The messages are read from the source: each call of an error class of ours, with `{}` where a value is put in.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from wmtp import errors
from wmtp.cli import run_command
from wmtp.sandbox import SandboxError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "wmtp"
PAGE = ROOT / "docs" / "howto" / "errors.md"

OURS = {name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, errors.WmtpError)}
OURS |= {"SandboxError": SandboxError}
INPUT = {name for name, one in OURS.items() if issubclass(one, errors.UsageError)} | {
    "BadRow",  # a row of a data file; becomes a DataError with its place
    "Refused",  # a config file or override; becomes a line of a ConfigError
    "ArgumentTypeError",  # an option of a benchmark
}
"""What is raised where the user can mend the cause."""
OF_FILE = {
    "config.py": {"ValueError"},  # becomes a line of a ConfigError
    "study/settings.py": {"ValueError"},
    "config_files/parsing.py": {"_refuse", "_refuse_at"},  # raise Refused
}
"""What is raised there in one file only."""
PLACE_OF_TEXT = {"Refused": 1, "_refuse": 1, "_refuse_at": 1}
"""Which argument is the message, where it is not the first."""
PASSED_ON = {
    ("checkpoint/agreement.py", "reason"),  # what another rank raised
    ("config_files/parsing.py", "text"),
    ("config_files/parsing.py", "problem"),
    ("config_files/parsing.py", "message"),
    ("data/columns.py", "remedy"),  # of whoever opens the folder
    ("data/index.py", "remedy"),
    ("loss_backends.py", "why_not"),  # of `refusal`
    ("parts.py", "reason"),
    ("storage/lease.py", "taken"),  # of whoever takes the lease
    ("study/settings.py", "problem"),  # of the arm's config
}
"""Values that are a sentence of somebody else's, who says the way out."""

CLASSES = {"type(base).__name__", "type(decoder).__name__", "type(layer).__name__", "type(self.base).__name__"}
"""Of models, which have the names that users know them by."""
CLASSES |= {"type(made).__name__"}  # the user's own
NAMES = {"MBPP", "MBPP's", "MLflow", "Medusa's", "Meta's", "MiMo's", "Refactory's"}
"""Words that begin with a capital wherever they stand."""
EXPECTATION = r"\b(expected|must|needs?|needed|at least|at most|one of|only|known are|there is|not valid (JSON|YAML))\b"
VERBS = (
    "add ask change choose close convert copy count download free give install keep label leave lower make map mend "
    "move name put quote raise remove rename resume run save score set split spell start take train try unpack unset "
    "use wait write"
)
ADVICE = rf"(^|[;:,.(\n] |[\n(]|\b(or|and|not|to) )({'|'.join(VERBS.split())})\b"
WAY_OUT = re.compile(f"{EXPECTATION}|{ADVICE}|`wmtp |pip install|(^|[ `])--[a-z]", re.IGNORECASE)
"""What is expected, an imperative after a pause, a command or an option."""
OUT_OF_TONE = re.compile(r"\b(please|sorry|oops|invalid|illegal|fatal|unfortunately|NoneType)\b|n't\b|!( |$)", re.I)


@dataclass(frozen=True)
class Message:
    """One message in the source; `text` has `{}` for every value, `values` is the code of these."""

    file: str
    line: int
    error: str
    text: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.error}: {self.text}"

    @property
    def of_input(self) -> bool:
        """Whether the user can mend the cause."""
        return self.error in INPUT or self.error in OF_FILE.get(self.file, ())

    @property
    def is_passed_on(self) -> bool:
        """Whether what it says is worded, and looked at, somewhere else."""
        return any((self.file, value) in PASSED_ON for value in self.values) or not re.search("[a-z]", self.text)


Text = tuple[str, tuple[str, ...]]
"""A message and the code of the values in it."""


def texts_of(node: ast.expr, constants: Mapping[str, str]) -> list[Text]:
    """The texts that an expression may give."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [(node.value, ())]
    if isinstance(node, ast.Name) and node.id in constants:
        return [(constants[node.id], ())]
    if isinstance(node, ast.IfExp):
        return [*texts_of(node.body, constants), *texts_of(node.orelse, constants)]
    if isinstance(node, ast.FormattedValue):
        return texts_of(node.value, constants)
    if isinstance(node, ast.JoinedStr):
        return joined(node.values, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return joined([node.left, node.right], constants)
    return [("{}", (ast.unparse(node),))]


def joined(parts: list[ast.expr], constants: Mapping[str, str]) -> list[Text]:
    """All that the parts give one after another."""
    each = product(*(texts_of(part, constants) for part in parts))
    return [("".join(text for text, _ in one), tuple(value for _, values in one for value in values)) for one in each]


def constants_of(tree: ast.Module) -> dict[str, str]:
    """The texts that have a name in a module."""
    named = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    return {
        target.id: node.value.value
        for node in named
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def messages_of(file: Path) -> Iterator[Message]:
    """Those of one file."""
    name, tree = file.relative_to(SOURCE).as_posix(), ast.parse(file.read_text())
    wanted, constants = OURS.keys() | INPUT | OF_FILE.get(name, set()), constants_of(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in wanted:
            for text, values in texts_of(node.args[PLACE_OF_TEXT.get(called, 0)], constants):
                yield Message(name, node.lineno, called, text, values)


@cache
def messages() -> tuple[Message, ...]:
    """All of them."""
    return tuple(message for file in sorted(SOURCE.rglob("*.py")) for message in messages_of(file))


def listed(found: list[Message]) -> str:
    return "\n" + "\n".join(map(str, found))


def test_there_are_messages_to_look_at() -> None:
    assert len(messages()) > 400
    assert {message.error for message in messages()} >= {"ConfigError", "BadRow", "Refused", "ValueError", "_refuse"}


def test_a_message_has_words_of_its_own() -> None:
    """A bare variable says nothing; what a function has worded does."""
    bare = [m for m in messages() if m.text == "{}" and m.values[0].isidentifier() and not m.is_passed_on]
    assert not bare, listed(bare)


def test_a_message_begins_small_and_ends_without_a_full_stop() -> None:
    capital = [m for m in messages() if re.match("[A-Z]([a-z]|\\b)", m.text) and m.text.split()[0] not in NAMES]
    ended = [m for m in messages() if m.text.endswith((".", "!"))]
    assert not capital + ended, listed(capital + ended)


def test_a_message_is_plain_and_sober() -> None:
    found = [message for message in messages() if OUT_OF_TONE.search(message.text)]
    assert not found, listed(found)


def test_a_message_about_input_does_not_name_a_python_type() -> None:
    """`got dict` is our language; classes of models have names that users know."""
    found = [
        message
        for message in messages()
        if message.of_input and any("__name__" in value and value not in CLASSES for value in message.values)
    ]
    assert not found, listed(found)


def test_a_message_about_input_says_the_way_out() -> None:
    """What is expected, or what to do: a value, an option, a command."""
    found = [m for m in messages() if m.of_input and not m.is_passed_on and not WAY_OUT.search(m.text)]
    assert not found, listed(found)


# The page


def quoted() -> list[tuple[str | None, str]]:
    """Command, if there is one, and message of every block of the page that shows an error."""
    found = []
    for block in re.findall(r"(?m)(?:^ {4}.*\n)+", PAGE.read_text()):
        lines = [line[4:] for line in block.splitlines()]
        command = lines.pop(0).removeprefix("$ wmtp ") if lines[0].startswith("$ ") else None
        found.append((command, "\n".join(lines).removeprefix("wmtp: ")))
    return found


COMMANDS = [(command, message) for command, message in quoted() if command is not None]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page assumes it: the recipes, a run, and rows of which one has no field that we know."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "response": "r"}\n{"prompt": "p", "answer": "r"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "message"), COMMANDS, ids=str)
def test_a_command_of_the_page_prints_what_the_page_says_and_writes_nothing(
    workplace: Path, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(workplace.rglob("*"))
    assert run_command(command.split()) == 2
    assert capsys.readouterr().err.replace(str(workplace), "/home/me") == f"wmtp: {message}\n"
    assert sorted(workplace.rglob("*")) == before


def test_the_other_messages_of_the_page_are_in_the_source() -> None:
    """Those that need a full machine, or another one."""
    patterns = [re.compile(".+".join(map(re.escape, message.text.split("{}"))), re.DOTALL) for message in messages()]
    others = [message for command, message in quoted() if command is None]
    assert len(others) + len(COMMANDS) == 10
    assert [message for message in others if not any(pattern.fullmatch(message) for pattern in patterns)] == []
