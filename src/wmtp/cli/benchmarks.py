"""`wmtp bench`: one command for each benchmark."""

from __future__ import annotations

import typer

from wmtp.bench import BENCHMARKS

app = typer.Typer(help="Measure time and memory beside peers.", no_args_is_help=True)


def _add_benchmark(name: str, about: str) -> None:
    """`wmtp bench NAME`: every option, --help too, is the benchmark's own."""
    own_options = {"allow_extra_args": True, "ignore_unknown_options": True}

    @app.command(name, help=about, add_help_option=False, context_settings=own_options)
    def command(context: typer.Context) -> None:
        from wmtp.bench import run

        raise typer.Exit(run(name, context.args))


for _name, _about in BENCHMARKS.items():
    _add_benchmark(_name, _about)
