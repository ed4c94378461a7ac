"""What `wmtp critic inspect` prints: lines with their figures, in colour or without, whatever a solution holds."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from wmtp import terminal_tokens
from wmtp.terminal_tokens import critic_view, lines_of, shown, token_view

TOKENS = ["def f(x):", "\n\n    ", "return", " '値'", "\n", "\tx\x1b[31m", "</s>"]


def a_variant(correct: bool) -> dict[str, Any]:
    """Token j has value j / 10, advantage (j - 3) / 10 and weight j / 2; the one after `return` is another."""
    places = range(len(TOKENS))
    return {
        "correct": correct,
        "tokens": TOKENS,
        "ends": True,
        "changed": [j == 3 for j in places],
        "value": [j / 10 for j in places],
        "advantage": [(j - 3) / 10 for j in places],
        "weight": [[j / 2 for j in places]],
    }


RESULT: dict[str, Any] = {
    "about": "Made by hand.",
    "heads": 0,
    "scheme": None,
    "problems": [{"problem": "p", "prompt": "Return \x07it.", "variants": [a_variant(True), a_variant(False)]}],
    "weights": {},
    "pairs": {"count": 1, "right": 0},
    "credit": [
        {"correct": True, "changed": True, "tokens": 1234, "value": 0.3, "advantage": -0.25, "weight": 1.5},
        {"correct": False, "changed": False, "tokens": 0, "value": None, "advantage": None, "weight": None},
    ],
}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def printed(capsys: pytest.CaptureFixture[str], by: str = "weight") -> str:
    critic_view(RESULT, by)
    return capsys.readouterr().out


@pytest.fixture
def coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a terminal that has colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@given(st.lists(st.text("ab\n", max_size=4), max_size=8))
def test_the_lines_of_a_solution_are_those_of_its_text_and_every_token_counts_once(tokens: list[str]) -> None:
    lines = lines_of(tokens)
    text = "".join(tokens)
    assert ["".join(part for _, part in pieces) for pieces, _ in lines] == text.removesuffix("\n").split(
        "\n"
    ) or not text
    counted = [place for _, own in lines for place in own]
    assert counted == sorted(set(counted))
    assert all(place in counted for place, token in enumerate(tokens) if token)


def test_a_line_shows_its_last_value_and_the_means_of_its_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    assert "  0.000 -0.300   0.00   def f(x):" in lines
    assert "  0.400 -0.050   1.25 ~     return '値'" in lines  # tokens 1 to 4
    assert "  value   adv. weight   correct, mean value 0.3000" in lines
    assert any(line.endswith("margin +0.0000, ranked wrong") for line in lines)


def test_without_colours_nothing_but_text_is_printed_and_the_mark_is_still_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = printed(capsys)
    assert "\x1b" not in out
    assert out.count(" ~ ") == 2 + 1  # a line of each solution, and what it means


def test_any_runs_solutions_have_figures_where_there_are_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    token_view(RESULT)
    lines = capsys.readouterr().out.splitlines()
    assert "  value   adv. weight   correct" in lines
    assert "  0.400 -0.050   1.25 ~     return '値'" in lines


@pytest.mark.usefixtures("coloured")
def test_colours_change_with_what_they_are_of_and_the_text_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (printed(capsys, by) for by in ("value", "advantage"))
    assert COLOUR.search(first)
    codes = [COLOUR.findall(next(line for line in out.splitlines() if "return" in line)) for out in (first, second)]
    assert codes[0] != codes[1]
    texts = [COLOUR.sub("", out) for out in (first, second)]
    assert [line for line in texts[0].splitlines() if "return" in line] == [
        line for line in texts[1].splitlines() if "return" in line
    ]


@pytest.mark.usefixtures("coloured")
def test_no_color_is_obeyed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*[34]8[;:]", printed(capsys))


def test_control_characters_of_a_solution_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert r"x\x1b[31m" in out
    token_view(RESULT)
    assert r"x\x1b[31m" in capsys.readouterr().out


@given(st.text(max_size=8))
def test_what_is_shown_can_be_printed_and_plain_text_is_as_it_was(text: str) -> None:
    assert all(c.isprintable() or c in "\n\t" for c in shown(text))
    assert shown(text) == text or not all(c.isprintable() for c in text)
    assert shown(text.replace("\n", "\r\n")) == shown(text)


def test_wide_characters_do_not_move_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    (line, _) = (line for line in printed(capsys).splitlines() if "return" in line)
    before = line[: line.index("    return")]
    assert cell_len(before) == 7 * len(terminal_tokens.COLUMNS) + 3


def test_what_changed_tokens_got_is_told_and_what_is_not_there_has_no_figure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(capsys).splitlines() if "│" in line]
    assert ["correct, changed", "1,234", "0.300", "-0.250", "1.50"] in rows
    assert ["incorrect, as in the other", "0", "-", "-", "-"] in rows
