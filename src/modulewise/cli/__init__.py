"""What a person types: one command a word, such as `modulewise compare` or `modulewise plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from ..errors import ModulewiseError
from .benching import app as bench_app
from .comparing import compare, show
from .inspecting import inspect
from .labelling import labels
from .looking import methods, parts
from .planning import plan
from .recipes import app as recipe_app
from .scoring import score
from .storing import app as store_app
from .storing import check
from .training import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="modulewise",
    help="Train deep networks without end-to-end backpropagation, and see it beside backpropagation.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(compare)
app.command()(train)
app.command()(parts)
app.command()(methods)
app.command()(plan)
app.command()(inspect)
app.command()(check)
app.command()(labels)
app.command(name="report")(show)
app.add_typer(recipe_app)
app.add_typer(store_app)
app.command()(score)
app.add_typer(bench_app)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False,
) -> None:
    if version:
        typer.echo(f"modulewise {metadata.version('modulewise')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the value is the exit code.

    Args:
        arguments: words after the program's name; those of the process where left out.

    Returns:
        0; 2 for bad input, said in one line on standard error; 130 after Ctrl-C.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=list(sys.argv[1:] if arguments is None else arguments), prog_name="modulewise", standalone_mode=False
        )
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except ModulewiseError as error:
        return _refused(str(error))
    except Exception as error:
        # Usage errors: their class lives in click or, in later versions, inside typer; both say it with this method.
        if not hasattr(error, "format_message"):
            raise
        return _refused(error.format_message())
    return code if isinstance(code, int) else 0


def _refused(message: str) -> int:
    print(f"modulewise: {' '.join(message.split())}", file=sys.stderr)
    return 2
