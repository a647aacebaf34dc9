"""Put a command into the program: its help from its docstring, the options that all have, errors as sentences."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from cachesmith.commands.failure import told
from cachesmith.commands.shared.config_file import keep_config, read_config
from cachesmith.commands.shared.groups import flat
from cachesmith.commands.shared.spellings import Command
from cachesmith.progress import quietly

PANEL = "General"


@dataclass(frozen=True)
class General:
    """Options of every command."""

    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.yaml",
            callback=read_config,
            is_eager=True,
            rich_help_panel=PANEL,
            help="Options from a file, such as `num-inference-steps: 50`; the command line wins.",
        ),
    ] = None
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config", rich_help_panel=PANEL, help="Print all options as such a file, and stop."
        ),
    ] = False
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", rich_help_panel=PANEL, help="Tracebacks, and warnings of libraries."),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=PANEL, help="No progress and no notes.")
    ] = False


def add_command(app: typer.Typer, command: Callable[..., None]) -> None:
    """Add a command. Of its docstring, the paragraph `Example: ...` is shown apart."""
    text, example = _parts(command.__doc__ or "")
    app.command(cls=Command, help=text, epilog=f"[bold]Example[/bold]\n\n{example}")(complete(command))


def complete(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the options that all have; its errors become one sentence each."""
    function = flat(command)

    def call(context: typer.Context, general: General, **values: Any) -> None:
        with told(general.verbose), quietly(general.quiet):
            _check_finite(context)
            text = keep_config(context)
            typer.echo(text, nl=False) if general.print_config else function(**values)

    own = signature(call)
    parameters = [
        p.replace(kind=Parameter.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "values"
    ]
    call.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[parameters[0], *signature(function).parameters.values(), parameters[1]]
    )
    call.__name__ = command.__name__
    return flat(call)


def _parts(docstring: str) -> tuple[str, str]:
    """Return help and example. Lines of a paragraph are joined: typer would keep their breaks."""
    paragraphs = [" ".join(part.split()) for part in docstring.split("\n\n")]
    examples = [p.removeprefix("Example: ") for p in paragraphs if p.startswith("Example: ")]
    rest = [_with_heading(p) for p in paragraphs if not p.startswith("Example: ")]
    return "\n\n".join(rest), "\n\n".join(examples)


def _with_heading(paragraph: str) -> str:
    cost = "Cost: "
    return f"[bold]Cost[/bold]: {paragraph.removeprefix(cost)}" if paragraph.startswith(cost) else paragraph


def _check_finite(context: typer.Context) -> None:
    """Infinity and NaN are numbers to a parser, and lie between any bounds; no option means anything by them."""
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, float) and not math.isfinite(each):
                raise typer.BadParameter(
                    f"{each} is not a finite number", ctx=context, param_hint=max(parameter.opts, key=len)
                )
