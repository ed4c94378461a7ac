"""`wmtp generate`: prompts in, text and figures out; what is wrong is said and ends with 2."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wmtp.config import dump, load
from wmtp.data.records import Record
from wmtp.data.text import render
from wmtp.formats.hf import load_tokenizer
from wmtp.formats.native import load_model, save_model
from wmtp.testing import tiny_model, tiny_tokenizer

Command = Callable[..., tuple[int, str, str]]
SHORT = ("--max-new-tokens", 8)
RECIPE = Path(__file__).parent / "small_recipe.yaml"


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
    assert all(set(c) == {"prompt", "asked", "text", "tokens", "forwards", "finish"} for c in document["completions"])
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


CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The final model of a run with a template of its own; its tokenizer has a chat template."""
    run = tmp_path_factory.mktemp("runs") / "chat"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    save_model(load_model(str(model)), run / "final", tokenizer)
    (run / "config.yaml").write_text(dump(load([RECIPE], [r'data.template="Q: {prompt}\nA: "'])))
    (run / "provenance.json").write_text("{}")
    return run / "final"


def asked(command: Command, *arguments: object) -> list[str]:
    """The prompts as the model read them."""
    code, out, err = command("generate", *arguments, "--json", *SHORT)
    assert (code, err) == (0, "")
    return [one["asked"] for one in json.loads(out)["completions"]]


def test_a_prompt_is_put_into_the_template_of_the_models_run_unless_another_is_given(
    model: Path, chat_model: Path, wmtp_command: Command
) -> None:
    given = ("--template", "<{prompt}>")
    assert asked(wmtp_command, "--model", chat_model, "--prompt", "x") == ["Q: x\nA: "]
    assert asked(wmtp_command, "--model", chat_model, "--prompt", "x", *given) == ["<x>"]
    assert asked(wmtp_command, "--model", model, "--prompt", "x") == ["x\n"]


def test_conversations_and_chat_are_rendered_by_the_tokenizers_chat_template_as_training_renders_them(
    chat_model: Path, tmp_path: Path, wmtp_command: Command
) -> None:
    talk = [{"role": "user", "content": "Add."}]
    record = Record(problem_id="p", prompt="Add.", response="a + b", messages=tuple(talk))
    trained, _ = render(record, load_tokenizer(str(chat_model)), "{prompt}")
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "Add."}) + "\n" + json.dumps({"messages": talk, "prompt": "other"}))
    assert trained == "<user> Add.\n<assistant> "
    assert asked(wmtp_command, "--model", chat_model, "--prompt", "Add.", "--chat") == [trained]
    assert asked(wmtp_command, "--model", chat_model, "--data", file) == ["Q: Add.\nA: ", trained]
    assert asked(wmtp_command, "--model", chat_model, "--data", file, "--chat") == [trained, trained]


def test_what_prompts_are_put_into_is_said_on_stderr(chat_model: Path, wmtp_command: Command) -> None:
    _, _, plain = wmtp_command("generate", "--model", chat_model, "--prompt", "x", *SHORT)
    _, _, chat = wmtp_command("generate", "--model", chat_model, "--prompt", "x", "--chat", *SHORT)
    assert plain.startswith(r"prompts are put into 'Q: {prompt}\nA: ', as in the model's run; --chat takes ")
    assert chat.startswith("conversations are put into the tokenizer's chat template\n")


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
        (["--prompt", "x", "--chat"], "has no chat template for conversations: leave out --chat"),
        (["--prompt", "x", "--chat", "--template", "{prompt}"], "give one of them"),
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
        ('{"prompt": "x"}\n["x"]', ':2: expected an object with a text "prompt", or with "messages", got ["x"]'),
        ('{"messages": "x"}', ":1: field 'messages' must be a list of objects with role and content texts"),
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
