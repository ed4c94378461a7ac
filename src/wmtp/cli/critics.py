"""`wmtp critic`: what a critic sees."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from wmtp.cli.shared import AsJson, RemoteCode, quiet_libraries
from wmtp.errors import UsageError

app = typer.Typer(help="A critic: inspect.", no_args_is_help=True)


@app.command()
def inspect(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run: of a critic, or weighted by one.")],
    weighting: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Of a critic's run: options of the weighting, e.g. lam=0"),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Problems to show, each with a correct and an incorrect solution.")
    ] = 4,
    by: Annotated[str, typer.Option(help="What colours the tokens: value, advantage or weight.")] = "weight",
    remote_code: RemoteCode = None,
    as_json: AsJson = False,
) -> None:
    """Held-out solutions as a critic sees them.

    Value, advantage and weight of every line; tokens coloured by one of them. Writes RUN/eval/tokens.json.

    Example: wmtp critic inspect wmtp-quickstart/critic --rows 2 --by advantage
    """
    from wmtp.terminal_tokens import COLUMNS

    if by not in COLUMNS:
        raise UsageError(f"--by must be one of {', '.join(COLUMNS)}, got {by!r}")
    quiet_libraries()
    from wmtp.formats import code
    from wmtp.inspection import inspect_run
    from wmtp.storage import place

    with code.remote_code(*remote_code or ()):
        result, path = inspect_run(place(run), rows, weighting or (), needs_critic=True)
    if as_json:
        typer.echo(json.dumps(result))
        return
    from wmtp.terminal_tokens import critic_view

    critic_view(result, by)
    typer.echo(f"wrote {path}")
