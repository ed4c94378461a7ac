"""The documentation is whole: generated pages say what the code says, links lead somewhere, the site builds."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from wmtp.cli import app
from wmtp.config import Config, load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
SITE = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_contents(nav: Any) -> Iterator[str]:
    for one in nav:
        if isinstance(one, str):
            yield one
        else:
            for inside in one.values():
                yield from in_contents(inside)


def test_the_reference_is_what_the_code_says_now(reference: ModuleType) -> None:
    """If this fails: python scripts/make_reference.py."""
    for name, text in reference.pages().items():
        assert (DOCS / "reference" / name).read_text() == text, name


def test_every_key_of_a_config_has_its_row_and_its_text(reference: ModuleType) -> None:
    page = reference.config_page()
    config = load([ROOT / "recipes" / "baseline_embedded_cpu.yaml"])
    for name, value in config.model_dump().items():
        assert f"| `{name}` |" in page
        if isinstance(value, dict):
            assert all(f"| `{inside}` |" in page for inside in value), name
    assert reference._texts()["TrainConfig"]["watchdog_s"].startswith("End the process, with all stacks")
    assert set(reference._texts()["Config"]) == set(Config.model_fields)


def test_every_command_has_a_section_and_an_example_that_its_parser_takes(reference: ModuleType) -> None:
    commands = list(reference._commands(["wmtp"], get_command(app)))
    page = reference.commands_page()
    for path, command in commands:
        assert f"## {' '.join(path)}\n" in page
        if path[1] == "bench":
            continue
        example = " ".join((command.help or "").partition("Example: ")[2].split())
        assert example.startswith(" ".join(path)), f"{' '.join(path)} has no example"
        words = re.findall(r'"[^"]*"|\S+', example)[len(path) :]
        command.make_context(path[-1], [word.strip('"') for word in words])


COMMAND = re.compile(r"^ *(?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?(wmtp .*)$", re.MULTILINE)
GUIDES = [ROOT / "README.md", ROOT / "README.ko.md", *(DOCS / page for page in PAGES if page != "log.md")]


def commands_of(page: Path) -> Iterator[list[str]]:
    """The commands that stand on lines of their own; one with brackets or a variable is a notation and left out."""
    for line in COMMAND.findall(page.read_text()):
        command = re.split(r"\s+#|\s{3,}| > ", line)[0]
        if not re.search(r"[\[$\\]", command):
            yield shlex.split(command)


def test_every_command_in_the_guides_is_one_that_the_parser_takes() -> None:
    found = [(page.name, words) for page in GUIDES for words in commands_of(page)]
    assert len(found) > 90
    for page, words in found:
        command, used = get_command(app), 1
        while hasattr(command, "commands"):
            assert words[used] in command.commands, f"{page}: {' '.join(words)}"
            command, used = command.commands[words[used]], used + 1
        command.make_context(" ".join(words[:used]), words[used:])


def test_every_page_is_in_the_contents_or_is_a_decision_that_has_its_row() -> None:
    listed = list(in_contents(SITE["nav"]))
    assert [page for page in listed if page not in PAGES] == []
    decisions = (DOCS / "reference" / "decisions.md").read_text()
    missing = [page for page in PAGES if page not in listed and f"../{page}" not in decisions]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_docs_leads_to_a_file_in_them(page: str) -> None:
    for target in LINK.findall((DOCS / page).read_text()):
        place = target.partition("#")[0]
        if "://" in target or not place:
            continue
        there = (DOCS / page).parent / place
        assert there.is_file(), f"{page} links to {target}"
        assert there.resolve().is_relative_to(DOCS), f"{page} links out of docs/: {target}"


TESTS = re.compile(r"`?((?:tests/)?[\w/]*test_\w+\.py|tests/[\w./*]+)?(?:::(test_\w+))?")


def named_tests(page: Path) -> Iterator[tuple[str, str]]:
    """The files of tests that a page names, and the functions; `::test_more` goes on with the file before it."""
    file = ""
    for given, name in TESTS.findall(page.read_text()):
        file = given.rstrip(".") or file
        if given or name:
            yield file, name


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    for file, name in named_tests(page):
        found = list(ROOT.glob(file)) if file.startswith("tests/") else list((ROOT / "tests").glob(f"*/{file}"))
        assert found, f"{page.name} names {file}"
        assert not name or any(f"def {name}(" in one.read_text() for one in found), f"{page.name} names {file}::{name}"


@pytest.mark.skipif(shutil.which("zensical") is None, reason="zensical (wmtp[docs]) is not installed")
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    done = subprocess.run(["zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    built = list((tmp_path / "build" / "site").rglob("*.html"))
    assert len(built) >= len(PAGES)
    for path in built:
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', path.read_text())
        assert [url for url in loaded if "canonical" not in url] == [], path


def test_the_korean_readme_has_no_command_that_the_english_one_has_not() -> None:
    def commands(name: str) -> list[str]:
        lines = (ROOT / name).read_text().splitlines()
        return [line.partition(" #")[0].strip() for line in lines if re.match(r" {4}(\.venv/bin|python3) ?", line)]

    korean = commands("README.ko.md")
    assert len(korean) > 10
    assert [command for command in korean if command not in commands("README.md")] == []


def test_every_file_that_the_korean_readme_links_to_is_there() -> None:
    targets = [target.partition("#")[0] for target in LINK.findall((ROOT / "README.ko.md").read_text())]
    assert [target for target in targets if not (ROOT / target).exists()] == []
