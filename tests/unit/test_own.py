"""What is said of a `package.module:attribute` that cannot be had depends on what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wmtp.errors import ConfigError
from wmtp.own import made_by


@pytest.mark.parametrize(
    ("builder", "told"),
    [
        ("nowhere_at_all:Hard", "install its package, or put its folder on PYTHONPATH"),
        ("lies_here:Hard", "lies_here is in the current folder, which is not searched: put PYTHONPATH=. before"),
        ("json:Hard", "module 'json' has no attribute 'Hard'; name one of: "),
        ("on_path:Hard", "name 'undefined' is not defined; it is raised while on_path is imported: mend it"),
    ],
)
def test_a_builder_that_cannot_be_had_says_what_helps(
    builder: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lies_here.py").touch()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "on_path.py").write_text("undefined\n")
    monkeypatch.syspath_prepend(str(tmp_path / "there"))
    with pytest.raises(ConfigError) as caught:
        made_by("objective.weighting.builder", builder, {}, "scheme", [], "docs/schemes/own.md")
    assert told in str(caught.value)
