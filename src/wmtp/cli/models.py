"""Commands that use a model: export, generate, eval."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from wmtp.cli.shared import AsJson, RemoteCode, finite, quiet_libraries
from wmtp.errors import UsageError


def export(
    model: Annotated[str, typer.Option(help="A checkpoint, a run folder (its newest checkpoint), or a model folder.")],
    out: Annotated[str, typer.Option(help="Folder to write; a model that is there is replaced.")],
    to: Annotated[
        str,
        typer.Option(help="wmtp, hf (heads dropped), head:K, meta, vllm-medusa, vllm-mimo, sglang-mimo or adapter."),
    ] = "wmtp",
    remote_code: RemoteCode = None,
    as_json: AsJson = False,
) -> None:
    """One model folder from a checkpoint, for us or for others.

    Of any number of ranks; read back and compared after writing.

    Example: wmtp export --model runs/first/checkpoints/step_00000100 --to hf --out models/first
    """
    quiet_libraries()
    from wmtp.export import export as write
    from wmtp.formats import code

    with code.remote_code(*remote_code or ()):
        folder = write(model, out, to, lambda text: typer.echo(text, err=True))
    typer.echo(json.dumps({"folder": str(folder)}) if as_json else f"wrote {folder}")


def generate(
    model: Annotated[str, typer.Option(help="A model folder, RUN/final for one, or a hub id.")],
    prompt: Annotated[str | None, typer.Option(help="The text to continue; - reads it from stdin.")] = None,
    data: Annotated[
        str | None, typer.Option(help='JSON Lines with a "prompt" or "messages" each, instead of --prompt.')
    ] = None,
    mode: Annotated[
        str, typer.Option(help="speculative: heads draft, head 1 verifies; plain: head 1.")
    ] = "speculative",
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens after each prompt.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this probability.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the likeliest tokens.")] = None,
    min_p: Annotated[float, typer.Option(help="Draw from tokens of this share of the likeliest one's.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Around each prompt; default data.template of the model's run.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Each prompt is what a user says, in the tokenizer's chat template.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    remote_code: RemoteCode = None,
    as_json: AsJson = False,
) -> None:
    """Continue prompts.

    Prompts are put into the template of the model's run, or with --chat into the tokenizer's chat template. Text on
    stdout; what was used, and figures of the drafts, on stderr.

    Example: wmtp generate --model runs/first/final --prompt "Write a function that adds two numbers."
    """
    from wmtp.completion import Prompt, as_document, complete, read_prompts, said, sampling_of
    from wmtp.decoding import Continuation, Generation
    from wmtp.formats import code
    from wmtp.storage import place
    from wmtp.terminal import decoding_figures

    if (prompt is None) == (data is None):
        raise UsageError("give exactly one of --prompt TEXT (or - for stdin) and --data FILE")
    if chat and template is not None:
        raise UsageError("--chat takes the tokenizer's chat template, --template another one; give one of them")
    quiet_libraries()
    given = sys.stdin.read() if prompt == "-" else prompt
    prompts = read_prompts(place(str(data))) if given is None else [Prompt(given)]
    with code.remote_code(*remote_code or ()):
        completions = complete(
            model,
            [one if one.messages else said(one.text) for one in prompts] if chat else prompts,
            max_new_tokens=max_new_tokens,
            mode=mode,
            sampling=sampling_of(temperature, top_p, top_k, min_p),
            seed=seed,
            stop=stop or [],
            template=template,
            device=device,
            tell=lambda text: None if as_json else typer.echo(text, err=True),
        )
    if as_json:
        typer.echo(json.dumps(finite(as_document(list(completions)))))
        return
    rows: list[Continuation] = []
    for completion in completions:
        typer.echo(completion.text)
        rows += completion.generation.rows
    typer.echo(decoding_figures(Generation(tuple(rows))), err=True)


def evaluate(
    model: Annotated[str | None, typer.Option(help="A model folder or hub id.")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="What --data must be: humaneval, humaneval_plus, mbpp, mbpp_plus, codecontests, records; or "
            "embedded, which needs no --data."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="The benchmark's file, as its authors publish it.")] = None,
    samples: Annotated[
        str | None, typer.Option("--from", help="Score this samples.jsonl, whoever made it, instead of a model.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="heads, perplexity or speed, on the records of --data, instead of a benchmark.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the results; default RUN/eval for RUN/final.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Samples per problem; default the largest k.")] = None,
    k: Annotated[str, typer.Option("--k", help="Of pass@k, comma-separated.")] = "1",
    temperature: Annotated[
        str | None, typer.Option(help="Comma-separated; default 0 (greedy) for one sample, 0.8 for several.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this probability.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    mode: Annotated[str, typer.Option(help="speculative or plain: the same distribution.")] = "speculative",
    prompt: Annotated[
        str,
        typer.Option(help="benchmark: the paper's; run: that of the model's run; auto: run if there is one."),
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="Of MBPP: test (default), validation, train, prompt, all.")] = None,
    require: Annotated[str, typer.Option(help="Isolation of programs: strong, best or none.")] = "best",
    partial: Annotated[bool, typer.Option("--partial", help="Score only problems that have samples.")] = False,
    batches: Annotated[str, typer.Option(help="Of --suite speed, comma-separated.")] = "1,4",
    lengths: Annotated[str, typer.Option(help="Prompt tokens of --suite speed, comma-separated.")] = "32,128",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    remote_code: RemoteCode = None,
    as_json: AsJson = False,
) -> None:
    """pass@k by running what a model writes, in a sandbox.

    Or, with --suite, what its heads know and how fast it decodes.

    Example: wmtp eval --model wmtp-quickstart/baseline/final --benchmark embedded
    """
    from wmtp.evaluation import command
    from wmtp.evaluation.tables import evaluation_table
    from wmtp.formats import code
    from wmtp.progress import Latest

    quiet_libraries()
    options = command.Options(
        model=model, benchmark=benchmark, data=data, samples=samples, suite=suite, out=out, n=n, k=k,
        temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed, mode=mode, prompt=prompt,
        split=split, require=require, partial=partial, batches=batches, lengths=lengths, device=device,
    )  # fmt: skip
    with code.remote_code(*remote_code or ()), Latest(quiet=as_json) as report:
        result, path = command.run(options, report)
    if as_json:
        typer.echo(json.dumps(finite(result)))
    else:
        evaluation_table(suite, result, path)
