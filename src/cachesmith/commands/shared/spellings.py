"""Old names of options, which go on working for a release."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from cachesmith.commands.output import note

OLD = {"--steps": "--num-inference-steps", "--count": "--num-images"}
"""Old name -> the name diffusers' users know."""


def renamed(name: str, known: Sequence[str]) -> str:
    """Return the new name of an option, if this command has it."""
    new = OLD.get(name, name)
    return new if new in known and name not in known else name


class Command(TyperCommand):
    """A command that takes old names of its options, and says so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace old names, then parse."""
        known = [name for parameter in self.params for name in parameter.opts]
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*(_new(arg, known) for arg in args[:end]), *args[end:]])


def _new(argument: str, known: Sequence[str]) -> str:
    name, equals, value = argument.partition("=")
    new = renamed(name, known)
    if new != name:
        note(f"{name} is now {new}; the old name goes with the next release")
    return f"{new}{equals}{value}"
