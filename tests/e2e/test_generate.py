"""`wmtp generate`: prompts in, text and figures out; what is wrong is said and ends with 2."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wmtp.formats.native import load_model, save_model
from wmtp.testing import tiny_model, tiny_tokenizer

Command = Callable[..., tuple[int, str, str]]
SHORT = ("--max-new-tokens", 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer()
    return save_model(tiny_model("llama", 3, vocab_size=len(tokenizer)), folder, tokenizer)


def test_the_text_goes_to_stdout_and_the_figures_to_stderr(model: Path, wmtp_command: Command) -> None:
    code, out, err = wmtp_command("generate", "--model", model, "--prompt", "def f", *SHORT)
    assert code == 0, err
    tokenizer, tokens = tiny_tokenizer(), tiny_tokenizer()("def f\n")["input_ids"]
    from wmtp import generate

    (expected,) = generate(load_model(str(model)), [tokens], 8, "plain").tokens
    assert out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"
    assert "8 tokens in " in err
    assert "tokens per forward; drafts accepted: " in err


def test_both_modes_and_stdin_give_the_same_text(
    model: Path, wmtp_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = set()
    for mode, prompt in (("plain", "def f"), ("speculative", "def f"), ("speculative", "-")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("def f"))
        code, out, err = wmtp_command("generate", "--model", model, "--prompt", prompt, "--mode", mode, *SHORT)
        assert code == 0, err
        texts.add(out)
    assert len(texts) == 1


def test_a_file_of_prompts_gives_one_completion_each_in_order(
    model: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    file = tmp_path / "prompts.jsonl"
    prompts = ["return", "x", "def g(x):"]
    file.write_text("\n".join(json.dumps({"prompt": p, "tests": ["assert x"]}) for p in prompts) + "\n\n")
    options = ("--json", "--temperature", 0.8, "--top-p", 0.9, "--top-k", 50, "--min-p", 0.01, "--seed", 3, *SHORT)
    code, out, err = wmtp_command("generate", "--model", model, "--data", file, *options)
    assert code == 0, err
    document = json.loads(out)
    assert [c["prompt"] for c in document["completions"]] == prompts
    assert all(set(c) == {"prompt", "text", "tokens", "forwards", "finish"} for c in document["completions"])
    assert set(document) == {"completions", "tokens_per_forward", "drafted", "accepted", "acceptance"}
    assert len(document["drafted"]) == len(document["acceptance"]) == 2
    assert json.loads(wmtp_command("generate", "--model", model, "--data", file, *options)[1]) == document


def test_a_stop_string_is_not_printed(model: Path, wmtp_command: Command) -> None:
    _, whole, _ = wmtp_command("generate", "--model", model, "--prompt", "def f", "--max-new-tokens", 30)
    stop = next(c for c in whole[3:] if c.isascii() and c.isprintable())
    code, out, err = wmtp_command("generate", "--model", model, "--prompt", "def f", "--stop", stop, "--json")
    assert code == 0, err
    (completion,) = json.loads(out)["completions"]
    assert completion["finish"] == "stop"
    assert completion["text"] == whole[: whole.index(stop)]


def test_a_braces_template_goes_around_the_prompt(model: Path, wmtp_command: Command) -> None:
    plain = wmtp_command("generate", "--model", model, "--prompt", "a b", "--template", "{prompt}", *SHORT)
    split = wmtp_command("generate", "--model", model, "--prompt", "b", "--template", "a {prompt}", *SHORT)
    assert plain[:2] == split[:2]
    assert plain[0] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--prompt", "x", "--model", "nowhere/at/all"], "no model folder at nowhere/at/all"),
        ([], "give exactly one of --prompt TEXT (or - for stdin) and --data FILE"),
        (["--prompt", "x", "--data", "f.jsonl"], "give exactly one of"),
        (["--data", "f.jsonl"], "cannot read prompts from"),
        (["--prompt", "x" * 100], "prompt 0 has 101 tokens, the model's context is 64"),
        (["--prompt", "x", "--mode", "fast"], "mode must be one of speculative, plain"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature must be at least 0"),
        (["--prompt", "x", "--top-p", "0.5"], "do nothing at temperature 0"),
        (["--prompt", "x", "--temperature", "1", "--top-p", "2"], "top_p must be above 0 and at most 1"),
        (["--prompt", "x", "--stop", ""], "a stop string must have at least one character"),
        (["--prompt", "x", "--template", "{text}"], "only {prompt} may stand in braces"),
        (["--prompt", "x", "--device", "abacus"], "abacus"),
        (["--prompt", "", "--template", "{prompt}"], "prompt 0 has no token"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: list[str], says: str, model: Path, tmp_path: Path, wmtp_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = options if "--model" in options else ["--model", str(model), *options]
    code, out, err = wmtp_command("generate", *given)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_a_model_without_a_tokenizer_is_refused(model: Path, tmp_path: Path, wmtp_command: Command) -> None:
    folder = save_model(load_model(str(model)), tmp_path / "mute")
    code, _, err = wmtp_command("generate", "--model", folder, "--prompt", "x")
    assert code == 2
    assert "cannot load a tokenizer from" in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", ":1: not JSON"),
        ('{"prompt": "x"}\n["x"]', ':2: expected an object with a text "prompt", got ["x"]'),
        ('{"text": "x"}', ':1: expected an object with a text "prompt"'),
        ("\n", "has no line with a prompt"),
    ],
)
def test_a_bad_file_of_prompts_is_named_with_its_line(
    content: str, says: str, model: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    code, _, err = wmtp_command("generate", "--model", model, "--data", file)
    assert code == 2
    assert says in err
