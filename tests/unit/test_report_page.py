"""The page as text: what it embeds, what it admits, how large it gets. What it looks like: tests/e2e/test_page.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.report.evaluations import MAX_TOKEN_BYTES
from wmtp.report.journal import MAX_FIGURES
from wmtp.report.page import default_place, embedded_json, render, write_page
from wmtp.report.reading import MAX_CONFIG_CHARACTERS

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> ]]> & \u2028"

Json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def embedded(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def a_run(label: str = "a", points: int = 1, heads: int = 4) -> dict[str, Any]:
    names = ["step", "tokens", "loss/nll", "loss/weighted", "lr", "grad_norm", "time/tokens_per_s", "mem/peak_bytes"]
    names += [f"loss/nll_head_{k + 1}" for k in range(heads)] + [f"acc/head_{k + 1}" for k in range(heads)]
    names += [f"weight/{what}" for what in ("mean", "std", "min", "max", "ess", "entropy")]
    values = {name: [round(0.123456 * (i + 1), 6) for i in range(points)] for name in names}
    series = {"logged": points, "values": values}
    return {
        "label": label,
        "folder": f"/runs/{label}",
        "notes": [],
        "series": {"train": series, "validation": series},
        "evaluations": {"benchmarks": []},
        "tokens": None,
        "facts": None,
        "config": "seed: 0\n",
    }


@given(Json)
def test_any_data_comes_back_from_the_page_and_nothing_in_it_can_end_its_element(data: Any) -> None:
    text = embedded_json(data)
    assert json.loads(text) == data
    assert not set("<>&") & set(text)


def test_hostile_names_notes_and_configs_stay_data() -> None:
    run = a_run(HOSTILE) | {"notes": [HOSTILE], "config": HOSTILE}
    page = render([run], HOSTILE)
    assert embedded(page)["runs"][0]["label"] == HOSTILE
    assert "alert(1)</script>" not in page
    assert page.count("<script") == page.count("</script>") == 2


def test_the_page_admits_its_own_style_and_script_by_hash_and_nothing_else() -> None:
    page = render([a_run()], "0")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    for kind, tag in (("script", "script"), ("style", "style")):
        own = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'")


def test_the_page_names_no_other_place() -> None:
    page = render([a_run()], "0")
    links = set(re.findall(r"https?://[^\s'\"<>]+", page))
    assert links == {"http://www.w3.org/2000/svg"}


def test_ten_long_runs_of_eight_heads_with_token_views_stay_under_three_megabytes() -> None:
    tokens = {"heads": 8, "problems": [{"problem": "p", "variants": [], "prompt": "x" * MAX_TOKEN_BYTES}]}
    runs = [
        a_run(f"run{i}", MAX_FIGURES // 30, heads=8) | {"tokens": tokens, "config": "x" * MAX_CONFIG_CHARACTERS}
        for i in range(10)
    ]
    assert len(render(runs, "0").encode()) < 3_000_000


def test_the_same_runs_give_the_same_page() -> None:
    assert render([a_run()], "0") == render([a_run()], "0")


def test_the_page_lies_in_its_run_or_beside_its_runs(tmp_path: Path) -> None:
    assert default_place([tmp_path / "a"]) == tmp_path / "a" / "report.html"
    assert default_place([tmp_path / "a", tmp_path / "b"]) == tmp_path / "report.html"


@pytest.mark.parametrize("out", ["", "none/page.html"])
def test_a_place_that_cannot_hold_the_page_is_refused(tmp_path: Path, out: str) -> None:
    from wmtp.errors import UsageError

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"--out|does not exist"):
        write_page([tmp_path / "run"], tmp_path / out, "0")


def test_the_command_says_where_it_wrote_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from wmtp.cli import run_command

    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert run_command(["report", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["page"], said["runs"]) == (str(tmp_path / "report.html"), 1)
    assert any("metrics.jsonl" in note for note in said["notes"])
    assert embedded((tmp_path / "report.html").read_text())["runs"][0]["notes"]


def test_a_folder_that_is_no_run_ends_the_command_with_2_and_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from wmtp.cli import run_command

    assert run_command(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_making_a_page_loads_neither_torch_nor_any_other_library(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
    program = (
        "import sys; from pathlib import Path; from wmtp.report import write_page; "
        "write_page([Path(sys.argv[1])], Path(sys.argv[1]) / 'page.html', '0'); "
        "print([name for name in ('torch', 'numpy', 'pydantic', 'yaml', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
