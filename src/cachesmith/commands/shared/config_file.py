"""`--config FILE.yaml`: a command's options in a file; and the same file written back, to repeat a command."""

from collections.abc import Iterator
from contextvars import ContextVar
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

import typer
import yaml

from cachesmith.commands.shared.spellings import OLD, renamed
from cachesmith.policies.bundle.manifest import Range

NEVER_WRITTEN = ("config", "print_config", "verbose", "quiet", "help", "token")
"""Options that say nothing about the result, and a secret."""

NULL = "tag:yaml.org,2002:null"

_used: ContextVar[str] = ContextVar("_used", default="")


def used_config() -> str:
    """Return the running command's options as YAML for `--config`; empty where no command runs."""
    return _used.get()


def keep_config(context: typer.Context) -> str:
    """Remember the options of a command, and return them as YAML."""
    values = {
        key(parameter): _plain(context.params[parameter.name])
        for parameter in context.command.params
        if parameter.name not in NEVER_WRITTEN and context.params.get(parameter.name) not in (None, [], ())
    }
    text = f"# cachesmith {context.info_name} --config THIS_FILE\n"
    text += str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000))
    _used.set(text)
    return text


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the command. Raises `typer.BadParameter`."""
    if path is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **dict(_defaults(context, path))}
    return path


def key(parameter: Any) -> str:
    """Return what an option is called in the file: its longest name, without dashes in front."""
    name: str = max(parameter.opts, key=len)
    return name.lstrip("-")


def _defaults(context: typer.Context, path: Path) -> Iterator[tuple[str, Any]]:
    known = {key(p): p for p in context.command.params if p.name not in ("config", "print_config", "help")}
    seen: set[str] = set()
    for name, node in _entries(path):
        option = renamed(f"--{name.replace('_', '-')}", [f"--{k}" for k in known]).removeprefix("--")
        if option not in known:
            raise typer.BadParameter(f"{path} has an unknown key {name!r}; {_near(option, known)}")
        if option in seen:
            raise typer.BadParameter(f"{path} gives {option!r} twice; give it once")
        seen.add(option)
        if node.tag != NULL:
            yield known[option].name, _values(path, option, node, known[option])


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise typer.BadParameter(f"{path} is no YAML: {reason}") from None
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise typer.BadParameter(f"{path} holds no options; write lines such as `num-inference-steps: 50`")
    for name, value in root.value:
        yield str(name.value), value


def _values(path: Path, option: str, node: Any, parameter: Any) -> str | list[str]:
    """Return the text of a value, as it would be typed: typer converts and checks it."""
    several = getattr(parameter, "multiple", False)
    if isinstance(node, yaml.ScalarNode):
        return [str(node.value)] if several else str(node.value)
    if (
        several
        and isinstance(node, yaml.SequenceNode)
        and all(isinstance(each, yaml.ScalarNode) for each in node.value)
    ):
        return [str(each.value) for each in node.value]
    wanted = "one value or a list of values" if several else "one value"
    raise typer.BadParameter(f"{path}: {option!r} takes {wanted}")


def _near(option: str, known: dict[str, Any]) -> str:
    old = {name.lstrip("-"): new.lstrip("-") for name, new in OLD.items() if new.lstrip("-") in known}
    near = get_close_matches(option, [*known, *old], n=1)
    return f"did you mean {old.get(near[0], near[0])!r}?" if near else f"known are: {', '.join(known)}"


def _plain(value: Any) -> Any:
    """Return a value as YAML holds it, in the spelling that the command line takes."""
    match value:
        case Enum():
            return value.value
        case list() | tuple():
            return [_plain(each) for each in value]
        case Range():
            return f"{value.min}:{value.opt}:{value.max}"
        case bool() | int() | float() | str():
            return value
    return str(value)
