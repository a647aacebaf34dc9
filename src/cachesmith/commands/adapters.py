"""`cachesmith adapters`: which transformer classes are known, and whether this diffusers still is what is known."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cachesmith.commands.options import Force, Json
from cachesmith.commands.output import note, print_json, results, say, write_text
from cachesmith.commands.shared.destination import check_file
from cachesmith.policies import CachesmithError

if TYPE_CHECKING:
    from cachesmith.runtime import Adapter


def adapters(
    check: Annotated[
        bool, typer.Option("--check", help="Call a tiny model of every class, and compare what it tells.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="X", help="With --check: write the rows that were found to this file."
        ),
    ] = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """List the transformer classes whose blocks are known, and the units that can be cached of each.

    A class that is not listed is looked at in its first call under a policy.

    With --check, a tiny random model of every class in the installed diffusers is called, its blocks are found from
    that one call, and proven: the call, repeated with its blocks replaced by what they returned, gives the same bits.
    Exits with 1 where the rows differ from those that are known, as with another release of diffusers.

    Cost: none; --check takes about two minutes of a core.

    Example: cachesmith adapters --check
    """
    if write is not None and not check:
        raise CachesmithError("--write writes what --check finds; give both")
    if write is not None:
        check_file(write, "--write", force)
    if check:
        _check(write, json)
        return
    if json:
        from cachesmith.runtime import ADAPTERS

        print_json({name: units(adapter) for name, adapter in ADAPTERS.items()})
        return
    results().print(_table())


def units(adapter: "Adapter") -> list[str]:
    """The kinds of units that can be cached."""
    modules = all(entry.modules for entry in adapter.lists)
    return ["stack", *["segment"] * (not adapter.skips), *["module"] * modules]


def _table() -> Table:
    from cachesmith.runtime import ADAPTERS

    table = Table("class", "blocks", "units", "not computed while all blocks are forecast", box=None)
    for name, adapter in ADAPTERS.items():
        lists = ", ".join(entry.path for entry in adapter.lists)
        idle = ", ".join(entry.path for entry in adapter.idle)
        table.add_row(name, lists, ", ".join(units(adapter)), idle)
    return table


def _check(write: Path | None, json: bool) -> None:
    import diffusers

    from cachesmith.runtime.models import rows
    from cachesmith.zoo import VARIANTS, ZOO
    from cachesmith.zoo.survey import survey

    found: dict[str, Adapter] = {}
    without: dict[str, str] = {}
    for finding in survey(ZOO, VARIANTS):
        if finding.adapter is None:
            without[finding.name] = finding.why
            note(f"{finding.name}: {finding.why}")
        else:
            found[finding.name] = finding.adapter
    text = rows.rows_text(found, diffusers.__version__)
    facts = {"diffusers": diffusers.__version__, "classes": [*found], "without": without}
    if write is not None:
        write_text(write, text)
        print_json(facts | {"file": str(write)}) if json else say(f"saved {write}")
    elif text != rows.ROWS.read_text(encoding="utf-8"):
        raise CachesmithError(
            f"diffusers {diffusers.__version__} is not what is known: {_differences(found)}; to see the difference, "
            "write the rows to a file with --write"
        )
    elif json:
        print_json(facts | {"as_known": True})
    else:
        say(f"{len(found)} classes are as known")


def _differences(found: "dict[str, Adapter]") -> str:
    from cachesmith.runtime import ADAPTERS
    from cachesmith.runtime.models.rows import rows_text

    plain = {name: rows_text({name: adapter}, "") for name, adapter in found.items()}
    known = {name: rows_text({name: adapter}, "") for name, adapter in ADAPTERS.items()}
    other = [name for name in sorted({*plain, *known}) if plain.get(name) != known.get(name)]
    return ", ".join(other) or "the version"
