"""The command `cachesmith`."""

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from cachesmith import __version__
from cachesmith.commands.adapters import adapters
from cachesmith.commands.bench import bench
from cachesmith.commands.calibrate import calibrate
from cachesmith.commands.convert import convert
from cachesmith.commands.edit import edit
from cachesmith.commands.export import export
from cachesmith.commands.fit import fit
from cachesmith.commands.inspect import inspect
from cachesmith.commands.push import push
from cachesmith.commands.run import run
from cachesmith.commands.shared.register import add_command
from cachesmith.commands.validate import validate

app = typer.Typer(
    name="cachesmith",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a Diffusion Transformer sample several times faster, without retraining.\n\n"
    "[bold]calibrate[/bold] measures a model once and writes a policy file; [bold]run[/bold] samples with it; "
    "[bold]inspect[/bold] shows what is in it; [bold]validate[/bold] and [bold]bench[/bold] check what it gains "
    "and costs. MODEL is always a local diffusers pipeline folder or a Hugging Face hub id.",
)

for command in (
    calibrate,
    export,
    run,
    inspect,
    validate,
    bench,
    fit,
    edit,
    convert,
    push,
    adapters,
):  # in the order of a first session
    add_command(app, command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cachesmith {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # of letters that the terminal's encoding lacks
    app()
