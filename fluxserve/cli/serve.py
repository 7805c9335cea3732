"""`fluxserve serve`: its flags, made from the settings, and its exit codes. Running the server is `front.py`'s."""

from __future__ import annotations

import inspect
import os
import sys
import types
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from fluxserve.cli.settings import FILE, ServeSettings, UsageError, default_of, flag_of, read_settings, variable_of
from fluxserve.errors import FluxserveError
from fluxserve.exit_codes import exit_code

_USAGE = 2


def serve(config: Path | None, **flags: Any) -> None:
    """Answer OpenAI's image API over HTTP."""
    sys.exit(serve_with(flags, config))


def serve_with(flags: dict[str, Any], config: Path | None, worker_module: str = "fluxserve.worker") -> int:
    """Serves until a signal or a failure; returns the exit code.

    flags: by the setting's name; None and [] were not given. worker_module: what the worker process runs.
    """
    from fluxserve.cli.front import run_front

    given = {name: value for name, value in flags.items() if value not in (None, [])}
    try:
        settings = read_settings(given, config)
        if settings.content_filter:
            sys.path.insert(0, os.getcwd())
        return run_front(settings.pipeline_config(), settings.engine_config(), settings.server_config(), worker_module)
    except UsageError as error:
        print(error.message, file=sys.stderr)
        return _USAGE
    except FluxserveError as error:
        print(error.message, file=sys.stderr)
        return exit_code(error)


def _signature() -> inspect.Signature:
    """The command's parameters, one for each setting: typer reads flags from a signature."""
    parameters = [_parameter(name, field) for name, field in ServeSettings.model_fields.items()]
    file = typer.Option(help=f"The settings file; {FILE} in the working folder if it is there.")
    parameters.append(_keyword("config", Annotated[Path | None, file]))
    return inspect.Signature(parameters)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    if name == "model":
        return _keyword(name, Annotated[str | None, typer.Argument(help=_help(name, field))])
    option = typer.Option(flag_of(name), help=_help(name, field), rich_help_panel=field.title)
    return _keyword(name, Annotated[_flag_type(field), option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag_type(field: FieldInfo) -> Any:
    """What typer parses; ranges and forms are checked with the settings."""
    union = get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else (field.annotation,)
    kind = get_args(union[0])[0] if get_origin(union[0]) is Annotated else union[0]
    if get_origin(kind) is tuple:
        return list[str] | None
    return (kind if kind in (bool, int, float, Path) else str) | None


def _help(name: str, field: FieldInfo) -> str:
    return f"{field.description} ({variable_of(name)}, default {default_of(name)})"


serve.__signature__ = _signature()  # type: ignore[attr-defined]
