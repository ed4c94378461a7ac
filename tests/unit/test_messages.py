"""Every message of an error says what is wrong in one tone, and one that the user can mend says how.

The messages are read from the source: each call of an error class of ours, with `{}` where a value is put in.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from wmtp import errors
from wmtp.cli import run_command

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "wmtp"
PAGE = ROOT / "docs" / "howto" / "errors.md"

OURS = {name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, errors.WmtpError)}
INPUT = {name for name, one in OURS.items() if issubclass(one, errors.UsageError)} | {
    "BadRow",  # a row of a data file; becomes a DataError with its place
    "Refused",  # a config file or override; becomes a line of a ConfigError
    "ArgumentTypeError",  # an option of a benchmark
}
"""What is raised where the user can mend the cause."""
VALIDATORS = {"config.py", "study/settings.py"}
"""Where a ValueError becomes a line of a ConfigError."""
PLACE_OF_TEXT = {"Refused": 1}
"""Which argument is the message, where it is not the first."""

PASSED_ON = {
    ("checkpoint/agreement.py", "reason"),  # what another rank raised
    ("loss_backends.py", "why_not"),  # `refusal` words it
    ("storage/lease.py", "taken"),  # the caller's
    ("config_files/parsing.py", "text"),  # the parser's own methods word it
    ("config_files/parsing.py", "problem"),
    ("config_files/parsing.py", "message"),
}
NAMES = {"MBPP's", "MLflow", "Meta's", "Medusa's", "MiMo's", "Refactory's", "vLLM's", "MBPP"}
"""Words that begin with a capital wherever they stand."""
WAY_OUT = re.compile(
    r"\b(expected|must|needs?|needed|give|set|name|use|write|choose|leave|remove|make|made|run|raise|lower|install|start|"
    r"put|mend|map|score|keep|save|rename|ask|wait|free|resume|try|copy|convert|redistribute|train|unpack|label|add|"
    r"take|download|export|call|at least|at most|known are|there are|there is:|one of|only|instead|from \{\} to|close|"
    r"needs no|either|differ|count)\b|pip install|--[a-z]|`wmtp "
)
OUT_OF_TONE = re.compile(r"\b(please|sorry|oops|invalid|illegal|fatal|unfortunately|cannot be null)\b|n't\b|!|\bNoneType\b", re.I)


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


def texts_of(node: ast.expr) -> list[tuple[str, tuple[str, ...]]]:
    """The texts that an expression may give, each with the code of the values in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [(node.value, ())]
    if isinstance(node, ast.IfExp):
        return [*texts_of(node.body), *texts_of(node.orelse)]
    parts: list[ast.expr] = []
    if isinstance(node, ast.JoinedStr):
        parts = node.values
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [node.left, node.right]
    elif isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.IfExp):
        return texts_of(node.value)
    else:
        value = node.value if isinstance(node, ast.FormattedValue) else node
        return [("{}", (ast.unparse(value),))]
    found: list[tuple[str, tuple[str, ...]]] = [("", ())]
    for part in parts:
        found = [(text + more, (*values, *others)) for text, values in found for more, others in texts_of(part)]
    return found


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call that makes an error of ours, by the error's name."""
    name = file.relative_to(SOURCE).as_posix()
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in OURS or called in INPUT or called == "SandboxError" or (called == "ValueError" and name in VALIDATORS):
            yield called, node


@cache
def messages() -> tuple[Message, ...]:
    """All of them."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        for error, call in calls(file):
            argument = call.args[PLACE_OF_TEXT.get(error, 0)]
            found += [Message(name, call.lineno, error, *one) for one in texts_of(argument)]
    return tuple(found)


def wrong(*found: Message) -> str:
    return "\n".join(map(str, found))


def test_there_are_messages_to_look_at() -> None:
    assert len(messages()) > 400
    assert {message.error for message in messages()} >= {"ConfigError", "BadRow", "Refused", "ValueError"}


def test_a_message_has_words_of_its_own() -> None:
    """A bare variable says nothing; a function that words the message, or a constant, does."""
    bare = [
        message
        for message in messages()
        if message.text.strip("{}") == ""
        and re.fullmatch(r"[a-z_]+", message.values[0])
        and (message.file, message.values[0]) not in PASSED_ON
    ]
    assert not bare, wrong(*bare)


def test_a_message_begins_small_and_ends_without_a_full_stop() -> None:
    found = [
        message
        for message in messages()
        if (message.text[:1].isupper() and message.text.split()[0] not in NAMES) or message.text.rstrip().endswith((".", "!"))
    ]
    assert not found, wrong(*found)


def test_a_message_is_plain_and_sober() -> None:
    found = [message for message in messages() if OUT_OF_TONE.search(message.text)]
    assert not found, wrong(*found)


def test_a_message_about_input_does_not_name_a_python_type() -> None:
    """`got dict` is our language; classes of models have names that users know."""
    found = [
        message
        for message in messages()
        if message.error in (INPUT | {"ValueError"}) - {"ModelError"}
        and any("__name__" in value or value.startswith("type(") for value in message.values)
    ]
    assert not found, wrong(*found)


def test_a_message_about_input_says_the_way_out() -> None:
    """What is expected, or what to do: a value, an option, a command."""
    found = [
        message
        for message in messages()
        if message.error in INPUT | {"ValueError"} and message.text.strip("{}") and not WAY_OUT.search(message.text)
    ]
    assert not found, wrong(*found)


# The page


def quoted() -> list[tuple[str | None, str]]:
    """Command, if there is one, and message of every block of the page that shows an error."""
    blocks = re.findall(r"(?m)(?:^ {4}.*\n)+", PAGE.read_text())
    found = []
    for block in blocks:
        lines = [line[4:] for line in block.splitlines()]
        command = lines.pop(0).removeprefix("$ wmtp ") if lines[0].startswith("$ ") else None
        if lines and lines[0].startswith("wmtp: "):
            found.append((command, "\n".join(lines).removeprefix("wmtp: ")))
    return found


COMMANDS = [(command, message) for command, message in quoted() if command is not None]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page assumes it: the recipes, a run, and rows of which one lacks its response."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "response": "r"}\n{"prompt": "p", "answer": "r"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "message"), COMMANDS)
def test_a_command_of_the_page_prints_what_the_page_says(
    workplace: Path, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command.split()) == 2
    assert capsys.readouterr().err == f"wmtp: {message}\n"
    assert sorted(path.name for path in workplace.iterdir()) == ["recipes", "rows.jsonl", "runs"]


def test_the_other_messages_of_the_page_are_in_the_source() -> None:
    """Those that need a full disk or another machine."""
    patterns = [re.compile(".+".join(map(re.escape, message.text.split("{}"))), re.S) for message in messages()]
    others = [message for command, message in quoted() if command is None]
    assert len(others) + len(COMMANDS) == 10
    unknown = [message for message in others if not any(pattern.fullmatch(message) for pattern in patterns)]
    assert not unknown, unknown
