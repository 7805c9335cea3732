"""The options of `config.py` as people meet them: names, help, defaults, flags.

Flags are typer's: the command line of pydantic-settings splits what is given at commas, takes [x] for JSON and null for
nothing, ends in a traceback on a bad value, and shows no groups.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer
from pydantic import ByteSize

from fluxserve.config import EngineConfig, HostingConfig, Option, PipelineConfig, ServerConfig

PREFIX = "FLUXSERVE_"


@dataclass(frozen=True)
class Setting:
    """A field of a config as people set it. kind: its type without None; `tuple` for several texts."""

    field: str
    kind: Any
    default: Any
    option: Option

    @property
    def negated(self) -> bool:
        """A switch that is on: what people set is no_NAME."""
        return self.default is True

    @property
    def name(self) -> str:
        """What flag, variable and key of the file are called after."""
        return self.option.name or ("no_" if self.negated else "") + self.field

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def meaning(self) -> str:
        return self.option.help + (" Repeatable." if self.kind is tuple else "")

    @property
    def default_text(self) -> str:
        match self.default:
            case None | ():
                return "none"
            case bool():
                return "off"
            case int(size) if self.option.size:
                return ByteSize(size).human_readable(separator=" ").replace(".0 ", " ")
            case float(number):
                return f"{number:g}"
            case value:
                return str(value)

    @property
    def help(self) -> str:
        return f"{self.meaning} ({self.variable}, default {self.default_text})"


def settings_of(*configs: type[Any]) -> list[Setting]:
    """What can be set of configs, the members of a group together."""
    settings = [setting for config in configs for setting in _settings_of(config)]
    groups = list(dict.fromkeys(setting.option.group for setting in settings))
    return sorted(settings, key=lambda setting: groups.index(setting.option.group))


def _settings_of(config: type[Any]) -> Iterator[Setting]:
    hints = get_type_hints(config, include_extras=True)
    for each in fields(config):
        match getattr(hints[each.name], "__metadata__", ()):
            case (Option() as option,):
                yield Setting(each.name, _kind(get_args(hints[each.name])[0]), each.default, option)


def _kind(hint: Any) -> Any:
    kind = get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    return tuple if get_origin(kind) in (tuple, Sequence) else kind


# Flags

Flags = dict[str, Any]
"""What a command line says, by the options' names; None: nothing."""

LoadingFlags = Annotated[Flags, PipelineConfig]
ServeFlags = Annotated[Flags, PipelineConfig, HostingConfig, ServerConfig, EngineConfig]

_MODEL = settings_of(PipelineConfig)[0]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help=_MODEL.help)]
ModelArgument = Annotated[str | None, typer.Argument(help=_MODEL.help)]
ModelsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[MODEL]...", help=f"The first is the default. {_MODEL.help}")
]


class _Member(NamedTuple):
    """A parameter as typer reads it."""

    name: str
    annotation: Any
    default: Any


class _Group(NamedTuple):
    """Parameters that a command takes as one value."""

    make: Callable[..., Any]
    members: list[_Member]


def spread(command: Callable[..., None]) -> type[Any]:
    """A command with a parameter for each member of its groups, which are dataclasses and `Flags` of configs.

    typer reads parameters from the signature of what it calls: here that is a class whose making runs the command.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups = {parameter.name: group for parameter in parameters if (group := _group(parameter.annotation))}

    def run(given: Any) -> None:
        values = dict(vars(given))
        for name, group in groups.items():
            values[name] = group.make(**{member.name: values.pop(member.name) for member in group.members})
        command(**values)

    members = [each for p in parameters for each in (groups[p.name].members if p.name in groups else [_member(p)])]
    own = [(each.name, each.annotation, field(default=each.default)) for each in members]
    namespace = {"__doc__": command.__doc__, "__post_init__": run}
    return make_dataclass(command.__name__, own, kw_only=True, namespace=namespace)


def _member(parameter: inspect.Parameter) -> _Member:
    default = MISSING if parameter.default is parameter.empty else parameter.default
    return _Member(parameter.name, parameter.annotation, default)


def _group(annotation: Any) -> _Group | None:
    if is_dataclass(annotation) and isinstance(annotation, type):
        hints = get_type_hints(annotation, include_extras=True)
        return _Group(annotation, [_Member(each.name, hints[each.name], each.default) for each in fields(annotation)])
    base, *configs = get_args(annotation) if get_origin(annotation) is Annotated else [annotation]
    if base != Flags:
        return None
    return _Group(dict, [_flag(setting) for setting in settings_of(*configs) if setting != _MODEL])


def _flag(setting: Setting) -> _Member:
    """Ranges and forms are checked with the settings."""
    is_text = setting.option.size or setting.option.duration
    kind = str if is_text else list[str] if setting.kind is tuple else setting.kind
    told = typer.Option(setting.flag, help=setting.help, rich_help_panel=setting.option.group)
    return _Member(setting.name, Annotated[kind | None, told], None)
