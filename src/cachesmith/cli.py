"""The command `cachesmith`."""

from collections.abc import Callable
from typing import Annotated

import typer

from cachesmith import __version__
from cachesmith.commands.bench import bench
from cachesmith.commands.calibrate import calibrate
from cachesmith.commands.convert import convert
from cachesmith.commands.edit import edit
from cachesmith.commands.export import export
from cachesmith.commands.failure import guarded
from cachesmith.commands.fit import fit
from cachesmith.commands.inspect import inspect
from cachesmith.commands.run import run
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


EXAMPLES: dict[Callable[..., None], str] = {
    calibrate: "cachesmith calibrate examples/fashion_dit/model --prompts prompts.txt --speedup 4 --speedup 6 "
    "--out fashion.policy.safetensors",
    export: "cachesmith export examples/fashion_dit/model --policy fashion.policy.safetensors --out bundle",
    run: "cachesmith run examples/fashion_dit/model --policy fashion.policy.safetensors --class-label 8 --count 4 "
    "--out bags.png",
    inspect: "cachesmith inspect fashion.policy.safetensors",
    validate: "cachesmith validate examples/fashion_dit/model --policy fashion.policy.safetensors "
    "--prompts prompts.txt --min-psnr 30",
    bench: "cachesmith bench examples/fashion_dit/model --policy fashion.policy.safetensors --prompts prompts.txt "
    "--against taylorseer:interval=5,order=2 --against rfc:tau=0.3",
    fit: "cachesmith fit examples/fashion_dit/model --method hyca --prompts prompts.txt --set interval=6 "
    "--out hyca.policy.safetensors",
    edit: "cachesmith edit fashion.policy.safetensors --mismatch size=error --out strict.policy.safetensors",
    convert: "cachesmith convert fashion.policy.safetensors --to cache-dit --profile fast --order 1 --out cache.yaml",
}
"""Every command, in the order of a first session, with an example for its help."""


def _paragraphs(text: str | None) -> str:
    """Join the lines of each paragraph: typer would keep the docstring's line breaks."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


for command, example in EXAMPLES.items():
    app.command(help=_paragraphs(command.__doc__), epilog=f"[bold]Example[/bold]\n\n{example}")(
        guarded(command)
    )


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
    app()
